"""Fusions: several calls that become one.

    slices side by side                     split_with_sizes
    reshape, transpose, reshape back        index_select, where only channels change places
    getitem twice of one result             getitem once

They are searched for in the whole graph, after each call was brought into canonical form.
"""

from __future__ import annotations

import math
import operator
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.node import map_arg

from passes.canonical.spellings import call, constant, slice_bounds
from passes.graph.nodes import hint, is_tensor, operator_name
from passes.rules.views import COPIES, PERMUTATIONS, RESHAPES

aten = torch.ops.aten

SAME = frozenset(COPIES) - {"detach"}
"""Copies that a fused call may leave out: without `detach` gradients would flow."""


@dataclass(frozen=True)
class _Cut:
    """A slice of a tensor, from `start` to `stop` along one axis."""

    node: Node
    start: int
    stop: int

    @property
    def span(self) -> tuple[int, int]:
        return self.start, self.stop


def join_slices(graph: Graph) -> None:
    """Replace slices of one tensor that do not overlap along an axis by one split, and slices of everything by it."""
    for source in list(graph.nodes):
        if source.target is aten.slice.Tensor or not source.users or not is_tensor(source):
            continue
        for axis, cuts in _cuts(source).items():
            length = int(source.meta["val"].shape[axis])
            for cut in cuts:
                if cut.span == (0, length):
                    cut.node.replace_all_uses_with(source)
            parts = [cut for cut in cuts if cut.span != (0, length)]
            spans = sorted({cut.span for cut in parts})
            if len(spans) > 1 and all(left[1] <= right[0] for left, right in pairwise(spans)):
                _split(graph, source, axis, parts)


def _cuts(source: Node) -> dict[int, list[_Cut]]:
    """The slices of a tensor that are not empty, by axis; those with a step or along a symbolic length are left out."""
    found: dict[int, list[_Cut]] = defaultdict(list)
    for user in source.users:
        if user.target is aten.slice.Tensor and user.args[0] is source:
            bounds = slice_bounds(user, source.meta["val"].shape)
            if bounds is not None and bounds[1] < bounds[2]:
                found[bounds[0]].append(_Cut(user, *bounds[1:]))
    return found


def _split(graph: Graph, source: Node, axis: int, cuts: list[_Cut]) -> None:
    """Replace slices by the results of one split, which has a result for each gap between them too."""
    edges = sorted({0, int(source.meta["val"].shape[axis]), *(edge for cut in cuts for edge in cut.span)})
    sizes = [stop - start for start, stop in pairwise(edges)]
    with graph.inserting_after(source):
        parts = call(graph, aten.split_with_sizes.default, source, sizes, axis)
    for cut in cuts:
        with graph.inserting_before(cut.node):
            cut.node.replace_all_uses_with(call(graph, operator.getitem, parts, edges.index(cut.start)))


def fuse_shuffles(graph: Graph) -> None:
    """Replace reshape, transpose, reshape back by one `index_select` where only channels change places."""
    for node in list(graph.nodes):
        chain = _shuffle_chain(node)
        order = None if chain is None else _channel_order(chain)
        if chain is not None and order is not None:
            _shuffle(graph, node, chain[-1].all_input_nodes[0], order)


def _shuffle_chain(node: Node) -> list[Node] | None:
    """The calls, last first, of a reshape, a transpose before it and a reshape before that, if the shape is the same.

    None for any other node, and where a call but the last has another reader.
    """
    chain: list[Node] = []
    for kinds in (RESHAPES, PERMUTATIONS, RESHAPES):
        while chain and operator_name(node) in SAME and len(node.users) == 1:
            chain.append(node)
            node = node.all_input_nodes[0]
        if operator_name(node) not in kinds or (chain and len(node.users) != 1):
            return None
        chain.append(node)
        node = node.all_input_nodes[0]
    before = node.meta["val"]
    if chain[0].meta["val"].shape != before.shape:
        return None
    return chain if all(step.meta["val"].dtype == before.dtype for step in chain) else None  # view.dtype is no reshape


def _channel_order(chain: list[Node]) -> Tensor | None:
    """The channel of the input that each channel of the result is, found by running the calls on numbered elements.

    None where elements move in any other way, and where none moves.
    """
    shape = chain[-1].all_input_nodes[0].meta["val"].shape
    if len(shape) < 2 or isinstance(shape[1], torch.SymInt):
        return None
    sizes = [hint(n) for n in shape]
    elements = torch.arange(math.prod(sizes)).view(sizes)
    moved = elements
    for step in reversed(chain):
        moved = _target(step)(moved, *map_arg(step.args[1:], lambda n: hint(n.meta["val"])))
    first: Any = (0, slice(None), *[0] * (len(sizes) - 2))
    order = moved[first] // math.prod(sizes[2:]) % sizes[1]
    moves_channels = torch.equal(moved, elements.index_select(1, order))
    return order if moves_channels and not torch.equal(moved, elements) else None


def _target(step: Node) -> Any:
    """The operator of a step; the numbers may lie in memory such that a view of them is not possible."""
    return aten.reshape.default if operator_name(step) in ("view", "_unsafe_view") else step.target


def _shuffle(graph: Graph, node: Node, source: Node, order: Tensor) -> None:
    """Replace a node by the channels of `source` in another order."""
    with graph.inserting_before(node):
        positions = constant(graph, order.to(source.meta["val"].device), source, "_shuffle")
        shuffled = graph.create_node(
            "call_function", aten.index_select.default, (source, 1, positions), name="channel_shuffle_default"
        )
    shuffled.meta["val"] = node.meta["val"]
    node.replace_all_uses_with(shuffled)


def merge_projections(graph: Graph) -> None:
    """Keep one node for each result of a call, however often it is taken out."""
    first: dict[tuple[Any, Any], Node] = {}
    for node in list(graph.nodes):
        if node.target is operator.getitem and isinstance(node.args[0], Node):
            known = first.setdefault((node.args[0], str(node.args[1])), node)
            if known is not node:
                node.replace_all_uses_with(known)
                graph.erase_node(node)
