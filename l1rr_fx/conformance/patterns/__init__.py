"""The patterns, a file for each theme; importing them registers them."""

from __future__ import annotations

from l1rr_fx.conformance.cases import PATTERNS as PATTERNS

from l1rr_fx.conformance.patterns import residual as residual  # isort: skip
from l1rr_fx.conformance.patterns import movement as movement  # isort: skip
from l1rr_fx.conformance.patterns import reordering as reordering  # isort: skip
from l1rr_fx.conformance.patterns import grouped as grouped  # isort: skip
from l1rr_fx.conformance.patterns import gates as gates  # isort: skip
from l1rr_fx.conformance.patterns import attention as attention  # isort: skip
from l1rr_fx.conformance.patterns import statistics as statistics  # isort: skip
from l1rr_fx.conformance.patterns import networks as networks  # isort: skip
