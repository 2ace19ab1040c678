"""What the backend `l1rr_fx` of torch.compile costs while compiling, and what it gives afterwards.

    python -m benchmarks.compile_step --networks tv/resnet50 yolo/yolov8s

One thread, float32, half of the channels zeroed. Each network is compiled from nothing (no caches) in three ways: by
inductor as it is, by our backend and then inductor, and `prune()` and then inductor. `ours` is the time that tracing
and pruning take inside our backend; its share is of the first way's compile time. The compiled networks then run in
turn, in an order that changes with every round; shown are medians of the thread's CPU time (other work on the machine
does not count), and medians of each round's ratio. It needs a C++ compiler.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from statistics import median
from typing import Any
from unittest import mock

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils import _pytree as pytree

import l1rr_fx
from l1rr_fx.integrations import dynamo
from tests.oracle import Case, calibrate, prepare, relative_error, zero_channels
from tests.zoo import by_name

SIZES = {"tv/resnet50": 224, "yolo/yolov8s": 640}
WAYS = ("inductor", "l1rr_fx", "prune")


@dataclass(frozen=True)
class Result:
    """Seconds to compile, seconds inside our backend, seconds of one call in each round, the largest deviation of our
    backend's outputs from inductor's (relative), and that of the network itself, eager, from float64: rounding."""

    compiling: Mapping[str, float]
    ours: float
    running: Mapping[str, tuple[float, ...]]
    deviation: float
    rounding: float

    @property
    def overhead(self) -> float:
        """Our backend's own time over inductor's on the network as it is."""
        return self.ours / self.compiling["inductor"]

    def ratio(self, way: str, other: str) -> float:
        """The median over the rounds of one way's time over another's."""
        return median(a / b for a, b in zip(self.running[way], self.running[other], strict=True))


def zeroed(name: str, size: int) -> tuple[nn.Module, tuple[Any, ...]]:
    """The network with half of its channels zeroed, and an image."""
    model, _, _ = by_name(name).build()
    args = (torch.rand(1, 3, size, size),)
    case = prepare(Case(model, args, {}), seed=0)
    zero_channels(case, 0.5, seed=0)
    calibrate(case)
    return case.model.float().eval(), args


@contextmanager
def clocked() -> Iterator[list[float]]:
    """The seconds that our backend spends on each graph before it hands it on."""
    seconds: list[float] = []
    work = dynamo._PrunedGraph._small

    def timed(*given: Any) -> Any:
        start = time.perf_counter()
        try:
            return work(*given)
        finally:
            seconds.append(time.perf_counter() - start)

    with mock.patch.object(dynamo._PrunedGraph, "_small", timed):
        yield seconds


def measured(name: str, size: int, rounds: int) -> Result:
    """Compile and run one network in every way."""
    model, args = zeroed(name, size)
    pruned = l1rr_fx.prune(model, args, verify=False).module.eval()
    made: dict[str, Callable[..., Any]] = {
        "inductor": torch.compile(model, dynamic=False),
        "l1rr_fx": torch.compile(model, backend=dynamo.backend, dynamic=False),
        "prune": torch.compile(pruned, dynamic=False),
    }
    compiling: dict[str, float] = {}
    outputs: dict[str, Any] = {}
    running: dict[str, list[float]] = {way: [] for way in WAYS}
    with torch.no_grad(), torch._inductor.config.patch(force_disable_caches=True), clocked() as ours:
        torch.compile(nn.ReLU(), dynamic=False)(torch.rand(2))  # inductor itself is loaded
        for way in WAYS:
            torch._dynamo.reset()
            compiling[way] = _seconds(lambda way=way: outputs.update({way: made[way](*args)}))
        for each in made.values():  # resetting Dynamo between them has made it forget
            each(*args)
        del ours[1:]
        for number in range(rounds):
            for way in (*WAYS[number % 3 :], *WAYS[: number % 3]):
                running[way].append(_seconds(lambda way=way: made[way](*args), time.thread_time))
    rounds_of = {way: tuple(each) for way, each in running.items()}
    deviation = relative_error(outputs["l1rr_fx"], outputs["inductor"])
    return Result(compiling, sum(ours), rounds_of, deviation, _rounding(model, args))


@torch.no_grad()
def _rounding(model: nn.Module, args: tuple[Any, ...]) -> float:
    """The deviation of the network in float32 from the same in float64."""
    single = pytree.tree_map(lambda t: t.double() if isinstance(t, torch.Tensor) else t, model(*args))
    return relative_error(single, deepcopy(model).double()(*(each.double() for each in args)))


def _seconds(call: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    start = clock()
    call()
    return clock() - start


def table(results: Mapping[str, Result]) -> Table:
    """One row a network."""
    found = Table("network", title="torch.compile, CPU, one thread, half of the channels zeroed")
    for heading in ("compile: inductor", "l1rr_fx", "prune", "ours", "share", "deviation", "rounding"):
        found.add_column(heading, justify="right")
    for heading in ("run: inductor", "l1rr_fx", "prune", "l1rr_fx / prune", "l1rr_fx / inductor"):
        found.add_column(heading, justify="right")
    for name, each in results.items():
        compiling = [f"{each.compiling[way]:.1f} s" for way in WAYS]
        running = [f"{median(each.running[way]) * 1e3:.1f} ms" for way in WAYS]
        own = [f"{each.ours:.2f} s", f"{each.overhead:.1%}", f"{each.deviation:.1e}", f"{each.rounding:.1e}"]
        ratios = [f"{each.ratio('l1rr_fx', other):.3f}" for other in ("prune", "inductor")]
        found.add_row(name, *compiling, *own, *running, *ratios)
    return found


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--networks", nargs="+", default=list(SIZES))
    parser.add_argument("--size", type=int, help="pixels (default: 224 for ResNet-50, 640 for YOLOv8s)")
    parser.add_argument("--rounds", type=int, default=15)
    given = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for name in given.networks:
        results[name] = measured(name, given.size or SIZES.get(name, 224), given.rounds)
        Console(width=200).print(table(results))


if __name__ == "__main__":
    main()
