"""The widths of families as an integer program: the judge of quicker methods (needs scipy).

    minimise    the sum of the families' losses
    such that   the predicted time of all kernels is at most the limit

A family has one variable for each of its widths, of which one is 1. The time of a contraction is its tiles of rows
times its depth; both depend on widths. So a kernel has one variable for each number of tiles, and its depth is split
among them: the part of the chosen one is the depth, all others are 0. Weights that are read count in whole tiles too,
so that times are a little too large.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from l1rr_fx.latency import model
from l1rr_fx.method.planning.allocate import Moves
from l1rr_fx.method.planning.moves import costs
from l1rr_fx.method.planning.paths import Allocatable

WIDTH_STEP = 8
GAP = 0.005
"""The solver ends when its plan is so near to its bound."""


@dataclass
class _Program:
    """Variables with their costs and largest values, and rows low <= sum of coefficient * variable <= high."""

    costs: list[float] = field(default_factory=list)
    most: list[float] = field(default_factory=list)
    whole: list[int] = field(default_factory=list)
    rows: list[dict[int, float]] = field(default_factory=list)
    low: list[float] = field(default_factory=list)
    high: list[float] = field(default_factory=list)

    def variable(self, cost: float, most: float, whole: bool) -> int:
        self.costs.append(cost)
        self.most.append(most)
        self.whole.append(int(whole))
        return len(self.costs) - 1

    def row(self, terms: dict[int, float], low: float, high: float) -> None:
        self.rows.append(terms)
        self.low.append(low)
        self.high.append(high)

    def solve(self, seconds: float) -> tuple[list[float] | None, float]:
        """The best values found, and the bound on the cost of all."""
        import numpy as np
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import coo_array

        places = [(r, c, value) for r, row in enumerate(self.rows) for c, value in row.items()]
        r, c, values = (np.array(each) for each in zip(*places, strict=True))
        matrix = coo_array((values, (r, c)), shape=(len(self.rows), len(self.costs))).tocsr()
        result = milp(
            np.array(self.costs),
            integrality=np.array(self.whole),
            bounds=Bounds(np.zeros(len(self.most)), np.array(self.most)),
            constraints=LinearConstraint(matrix, np.array(self.low), np.array(self.high)),
            options={"time_limit": seconds, "mip_rel_gap": GAP},
        )
        bound = float(result.mip_dual_bound) if result.mip_dual_bound is not None else 0.0
        return (None if result.x is None else list(result.x)), bound


def best_widths(
    moves: Moves, families: Sequence[Allocatable], limit: float, seconds: float
) -> tuple[Tensor | None, float]:
    """The widths with the least loss that were found in time, if any, and a bound on the loss of all."""
    program, shapes = _Program(), moves.shapes
    width: list[dict[int, float]] = []  # of each family: variables with the widths that they stand for
    for each in families:
        most = each.family.channels
        options = [w for w in sorted({each.least, most, *range(WIDTH_STEP, most, WIDTH_STEP)}) if w >= each.least]
        chosen = {program.variable(float(each.losses[most - w]), 1, True): float(w) for w in options}
        program.row(dict.fromkeys(chosen, 1.0), 1, 1)
        width.append(chosen)
    full = torch.tensor([[float(each.family.channels) for each in families]], dtype=torch.float64)
    least = torch.tensor([[float(each.least) for each in families]], dtype=torch.float64)
    time = _times(moves)
    spent: dict[int, float] = {}
    fixed = 0.0

    def add(row: Tensor, price: float) -> float:
        """Add price * an affine function of the widths to the time; returns its constant part."""
        for number, share in enumerate(row[1:].tolist()):
            if share and price:
                for variable, w in width[number].items():
                    spent[variable] = spent.get(variable, 0.0) + price * share * w
        return price * float(row[0])

    for k in range(len(shapes.kernels)):
        fixed += time.launch + add(shapes.elements[k], time.element + float(shapes.depthwise[k]) * time.depthwise)
        multiplied = float(shapes.columns[k]) * (1 - float(shapes.depthwise[k]))
        if not multiplied or not bool(shapes.rows[k].any()):
            continue
        price = multiplied * (time.winograd if bool(shapes.winograd[k]) else time.plain)
        weights = time.element * float(shapes.weighted[k])
        one = torch.ones(1, 1, dtype=torch.float64)
        (rows, deep), (few, shallow) = (
            [(torch.cat([one, w], 1) @ each[k]).item() for each in (shapes.rows, shapes.depth)] for w in (full, least)
        )
        tiles = range(-int(-few // model.ROW_TILE), -int(-rows // model.ROW_TILE) + 1)
        taken = [program.variable(0.0, 1, True) for _ in tiles]
        depth = [program.variable(0.0, deep, False) for _ in tiles]
        program.row(dict.fromkeys(taken, 1.0), 1, 1)
        split = dict.fromkeys(depth, 1.0)
        for number, share in enumerate(shapes.depth[k, 1:].tolist()):
            split |= {variable: -share * w for variable, w in width[number].items() if share}
        program.row(split, float(shapes.depth[k, 0]), float(shapes.depth[k, 0]))
        cover = {variable: float(n * model.ROW_TILE) for variable, n in zip(taken, tiles, strict=True)}
        for number, share in enumerate(shapes.rows[k, 1:].tolist()):
            cover |= {variable: -share * w for variable, w in width[number].items() if share}
        program.row(cover, float(shapes.rows[k, 0]) - 0.5, float("inf"))
        for n, use, part in zip(tiles, taken, depth, strict=True):
            program.row({part: 1.0, use: -deep}, -float("inf"), 0)
            program.row({part: 1.0, use: -shallow}, 0, float("inf"))
            spent[part] = n * model.ROW_TILE * (price + weights)
            spent[use] = n * model.ROW_TILE * price * time.ramp
    dense = float(costs(shapes, full, moves.target).seconds)
    scale = 1 / dense
    program.row({variable: value * scale for variable, value in spent.items()}, -float("inf"), limit - fixed * scale)
    values, bound = program.solve(seconds)
    if values is None:
        return None, bound
    found = [max(chosen, key=lambda variable: values[variable]) for chosen in width]
    return torch.tensor([w[v] for w, v in zip(width, found, strict=True)], dtype=torch.float64), bound


@dataclass(frozen=True)
class _Times:
    """Seconds of one launch, of one padded multiplication, of one element moved, and of one in a depthwise kernel."""

    launch: float
    plain: float
    winograd: float
    element: float
    depthwise: float
    ramp: float


def _times(moves: Moves) -> _Times:
    target, half = moves.target, moves.target.precision == "fp16"
    clock, found = target.clock or target.device.clock, target.coefficients
    peak = target.device.peak(target.precision, clock)
    return _Times(
        found.launch * 1e-6,
        2 / (peak * (found.efficiency_fp16 if half else found.efficiency_fp32)),
        2 / (peak * (found.winograd_fp16 if half else found.winograd_fp32)),
        (2 if half else 4) / (target.device.bandwidth * found.bandwidth),
        found.depthwise * 1e-9 * target.device.clock / clock,
        found.ramp,
    )
