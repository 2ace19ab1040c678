"""Selections: which part of an original parameter the small network keeps."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Selection:
    """A box of elements of a tensor of shape `shape`.

    `axes` holds the kept indices of each axis (None: all of them). Where those of the second axis differ from row to
    row, as in a grouped convolution, `flat` replaces them: flat indices into the original, in the new shape.
    """

    shape: tuple[int, ...]
    axes: tuple[Tensor | None, ...]
    flat: Tensor | None = None

    @staticmethod
    def whole(shape: Sequence[int]) -> Selection:
        """The selection of everything."""
        return Selection(tuple(shape), (None,) * len(shape))

    def apply(self, tensor: Tensor) -> Tensor:
        """A new tensor with the selected elements of `tensor`, which has the original shape."""
        if self.flat is not None:
            return tensor.reshape(-1)[self.flat.to(tensor.device)]
        for axis, kept in enumerate(self.axes):
            if kept is not None:
                tensor = tensor.index_select(axis, kept.to(tensor.device))
        return tensor if any(kept is not None for kept in self.axes) else tensor.clone()

    @property
    def new_shape(self) -> tuple[int, ...]:
        """The shape of the selected part."""
        if self.flat is not None:
            return tuple(self.flat.shape)
        return tuple(n if kept is None else len(kept) for n, kept in zip(self.shape, self.axes, strict=True))

    def same(self, other: Selection) -> bool:
        """Whether both select the same elements in the same order."""
        if (self.flat is None) != (other.flat is None):
            return False
        if self.flat is not None and other.flat is not None:
            return self.flat.shape == other.flat.shape and torch.equal(self.flat, other.flat)
        return all(_same(a, b) for a, b in zip(self.axes, other.axes, strict=True))

    def simplified(self) -> Selection:
        """The same selection with None for axes that are kept whole and in order."""
        axes = tuple(
            None if kept is not None and len(kept) == n and torch.equal(kept, torch.arange(n)) else kept
            for n, kept in zip(self.shape, self.axes, strict=True)
        )
        return Selection(self.shape, axes, self.flat)

    def labels(self) -> Tensor:
        """The flat original index of every selected element, in the new shape."""
        if self.flat is not None:
            return self.flat
        return self.apply(torch.arange(math.prod(self.shape)).view(self.shape))


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.shape == b.shape and torch.equal(a, b)
