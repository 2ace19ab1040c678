"""Layouts: which elements of a tensor exist in the small network, and in which order.

A value of the original network has a full shape, such as (2, 64, 20, 20). Axes along which elements may be removed are
*labelled*; all others stay whole. The *compact* shape has the size of each labelled axis and 1 elsewhere, such as
(1, 64, 1, 1). A *label* is a flat index into the compact shape; it stands for all elements with its coordinates along
the labelled axes. A `Layout` is a box of labels: those that the small network computes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Shape = tuple[int, ...]


def identity(compact: Shape) -> Tensor:
    """All labels of a compact shape, in order."""
    return torch.arange(math.prod(compact)).view(compact)


def collapse(mask: Tensor, compact: Sequence[int], *, every: bool = False) -> Tensor:
    """A mask reduced to a compact shape: True where any of the merged elements is, or with `every` each of them."""
    extra = mask.dim() - len(compact)
    if extra > 0:
        mask = (mask.all if every else mask.any)(dim=tuple(range(extra)))
    for axis, size in enumerate(compact):
        if size == 1 and mask.shape[axis] != 1:
            mask = (mask.all if every else mask.any)(dim=axis, keepdim=True)
    return mask


def fitted(mask: Tensor, compact: Sequence[int], *, every: bool = False) -> Tensor:
    """A mask of another compact shape of the same tensor in this one; of labels that become one, as `collapse`."""
    return collapse(mask.expand(torch.broadcast_shapes(mask.shape, tuple(compact))), compact, every=every)


def along(vector: Tensor, axis: int, rank: int) -> Tensor:
    """A vector as a mask that varies along one axis."""
    return vector.view([-1 if a == axis else 1 for a in range(rank)])


@dataclass(frozen=True, eq=False)
class Layout:
    """The labels of a value's elements, as a box of the value's rank (size 1 along axes that stay whole)."""

    compact: Shape
    labels: Tensor

    @staticmethod
    def whole(rank: int) -> Layout:
        """The layout of a value from which nothing is removed."""
        return Layout((1,) * rank, torch.zeros((1,) * rank, dtype=torch.int64))

    @staticmethod
    def along(rank: int, axis: int, size: int, kept: Tensor) -> Layout:
        """The layout that keeps the indices `kept`, in that order, of one axis of length `size`."""
        compact = tuple(size if a == axis else 1 for a in range(rank))
        shape = tuple(-1 if a == axis else 1 for a in range(rank))
        return Layout(compact, kept.view(shape))

    @property
    def rank(self) -> int:
        return len(self.compact)

    @property
    def axes(self) -> tuple[int, ...]:
        """The labelled axes."""
        return tuple(a for a, size in enumerate(self.compact) if size != 1)

    @property
    def is_whole(self) -> bool:
        """Whether every element is there, in the original order."""
        return self.labels.shape == self.compact and torch.equal(self.labels, identity(self.compact))

    def size(self, axis: int, full: int) -> int:
        """The length of an axis in the small network, `full` in the original."""
        return self.labels.shape[axis] if self.compact[axis] != 1 else full

    def shrunk(self, full: Sequence[int]) -> Shape:
        """The shape in the small network of a value whose original shape is `full`."""
        return tuple(self.size(a, n) for a, n in enumerate(full))

    def coordinate(self, axis: int) -> Tensor:
        """The original index along `axis` of every label."""
        stride = math.prod(self.compact[axis + 1 :])
        return self.labels.div(stride, rounding_mode="floor").remainder(self.compact[axis])

    def kept(self, axis: int) -> Tensor | None:
        """The kept indices of an axis if they are the same everywhere, else None."""
        lines = self.coordinate(axis).movedim(axis, -1).reshape(-1, self.labels.shape[axis])
        return lines[0] if len(lines) == 1 or bool((lines == lines[:1]).all()) else None

    def is_product(self) -> bool:
        """Whether each labelled axis keeps the same indices everywhere."""
        return len(self.axes) <= 1 or all(self.kept(a) is not None for a in self.axes)

    def refined(self, compact: Shape) -> Layout:
        """The same elements with the labelled axes of `compact` labelled too."""
        target = tuple(max(a, b) for a, b in zip(self.compact, compact, strict=True))
        if target == self.compact:
            return self
        shape = [target[a] if self.compact[a] == 1 and target[a] != 1 else n for a, n in enumerate(self.labels.shape)]
        labels = torch.zeros(shape, dtype=torch.int64)
        stride = 1
        for axis in reversed(range(self.rank)):
            if target[axis] == 1:
                continue
            if self.compact[axis] == 1:
                labels += along(torch.arange(target[axis]), axis, self.rank) * stride
            else:
                labels += self.coordinate(axis) * stride
            stride *= target[axis]
        return Layout(target, labels)

    def same(self, other: Layout) -> bool:
        """Whether both keep the same elements in the same order."""
        if self is other or (self.compact == other.compact and torch.equal(self.labels, other.labels)):
            return True
        if self.compact == other.compact:
            return False
        mine, yours = self.refined(other.compact), other.refined(self.compact)
        return mine.labels.shape == yours.labels.shape and torch.equal(mine.labels, yours.labels)

    def as_product(self) -> Layout:
        """The product of what each axis keeps, in the original order; every operator can follow such a box."""
        return product(self.compact, [self.coordinate(a).unique() for a in range(self.rank)])

    def __str__(self) -> str:
        """ "whole", or for each labelled axis the indices that are kept: "axis 1: 6 of 8 [0-3 5 7]"."""
        if not self.axes:
            return "whole"
        if not self.is_product():
            box = " x ".join(str(self.labels.shape[axis]) for axis in self.axes)
            full = " x ".join(str(self.compact[axis]) for axis in self.axes)
            return f"axes {', '.join(map(str, self.axes))}: {box} of {full}, rows that differ"
        return ", ".join(map(self._axis_text, self.axes))

    def _axis_text(self, axis: int) -> str:
        kept, size = self.kept(axis), self.compact[axis]
        assert kept is not None
        if kept.tolist() == list(range(size)):
            return f"axis {axis}: all {size}"
        return f"axis {axis}: {len(kept)} of {size} [{ranges(kept.tolist())}]"

    def mask(self) -> Tensor:
        """Bool of the compact shape: which labels are kept."""
        flat = torch.zeros(math.prod(self.compact), dtype=torch.bool)
        flat[self.labels.reshape(-1)] = True
        return flat.view(self.compact)

    def of(self, values: Tensor) -> Tensor:
        """`values`, a tensor that broadcasts to the compact shape, read at every label."""
        return values.expand(self.compact).reshape(-1)[self.labels]


def ranges(indices: Sequence[int], most: int = 12) -> str:
    """Indices as text, consecutive ones as a range: [0, 1, 2, 5] is "0-2 5". Beyond `most` ranges they are counted."""
    found: list[list[int]] = []
    for index in indices:
        if found and index == found[-1][-1] + 1:
            found[-1].append(index)
        else:
            found.append([index])
    shown = " ".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in found[:most])
    rest = sum(map(len, found[most:]))
    return f"{shown} and {rest} more" if rest else shown


def product(compact: Shape, kept: Sequence[Tensor | None]) -> Layout:
    """The layout that keeps, along each labelled axis, the indices given for it (None: all)."""
    labels = torch.zeros((1,) * len(compact), dtype=torch.int64)
    stride = 1
    for axis in reversed(range(len(compact))):
        if compact[axis] == 1:
            continue
        indices = kept[axis]
        indices = torch.arange(compact[axis]) if indices is None else indices
        labels = labels + along(indices, axis, len(compact)) * stride
        stride *= compact[axis]
    return Layout(compact, labels)


def grown(live: Tensor, multiple: int) -> Tensor:
    """The live indices of a vector, and the first dead ones until their number is a multiple of `multiple`."""
    kept = live.nonzero().view(-1)
    target = min(len(live), max(1, -(-len(kept) // multiple)) * multiple)
    if len(kept) == target:
        return kept
    spare = (~live).nonzero().view(-1)[: target - len(kept)]
    return torch.cat([kept, spare]).sort().values


def box_of(live: Tensor, multiple: int = 1, rank: Tensor | None = None) -> Layout:
    """The smallest layout found that holds all live labels; `live` is bool and has the compact shape.

    With one labelled axis it is the list of the live indices, filled up to `multiple`, in the order of `rank` (None:
    the natural order). With several it is the product of what each axis needs, or, where that is smaller, rows of equal
    length along the last labelled axis that differ from row to row (attention heads whose dead channels differ). Dead
    labels of the same row fill up a row.
    """
    compact = tuple(live.shape)
    axes = [a for a, size in enumerate(compact) if size != 1]
    if not axes:
        return Layout.whole(len(compact))
    if len(axes) == 1:
        kept = grown(live.reshape(-1), multiple)
        kept = kept if rank is None else kept[rank.reshape(-1)[kept].argsort()]
        return Layout.along(len(compact), axes[0], compact[axes[0]], kept)
    needs = [
        collapse(live, tuple(n if a == b else 1 for b, n in enumerate(compact))).view(-1) for a in range(len(compact))
    ]
    needed: list[Tensor | None] = [grown(need, 1) if compact[a] != 1 else None for a, need in enumerate(needs)]
    box = product(compact, needed)
    last = axes[-1]
    rows = box.of(live).movedim(last, -1)
    width = max(1, int(rows.sum(-1).max()))
    if width == rows.shape[-1]:
        return box
    order = (~rows).to(torch.uint8).sort(dim=-1, stable=True).indices[..., :width].sort(dim=-1).values
    return Layout(compact, box.labels.movedim(last, -1).gather(-1, order).movedim(-1, last).contiguous())
