"""Spellings: operators that are not in canonical form, each with the rewrite of one call into it.

    chunk, split, hsplit ..., unbind        split_with_sizes (and squeeze)
    select, narrow                          slice (and squeeze)
    stack                                   unsqueeze and cat
    glu                                     split_with_sizes, sigmoid and mul
    mv, dot, vdot of real numbers           matmul
    slice_scatter, select_scatter           slice and cat
    index by one index of integers          index_select
    pad by reflection or replication        the operator of that rank
    circular pad                            slice and cat
    new_zeros, new_ones, new_full           zeros, ones, full
    convolution of one image                unsqueeze, the convolution of a batch, squeeze
    norm with a computed scale or shift     the norm without them, mul and add
    linear with a vector as weight          matmul and add

A call stays as it is where the rewrite would need a length that is symbolic.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from passes.canonical import recompose
from passes.graph.nodes import free_names, is_projection

aten = torch.ops.aten


def call(graph: Graph, target: Any, *args: Any) -> Node:
    """A new call with its example value, a fake tensor, computed from those of its arguments."""
    node = graph.call_function(target, args)
    node.meta["val"] = target(*map_arg(args, lambda n: n.meta["val"]))
    return node


def slice_bounds(node: Node, shape: Any, first: int = 1) -> tuple[int, int, int] | None:
    """(axis, start, stop) of a slice, 0 <= start and stop <= length; its arguments begin at `first`.

    None for a step other than 1, and for symbolic lengths or bounds.
    """
    given = [*_arguments(node)[first:], None, None, None, None]
    start, stop, step = given[1:4]
    axis = int(given[0] or 0) % len(shape)
    if step not in (None, 1) or isinstance(shape[axis], torch.SymInt):
        return None
    length = int(shape[axis])
    ends = [0 if start is None else start, length if stop is None else stop]
    if not all(isinstance(e, int) for e in ends):
        return None
    begin, end = (min(max(e + length if e < 0 else e, 0), length) for e in ends)
    return axis, begin, end


def _arguments(node: Node) -> tuple[Any, ...]:
    """The arguments given by position."""
    return node.args


def _axis(node: Node, index: int, rank: int, default: int = 0) -> int:
    """The axis that a call names by its argument `dim`, counted from 0."""
    axis: Any = node.args[index] if len(node.args) > index else node.kwargs.get("dim", default)
    return int(axis) % rank


def _split_at(graph: Graph, node: Node, sizes: list[int], axis: int, *, squeeze: bool = False) -> None:
    """Replace a call with several results by a split into `sizes`; with `squeeze`, each without the axis."""
    parts = call(graph, aten.split_with_sizes.default, node.args[0], sizes, axis)
    for user in list(node.users):
        assert is_projection(user)
        with graph.inserting_before(user):
            part = call(graph, operator.getitem, parts, user.args[1])
            user.replace_all_uses_with(call(graph, aten.squeeze.dim, part, axis) if squeeze else part)
            graph.erase_node(user)


def _split(graph: Graph, node: Node) -> None:
    values, rank = node.meta["val"], _arguments(node)[0].meta["val"].dim()
    named = SPLIT_AXES.get(node.target)
    axis = _axis(node, 2, rank) if named is None else min(named, rank - 1)
    sizes = [value.shape[axis] for value in values]
    if not any(isinstance(n, torch.SymInt) for n in sizes) and all(is_projection(u) for u in node.users):
        _split_at(graph, node, [int(n) for n in sizes], axis)


def _unbind(graph: Graph, node: Node) -> None:
    axis = _axis(node, 1, _arguments(node)[0].meta["val"].dim())
    if all(is_projection(u) for u in node.users):
        _split_at(graph, node, [1] * len(node.meta["val"]), axis, squeeze=True)


def _select(graph: Graph, node: Node) -> None:
    source, _, index = _arguments(node)
    shape = source.meta["val"].shape
    axis = _axis(node, 1, len(shape))
    if not isinstance(index, int) or isinstance(shape[axis], torch.SymInt):
        return
    index %= shape[axis]
    part = call(graph, aten.slice.Tensor, source, axis, index, index + 1)
    node.replace_all_uses_with(call(graph, aten.squeeze.dim, part, axis))


def _narrow(graph: Graph, node: Node) -> None:
    source, axis, start, length = _arguments(node)
    if isinstance(start, int) and isinstance(length, int):
        node.replace_all_uses_with(call(graph, aten.slice.Tensor, source, axis, start, start + length))


def _stack(graph: Graph, node: Node) -> None:
    axis = _axis(node, 1, node.meta["val"].dim())
    parts = [call(graph, aten.unsqueeze.default, part, axis) for part in _arguments(node)[0]]
    node.replace_all_uses_with(call(graph, aten.cat.default, parts, axis))


def _glu(graph: Graph, node: Node) -> None:
    source = _arguments(node)[0]
    shape = source.meta["val"].shape
    axis = _axis(node, 1, len(shape), default=-1)
    if isinstance(shape[axis], torch.SymInt):
        return
    half = int(shape[axis]) // 2
    parts = call(graph, aten.split_with_sizes.default, source, [half, half], axis)
    left, right = (call(graph, operator.getitem, parts, i) for i in (0, 1))
    node.replace_all_uses_with(call(graph, aten.mul.Tensor, left, call(graph, aten.sigmoid.default, right)))


def _matmul(graph: Graph, node: Node) -> None:
    if node.target is aten.vdot.default and node.meta["val"].is_complex():
        return
    node.replace_all_uses_with(call(graph, aten.matmul.default, *node.args))


def _slice_scatter(graph: Graph, node: Node) -> None:
    base, part = _arguments(node)[:2]
    bounds = slice_bounds(node, base.meta["val"].shape, 2)
    if bounds is None:
        _step_scatter(graph, node)
        return
    axis, start, stop = bounds
    length = int(base.meta["val"].shape[axis])
    pieces = [part]
    if start > 0:
        pieces.insert(0, call(graph, aten.slice.Tensor, base, axis, 0, start))
    if stop < length:
        pieces.append(call(graph, aten.slice.Tensor, base, axis, stop, length))
    node.replace_all_uses_with(call(graph, aten.cat.default, pieces, axis) if len(pieces) > 1 else part)


def _step_scatter(graph: Graph, node: Node) -> None:
    """A slice with steps that is written: the base and the part side by side, and of both what is there in the end."""
    base, part, *rest = _arguments(node)
    shape = base.meta["val"].shape
    axis, start, stop, step = (*rest, None, None, 1)[:4] if len(rest) < 4 else rest
    axis = int(axis or 0) % len(shape)
    if isinstance(shape[axis], torch.SymInt) or not all(isinstance(n, (int, type(None))) for n in (start, stop, step)):
        return
    length = int(shape[axis])
    order = torch.arange(length)
    order[slice(start, stop, step)] = torch.arange(length, length + part.meta["val"].shape[axis])
    both = call(graph, aten.cat.default, [base, part], axis)
    taken = call(graph, aten.index_select.default, both, axis, constant(graph, order.to(base.meta["val"].device), base))
    node.replace_all_uses_with(taken)


def constant(graph: Graph, value: Tensor, like: Node, stem: str = "_positions") -> Node:
    """A new buffer of the graph's module, with an example value of the kind that `like` has."""
    owner = graph.owning_module
    assert owner is not None
    name = next(free_names(owner, stem))
    owner.register_buffer(name, value, persistent=False)
    node = graph.get_attr(name)
    node.meta["val"] = like.meta["val"].new_empty(value.shape, dtype=value.dtype)
    return node


