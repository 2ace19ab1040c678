"""The feature maps of a detector whose attention is compared: the inputs of its heads and of its prediction layers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import takewhile
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.fx import Graph, Node

from l1rr_fx.method.sites.blocked import predictions
from passes.analysis.liveness import Facts, channel_facts
from passes.analysis.program import Program
from passes.errors import InputError
from passes.rules.base import Site

if TYPE_CHECKING:
    import networkx as nx

ROOT = "inputs"


def found_feature_maps(program: Program) -> tuple[Node, ...]:
    """The feature maps of a detector, in the order of the network.

    They are the inputs of the prediction layers, which are the last layers before the outputs that give maps of the
    image; and for each size of map the input of the heads: the nearest tensor from which all predictions of that size
    are computed (their nearest common dominator). InputError if no layer before the outputs gives a map.
    """
    import networkx as nx  # late: a large part of the time that importing the package takes

    facts = channel_facts(program)
    layers = _prediction_layers(program, facts)
    if not layers:
        raise InputError(
            "no detector's heads are found: no layer before the outputs gives a map of the image. "
            'Name the feature maps to look at: taps=("backbone.layer3", ...)'
        )
    dominators = nx.immediate_dominators(_flow(program, facts), ROOT)
    by_size: dict[tuple[int, ...], list[Node]] = defaultdict(list)
    for layer in layers:
        by_size[layer.out_shape[2:]].append(layer.inputs[0])
    found: set[Node] = set()
    for inputs in by_size.values():
        found.update(inputs)
        entry = _common(dominators, inputs)
        if entry is not None and len(program.shape(entry)) == 4:
            found.add(entry)
    return tuple(node for node in program.module.graph.nodes if node in found)


def named_feature_maps(program: Program, names: Sequence[str]) -> tuple[Node, ...]:
    """The results of the named modules (dotted names), or the named nodes of the graph. InputError for other names.

    A module that is called several times, such as a head that all sizes share, gives all of its results; "head@1" is
    the result of its second call."""
    results = _results(program.module.graph)
    found: dict[Node, None] = {}
    for name in names:
        nodes = [n for n in program.tensors if n.name == name]
        nodes = nodes or [node for call, node in results.items() if name in (call, call.partition("@")[0])]
        if not nodes:
            raise InputError(f"taps: the model has no module or node {name!r} that gives a tensor")
        for node in nodes:
            if len(program.shape(node)) != 4:
                raise InputError(f"taps: {name!r} has shape {program.shape(node)}; expected a map (n, c, h, w)")
            found[node] = None
    return tuple(found)


def same_feature_maps(program: Program, first: Graph, maps: Sequence[Node]) -> tuple[Node, ...]:
    """The nodes that correspond to `maps`, of the graph `first`, in the network for inputs of other sizes.

    The result of a module's call corresponds to the result of the same call; any other node to the node in the same
    place, if the graphs are alike up to there. InputError if a map has no counterpart."""
    calls = {node: call for call, node in _results(first).items()}
    results = _results(program.module.graph)
    alike = dict(takewhile(_is_alike, zip(first.nodes, program.module.graph.nodes, strict=False)))
    found = [results.get(calls[each]) if each in calls else alike.get(each) for each in maps]
    for each, node in zip(maps, found, strict=True):
        if node is None or _kind(node) != _kind(each):
            sizes = [tuple(n.meta["val"].shape) for n in program.tensors if n.op == "placeholder"]
            name = calls.get(each, each.name)
            raise InputError(
                f"taps: the network for inputs of {', '.join(map(str, sizes))} has no {name!r} as "
                "that for the first example has it; give images of one size, or name maps that all sizes have"
            )
    return tuple(node for node in found if node is not None)


def _is_alike(pair: tuple[Node, Node]) -> bool:
    return pair[0].name == pair[1].name and pair[0].target == pair[1].target


def _kind(node: Node) -> tuple[int, int]:
    """The number of axes of a tensor, and its number of channels."""
    shape = node.meta["val"].shape
    return len(shape), shape[1]


def feature_map_names(graph: Graph, maps: Sequence[Node]) -> tuple[str, ...]:
    """The names of feature maps: the innermost module of which a map is the result, or else the node."""
    results = _results(graph)
    names = {node: name for name, node in results.items()}
    return tuple(names.get(node, node.name) for node in maps)


def _results(graph: Graph) -> dict[str, Node]:
    """The last tensor computed in each call of each module, outer modules first; "head@1" is the second call of
    "head"."""
    found: dict[str, Node] = {}
    for node in graph.nodes:
        for key, (path, _) in node.meta.get("nn_module_stack", {}).items():
            _, again, number = key.partition("@")
            if path and isinstance(node.meta.get("val"), Tensor):
                found[path + again + number] = node
    return found


def _prediction_layers(program: Program, facts: Facts) -> tuple[Site, ...]:
    """The layers whose maps reach a prediction without another layer that gives a map in between."""
    image = next((program.shape(n) for n in program.tensors if n.op == "placeholder"), ())
    seen: set[Node] = set(predictions(program))
    waiting = list(seen)
    layers: dict[Site, None] = {}
    while waiting:
        site = program.at.get(waiting.pop())
        if site is None:
            continue
        if site.rule.weight is not None and _is_map(site.out_shape, image):
            layers[site] = None
            continue
        new = [node for node in _read(site, facts) if node not in seen]
        seen.update(new)
        waiting += new
    return tuple(layers)


def _is_map(shape: Sequence[int], image: Sequence[int]) -> bool:
    """Whether a tensor is a map of the image: it has several cells, and the same stride along both axes."""
    if len(shape) != 4 or len(image) != 4 or shape[2] * shape[3] < 2:
        return False
    return abs(image[2] / shape[2] - image[3] / shape[3]) <= 0.05 * image[2] / shape[2]


def _read(site: Site, facts: Facts) -> tuple[Node, ...]:
    """The computed tensors whose elements a call depends on: without those of which it reads only size or type."""
    if site.rule.makes_constant:
        return ()
    lives = [torch.ones_like(live) for live in facts.at(site).lives]
    needed = site.rule.needed(site, lives, [facts.zero[node] for node in site.inputs])
    return tuple(n for n, mask in zip(site.inputs, needed, strict=True) if n.op != "get_attr" and bool(mask.any()))


def _flow(program: Program, facts: Facts) -> nx.DiGraph:
    """Which tensor is computed from which, from one root before all inputs."""
    import networkx as nx  # late: a large part of the time that importing the package takes

    flow = nx.DiGraph()
    flow.add_node(ROOT)
    for node in program.tensors:
        if node.op == "placeholder":
            flow.add_edge(ROOT, node)
    for site in program.sites:
        for source in _read(site, facts):
            flow.add_edges_from((source, out) for out in site.outputs if out is not None)
    return flow


def _common(dominators: dict[object, object], nodes: Sequence[Node]) -> Node | None:
    """The nearest common dominator: the last tensor on every path from the inputs to each of the nodes."""
    lines = [_line(dominators, node) for node in nodes]
    shared = [node for node in lines[0] if all(node in line for line in lines[1:])]
    return next((node for node in shared if isinstance(node, Node)), None)


def _line(dominators: dict[object, object], node: object) -> list[object]:
    """A node and its dominators, the nearest first."""
    line = [node]
    while line[-1] in dominators and (above := dominators[line[-1]]) not in (line[-1], None):
        line.append(above)
    return line
