"""Normalise: bring a captured graph into canonical form, so that fewer operators need rules.

1. Calls that do nothing are left out (`passes.canonical.idle`), and operators that no rule knows are taken apart
   (`passes.canonical.decompose`).
2. Each call is brought into canonical form (`passes.canonical.spellings`), and operators of core ATen become those that
   they were made of (`passes.canonical.recompose`). What then does nothing is left out, too.
3. Several calls become one (`passes.canonical.fusions`).
"""

from __future__ import annotations

from torch.fx import Graph, GraphModule, Node

from passes.canonical import pooling, recurrent
from passes.canonical.decompose import take_apart
from passes.canonical.fusions import fuse_shuffles, join_slices, merge_projections
from passes.canonical.idle import leave_out_idle
from passes.canonical.spellings import SPELLINGS
from passes.rules import UNKNOWN, rule_for

REWRITES = {**SPELLINGS, **recurrent.WRITTEN, **pooling.WRITTEN}


def normalise(module: GraphModule) -> GraphModule:
    """Bring a captured graph into canonical form, in place; returns `module`, which computes the same."""
    normalise_graph(module.graph)
    module.recompile()
    return module


def normalise_graph(graph: Graph) -> None:
    """Bring a captured graph whose module is not run afterwards into canonical form, in place."""
    leave_out_idle(graph)
    for node in list(graph.nodes):
        with graph.inserting_before(node):
            take_apart(graph, node, _is_known)
    for node in list(graph.nodes):
        rewrite = REWRITES.get(node.target) if node.op == "call_function" else None
        if rewrite is not None:
            with graph.inserting_before(node):
                rewrite(graph, node)
    leave_out_idle(graph)
    join_slices(graph)
    fuse_shuffles(graph)
    merge_projections(graph)
    graph.eliminate_dead_code()


def _is_known(node: Node) -> bool:
    return node.target in REWRITES or rule_for(node) is not UNKNOWN
