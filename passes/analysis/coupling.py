"""Coupling: which tensors have the same channels, so that they share one mask unless they are recombined.

An edge joins two tensors whose channels are the same channels: through element-wise operators, batch norm, pooling and
depthwise convolution. The connected components of this networkx graph are the groups that other pruners cut together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch.fx import Node

from passes.analysis.program import Program
from passes.rules.base import Site

if TYPE_CHECKING:
    import networkx as nx


def channel_groups(program: Program) -> nx.Graph:
    """The coupling graph: tensors (nodes, attribute `channels`), joined where their channels are the same (edges,
    attribute `site`: the call site that couples them)."""
    import networkx as nx  # late: a large part of the time that importing the package takes

    graph = nx.Graph()
    for value in program.tensors:
        shape = program.shape(value)
        graph.add_node(value, channels=shape[1] if len(shape) > 1 else 1)
    for site in program.sites:
        if not site.rule.keeps_channels(site):
            continue
        for node in site.inputs:
            for out in site.outputs:
                if out is not None and _same_channels(program, node, out):
                    graph.add_edge(node, out, site=site)
    return graph


def _same_channels(program: Program, a: Node, b: Node) -> bool:
    one, other = program.shape(a), program.shape(b)
    if len(one) != len(other) or len(one) < 2:
        return False
    return one == other or one[1] == other[1] != 1


def is_meeting(site: Site) -> bool:
    """Whether branches of the network meet here: the call adds at least two computed tensors of its own shape."""
    computed = [n for n in site.inputs if n.op not in ("get_attr", "placeholder")]
    return site.rule.is_sum and len(set(computed)) > 1 and all(site.shape(n) == site.out_shape for n in computed)


def residual_values(program: Program) -> frozenset[Node]:
    """Every tensor that is coupled with a sum of branches."""
    import networkx as nx  # late: a large part of the time that importing the package takes

    graph = channel_groups(program)
    found: set[Node] = set()
    for site in program.sites:
        if is_meeting(site) and site.node not in found:
            found |= nx.node_connected_component(graph, site.node)
    return frozenset(found)
