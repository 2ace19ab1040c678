"""Accounts: the costs of a network before and after a rewrite, as data.

Counts are of one forward pass on the example input. A multiply-accumulate is counted once (MACs, not FLOPs). Nodes are
called like the module that they belong to (`passes.graph.labels`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

RecombinationKind = Literal["folded", "slice", "concatenation", "padded", "gather"]
RECOMBINATION_KINDS: tuple[RecombinationKind, ...] = ("folded", "slice", "concatenation", "padded", "gather")


@dataclass(frozen=True)
class Cost:
    """The size of a network: parameters, MACs, output channels of contractions, bytes of activations written."""

    parameters: int
    macs: int
    channels: int
    activation_bytes: int


@dataclass(frozen=True)
class Recombination:
    """Channels rearranged between a value and a reader, from those that it has to those that the reader requests.

    `bytes_moved` counts reads and writes; 0 for a slice, which copies nothing, and for "folded". That is one of two:
    a weight keeps only the columns that fit, without a call; or a parameter that is read as a value is rearranged, in
    each forward pass or once by `passes.fold_constants`, and its bytes are not counted.
    """

    value: str
    reader: str
    kind: RecombinationKind
    channels_have: int
    channels_want: int
    bytes_moved: int


@dataclass(frozen=True)
class Kept:
    """Dead channels that stay at a node, why, and the MACs that they cost.

    `channels` is 0 where the results are all live and only dead inputs cost MACs.
    """

    node: str
    reason: str
    channels: int
    macs: int


ConstantPlace = Literal["bias", "merged", "shift", "gate", "stays"]


@dataclass(frozen=True)
class Constant:
    """Channels of one tensor that are constant, not zero, as one reader sees them; or constants times a gate.

    `place` says where they went: into the reader's bias, into one channel for all of them (merged), into a shift beside
    a sum, into a product on 1 x 1 maps (gate); or that they stay, with the reason.
    """

    tensor: str
    reader: str
    channels: int
    place: ConstantPlace
    reason: str = ""


@dataclass(frozen=True)
class Layer:
    """One contraction (convolution, linear layer, matrix product) before and after; `macs` also at the limit.

    `inputs` counts the elements that one output element sums, `outputs` the output channels.
    """

    node: str
    operator: str
    inputs: tuple[int, int]
    outputs: tuple[int, int]
    macs: tuple[int, int, int]


AS_IT_IS = "the network as it is"
"""The name of the alternative that removes nothing."""


@dataclass(frozen=True)
class Alternative:
    """One way to write the small network, by the predicted seconds of a forward pass; `copies` counts recombinations
    that are calls."""

    name: str
    seconds: float
    copies: int


@dataclass(frozen=True)
class Family:
    """A family of tensors whose channels are coupled by sums, named for the first sum.

    `sets` counts the different sets of live channels among the operands, and `runs` those that are one run of the
    family's order. `fixed` says why the channels keep their natural order (None: they are ordered freely). Of the
    operands, `in_place` have the layout of the sum, `as_zeros` have it with dead channels, and `copied` are recombined.
    """

    name: str
    channels: int
    sums: int
    sets: int
    runs: int
    fixed: str | None = None
    in_place: int = 0
    as_zeros: int = 0
    copied: int = 0


@dataclass(frozen=True)
class NotCounted:
    """A call whose multiply-accumulates are in no figure: no rule knows its operator, and torch has no formula."""

    node: str
    operator: str


@dataclass(frozen=True)
class Opaque:
    """A place through which nothing is known to pass: behind it no channel counts as zero, before it all as needed.

    `operator` is that of a call without a rule, or says what kind of code it is.
    """

    node: str
    operator: str


@dataclass(frozen=True)
class Accounts:
    """The accounts of one rewrite: costs before, after and at the limit, and what explains the difference."""

    before: Cost
    after: Cost
    limit: Cost
    layers: tuple[Layer, ...] = ()
    recombinations: tuple[Recombination, ...] = ()
    kept: tuple[Kept, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    families: tuple[Family, ...] = ()
    not_counted: tuple[NotCounted, ...] = ()
    constants: tuple[Constant, ...] = ()
    opaque: tuple[Opaque, ...] = ()
