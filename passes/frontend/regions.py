"""Regions: sub-graphs under another setting (`torch.no_grad`, autocast) become part of the graph around them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.fx import Graph, Node

from passes.errors import CaptureError

aten = torch.ops.aten
higher_order = torch.ops.higher_order


def inline_regions(root: nn.Module, graph: Graph) -> None:
    """Replace the call of each region by the region's nodes, in place; results of a `no_grad` region are detached.

    `root` holds the tensors and the graph modules of the regions that the graph names. Raises CaptureError for a region
    that switches autocast on: outside of it the same operators would run in another precision.
    """
    for node in list(graph.nodes):
        if node.target is higher_order.wrap_with_set_grad_enabled:
            enabled, body, *inputs = node.args
            _inline(root, graph, node, body, inputs, detach=not enabled)
        elif node.target is higher_order.wrap_with_autocast:
            enabled, body, inputs = node.args[2], node.args[4], list(node.args[5:])
            if enabled:
                raise CaptureError(
                    "forward switches autocast on: capture the model without it and prune in one precision"
                )
            _inline(root, graph, node, body, inputs, detach=False)


def _inline(root: nn.Module, graph: Graph, node: Node, body: Any, inputs: list[Any], *, detach: bool) -> None:
    """Replace one call of a region, whose graph module is `body`, by the region's nodes."""
    region = getattr(root, str(body.target))
    inline_regions(region, region.graph)
    values: dict[Node, Any] = {}
    given = iter(inputs)
    results: Any = None
    with graph.inserting_before(node):
        for inner in region.graph.nodes:
            if inner.op == "placeholder":
                values[inner] = next(given)
            elif inner.op == "output":
                results = inner.args[0]
            else:
                values[inner] = graph.node_copy(inner, values.__getitem__)
                if inner.op == "get_attr" and not hasattr(root, str(inner.target).split(".")[0]):
                    setattr(root, str(inner.target), getattr(region, str(inner.target)))
        leaving = [values[r] if isinstance(r, Node) else r for r in results]
        if detach:
            leaving = [_detached(graph, value) for value in leaving]
    for user in list(node.users):
        user.replace_all_uses_with(leaving[user.args[1]])  # type: ignore[index]
        graph.erase_node(user)
    graph.erase_node(node)
    if not body.users:
        graph.erase_node(body)


def _detached(graph: Graph, value: Any) -> Any:
    if not isinstance(value, Node) or not isinstance(value.meta.get("val"), torch.Tensor):
        return value
    found = graph.call_function(aten.detach.default, (value,))
    found.meta["val"] = value.meta["val"]
    return found
