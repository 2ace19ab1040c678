"""Several spellings, one form, so that fewer rules are needed.

chunk, split, tensor_split, unbind, select, narrow and neighbouring slices become `split_with_sizes` (and `squeeze`);
stack becomes `unsqueeze` and `cat`; glu becomes a split, a sigmoid and a product; slice_scatter becomes slices and a
`cat`; a norm whose scale is computed becomes one without, a product and a sum; indexing with one constant index becomes
`index_select`; constants that are made like a tensor (new_full) are made without it; padding that repeats what is there
becomes what it is for its rank, or slices and a `cat`. Operators of core ATen become those that it is made of
(`passes.canonical.recompose`), and what no rule knows is taken apart (`passes.canonical.decompose`).
"""

from __future__ import annotations

import operator
from collections import defaultdict
from collections.abc import Callable
from itertools import count
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

from passes.canonical import recompose
from passes.canonical.decompose import take_apart
from passes.graph.nodes import hint, is_projection
from passes.rules import UNKNOWN, rule_for

aten = torch.ops.aten


def normalise(module: GraphModule) -> GraphModule:
    """Rewrite, in place, the spellings above; returns `module`, which computes the same."""
    normalise_graph(module.graph)
    module.recompile()
    return module


def normalise_graph(graph: Graph) -> None:
    """The same on a graph whose module is not to be run."""
    for node in list(graph.nodes):
        with graph.inserting_before(node):
            take_apart(graph, node, _is_known)
    for node in list(graph.nodes):
        form = FORMS.get(node.target) if node.op == "call_function" else None
        if form is None:
            continue
        with graph.inserting_before(node):
            form(graph, node)
    for node in list(graph.nodes):
        if node.target is aten.slice.Tensor or not node.users:
            continue
        _join_slices(graph, node)
    _fuse_shuffles(graph)
    _merge_projections(graph)
    graph.eliminate_dead_code()


def _is_known(node: Node) -> bool:
    return node.target in FORMS or rule_for(node) is not UNKNOWN


def call(graph: Graph, target: Any, *args: Any) -> Node:
    """A new call whose value is known to the analysis, as a fake tensor."""
    node = graph.call_function(target, args)
    fake = map_arg(args, lambda n: n.meta["val"])
    node.meta["val"] = target(*fake)
    return node


def _replace(node: Node, new: Node) -> None:
    node.replace_all_uses_with(new)


def _split_at(graph: Graph, node: Node, sizes: list[int], axis: int, *, squeeze: bool = False) -> None:
    """Replace a call with several results by a split into `sizes`; with `squeeze`, each without the axis."""
    parts = call(graph, aten.split_with_sizes.default, node.args[0], sizes, axis)
    for user in list(node.users):
        assert is_projection(user)
        with graph.inserting_before(user):
            part = call(graph, operator.getitem, parts, user.args[1])
            _replace(user, call(graph, aten.squeeze.dim, part, axis) if squeeze else part)
            graph.erase_node(user)


def _lengths(node: Node, axis: int) -> list[int] | None:
    """The lengths of a call's results along an axis; None where they are symbolic or a result is used whole."""
    values = node.meta["val"]
    sizes = [value.shape[axis] for value in values]
    if any(isinstance(n, torch.SymInt) for n in sizes) or not all(is_projection(u) for u in node.users):
        return None
    return [int(n) for n in sizes]


