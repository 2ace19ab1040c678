"""Constants: what a graph computes from parameters, buffers and literals alone; and removal of all that is unread."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from passes.graph.modes import DROPOUTS
from passes.graph.nodes import attribute, holder

MOST_GROWN = 2**20
"""The bytes by which a constant may exceed the parameters and buffers that it is computed from.

Enough for a grid of anchors; a feature map of zeros is not stored.
"""


@torch.no_grad()
def constant_values(module: GraphModule) -> dict[Node, Any]:
    """The values of the nodes that depend on parameters, buffers and literals alone, parameters and buffers included.

    Left out are results of random operators, and values that exceed what they are computed from by `MOST_GROWN`.
    """
    values: dict[Node, Any] = {}
    sources: dict[Node, Mapping[str, int]] = {}  # bytes of the tensors that a value is computed from
    for node in module.graph.nodes:
        if node.op == "get_attr":
            value = attribute(module, str(node.target))
            if isinstance(value, Tensor):
                values[node] = value.detach()
                sources[node] = {str(node.target): _bytes(value)}
        elif _is_pure(node) and all(argument in values for argument in node.all_input_nodes):
            value = node.target(*map_arg(node.args, values.__getitem__), **map_arg(node.kwargs, values.__getitem__))
            made_from = {name: size for n in node.all_input_nodes for name, size in sources[n].items()}
            if _bytes(value) <= sum(made_from.values()) + MOST_GROWN:
                values[node], sources[node] = value, made_from
    return values


def _is_pure(node: Node) -> bool:
    """Whether the node calls an operator that depends on its arguments alone and writes to none of them."""
    if node.op != "call_function" or node.target is operator.getitem:
        return node.op == "call_function"
    target = node.target
    if not isinstance(target, OpOverload) or target.namespace != "aten" or target._schema.is_mutable:
        return False
    idle = target in DROPOUTS and not node.args[2]
    return idle or torch.Tag.nondeterministic_seeded not in target.tags


def _bytes(value: object) -> int:
    return value.numel() * value.element_size() if isinstance(value, Tensor) else 0


def swept(module: GraphModule) -> GraphModule:
    """Remove the nodes, parameters, buffers and submodules without readers, in place; returns `module`."""
    module.graph.eliminate_dead_code()
    read = {str(node.target) for node in module.graph.nodes if node.op in ("get_attr", "call_module")}
    tensors = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
    for name, _ in tensors:
        if name not in read and name.rpartition(".")[0] not in read:
            delattr(*holder(module, name))
    module.delete_all_unused_submodules()
    module.recompile()
    return module
