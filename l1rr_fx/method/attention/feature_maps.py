"""Where a detector's features are looked at: the tensors that enter its heads, and those that its predictions are
made from."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import takewhile

import networkx as nx
import torch
from torch import Tensor
from torch.fx import Graph, Node

from l1rr_fx.method.sites.blocked import predictions
from passes.analysis.liveness import Facts, channel_facts
from passes.analysis.program import Program
from passes.rules.base import Site
from passes.errors import InputError

aten = torch.ops.aten

ROOT = "inputs"
SHAPE_ONLY = (aten.new_full, aten.new_zeros, aten.new_ones, aten.new_empty)
"""Operators that read the device and the dtype of a tensor and nothing else; detectors make their anchors so."""


def found_taps(program: Program) -> tuple[Node, ...]:
    """The feature maps of a detector, in the order of the network.

    Its prediction layers are the last layers before its outputs that give maps of the image. For each size of map, the
    tensor that all of its predictions are made from (their nearest common dominator) enters the heads; the tensors that
    the prediction layers read leave the heads' towers. InputError if the network gives no maps.
    """
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


def named_taps(program: Program, names: Sequence[str]) -> tuple[Node, ...]:
    """The results of the modules (dotted names), or the nodes of the graph, that are named. InputError for others.

    Of a module that is called several times, such as a head that all sizes share, all results; "head@1" is that of its
    second call."""
    results = _results(program.module.graph)
    found: dict[Node, None] = {}
    for name in names:
        nodes = [n for n in program.tensors if n.name == name]
        nodes = nodes or [node for call, node in results.items() if name in (call, call.partition("@")[0])]
        if not nodes:
            raise InputError(f"taps: the model has no module or node {name!r} that gives a tensor")
        for node in nodes:
            if len(program.shape(node)) != 4:
                raise InputError(f"taps: {name!r} has shape {program.shape(node)}; a map (n, c, h, w) is wanted")
            found[node] = None
    return tuple(found)


def same_taps(program: Program, first: Graph, taps: Sequence[Node]) -> tuple[Node, ...]:
    """What `taps`, of the graph `first`, are in the network for inputs of other sizes. InputError if they are nothing.

    The result of a module's call is that of the same call; what is no module's result has the same place in a graph
    that is alike up to there."""
    calls = {node: call for call, node in _results(first).items()}
    results = _results(program.module.graph)
    alike = dict(takewhile(_is_alike, zip(first.nodes, program.module.graph.nodes, strict=False)))
    found = [results.get(calls[tap]) if tap in calls else alike.get(tap) for tap in taps]
    for tap, node in zip(taps, found, strict=True):
        if node is None or _kind(node) != _kind(tap):
            sizes = [tuple(n.meta["val"].shape) for n in program.tensors if n.op == "placeholder"]
            raise InputError(
                f"taps: the network for inputs of {', '.join(map(str, sizes))} has no {calls.get(tap, tap.name)!r} as "
                "that for the first example has it; give images of one size, or name maps that all sizes have"
            )
    return tuple(node for node in found if node is not None)


def _is_alike(pair: tuple[Node, Node]) -> bool:
    return pair[0].name == pair[1].name and pair[0].target == pair[1].target


def _kind(node: Node) -> tuple[int, int]:
    """How many axes a tensor has, and how many channels."""
    shape = node.meta["val"].shape
    return len(shape), shape[1]


def tap_names(graph: Graph, taps: Sequence[Node]) -> tuple[str, ...]:
    """What the feature maps are called: the innermost module whose result it is, or the node where there is none."""
    results = _results(graph)
    names = {node: name for name, node in results.items()}
    return tuple(names.get(node, node.name) for node in taps)


def _results(graph: Graph) -> dict[str, Node]:
    """The last tensor that was computed inside each call of each module, outer modules first; the second call of
    "head" is "head@1"."""
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
        if site.rule.family == "contraction" and _is_map(site.out_shape, image):
            layers[site] = None
            continue
        new = [node for node in _read(site, facts) if node not in seen]
        seen.update(new)
        waiting += new
    return tuple(layers)


def _is_map(shape: Sequence[int], image: Sequence[int]) -> bool:
    """Whether a tensor lies over the image: it has several cells, and the same stride both ways."""
    if len(shape) != 4 or len(image) != 4 or shape[2] * shape[3] < 2:
        return False
    return abs(image[2] / shape[2] - image[3] / shape[3]) <= 0.05 * image[2] / shape[2]


def _read(site: Site, facts: Facts) -> tuple[Node, ...]:
    """The computed tensors whose elements a call depends on: not those of which it takes only the size or the dtype."""
    if getattr(site.node.target, "overloadpacket", None) in SHAPE_ONLY:
        return ()
    lives = [torch.ones_like(live) for live in facts.at(site).lives]
    needed = site.rule.needed(site, lives, [facts.zero[node] for node in site.inputs])
    return tuple(n for n, mask in zip(site.inputs, needed, strict=True) if n.op != "get_attr" and bool(mask.any()))


def _flow(program: Program, facts: Facts) -> nx.DiGraph:
    """Which tensor is computed from which, from one root before all inputs."""
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
    """The nearest tensor that every path from the inputs to each of the nodes goes through."""
    lines = [_line(dominators, node) for node in nodes]
    shared = [node for node in lines[0] if all(node in line for line in lines[1:])]
    return next((node for node in shared if isinstance(node, Node)), None)


def _line(dominators: dict[object, object], node: object) -> list[object]:
    """A node and its dominators, the nearest first."""
    line = [node]
    while line[-1] in dominators and (above := dominators[line[-1]]) not in (line[-1], None):
        line.append(above)
    return line