def _split(graph: Graph, node: Node) -> None:
    default = 0
    axis = int(node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", default))  # type: ignore[arg-type]
    axis %= node.args[0].meta["val"].dim()  # type: ignore[union-attr]
    sizes = _lengths(node, axis)
    if sizes is not None:
        _split_at(graph, node, sizes, axis)


def _unbind(graph: Graph, node: Node) -> None:
    source = node.args[0]
    assert isinstance(source, Node)
    axis = int(node.args[1] if len(node.args) > 1 else 0) % source.meta["val"].dim()  # type: ignore[arg-type]
    if all(is_projection(u) for u in node.users):
        _split_at(graph, node, [1] * len(node.meta["val"]), axis, squeeze=True)


def _select(graph: Graph, node: Node) -> None:
    source, axis, index = node.args[0], int(node.args[1]), node.args[2]  # type: ignore[arg-type]
    assert isinstance(source, Node)
    shape = source.meta["val"].shape
    axis %= len(shape)
    if not isinstance(index, int) or isinstance(shape[axis], torch.SymInt):
        return
    index %= shape[axis]
    part = call(graph, aten.slice.Tensor, source, axis, index, index + 1)
    _replace(node, call(graph, aten.squeeze.dim, part, axis))


def _stack(graph: Graph, node: Node) -> None:
    axis = int(node.args[1] if len(node.args) > 1 else node.kwargs.get("dim", 0)) % node.meta["val"].dim()  # type: ignore[arg-type]
    parts = [call(graph, aten.unsqueeze.default, part, axis) for part in node.args[0]]  # type: ignore[union-attr]
    _replace(node, call(graph, aten.cat.default, parts, axis))


def _glu(graph: Graph, node: Node) -> None:
    source = node.args[0]
    assert isinstance(source, Node)
    shape = source.meta["val"].shape
    axis = int(node.args[1] if len(node.args) > 1 else -1) % len(shape)  # type: ignore[arg-type]
    if isinstance(shape[axis], torch.SymInt):
        return
    half = int(shape[axis]) // 2
    parts = call(graph, aten.split_with_sizes.default, source, [half, half], axis)
    left, right = (call(graph, operator.getitem, parts, i) for i in (0, 1))
    _replace(node, call(graph, aten.mul.Tensor, left, call(graph, aten.sigmoid.default, right)))


def _slice_scatter(graph: Graph, node: Node) -> None:
    base, part = node.args[:2]
    assert isinstance(base, Node)
    bounds = _bounds(node, base.meta["val"].shape, 2)
    if bounds is None:
        return
    axis, start, stop = bounds
    length = int(base.meta["val"].shape[axis])
    pieces = [part]
    if start > 0:
        pieces.insert(0, call(graph, aten.slice.Tensor, base, axis, 0, start))
    if stop < length:
        pieces.append(call(graph, aten.slice.Tensor, base, axis, stop, length))
    _replace(node, call(graph, aten.cat.default, pieces, axis) if len(pieces) > 1 else part)  # type: ignore[arg-type]


def _select_scatter(graph: Graph, node: Node) -> None:
    base, part, axis, index = node.args[0], node.args[1], int(node.args[2]), node.args[3]  # type: ignore[arg-type]
    assert isinstance(base, Node)
    shape = base.meta["val"].shape
    axis %= len(shape)
    if not isinstance(index, int) or isinstance(shape[axis], torch.SymInt):
        return
    index %= int(shape[axis])
    thick = call(graph, aten.unsqueeze.default, part, axis)
    whole = call(graph, aten.slice_scatter.default, base, thick, axis, index, index + 1)
    _replace(node, whole)
    with graph.inserting_before(whole):
        _slice_scatter(graph, whole)


def _narrow(graph: Graph, node: Node) -> None:
    source, axis, start, length = node.args
    if all(isinstance(n, int) for n in (start, length)):
        _replace(node, call(graph, aten.slice.Tensor, source, axis, start, start + length))  # type: ignore[operator]


def _index(graph: Graph, node: Node) -> None:
    indices = list(node.args[1])  # type: ignore[arg-type]
    given = [i for i, index in enumerate(indices) if index is not None]
    if len(given) != 1:
        return
    index = indices[given[0]]
    value = index.meta["val"]
    if value.dim() == 1 and value.dtype in (torch.int64, torch.int32) and not isinstance(value.shape[0], torch.SymInt):
        _replace(node, call(graph, aten.index_select.default, node.args[0], given[0], index))


def _pad(graph: Graph, node: Node) -> None:
    """Padding with what is there: at the border (each rank has an operator) or from the other side."""
    source, pads = node.args[0], list(node.args[1])  # type: ignore[arg-type]
    mode = str(node.args[2]) if len(node.args) > 2 else "constant"
    assert isinstance(source, Node)
    if len(pads) in BORDERS.get(mode, {}):
        _replace(node, call(graph, BORDERS[mode][len(pads)], source, pads))
    if mode != "circular":
        return
    padded = source
    for axis, (before, after) in enumerate(zip(pads[::2], pads[1::2], strict=True)):
        length = source.meta["val"].shape[-1 - axis]
        if isinstance(length, torch.SymInt):
            return
        spans = [(length - before, length), (0, length), (0, after)]
        parts = [call(graph, aten.slice.Tensor, padded, -1 - axis, *span) for span in spans if span[0] < span[1]]
        padded = call(graph, aten.cat.default, parts, -1 - axis)
    _replace(node, padded)


def _made_new(graph: Graph, node: Node) -> None:
    """A constant that takes only its type and device from a tensor."""
    value = node.meta["val"]
    settings = {"dtype": value.dtype, "device": value.device}
    made = graph.call_function(CONSTANTS[node.target], node.args[1:], settings)
    made.meta["val"] = value
    _replace(node, made)


def _convolution(graph: Graph, node: Node) -> None:
    """A convolution of one image without a batch axis."""
    image, weight = node.args[:2]
    if isinstance(image, Node) and isinstance(weight, Node) and image.meta["val"].dim() == weight.meta["val"].dim() - 1:
        batch = call(graph, aten.unsqueeze.default, image, 0)
        result = call(graph, node.target, batch, *node.args[1:])
        _replace(node, call(graph, aten.squeeze.dim, result, 0))


def _cat(graph: Graph, node: Node) -> None:
    """Empty tensors without axes, which torch lets be joined with any."""
    parts = list(node.args[0])  # type: ignore[arg-type]
    joined = [part for part in parts if tuple(part.meta["val"].shape) != (0,)]
    if joined and len(joined) < len(parts):
        _replace(node, call(graph, aten.cat.default, joined, *node.args[1:]))


def _norm(graph: Graph, node: Node) -> None:
    """A batch or instance norm whose scale or shift is computed, by a mask perhaps: without them, and both after it."""
    source, weight, bias, *rest = node.args
    if all(each is None or each.op == "get_attr" for each in (weight, bias)):  # type: ignore[union-attr]  # nodes
        return
    found = call(graph, node.target, source, None, None, *rest)
    shape = [-1, *[1] * (node.meta["val"].dim() - 2)]
    for target, value in ((aten.mul.Tensor, weight), (aten.add.Tensor, bias)):
        if value is not None:
            found = call(graph, target, found, call(graph, aten.view.default, value, shape))
    _replace(node, found)


def _linear(graph: Graph, node: Node) -> None:
    """A linear layer with one output whose weight is a vector: a product."""
    source, weight = node.args[:2]
    if isinstance(weight, Node) and weight.meta["val"].dim() == 1:
        result = call(graph, aten.matmul.default, source, weight)
        bias = node.args[2] if len(node.args) > 2 else None
        _replace(node, result if bias is None else call(graph, aten.add.Tensor, result, bias))


def _bounds(node: Node, shape: Any, first: int = 1) -> tuple[int, int, int] | None:
    """(axis, start, stop) of a slice with step 1 along an axis of known length, else None."""
    given: list[Any] = [*node.args[first:], None, None, None, None]
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


def _join_slices(graph: Graph, source: Node) -> None:
    """Slices of one tensor that lie side by side along one axis become one split."""
    if not isinstance(source.meta.get("val"), torch.Tensor):
        return
    found: dict[int, list[tuple[int, int, Node]]] = defaultdict(list)
    for user in source.users:
        if user.target is aten.slice.Tensor and user.args[0] is source:
            bounds = _bounds(user, source.meta["val"].shape)
            if bounds is not None and bounds[1] < bounds[2]:
                found[bounds[0]].append((bounds[1], bounds[2], user))
    for axis, cuts in found.items():
        length = hint(source.meta["val"].shape[axis])
        whole = [node for start, stop, node in cuts if (start, stop) == (0, length)]
        for node in whole:
            _replace(node, source)
        spans = sorted({(start, stop) for start, stop, _ in cuts if (start, stop) != (0, length)})
        if len(spans) < 2 or any(a[1] > b[0] for a, b in zip(spans, spans[1:], strict=False)):
            continue
        edges = sorted({0, length, *(e for span in spans for e in span)})
        with graph.inserting_after(source):
            anchor = graph.call_function(
                aten.split_with_sizes.default, (source, [b - a for a, b in zip(edges, edges[1:], strict=False)], axis)
            )
            anchor.meta["val"] = anchor.target(source.meta["val"], *anchor.args[1:])  # type: ignore[operator]
        for start, stop, node in cuts:
            if (start, stop) == (0, length):
                continue
            with graph.inserting_before(node):
                _replace(node, call(graph, operator.getitem, anchor, edges.index(start)))


def _merge_projections(graph: Graph) -> None:
    """One node for each result of a call, however often it is taken out."""
    first: dict[tuple[Any, Any], Node] = {}
    for node in list(graph.nodes):
        if node.target is operator.getitem and isinstance(node.args[0], Node):
            known = first.setdefault((node.args[0], str(node.args[1])), node)
            if known is not node:
                _replace(node, known)
                graph.erase_node(node)


def _fuse_shuffles(graph: Graph) -> None:
    """view, transpose, view back to the same shape: channels in another order, one `index_select`."""
    for node in list(graph.nodes):
        chain = _shuffle_chain(node)
        if chain is None:
            continue
        source = chain[-1].args[0]
        assert isinstance(source, Node)
        shape = source.meta["val"].shape
        if len(shape) < 2 or isinstance(shape[1], torch.SymInt):
            continue
        channels = int(shape[1])
        labels = torch.arange(channels).view([1, channels] + [1] * (len(shape) - 2)).expand([hint(n) for n in shape])
        for step in reversed(chain):
            target: Any = aten.reshape.default if step.target is aten.view.default else step.target
            labels = target(labels, *map_arg(step.args[1:], lambda n: hint(n.meta["val"])))
        first = (slice(0, 1), slice(None)) + (slice(0, 1),) * (len(shape) - 2)
        index = labels[first].reshape(-1)
        expected = index.view([1, channels] + [1] * (len(shape) - 2))
        if not bool((labels == expected).all()) or torch.equal(index, torch.arange(channels)):
            continue
        with graph.inserting_before(node):
            shuffled = call(graph, aten.channel_shuffle.default, source, 1)
        shuffled.target = aten.index_select.default
        owner = graph.owning_module
        assert owner is not None
        name = next(n for n in map("_shuffle_{}".format, count()) if not hasattr(owner, n))
        owner.register_buffer(name, index.to(source.meta["val"].device), persistent=False)
        with graph.inserting_before(shuffled):
            constant = graph.get_attr(name)
            constant.meta["val"] = source.meta["val"].new_empty((channels,), dtype=torch.int64)
        shuffled.args = (source, 1, constant)
        _replace(node, shuffled)


def _shuffle_chain(node: Node) -> list[Node] | None:
    """The calls, last first, of a reshape whose only inputs are a transposition and a reshape before it."""
    chain: list[Node] = []
    for kinds in (RESHAPES, MOVES, RESHAPES):
        while node.target in COPIES and len(node.users) == 1:
            chain.append(node)
            node = node.args[0]  # type: ignore[assignment]
        if node.op != "call_function" or node.target not in kinds or (chain and len(node.users) != 1):
            return None
        chain.append(node)
        node = node.args[0]  # type: ignore[assignment]
    same = chain[0].meta["val"].shape == node.meta["val"].shape
    return chain if same and chain[0].target in RESHAPES else None


RESHAPES = {aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.unflatten.int}
MOVES = {aten.transpose.int, aten.permute.default}
COPIES = {aten.contiguous.default, aten.clone.default}

CONSTANTS: dict[Any, Any] = {
    aten.new_zeros.default: aten.zeros.default,
    aten.new_ones.default: aten.ones.default,
    aten.new_full.default: aten.full.default,
}

BORDERS: dict[str, dict[int, Any]] = {
    "reflect": {
        2: aten.reflection_pad1d.default,
        4: aten.reflection_pad2d.default,
        6: aten.reflection_pad3d.default,
    },
    "replicate": {
        2: aten.replication_pad1d.default,
        4: aten.replication_pad2d.default,
        6: aten.replication_pad3d.default,
    },
}
"""By mode and by the number of pads."""

FORMS: dict[Any, Callable[[Graph, Node], None]] = {
    **recompose.FORMS,
    aten.chunk.default: _split,
    aten.split.Tensor: _split,
    aten.tensor_split.sections: _split,
    aten.tensor_split.indices: _split,
    aten.unbind.int: _unbind,
    aten.select.int: _select,
    aten.stack.default: _stack,
    aten.glu.default: _glu,
    aten.slice_scatter.default: _slice_scatter,
    aten.select_scatter.default: _select_scatter,
    aten.narrow.default: _narrow,
    aten.index.Tensor: _index,
    aten.pad.default: _pad,
    aten.linear.default: _linear,
    aten.batch_norm.default: _norm,
    aten.instance_norm.default: _norm,
    aten.cat.default: _cat,
    **dict.fromkeys(CONSTANTS, _made_new),
    **dict.fromkeys(
        (
            aten.conv1d.default,
            aten.conv2d.default,
            aten.conv3d.default,
            aten.conv1d.padding,
            aten.conv2d.padding,
            aten.conv_transpose1d.default,
            aten.conv_transpose2d.input,
        ),
        _convolution,
    ),
}
