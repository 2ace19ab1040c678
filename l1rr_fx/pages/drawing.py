"""The graph of a network as a drawing: its layers and the places where branches meet, in rows by depth."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.fx import GraphModule, Node

from l1rr_fx.method.sites.producers import group_numbers
from passes.analysis.program import Program
from passes.canonical.normalise import normalise_graph
from passes.frontend.capture import capture
from passes.graph.labels import labels
from passes.graph.nodes import operator_label
from passes.rules import rule_for
from passes.rules.base import Site

COLUMN, ROW = 190, 46
"""Pixels between the centres of two boxes."""
INPUT = "input"


@dataclass(frozen=True)
class Box:
    """A layer, a meeting of branches, or an input. `x` and `y` are the pixels of its centre.

    `group` numbers the channels that must share a mask if nothing is recombined (0: an input).
    """

    name: str
    operator: str
    channels: int
    group: int
    x: int
    y: int


@dataclass(frozen=True)
class Drawing:
    """Boxes, and lines between them by their numbers; the size in pixels."""

    boxes: tuple[Box, ...]
    lines: tuple[tuple[int, int], ...]
    width: int
    height: int


def drawing_of(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Drawing:
    """The drawing of a network. Raises CaptureError as `capture` does."""
    captured = capture(module, args, kwargs)
    normalise_graph(captured.graph)
    program = Program(captured, rule_for)
    shown = [site for site in program.sites if _is_shown(site)]
    inputs = [node for node in captured.graph.find_nodes(op="placeholder") if node.users]
    numbers = {node: number for number, node in enumerate((*inputs, *(site.node for site in shown)))}
    sources = _sources(captured, numbers)
    depth = _depths(numbers, sources)
    places = _places(numbers, depth)
    names, groups = labels(captured.graph), group_numbers(program, [site.node for site in shown])
    boxes = [Box(INPUT, node.name, _channels(node), 0, *places[node]) for node in inputs]
    boxes += [
        Box(names[node.name], operator_label(node), _channels(node), groups[node], *places[node])
        for node in (site.node for site in shown)
    ]
    lines = tuple((numbers[source], numbers[node]) for node in numbers for source in sources[node])
    widest, deepest = max(x for x, _ in places.values()), max(y for _, y in places.values())
    return Drawing(tuple(boxes), lines, widest + COLUMN // 2, deepest + ROW)


def _is_shown(site: Site) -> bool:
    """Layers, and calls in which channels of several tensors meet."""
    return site.rule.weight is not None or len({node for node in site.inputs if node.op != "get_attr"}) > 1


def _channels(node: Node) -> int:
    shape = node.meta["val"].shape
    return int(shape[1]) if len(shape) > 1 else 1


def _sources(module: GraphModule, shown: dict[Node, int]) -> dict[Node, tuple[Node, ...]]:
    """For each shown node the shown ones that its inputs come from."""
    origins: dict[Node, tuple[Node, ...]] = {}
    sources: dict[Node, tuple[Node, ...]] = {}
    for node in module.graph.nodes:
        found = tuple(dict.fromkeys(o for each in node.all_input_nodes for o in origins.get(each, ())))
        if node in shown:
            sources[node] = found
            origins[node] = (node,)
        else:
            origins[node] = found
    return sources


def _depths(shown: dict[Node, int], sources: dict[Node, tuple[Node, ...]]) -> dict[Node, int]:
    """The most shown nodes on a way to each."""
    depth: dict[Node, int] = {}
    for node in shown:
        depth[node] = 1 + max((depth[source] for source in sources[node]), default=-1)
    return depth


def _places(shown: dict[Node, int], depth: dict[Node, int]) -> dict[Node, tuple[int, int]]:
    """A row for each depth, in the order of the calls."""
    rows: dict[int, list[Node]] = defaultdict(list)
    for node in shown:
        rows[depth[node]].append(node)
    widest = max(map(len, rows.values()))
    return {
        node: (int((widest - len(row) + 2 * column + 1) * COLUMN / 2), row_number * ROW + ROW)
        for row_number, row in rows.items()
        for column, node in enumerate(row)
    }
