"""`python -m l1rr_fx` is the command `l1rr-fx`."""

from __future__ import annotations

from l1rr_fx.cli import main

main()
