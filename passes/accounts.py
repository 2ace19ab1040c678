"""What a rewrite cost and saved, as data.

Counts are of one forward pass on the example input. A multiply-accumulate is counted once (MACs, not FLOPs).
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
    """Channels rearranged between a value and a reader; `bytes_moved` counts reads and writes (0 if folded)."""

    value: str
    reader: str
    kind: RecombinationKind
    channels_have: int
    channels_want: int
    bytes_moved: int


@dataclass(frozen=True)
class Kept:
    """Dead channels that stay, why, and the MACs that they cost; `channels` may be 0 where only copies are paid."""

    node: str
    reason: str
    channels: int
    macs: int


@dataclass(frozen=True)
class Layer:
    """One contraction (convolution, linear, matrix product): its widths and MACs before, after and at the limit."""

    node: str
    operator: str
    inputs: tuple[int, int]
    outputs: tuple[int, int]
    macs: tuple[int, int, int]


@dataclass(frozen=True)
class Family:
    """Tensors that share their channels because they meet in sums, named for the first sum.

    `sets` counts the different sets of live channels among the operands, `runs` how many of them are one run of the
    family's order; `fixed` says why the channels keep their natural order, where they do. Of the operands, some are
    taken `in_place`, some compute what they lack `as_zeros`, the rest is `copied`.
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
class Accounts:
    """The whole bill of one rewrite: costs before, after and at the limit, and what explains the difference."""

    before: Cost
    after: Cost
    limit: Cost
    layers: tuple[Layer, ...] = ()
    recombinations: tuple[Recombination, ...] = ()
    kept: tuple[Kept, ...] = ()
    seconds: Mapping[str, float] = field(default_factory=dict)
    families: tuple[Family, ...] = ()
