"""Plans for a machine: are budgets met, is nothing zero computed, and are they faster than uniformly slimmer networks?

    python -m benchmarks.plans budgets [NAME@SIZE ...] [--shares 0.3 0.6 0.9]
    python -m benchmarks.plans uniform [--tiles 8 16 32 64]
    python -m benchmarks.plans half [NAME@SIZE ...]

Weights are not trained: the scales of the batch norms are drawn from U(.1, 1), and losses are those of scores. All
times are predicted for a Jetson TX2 in FP16; nothing is measured but processor seconds of `choose`.

- budgets: for shares of the time that the network's plans can save. "MACs" are those that `prune(target="jetson-tx2")`
  leaves over those that `prune` leaves without a target. "slack" is what is left of the limit; where it is above a
  hundredth, the last step is larger.
- uniform: plans with at most the MACs and the time of the same network at a fraction of its width, for several tiles of
  the model (its coefficients fitted again for each with `--refit`; for other tiles than 32 the time is that of every
  family at the same share of its channels). With them the paper's budget on YOLOv5s, at 2.1 times the speed.
- half: at half of the dense time, the loss of a plan for latency, and plans for MACs, by bisection for the same time.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

import l1rr_fx
from benchmarks.tx2_model import fitted
from benchmarks.tx2_networks import YOLOv5s
from l1rr_fx import Budget, InputError, choose
from l1rr_fx.latency import model as latency_model
from l1rr_fx.latency.prediction import Latency
from l1rr_fx.method.planning.allocate import Moves
from l1rr_fx.method.planning.moves import costs
from l1rr_fx.method.planning.plan import Plan
from l1rr_fx.method.planning.removable import blocked_sites, least_width
from l1rr_fx.method.sites.budget import Analysis
from tests.zoo import by_name

ZOO = (
    "yolo/yolov8n@320",
    "yolo/yolo11n@320",
    "yolo/yolov5n@320",
    "tv/resnet18@224",
    "tv/resnet50@224",
    "tv/mobilenet_v2@224",
    "tv/mobilenet_v3_large@224",
    "tv/densenet121@224",
    "tv/regnet_y_400mf@224",
    "tv/shufflenet_v2_x1_0@224",
)
UNIFORM: Mapping[str, tuple[tuple[float, float], ...]] = {
    "yolo/yolov5s@640": ((0.322, 0.497), (0.437, 0.632)),
    "yolo/yolov8n@640": ((0.457, 0.678),),
    "yolo/yolo11n@640": ((0.397, 0.696),),
}
"""MACs and predicted times of the same networks at smaller widths, as shares of the dense network's."""
PAPER, SPEED = {"params": 0.225, "macs": 0.35}, 2.1
TARGET = "jetson-tx2"
TRIES = 6


def network(name: str) -> tuple[nn.Module, tuple[Any, ...]]:
    """A network of the zoo at a size, with random scales; "v5s@640" is YOLOv5s with its own head."""
    title, _, size = name.partition("@")
    if title == "v5s":
        torch.manual_seed(0)
        built, args = YOLOv5s().eval(), (torch.rand(1, 3, int(size), int(size)),)
    else:
        built, args, _ = dataclasses.replace(by_name(title), size=int(size)).build()
    torch.manual_seed(0)
    for norm in built.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.1, 1)
    return built, args


def moves_of(model: nn.Module, args: tuple[Any, ...], target: str | Latency = TARGET) -> Moves:
    """The moves of a model with the scores of its batch norms."""
    analysis = Analysis(model, args, target=target)
    kept = frozenset(blocked_sites(analysis, None, None))
    scores = {
        site.name: model.get_parameter(site.weight).detach().double().abs()
        for site in analysis.sites
        if site.name not in kept
    }
    found = Moves.of(analysis, scores, kept, least_width)
    if found is None:
        raise InputError("the network has no moves")
    return found


def budgets(names: Sequence[str], shares: Sequence[float]) -> None:
    """The table of budgets."""
    print(
        "| network | limit | time | slack | MACs | revived | zeros computed | seconds | last step, where slack > .01 |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|---:|---|")
    for name in names or ZOO:
        model, args = network(name)
        least = _reachable(model, args)
        for share in shares:
            limit = round(1 - share * (1 - least), 3)
            started = time.process_time()
            try:
                plan = choose(model, args, budget=Budget(latency=limit), target=TARGET)
            except InputError as error:
                print(f"| {name} | {limit} | {str(error)[:90]} |", flush=True)
                continue
            seconds = time.process_time() - started
            zeroed = copy.deepcopy(model)
            plan.zero_(zeroed)
            fast, small = (
                l1rr_fx.prune(zeroed, args, target=target, verify=False).report.after.macs
                for target in (TARGET, "none")
            )
            slack = limit - plan.reached["latency"]
            last = str(plan.last) if slack > 0.01 else ""
            back = plan.revival.revived if plan.revival else 0
            computed = plan.revival.refused if plan.revival else 0
            cells = f"{plan.reached['latency']:.4f} | {slack:.4f} | {fast / small:.4f} | {back} | {computed}"
            print(f"| {name} | {limit} | {cells} | {seconds:.1f} | {last} |", flush=True)


