"""What reports call a node: the module that it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch.fx import Graph, Node


def owner(node: Node) -> str:
    """The module whose parameter a call reads first, a name that is the same before and after pruning; else ""."""
    for source in node.all_input_nodes:
        if source.op == "get_attr":
            return str(source.target).rpartition(".")[0]
    return ""


def labels(graph: Graph) -> Mapping[str, str]:
    """By the name of each node what reports call it, each another.

    A call that reads a parameter is called like its module ("stem.0"); a second one of the module, and a call without
    parameters, has its own name too ("add (layer1.0)").
    """
    found: dict[str, str] = {}
    taken: set[str] = set()
    for node in graph.nodes:
        module = owner(node) if node.op == "call_function" else ""
        label = module if module and module not in taken else _with_module(node, module or _called_in(node))
        taken.add(label)
        found[node.name] = label
    return found


def _with_module(node: Node, module: str) -> str:
    return f"{node.name} ({module})" if module else node.name


def _called_in(node: Node) -> str:
    """The module in whose forward a call stands; "" for the model itself, and where the capture does not say."""
    stack: Any = node.meta.get("nn_module_stack")
    return str(list(stack.values())[-1][0]) if stack else ""
