"""What may be chosen by name."""

from __future__ import annotations

from typing import Literal

Mode = Literal["recombine", "union", "exclude"]
"""How residual branches meet: see `passes.Options`."""
