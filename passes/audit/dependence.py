"""Dependence: which outputs of a network do not depend on the values of its inputs, only on their sizes at most."""

from __future__ import annotations

from torch.fx import Graph, Node

from passes.graph.nodes import operator_name

SHAPE_READERS = ("sym_", "new_")
LIKE = "_like"


def constant_outputs(graph: Graph) -> tuple[int, ...]:
    """The outputs, by number, to which no input leads but through its sizes.

    The others may be constant as well: whether a call really uses what it reads is not asked.
    """
    output = next(node for node in reversed(graph.nodes) if node.op == "output")
    depends: dict[Node, bool] = {}
    for node in graph.nodes:
        depends[node] = node.op == "placeholder" or any(depends[each] for each in _read_by_value(node))
    (results,) = output.args
    flat = results if isinstance(results, (list, tuple)) else (results,)
    return tuple(i for i, each in enumerate(flat) if isinstance(each, Node) and not depends[each])


def _read_by_value(node: Node) -> list[Node]:
    """The nodes whose values a node reads; of the first input of `zeros_like` and the like it reads the size."""
    inputs = list(node.all_input_nodes)
    name = operator_name(node)
    if (name.startswith(SHAPE_READERS) or name.endswith(LIKE)) and node.args:
        return [each for each in inputs if each is not node.args[0]]
    return inputs
