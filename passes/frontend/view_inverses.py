"""Inverses of views: the new content of a tensor after something was written into a view of it.

Views differ in where their elements lie, whatever their names: torch's own operator is called on a tensor without data
(device meta), and sizes, strides and offset of the result say what it shows of its base.

    all elements in their order             reshape
    all elements, axes in another order     permute, reshape
    some positions of one axis              slice_scatter
    one position of one axis                select_scatter
    diagonal, view in another type          by their operators

Other views have no inverse: `as_strided` names places in memory that a value does not have, and where an element is
shown twice there is not one new content.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from passes.graph.nodes import hint

aten = torch.ops.aten

Inverse = Callable[[Graph, Node, Node, Node], Node]
"""The new content of a base, from the graph, the base, the new content of a view, and the view."""


def inverse_of(view: Node, base: Node) -> Inverse | None:
    """The inverse of a view of `base`; None where it has none, or where one holds for the sizes of the example only."""
    inverse = EXACT.get(view.target)
    changes_type = base.meta["val"].dtype != view.meta["val"].dtype
    if inverse is not None:
        return None if inverse is _same and changes_type else inverse
    if changes_type or view.target in UNDEFINED:
        return None
    probe = torch.empty([hint(n) for n in base.meta["val"].shape], dtype=base.meta["val"].dtype, device="meta")
    shown = _shown(view, base, probe)
    if shown.numel() == probe.numel():
        free = [hint(n) for n in base.meta["val"].shape if isinstance(n, torch.SymInt)]
        return None if min(free, default=2) < 2 else _of_all(shown, base)
    return _of_some(shown, probe, base)


def _shown(view: Node, base: Node, probe: Tensor) -> Tensor:
    """What a view shows of a contiguous tensor."""
    if view.target is operator.getitem:
        several, index = view.args
        assert isinstance(several, Node)
        return _shown(several, base, probe)[index]  # type: ignore[index]  # a list of tensors

    def given(node: Node) -> Any:
        value = node.meta["val"]
        return probe if node is view.all_input_nodes[0] else value if isinstance(value, Tensor) else hint(value)

    args, kwargs = map_arg((view.args, dict(view.kwargs)), given)
    return view.target(*args, **kwargs)  # type: ignore[operator, no-any-return]


def _of_all(shown: Tensor, base: Node) -> Inverse | None:
    """The inverse of a view with all elements: its axes in the order of memory, in the shape of the base."""
    order = sorted(range(shown.dim()), key=lambda axis: (-shown.stride()[axis], shown.shape[axis] == 1))
    if shown.storage_offset() or not shown.permute(order).is_contiguous():
        return None

    def inverse(graph: Graph, _: Node, value: Node, view: Node) -> Node:
        if order != sorted(order):
            moved = value.meta["val"].permute(order)
            value = graph.call_function(aten.permute.default, (value, order))
            value.meta["val"] = moved
        return _reshaped(graph, base, value)

    return inverse


def _of_some(shown: Tensor, probe: Tensor, base: Node) -> Inverse | None:
    """The inverse of a view that has positions of one axis, which has a fixed length; the others it has whole."""
    for axis, stride in enumerate(probe.stride()):
        if isinstance(base.meta["val"].shape[axis], torch.SymInt):
            continue
        start = shown.storage_offset() // stride
        one = probe.select(axis, min(start, probe.shape[axis] - 1))
        if _lies_as(shown, one):
            return _scattered(aten.select_scatter.default, axis, start)
        if shown.dim() != probe.dim() or not shown.shape[axis] or shown.stride(axis) % stride:
            continue
        step = max(1, shown.stride(axis) // stride)
        stop = start + (shown.shape[axis] - 1) * step + 1
        if stop <= probe.shape[axis] and _lies_as(shown, aten.slice.Tensor(probe, axis, start, stop, step)):
            return _scattered(aten.slice_scatter.default, axis, start, stop, step)
    return None


def _lies_as(one: Tensor, other: Tensor) -> bool:
    """Whether two views of one tensor show the same elements in the same places."""
    strides = [[s for n, s in zip(each.shape, each.stride(), strict=True) if n > 1] for each in (one, other)]
    return one.shape == other.shape and strides[0] == strides[1] and one.storage_offset() == other.storage_offset()


def _scattered(target: Any, *place: int) -> Inverse:
    return lambda graph, base, value, view: graph.call_function(target, (base, value, *place))


def _scatter(target: Any, **defaults: int) -> Inverse:
    """For an operator that has one that writes back, with the same arguments; `defaults` are those that differ."""
    return lambda graph, base, value, view: graph.call_function(
        target, (base, value, *view.args[1:]), {**defaults, **view.kwargs}
    )


def _narrowed(graph: Graph, base: Node, value: Node, view: Node) -> Node:
    _, axis, start, length = view.args
    if not isinstance(start, int) or not isinstance(length, int):  # sizes
        end = graph.call_function(operator.add, (start, length))
        end.meta["val"] = map_arg(start, lambda n: n.meta["val"]) + map_arg(length, lambda n: n.meta["val"])  # type: ignore[operator]
    else:
        end = start + length  # type: ignore[assignment]
    return graph.call_function(aten.slice_scatter.default, (base, value, axis, start, end))


def _same(graph: Graph, base: Node, value: Node, view: Node) -> Node:
    return value


def _reshaped(graph: Graph, base: Node, value: Node) -> Node:
    """A value in the shape of a tensor."""
    sizes: list[Any] = []
    for axis, size in enumerate(base.meta["val"].shape):
        if isinstance(size, torch.SymInt):
            node = graph.call_function(aten.sym_size.int, (base, axis))
            node.meta["val"] = size
            sizes.append(node)
        else:
            sizes.append(size)
    return graph.call_function(aten.reshape.default, (value, sizes))


def _in_type(graph: Graph, base: Node, value: Node, view: Node) -> Node:
    return graph.call_function(aten.view.dtype, (value, base.meta["val"].dtype))


def _called(target: Any) -> Inverse:
    """For a view of one argument whose inverse is another operator."""
    return lambda graph, base, value, view: graph.call_function(target, (value,))


COPIES = ("alias", "detach", "dropout", "contiguous", "lift_fresh", "to", "positive", "resolve_conj", "resolve_neg",
          "real", "cpu", "pin_memory")  # fmt: skip
"""Operators that return their input where they share its memory, by name."""

EXACT: Mapping[Any, Inverse] = {
    aten.slice.Tensor: _scatter(aten.slice_scatter.default),
    aten.select.int: _scatter(aten.select_scatter.default),
    aten.narrow.default: _narrowed,
    aten.diagonal.default: _scatter(aten.diagonal_scatter.default),
    aten.linalg_diagonal.default: _scatter(aten.diagonal_scatter.default, dim1=-2, dim2=-1),
    **{
        getattr(packet, name): _same
        for packet in (getattr(aten, each) for each in COPIES)
        for name in packet.overloads()
    },
    aten.view.dtype: _in_type,
    aten.view_as_real.default: _called(aten.view_as_complex.default),
    aten.view_as_complex.default: _called(aten.view_as_real.default),
}
"""By operator: inverses that take the arguments of the view, so that sizes may be symbolic, and those of types."""

UNDEFINED = frozenset({aten.as_strided.default})
"""Views of which the values of the base do not say what they show."""
