"""How channels are shared out among families: methods side by side, at the same predicted time on a Jetson TX2.

    python -m benchmarks.allocation yolov8n yolov5s --latency 0.7 0.5 [--seconds 120]

Weights are not trained: the scales of the batch norms are drawn from U(.1, 1), and the loss is that of scores. Shares
are predicted from the families' widths, without the compiler. "uniform" zeroes the same share of every family. The
integer program (`scipy.optimize.milp`) is the judge: it stops after `--seconds`, and prints its lower bound on the loss
of any widths in multiples of 8. Only the moves of channels and blocks take whole blocks out.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from benchmarks.integers import best_widths
from l1rr_fx.method.planning.allocate import Moves
from l1rr_fx.method.planning.families import cells
from l1rr_fx.method.planning.moves import costs, shapes
from l1rr_fx.method.planning.paths import Allocatable, greedy
from l1rr_fx.method.sites.budget import Analysis

SWEEPS, HALVINGS = 2, 8


def moves_of(name: str, size: int) -> Moves:
    """The moves of an untrained YOLO with random scales."""
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(0)
    model = DetectionModel(f"{name}.yaml", verbose=False).eval()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.1, 1)
    analysis = Analysis(model, (torch.zeros(1, 3, size, size),), target="jetson-tx2")
    kept = frozenset(site.name for site in analysis.sites if site.blocked is not None or site.kind != "scale")
    scores = {
        s.name: model.get_parameter(s.weight).detach().double().abs() for s in analysis.sites if s.name not in kept
    }
    found = Moves.of(analysis, scores, kept, lambda channels: max(4, -(-channels // 20)))
    assert found is not None
    return found


def by_greedy(moves: Moves, families: list[Allocatable], limit: float, exponent: float) -> Tensor:
    """Widths on the path of moves by loss for what they save ** exponent."""
    path = greedy(moves.shapes, families, moves.target, {"latency": limit}, exponent=exponent)
    return path.states[path.first()].widths


def by_uniform(moves: Moves, families: list[Allocatable], limit: float) -> Tensor:
    """The same share of every family, to multiples of 8."""
    full = torch.tensor([float(each.family.channels) for each in families], dtype=torch.float64)
    least = torch.tensor([float(each.least) for each in families], dtype=torch.float64)
    shares = torch.linspace(1, 0, 201, dtype=torch.float64)[:, None]
    tried = torch.maximum((full * shares / 8).round() * 8, least).minimum(full)
    seconds = costs(moves.shapes, tried, moves.target).seconds
    return tried[int((seconds <= limit * seconds[0]).int().argmax())]


def by_prices(moves: Moves, families: list[Allocatable], limit: float) -> Tensor:
    """A knapsack over family x width: one price of time for all, found by bisection; at each price every family in turn
    takes its best width given those of the others, so that inputs and outputs of a layer are coupled."""
    full = torch.tensor([float(each.family.channels) for each in families], dtype=torch.float64)
    dense = float(costs(moves.shapes, full[None], moves.target).seconds)

    def at(price: float) -> Tensor:
        widths = full.clone()
        for _ in range(SWEEPS):
            for index, each in enumerate(families):
                options = sorted({each.least, each.family.channels, *range(8, each.family.channels, 8)})
                options = [w for w in options if w >= each.least]
                tried = widths.repeat(len(options), 1)
                tried[:, index] = torch.tensor(options, dtype=torch.float64)
                lost = torch.stack([each.losses[each.family.channels - w] for w in options])
                total = lost + price * costs(moves.shapes, tried, moves.target).seconds / dense
                widths = tried[int(total.argmin())]
        return widths

    low, high, found = 1.0, 1e6, full
    for _ in range(HALVINGS):
        middle = (low * high) ** 0.5
        widths = at(middle)
        if float(costs(moves.shapes, widths[None], moves.target).seconds) <= limit * dense:
            high, found = middle, widths
        else:
            low = middle
    return found


METHODS: Mapping[str, Callable[[Moves, list[Allocatable], float], Tensor]] = {
    "uniform": by_uniform,
    "greedy by loss alone": lambda moves, families, limit: by_greedy(moves, families, limit, 0.0),
    "greedy by loss for time ** .5": lambda moves, families, limit: by_greedy(moves, families, limit, 0.5),
    "greedy by loss for time": lambda moves, families, limit: by_greedy(moves, families, limit, 1.0),
    "one price, family by family": by_prices,
}


def without_blocks(moves: Moves) -> Moves:
    """The moves of channels alone."""
    analysis = moves.analysis
    return replace(moves, blocks=(), shapes=shapes(cells(analysis.program, analysis.sites), moves.families))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="+")
    parser.add_argument("--latency", nargs="+", type=float, default=[0.7, 0.5])
    parser.add_argument("--size", type=int, default=640)
    parser.add_argument("--seconds", type=float, default=0.0, help="of the integer program; 0 leaves it out")
    options = parser.parse_args()
    print("| network | limit | method | predicted time | MACs | parameters | loss | seconds |")
    print("|---|---:|---|---:|---:|---:|---:|---:|")
    for name in options.networks:
        everything = moves_of(name, options.size)
        moves = without_blocks(everything)
        families = [Allocatable(each.family, each.share_lost()) for each in moves.ranked]
        for limit in options.latency:
            for method, allocate in METHODS.items():
                started = time.process_time()
                _row(f"{name} | {limit} | {method}", moves, families, allocate(moves, families, limit), started)
            started = time.process_time()
            path = everything.path({"latency": limit}, {})
            widths = path.states[path.first()].widths
            _row(f"{name} | {limit} | moves of channels and blocks", everything, path.families, widths, started)
            if options.seconds:
                started = time.process_time()
                found, bound = best_widths(moves, families, limit, options.seconds)
                if found is not None:
                    _row(f"{name} | {limit} | integer program (channels)", moves, families, found, started)
                print(f"| {name} | {limit} | its lower bound | | | | {bound:.0f} | |", flush=True)


def _row(title: str, moves: Moves, units: Sequence[Allocatable], widths: Tensor, started: float) -> None:
    taken = time.process_time() - started
    full = torch.tensor([[float(each.family.channels) for each in units]], dtype=torch.float64)
    shares = costs(moves.shapes, widths[None], moves.target).shares(costs(moves.shapes, full, moves.target))
    lost = sum(float(e.losses[e.family.channels - int(w)]) for e, w in zip(units, widths.tolist(), strict=True))
    columns = [f"{float(shares[cost]):.3f}" for cost in ("latency", "macs", "params")]
    print(f"| {title} | {' | '.join(columns)} | {lost:.0f} | {taken:.1f} |", flush=True)


if __name__ == "__main__":
    main()
