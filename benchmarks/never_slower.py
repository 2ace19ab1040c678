"""Is a network pruned for a machine ever predicted slower than what it was, or than what another mode writes?

    python -m benchmarks.never_slower [--networks 100] [--target jetson-tx2] [--only NAME] [--seed 0]

Random networks (`l1rr_fx.testing.networks`) with their own dead channels and networks of the zoo with a fifth, two
fifths and three fifths of their channels dead at random are pruned with `prune(target=...)`. Its result is captured
again and predicted whole, and so is the model as it is. What `mode="union"`, `"exclude"` and `"recombine"` write
without a target is predicted from their layout plans. Slower means by more than `NEAR`, which no prediction tells
apart. Nothing is measured. Run it from the root of the repository; it returns 1 if a network is slower.
"""

from __future__ import annotations

import argparse
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from rich.progress import track
from torch import nn

import l1rr_fx
from l1rr_fx import L1RRError
from l1rr_fx.machines.by_name import machine
from l1rr_fx.testing import Network, networks, zeroed
from passes import Machine, Options, capture, normalise, plan_layouts, rule_for, sketch
from passes.absorption.absorb import absorb_constants
from passes.assignment.options import MODES
from passes.compile import NEAR
from tests.zoo import ZOO, by_name

SHARES = (0.2, 0.4, 0.6)
LARGE = ("yolo/yolov8n@640", "yolo/yolo11n@320", "yolo/yolov5n@640", "tv/resnet50@224", "tv/mobilenet_v2@224")
SMALLER = 25
"""Networks of the zoo at its own size, of 64 pixels mostly."""


@dataclass(frozen=True)
class Compared:
    """The predicted seconds of the network that `prune` returned, the way that it chose, and those of the others."""

    way: str
    seconds: float
    others: Mapping[str, float]

    @property
    def slowdown(self) -> float:
        """Its time over that of the fastest other network (1 where neither runs a kernel)."""
        least = min(self.others.values())
        return self.seconds / least if least else 1.0 + self.seconds

    @property
    def is_slower(self) -> bool:
        return self.slowdown > 1 + NEAR


def compared(model: nn.Module, args: tuple[Any, ...], target: str) -> Compared:
    """A model with dead channels, pruned for the target, beside the model and what the modes write."""
    on = machine(target, args)
    assert isinstance(on, Machine)
    pruned = l1rr_fx.prune(model, args, target=on, verify=False)
    absorbed = absorb_constants(normalise(capture(model, args)), rule_for)
    program, facts = absorbed.program, absorbed.facts
    others = {m: on.predict_sketch(sketch(plan_layouts(program, facts, Options(m)))) for m in MODES}
    predict = getattr(on, "predict")  # noqa: B009  of a written network; the compiler asks for sketches only
    return Compared(
        pruned.report.alternatives[0].name,
        predict(pruned.module, args),
        {**others, "as it is": predict(model, args)},
    )


def drawn(count: int, first: int) -> list[Network]:
    """So many random networks of all families."""
    found: list[Network] = []

    @seed(first)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(networks(dtype=torch.float32))
    def draw(network: Network) -> None:
        found.append(network)

    draw()
    return found[:count]


def subjects(count: int, first: int, only: str) -> Iterator[tuple[str, nn.Module, tuple[Any, ...]]]:
    """The networks with dead channels, by name."""
    for index, network in enumerate(drawn(count, first) if not only else []):
        yield (f"random {index}", *network.build())
    small = [each.name for each in ZOO if each.convolutional and not each.heavy and not each.whole][:SMALLER]
    for spec in (*LARGE, *small):
        name, _, size = spec.partition("@")
        if only not in name:
            continue
        model, args, kwargs = by_name(name).build()
        for share in () if kwargs else SHARES:
            given_args = (torch.rand(1, 3, int(size), int(size)),) if size else args
            yield f"{spec}, {share:.0%} dead", zeroed(model, share, seed=1), given_args


def main() -> int:
    """Print a line for each network that is slower, and the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=100, help="random networks")
    parser.add_argument("--target", default="jetson-tx2")
    parser.add_argument("--only", default="", help="networks of the zoo whose name contains this, and no random ones")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    ways, slower, left_out, worst = Counter[str](), 0, 0, 0.0
    for name, model, args in track(subjects(options.networks, options.seed, options.only), "networks"):
        try:
            found = compared(model, args, options.target)
        except L1RRError as error:
            left_out += 1
            print(f"{name}: left out, {str(error).splitlines()[0]:.100}", flush=True)
            continue
        ways[found.way] += 1
        worst = max(worst, found.slowdown)
        if found.is_slower:
            slower += 1
            print(f"{name}: {found.slowdown:.4f} of the fastest; {found}", flush=True)
    print(f"{sum(ways.values())} networks predicted on {options.target}: {slower} slower than another")
    print(f"{left_out} networks left out, whose errors are above")
    print(f"largest share of the fastest other network's time: {worst:.4f}")
    print("ways: " + ", ".join(f"{way} {count}" for way, count in ways.most_common()))
    return bool(slower)


if __name__ == "__main__":
    raise SystemExit(main())
