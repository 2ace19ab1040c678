"""The operators that random networks are made of, a file for each theme. Importing them registers them.

In goes a network while it is drawn, out comes the network with one more operator.

    layers         layers, point-wise operators and sums
    movement       channels that change place: split, joined, padded, shuffled
    contraction    grouped convolutions, computed weights and gates
    attention      tokens and attention
    mixing         norms and reductions, vectors and sequences
    writing        writes in place, several scales, and operators without a rule
"""

from __future__ import annotations

from l1rr_fx.testing.draft import OPERATORS as OPERATORS

from l1rr_fx.testing.operators import layers as layers  # isort: skip
from l1rr_fx.testing.operators import movement as movement  # isort: skip
from l1rr_fx.testing.operators import contraction as contraction  # isort: skip
from l1rr_fx.testing.operators import attention as attention  # isort: skip
from l1rr_fx.testing.operators import mixing as mixing  # isort: skip
from l1rr_fx.testing.operators import writing as writing  # isort: skip