def _reachable(model: nn.Module, args: tuple[Any, ...]) -> float:
    """The least share of the dense time on the path of moves, as predicted for widths."""
    return moves_of(model, args).path({"latency": 0.01}, {}).states[-1].shares["latency"]


def uniform(tiles: Sequence[int], refit: bool) -> None:
    """The table of uniformly slimmer networks."""
    print("| tile | network | MACs at most | their uniform time | plan's MACs | plan's time | speed | seconds |")
    print("|---:|---|---:|---:|---:|---:|---:|---:|")
    for tile in tiles:
        latency_model.ROW_TILE = tile
        target = Latency(TARGET, coefficients=fitted().coefficients) if refit else Latency(TARGET)
        for name, targets in UNIFORM.items():
            model, args = network(name)
            for macs, slim in targets:
                time_of = slim if tile == 32 else uniform_time(moves_of(model, args, target), macs)
                budget = Budget(latency=round(time_of, 3), macs=macs)
                _row(tile, name, f"{macs:g}", f"{time_of:.3f}", *_timed(model, args, budget, target))
        model, args = network("v5s@640")
        budget = Budget(latency=round(1 / SPEED, 4), **PAPER)
        _row(tile, "YOLOv5s, parameters at most .225", "0.35", "", *_timed(model, args, budget, target))


def uniform_time(moves: Moves, macs: float) -> float:
    """The predicted share of the dense time when every family keeps the same share of its channels, in multiples of 8,
    and so many MACs are left."""
    full = torch.tensor([float(unit.channels) for unit in moves.units], dtype=torch.float64)
    shares = torch.linspace(1, 0.05, 191, dtype=torch.float64)[:, None]
    tried = torch.maximum((full * shares / 8).round() * 8, full.clamp(max=8))
    found = costs(moves.shapes, tried, moves.target)
    dense = costs(moves.shapes, full[None], moves.target)
    return float((found.seconds / dense.seconds)[int((found.macs / dense.macs <= macs).int().argmax())])


def _timed(model: nn.Module, args: tuple[Any, ...], budget: Budget, target: Latency) -> tuple[Plan | None, float]:
    started = time.process_time()
    try:
        plan = choose(model, args, budget=budget, target=target)
    except InputError as error:
        print(str(error)[:160])
        return None, time.process_time() - started
    return plan, time.process_time() - started


def _row(tile: int, name: str, macs: str, slim: str, plan: Plan | None, seconds: float) -> None:
    cells = "not met | | "
    if plan is not None:
        cells = f"{plan.reached['macs']:.3f} | {plan.reached['latency']:.3f} | {1 / plan.reached['latency']:.2f}"
    print(f"| {tile} | {name} | {macs} | {slim} | {cells} | {seconds:.1f} |", flush=True)


def half(names: Sequence[str], limit: float = 0.5) -> None:
    """The table of losses at half of the time."""
    print("| network | plan | predicted time | MACs | loss of scores |")
    print("|---|---|---:|---:|---:|")
    for name in names or ("yolo/yolov8n@640", "yolo/yolo11n@640"):
        model, args = network(name)
        moves = moves_of(model, args)
        plan = choose(model, args, budget=Budget(latency=limit), target=TARGET)
        _half_row(name, "latency", plan.reached, plan.tau)
        low, high = 0.01, 1.0
        for _ in range(TRIES):
            macs = (low * high) ** 0.5
            plan = choose(model, args, budget=Budget(macs=macs), target=TARGET)
            reached = moves.analysis.size(plan.zeroing).shares(moves.analysis.dense)
            _half_row(name, f"MACs {macs:.4f}", reached, score_loss(model, moves, plan))
            low, high = (macs, high) if reached["latency"] <= limit else (low, macs)


def _half_row(name: str, title: str, reached: Mapping[str, float], loss: float) -> None:
    print(f"| {name} | {title} | {reached['latency']:.4f} | {reached['macs']:.3f} | {loss:.0f} |", flush=True)


def score_loss(model: nn.Module, moves: Moves, plan: Plan) -> float:
    """The loss of scores of any plan, counted as for moves: by the share of each family's scores that is left."""
    masks, total = plan.zeroing, 0.0
    for each in moves.ranked:
        gone = torch.zeros((), dtype=torch.float64)
        for site in each.family.sites:
            scores = model.get_parameter(site.weight).detach().double().abs()
            zeroed = masks.get(site.name, torch.zeros(site.channels, dtype=torch.bool))
            gone += scores.where(zeroed, 0.0)[each.family.places[site.name]].sum()
        total += float(each.lost(gone))
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("table", choices=["budgets", "uniform", "half"])
    parser.add_argument("networks", nargs="*")
    parser.add_argument("--shares", nargs="+", type=float, default=[0.3, 0.6, 0.9])
    parser.add_argument("--tiles", nargs="+", type=int, default=[latency_model.ROW_TILE])
    parser.add_argument("--refit", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if options.table == "budgets":
        budgets(options.networks, options.shares)
    elif options.table == "uniform":
        uniform(options.tiles, options.refit)
    else:
        half(options.networks)


if __name__ == "__main__":
    main()
