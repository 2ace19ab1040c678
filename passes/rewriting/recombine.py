"""Recombination: bring a tensor from the layout that it has to the layout that a reader needs.

A `Recombiner` writes a tensor with the labels of a layout `want`, in order: those that the tensor's layout `have` holds
are taken from there, all others are zero. It writes the cheapest calls that do so: none, a slice, a slice padded with
zeros, a concatenation of slices, or, where the order or the number of slices makes these expensive, one gather.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from passes.accounts import RecombinationKind
from passes.graph.layout import Layout

aten = torch.ops.aten

MOST_RUNS = 4
"""A concatenation of more slices than this is slower than one gather (ONNX Runtime, one thread)."""


@dataclass(frozen=True, eq=False)
class Written:
    """The node that holds the recombined value, and the kind of recombination (None: no call was needed)."""

    node: Node
    kind: RecombinationKind | None


def positions(have: Layout, want: Layout) -> tuple[Tensor, Layout, Layout]:
    """For each label of `want` its flat position in `have`, or -1; and both layouts, with the same axes labelled."""
    have, want = have.refined(want.compact), want.refined(have.compact)
    where = torch.full((math.prod(have.compact),), -1)
    where[have.labels.reshape(-1)] = torch.arange(have.labels.numel())
    return where[want.labels], have, want


def runs(index: Tensor) -> list[tuple[int, int]]:
    """An index vector as (first, length) of its runs of consecutive indices; `first` is -1 for a run of zeros."""
    if not len(index):
        return []
    goes_on = (index.diff() == 1) & (index[:-1] >= 0) | (index.diff() == 0) & (index[:-1] < 0)
    starts = torch.cat([torch.zeros(1, dtype=torch.int64), (~goes_on).nonzero().view(-1) + 1])
    lengths = torch.cat([starts, torch.tensor([len(index)])]).diff()
    return list(zip(index[starts].tolist(), lengths.tolist(), strict=True))


def transposed_groups(index: Tensor) -> int | None:
    """The number of groups that an index vector deals out in turn, as a channel shuffle does; None if it is no such
    permutation.

    Such a gather is a transposition: 0 3 1 4 2 5 reads two groups of three.
    """
    count = len(index)
    width = int(index[1]) if count > 2 and int(index[0]) == 0 else 0
    if width < 2 or count % width:
        return None
    regular = torch.equal(index, torch.arange(count).view(-1, width).t().reshape(-1))
    return count // width if regular else None


def write_transposed(graph: Graph, x: Node, axis: int, groups: int) -> Node:
    """The calls that deal out groups along an axis in turn, which a runtime need not do as a gather."""
    apart = graph.call_function(aten.unflatten.int, (x, axis, [groups, -1]))
    return graph.call_function(
        aten.flatten.using_ints,
        (graph.call_function(aten.transpose.int, (apart, axis, axis + 1)), axis, axis + 1),
    )


def _spare(have: Layout, zero: Tensor | None) -> dict[int, int]:
    """A position along the only labelled axis at which a value is known to be zero, by axis; empty if there is none."""
    if zero is None or len(have.axes) != 1 or not bool(zero.any()):
        return {}
    return {have.axes[0]: int(zero.reshape(-1).nonzero()[0])}


class Recombiner:
    """Writes recombinations into a graph. `constant(tensor)` gives a node that holds an index."""

    def __init__(self, graph: Graph, constant: Callable[[Tensor], Node]) -> None:
        self.graph = graph
        self.constant = constant

    def __call__(self, x: Node, have: Layout, want: Layout, zero: Tensor | None = None) -> Written:
        """Write the calls that bring `x` from the layout `have` to `want`.

        `zero` masks the labels of `have` that are known to be zero; a gather takes its zeros from there.
        """
        if have.same(want):
            return Written(x, None)
        spare = _spare(have, zero)
        place, have, want = positions(have, want)
        lines = self._by_axis(place, have)
        if lines is None:
            return Written(self._scattered(x, place, have), "gather")
        kind: RecombinationKind | None = None
        for axis, index in lines.items():
            x, own = self._along(x, axis, index, have, spare.get(axis))
            kind = own if kind is None or own == "gather" else kind
        return Written(x, kind)

    @staticmethod
    def _by_axis(place: Tensor, have: Layout) -> dict[int, Tensor] | None:
        """The recombination as one index vector for each axis that changes; None if rows keep different columns."""
        shape = have.labels.shape
        lines: dict[int, Tensor] = {}
        total = torch.zeros((1,) * place.dim(), dtype=torch.int64)
        missing = torch.zeros((1,) * place.dim(), dtype=torch.bool)
        for axis in range(place.dim()):
            if have.compact[axis] == 1:
                continue
            stride = math.prod(shape[axis + 1 :])
            coordinate = torch.where(place < 0, -1, place.div(stride, rounding_mode="floor") % shape[axis])
            line = coordinate.movedim(axis, -1).reshape(-1, place.shape[axis]).max(0).values
            lines[axis] = line
            view = [-1 if a == axis else 1 for a in range(place.dim())]
            total = total + line.clamp(min=0).view(view) * stride
            missing = missing | (line < 0).view(view)
        if not torch.equal(torch.where(missing, -1, total), place):
            return None
        return {a: line for a, line in lines.items() if not torch.equal(line, torch.arange(shape[a]))}

    def _along(
        self, x: Node, axis: int, index: Tensor, have: Layout, spare: int | None
    ) -> tuple[Node, RecombinationKind]:
        size, pieces = have.labels.shape[axis], runs(index)
        holes = [p for p in pieces if p[0] == -1]
        solid = [p for p in pieces if p[0] != -1]
        if len(pieces) == 1 and solid:
            return self._slice(x, axis, *solid[0], size), "slice"
        if len(solid) == 1 and len(holes) <= 2:
            before = holes[0][1] if pieces[0][0] == -1 else 0
            after = holes[-1][1] if pieces[-1][0] == -1 else 0
            if before + after == sum(n for _, n in holes):
                return self._pad(self._slice(x, axis, *solid[0], size), have.rank - 1 - axis, before, after), "padded"
        if len(pieces) <= MOST_RUNS and not holes:
            parts = [self._slice(x, axis, first, length, size) for first, length in solid]
            return self.graph.call_function(aten.cat.default, (parts, axis)), "concatenation"
        if holes and spare is not None:
            index = torch.where(index < 0, spare, index)
        elif holes:
            x = self._pad(x, have.rank - 1 - axis, 0, 1)
            index = torch.where(index < 0, size, index)
        return self.graph.call_function(aten.index_select.default, (x, axis, self.constant(index))), "gather"

    def _slice(self, x: Node, axis: int, first: int, length: int, size: int) -> Node:
        if first == 0 and length == size:
            return x
        return self.graph.call_function(aten.slice.Tensor, (x, axis, first, first + length))

    def _pad(self, x: Node, behind: int, before: int, after: int) -> Node:
        """`x` with zeros along the axis that is followed by `behind` further axes."""
        return self.graph.call_function(aten.constant_pad_nd.default, (x, [0, 0] * behind + [before, after]))

    def _scattered(self, x: Node, place: Tensor, have: Layout) -> Node:
        """Rows that keep different columns: one gather over the labelled axes."""
        shape = have.labels.shape
        axes = [a for a in range(place.dim()) if have.compact[a] != 1]
        inside = place.clamp(min=0)
        squeezed = [n for a, n in enumerate(place.shape) if a in axes]
        indices: list[Any] = [None] * place.dim()
        for axis in axes:
            stride = math.prod(shape[axis + 1 :])
            indices[axis] = self.constant(
                (inside.div(stride, rounding_mode="floor") % shape[axis]).reshape(squeezed).contiguous()
            )
        found = self.graph.call_function(aten.index.Tensor, (x, indices))
        if axes[-1] - axes[0] != len(axes) - 1:  # separated index tensors: their axes come first in the result
            rest = [a for a in range(place.dim()) if a not in axes]
            order = [axes + rest]
            found = self.graph.call_function(
                aten.permute.default, (found, [order[0].index(a) for a in range(place.dim())])
            )
        if bool((place < 0).any()):
            found = self.graph.call_function(aten.masked_fill.Scalar, (found, self.constant(place < 0), 0))
        return found
