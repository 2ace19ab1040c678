"""The patterns: small named networks with inputs, a file for each theme. Importing them registers them.

residual      chains, point-wise functions and sums of branches
movement      channels that are split, joined, or read as something else
reordering    channels shuffled, turned around, picked or padded
grouped       groups of channels, weights that are computed or constant, other dimensions
gates         products of branches: gates over channels and over space
attention     products of activations, tokens and windows
statistics    operators that read all channels
recurrent     recurrent layers and cells
networks      inputs and outputs, heads, and whole small networks
parts         the layers that patterns are put together from
"""

from __future__ import annotations

from l1rr_fx.conformance.cases import PATTERNS as PATTERNS

from l1rr_fx.conformance.patterns import residual as residual  # isort: skip
from l1rr_fx.conformance.patterns import movement as movement  # isort: skip
from l1rr_fx.conformance.patterns import reordering as reordering  # isort: skip
from l1rr_fx.conformance.patterns import grouped as grouped  # isort: skip
from l1rr_fx.conformance.patterns import gates as gates  # isort: skip
from l1rr_fx.conformance.patterns import attention as attention  # isort: skip
from l1rr_fx.conformance.patterns import statistics as statistics  # isort: skip
from l1rr_fx.conformance.patterns import recurrent as recurrent  # isort: skip
from l1rr_fx.conformance.patterns import networks as networks  # isort: skip
