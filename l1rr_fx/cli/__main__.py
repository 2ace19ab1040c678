"""`python -m l1rr_fx.cli` is `l1rr-fx`."""

from l1rr_fx.cli import main

main()
