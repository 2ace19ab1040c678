"""Where the predicted time of a network goes, before and after a plan, and what the plan did not do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from rich.table import Table
from torch import Tensor
from torch.fx import Graph

from l1rr_fx.latency import model
from l1rr_fx.latency.kernels import Kernel, canonical_kernels
from l1rr_fx.latency.prediction import Prediction
from l1rr_fx.machines.jetson_tx2 import JetsonTX2
from l1rr_fx.support.tables import numeric
from passes.assignment.plan import LayoutPlan
from passes.rewriting.sketcher import sketch

SHARES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3)
"""The shares of the dense network's time at which the curve of loss against time is shown."""
NEXT = 3
"""Moves that are shown of those that were not made."""


@dataclass(frozen=True)
class TimeParts:
    """Predicted milliseconds of one forward pass, and the kernels and copies among which they go.

    `launch` + `compute` + `traffic` is the whole. `padding` is the part of `compute` for rows that only fill tiles,
    `copied` the whole time of kernels that only move data. `stages` is the whole by the size of the map that a kernel
    writes, such as "80x80".
    """

    launch: float
    compute: float
    padding: float
    traffic: float
    copied: float
    kernels: int
    copies: int
    stages: Mapping[str, float] = field(default_factory=dict)

    @property
    def ms(self) -> float:
        """The predicted milliseconds of the whole."""
        return self.launch + self.compute + self.traffic


@dataclass(frozen=True)
class Move:
    """A move: `channels` of the family named go, and `back` channels of others come back. After it the plan loses
    `loss`, and takes `latency` of the dense network's time, both as predicted for the families' widths."""

    family: str
    channels: int
    loss: float
    latency: float
    back: int = 0


@dataclass(frozen=True)
class Explanation:
    """Where the predicted time goes in the dense network and in the pruned one, the moves that come next, the least
    loss that the same moves reach at other times, and the last move that was made."""

    before: TimeParts
    after: TimeParts
    next_moves: tuple[Move, ...] = ()
    curve: tuple[Move, ...] = ()
    last_move: Move | None = None

    def tables(self) -> tuple[Table, ...]:
        """The explanation as tables."""
        columns = {"dense": self.before, "pruned": self.after}
        found = [_times(columns), _stages(columns)]
        if self.last_move is not None:
            found.append(_moves("Last move, without which the budget is not met", [self.last_move]))
        if self.next_moves:
            found.append(_moves("Next moves, not made", self.next_moves))
        if self.curve:
            found.append(_moves("Loss by predicted time: the last move to each", self.curve))
        return tuple(found)


def explanation(
    target: JetsonTX2, dense: LayoutPlan, pruned: LayoutPlan, moves: Sequence[Move], made: int
) -> Explanation:
    """The explanation of a plan that makes the first `made` of the moves of a path."""
    curve = [next((move for move in moves if move.latency <= share), None) for share in SHARES]
    return Explanation(
        time_parts(target, dense),
        time_parts(target, pruned),
        tuple(moves[made : made + NEXT]),
        tuple(dict.fromkeys(move for move in curve if move is not None)),
        moves[made - 1] if made else None,
    )


def time_parts(target: JetsonTX2, plan: LayoutPlan) -> TimeParts:
    """The parts of the predicted time of the network that a layout plan describes."""
    graph = sketch(plan).graph
    kernels = canonical_kernels(graph)
    found = target.latency.of_kernels(kernels)
    full = _compute(target.latency.of_kernels([_unpadded(kernel) for kernel in kernels]))
    return TimeParts(
        sum(row.launch for row in found.rows),
        _compute(found),
        _compute(found) - full,
        sum(row.traffic for row in found.rows),
        sum(row.ms for row in found.copies),
        len(kernels),
        len(found.copies),
        _by_stage(graph, kernels, found),
    )


def _by_stage(graph: Graph, kernels: Sequence[Kernel], found: Prediction) -> dict[str, float]:
    """Predicted milliseconds by the size of the map that a kernel writes, in the order of the network."""
    values = {node.name: node.meta.get("val") for node in graph.nodes}
    stages: dict[str, float] = {}
    for kernel, row in zip(kernels, found.rows, strict=True):
        value = values[kernel.nodes[-1]]
        size = tuple(value.shape[2:]) if isinstance(value, Tensor) and value.dim() > 2 else ()
        name = "x".join(map(str, size)) or "no map"
        stages[name] = stages.get(name, 0.0) + row.ms
    return stages


def _unpadded(kernel: Kernel) -> Kernel:
    """The kernel with its rows in whole tiles and as many fewer columns: the same multiplications without padding."""
    size = kernel.geometry
    if size is None or not size.rows:
        return kernel
    tile = model.ROW_TILE
    return replace(kernel, geometry=replace(size, rows=tile, columns=size.columns * size.rows / tile))  # type: ignore[arg-type]  # a share of a column


def _compute(found: Prediction) -> float:
    return sum(row.compute for row in found.rows)


def _times(columns: Mapping[str, TimeParts]) -> Table:
    table = Table("predicted ms", title="Where the time goes", title_justify="left")
    numeric(table, *columns)
    rows = ("ms", "launch", "compute", "padding", "traffic", "copied")
    names = ("the whole", "launches", "compute", "  of it padding of rows", "traffic", "kernels that only copy")
    for row, name in zip(rows, names, strict=True):
        table.add_row(name, *(f"{getattr(each, row):.3f}" for each in columns.values()))
    table.add_row("kernels", *(f"{each.kernels:,} ({each.copies:,} copies)" for each in columns.values()))
    return table


def _stages(columns: Mapping[str, TimeParts]) -> Table:
    table = Table("map", title="Predicted ms by map", title_justify="left")
    for name in columns:
        table.add_column(name, justify="right")
    for stage in dict.fromkeys(stage for each in columns.values() for stage in each.stages):
        table.add_row(stage, *(f"{each.stages.get(stage, 0.0):.3f}" for each in columns.values()))
    return table


def _moves(title: str, moves: Sequence[Move]) -> Table:
    table = Table("family", title=title, title_justify="left")
    numeric(table, "channels", "back elsewhere", "loss after it", "share of the dense time")
    for move in moves:
        table.add_row(move.family, f"{move.channels:,}", f"{move.back:,}", f"{move.loss:.4g}", f"{move.latency:.4f}")
    return table
