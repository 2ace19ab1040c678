"""Ranges: what is known of the elements of a tensor, label by label, as closed intervals.

The lattice has four kinds of entries: zero, [0, 0]; a constant, [c, c]; an interval; and the whole line where nothing
is known. What is known holds for every input of the network, in training and in evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


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

    @property
    def is_zero(self) -> Tensor:
        """Which labels are zero for every input: bool."""
        return (self.low == 0) & (self.high == 0)

    @property
    def excludes_zero(self) -> Tensor:
        """Which labels are not zero for any input: bool."""
        return (self.low > 0) | (self.high < 0)

    @cached_property
    def says_nothing(self) -> bool:
        """Whether nothing is known of any label."""
        return bool((self.low == -math.inf).all()) and bool((self.high == math.inf).all())

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

    def joined(self, other: Range) -> Range:
        """The hull of both."""
        return Range(torch.minimum(self.low, other.low), torch.maximum(self.high, other.high))

    def met(self, zero: Tensor) -> Range:
        """The same, with [0, 0] where `zero` is True."""
        return Range(self.low.masked_fill(zero, 0.0), self.high.masked_fill(zero, 0.0))
