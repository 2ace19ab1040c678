"""The operators that random networks are made of, by theme; importing them registers them."""

from __future__ import annotations

from l1rr_fx.testing.draft import OPERATORS as OPERATORS

from l1rr_fx.testing.operators import layers as layers  # isort: skip
from l1rr_fx.testing.operators import movement as movement  # isort: skip
from l1rr_fx.testing.operators import contraction as contraction  # isort: skip
from l1rr_fx.testing.operators import attention as attention  # isort: skip
from l1rr_fx.testing.operators import mixing as mixing  # isort: skip
from l1rr_fx.testing.operators import writing as writing  # isort: skip