def _select_scatter(graph: Graph, node: Node) -> None:
    base, part, _, index = _arguments(node)
    shape = base.meta["val"].shape
    axis = _axis(node, 2, len(shape))
    if not isinstance(index, int) or isinstance(shape[axis], torch.SymInt):
        return
    index %= int(shape[axis])
    thick = call(graph, aten.unsqueeze.default, part, axis)
    whole = call(graph, aten.slice_scatter.default, base, thick, axis, index, index + 1)
    node.replace_all_uses_with(whole)
    with graph.inserting_before(whole):
        _slice_scatter(graph, whole)


def _index(graph: Graph, node: Node) -> None:
    source, indices = _arguments(node)
    given = [i for i, index in enumerate(indices) if index is not None]
    if len(given) != 1:
        return
    index = indices[given[0]]
    value = index.meta["val"]
    if value.dim() == 1 and value.dtype in (torch.int64, torch.int32) and not isinstance(value.shape[0], torch.SymInt):
        node.replace_all_uses_with(call(graph, aten.index_select.default, source, given[0], index))


def _pad(graph: Graph, node: Node) -> None:
    """Padding with elements of the tensor: those at the border, or those at the other side."""
    source, pads, *rest = _arguments(node)
    mode = str(rest[0]) if rest else "constant"
    if (border := BORDERS.get((mode, len(pads)))) is not None:
        node.replace_all_uses_with(call(graph, border, source, list(pads)))
    if mode == "circular":
        _pad_circularly(graph, node, source, pads)


def _pad_circularly(graph: Graph, node: Node, source: Node, pads: list[int]) -> None:
    padded = source
    for axis, (before, after) in enumerate(zip(pads[::2], pads[1::2], strict=True)):
        length = source.meta["val"].shape[-1 - axis]
        if isinstance(length, torch.SymInt):
            return
        spans = [(length - before, length), (0, length), (0, after)]
        parts = [call(graph, aten.slice.Tensor, padded, -1 - axis, *span) for span in spans if span[0] < span[1]]
        padded = call(graph, aten.cat.default, parts, -1 - axis)
    node.replace_all_uses_with(padded)


