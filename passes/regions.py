"""Regions of a graph that run under another setting (`torch.no_grad`, autocast), put back into what is around them."""

from __future__ import annotations

from typing import Any

import torch
from torch.fx import GraphModule, Node

from passes.errors import CaptureError

aten = torch.ops.aten


def inline_regions(module: GraphModule) -> None:
    """Replace, in place, each region by its nodes. What leaves a `no_grad` region is detached, as it was there.

    Raises CaptureError for a region under autocast: without it the same operators would run in another precision.
    """
    for node in list(module.graph.nodes):
        if node.op != "call_function" or getattr(node.target, "namespace", "") == "aten":
            continue
        name = str(getattr(node.target, "__name__", node.target))
        if name == "wrap_with_set_grad_enabled":
            enabled, body, *inputs = node.args
            _inline(module, node, body, inputs, detach=not enabled)
        elif name == "wrap_with_autocast":
            enabled, body, inputs = node.args[2], node.args[4], list(node.args[5:])
            if enabled:
                raise CaptureError(
                    "forward switches autocast on: capture the model without it and prune in one precision"
                )
            _inline(module, node, body, inputs, detach=False)


def _inline(module: GraphModule, node: Node, body: Any, inputs: list[Any], *, detach: bool) -> None:
    region = getattr(module, str(body.target))
    inline_regions(region)
    values: dict[Node, Any] = {}
    given = iter(inputs)
    results: Any = None
    with module.graph.inserting_before(node):
        for inner in region.graph.nodes:
            if inner.op == "placeholder":
                values[inner] = next(given)
            elif inner.op == "output":
                results = inner.args[0]
            else:
                values[inner] = module.graph.node_copy(inner, values.__getitem__)
                if inner.op == "get_attr" and not hasattr(module, str(inner.target).split(".")[0]):
                    setattr(module, str(inner.target), getattr(region, str(inner.target)))
        leaving = [values[r] if isinstance(r, Node) else r for r in results]
        if detach:
            leaving = [_detached(module, value) for value in leaving]
    for user in list(node.users):
        user.replace_all_uses_with(leaving[user.args[1]])  # type: ignore[index]
        module.graph.erase_node(user)
    module.graph.erase_node(node)
    if not body.users:
        module.graph.erase_node(body)


def _detached(module: GraphModule, value: Any) -> Any:
    if not isinstance(value, Node) or not isinstance(value.meta.get("val"), torch.Tensor):
        return value
    found = module.graph.call_function(aten.detach.default, (value,))
    found.meta["val"] = value.meta["val"]
    return found
