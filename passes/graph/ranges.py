"""Ranges: what is known of the elements of a tensor, label by label, as closed intervals.

The lattice has four kinds of entries: zero, [0, 0]; a constant, [c, c]; an interval; and the whole line where nothing
is known. What is known holds for every input of the network, in training and in evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.fx import Node


@dataclass(frozen=True, eq=False)
class Range:
    """Bounds of every element of a label: float64 tensors in the compact shape of a tensor (`passes.graph.layout`)."""

    low: Tensor
    high: Tensor

    @staticmethod
    def constant(values: Tensor, known: Tensor | None = None) -> Range:
        """The range of labels with these values; where `known` is False nothing is known."""
        values = values.detach().to("cpu", torch.float64)
        known = values.isfinite() if known is None else known & values.isfinite()
        if bool(known.all()):
            return Range(values, values)
        return Range(values.masked_fill(~known, -math.inf), values.masked_fill(~known, math.inf))

    @staticmethod
    def between(shape: Sequence[int], low: float, high: float) -> Range:
        """The same interval for all labels of a compact shape."""
        return Range(
            *(torch.full((1,) * len(shape), end, dtype=torch.float64).expand(tuple(shape)) for end in (low, high))
        )

    @staticmethod
    def unknown(shape: Sequence[int]) -> Range:
        """The whole line for all labels of a compact shape."""
        return Range.between(shape, -math.inf, math.inf)

    @cached_property
    def is_constant(self) -> Tensor:
        """Which labels have one value for every input: bool."""
        return (self.low == self.high) & self.low.isfinite()

    @cached_property
    def has_constants(self) -> bool:
        """Whether a label has one value for every input."""
        return bool(self.is_constant.any())

    @property
    def is_zero(self) -> Tensor:
        """Which labels are zero for every input: bool."""
        return (self.low == 0) & (self.high == 0)

    @property
    def excludes_zero(self) -> Tensor:
        """Which labels are not zero for any input: bool."""
        return (self.low > 0) | (self.high < 0)

    @cached_property
    def is_bounded(self) -> Tensor:
        """Of which labels anything is known: bool."""
        return (self.low != -math.inf) | (self.high != math.inf)

    @cached_property
    def says_nothing(self) -> bool:
        """Whether nothing is known of any label."""
        return not bool(self.is_bounded.any())

    def expand(self, shape: Sequence[int]) -> Range:
        """The same intervals in a larger compact shape."""
        return Range(self.low.expand(tuple(shape)), self.high.expand(tuple(shape)))

    def reshape(self, shape: Sequence[int]) -> Range:
        return Range(self.low.reshape(tuple(shape)), self.high.reshape(tuple(shape)))

    def fitted(self, shape: Sequence[int]) -> Range:
        """The intervals in another compact shape of at least the same rank: where it has no labels, the hull."""
        low, high = (end.reshape((1,) * (len(shape) - end.dim()) + tuple(end.shape)) for end in (self.low, self.high))
        for axis, size in enumerate(shape):
            if size == 1 and low.shape[axis] != 1:
                low, high = low.amin(axis, keepdim=True), high.amax(axis, keepdim=True)
        return Range(low, high).expand(shape)

    @staticmethod
    def with_zeros(known: Range | None, zero: Tensor) -> Range | None:
        """What is known of a tensor with these zeros, of which `known` need not say them."""
        if not bool(zero.any()):
            return known
        return (known or Range.unknown(zero.shape)).met(zero)

    def joined(self, other: Range) -> Range:
        """The hull of both."""
        return Range(torch.minimum(self.low, other.low), torch.maximum(self.high, other.high))

    def met(self, zero: Tensor) -> Range:
        """The same, with [0, 0] where `zero` is True."""
        return Range(self.low.masked_fill(zero, 0.0), self.high.masked_fill(zero, 0.0))


class Ranges(Mapping[Node, Range]):
    """What is known of the elements of each tensor; of one of which zeros alone are known it is made when it is asked.

    Most tensors of a network with dead channels are of that kind, and few of their ranges are ever read.
    """

    def __init__(self, zero: Mapping[Node, Tensor]) -> None:
        self.zero = zero
        self.beyond: dict[Node, Range] = {}
        """What is known beyond zeros, with the zeros."""
        self._made: dict[Node, Range | None] = {}

    def find(self, node: Node) -> Range | None:
        if (known := self.beyond.get(node)) is not None or node not in self.zero:
            return known
        if node not in self._made:
            mask = self.zero[node]
            self._made[node] = Range.unknown(mask.shape).met(mask) if bool(mask.any()) else None
        return self._made[node]

    def put(self, node: Node, bound: Range | None, mask: Tensor) -> None:
        """Remember the range of a tensor whose zeros are `mask`, as far as it says more than these."""
        self.beyond.pop(node, None), self._made.pop(node, None)
        if bound is None:
            return
        if bool(mask.any()):
            bound = bound.met(mask)
            if not bool((bound.is_bounded & ~mask).any()):
                return
        elif bound.says_nothing:
            return
        self.beyond[node] = bound

    def __getitem__(self, node: Node) -> Range:
        if (found := self.find(node)) is None:
            raise KeyError(node)
        return found

    def __iter__(self) -> Iterator[Node]:
        return (node for node in self.zero if self.find(node) is not None)

    def __len__(self) -> int:
        return sum(1 for _ in self)