def _made_new(graph: Graph, node: Node) -> None:
    """A constant that takes only its type and device from a tensor."""
    value = node.meta["val"]
    settings = {"dtype": value.dtype, "device": value.device}
    made = graph.call_function(CONSTANTS[node.target], node.args[1:], settings)
    made.meta["val"] = value
    node.replace_all_uses_with(made)


def _convolution(graph: Graph, node: Node) -> None:
    """A convolution of one image without a batch axis."""
    image, weight, *rest = _arguments(node)
    if image.meta["val"].dim() == weight.meta["val"].dim() - 1:
        batch = call(graph, aten.unsqueeze.default, image, 0)
        result = call(graph, node.target, batch, weight, *rest)
        node.replace_all_uses_with(call(graph, aten.squeeze.dim, result, 0))


def _cat(graph: Graph, node: Node) -> None:
    """A concatenation without its empty operands of one axis, which torch accepts beside tensors of any rank."""
    parts, *rest = _arguments(node)
    joined = [part for part in parts if tuple(part.meta["val"].shape) != (0,)]
    if joined and len(joined) < len(parts):
        node.replace_all_uses_with(call(graph, aten.cat.default, joined, *rest))


def _norm(graph: Graph, node: Node) -> None:
    """A batch or instance norm whose scale or shift is computed: the norm without them, and both after it."""
    source, weight, bias, *rest = _arguments(node)
    if all(each is None or each.op == "get_attr" for each in (weight, bias)):
        return
    found = call(graph, node.target, source, None, None, *rest)
    shape = [-1, *[1] * (node.meta["val"].dim() - 2)]
    for target, value in ((aten.mul.Tensor, weight), (aten.add.Tensor, bias)):
        if value is not None:
            found = call(graph, target, found, call(graph, aten.view.default, value, shape))
    node.replace_all_uses_with(found)


def _linear(graph: Graph, node: Node) -> None:
    """A linear layer with one output whose weight is a vector: a product."""
    source, weight, *rest = _arguments(node)
    if weight.meta["val"].dim() == 1:
        result = call(graph, aten.matmul.default, source, weight)
        bias = rest[0] if rest else None
        node.replace_all_uses_with(result if bias is None else call(graph, aten.add.Tensor, result, bias))


CONSTANTS: Mapping[Any, Any] = {
    aten.new_zeros.default: aten.zeros.default,
    aten.new_ones.default: aten.ones.default,
    aten.new_full.default: aten.full.default,
}

BORDERS: Mapping[tuple[str, int], Any] = {
    ("reflect", 2): aten.reflection_pad1d.default,
    ("reflect", 4): aten.reflection_pad2d.default,
    ("reflect", 6): aten.reflection_pad3d.default,
    ("replicate", 2): aten.replication_pad1d.default,
    ("replicate", 4): aten.replication_pad2d.default,
    ("replicate", 6): aten.replication_pad3d.default,
}
"""By mode and by the number of pads, two an axis."""

SPLITS = (
    aten.chunk.default,
    aten.unsafe_chunk.default,
    aten.split.Tensor,
    aten.split.sizes,
    aten.unsafe_split.Tensor,
    aten.unsafe_split_with_sizes.default,
    aten.tensor_split.sections,
    aten.tensor_split.indices,
)

SPLIT_AXES: Mapping[Any, int] = {
    **dict.fromkeys((aten.vsplit.int, aten.vsplit.array), 0),
    **dict.fromkeys((aten.hsplit.int, aten.hsplit.array), 1),
    **dict.fromkeys((aten.dsplit.int, aten.dsplit.array), 2),
}
"""Splits along an axis of their own; hsplit of a tensor of one axis takes that."""

CONVOLUTIONS = (
    aten.conv1d.default,
    aten.conv2d.default,
    aten.conv3d.default,
    aten.conv1d.padding,
    aten.conv2d.padding,
    aten.conv_transpose1d.default,
    aten.conv_transpose2d.input,
)

SPELLINGS: Mapping[Any, Callable[[Graph, Node], None]] = {
    **recompose.RECOMPOSED,
    **dict.fromkeys((*SPLITS, *SPLIT_AXES), _split),
    aten.unbind.int: _unbind,
    aten.select.int: _select,
    aten.narrow.default: _narrow,
    aten.stack.default: _stack,
    aten.glu.default: _glu,
    **dict.fromkeys((aten.mv.default, aten.dot.default, aten.vdot.default), _matmul),
    aten.slice_scatter.default: _slice_scatter,
    aten.select_scatter.default: _select_scatter,
    aten.index.Tensor: _index,
    aten.pad.default: _pad,
    **dict.fromkeys(CONSTANTS, _made_new),
    **dict.fromkeys(CONVOLUTIONS, _convolution),
    aten.cat.default: _cat,
    **dict.fromkeys((aten.batch_norm.default, aten.instance_norm.default), _norm),
    aten.linear.default: _linear,
}
"""The rewrite of a call, by its operator."""
