"""Is a network pruned for a machine ever predicted slower than what it was, or than what another mode writes?

    python -m benchmarks.never_slower --out never_slower.jsonl                        # the TX2
    python -m benchmarks.never_slower --out never_slower.jsonl --target onnxruntime
    python -m benchmarks.never_slower --out never_slower.jsonl --part zoo --only yolo/

Networks of the zoo at 64 to 640 pixels with each of `SHARES` of their channels dead, and random networks
(`l1rr_fx.testing.networks`) with their own dead channels and with one of `SHARES` more, are pruned with
`prune(target=...)`. Its result is captured again and predicted whole, and so is the model as it is. What modes "union",
"exclude" and "recombine" write without a target is predicted from their layout plans. Slower means by more than `NEAR`,
which no prediction tells apart, and than the model as it is by anything. Nothing is measured.

Lines are appended to the file as they come, and a second run goes on where the first was stopped. Run it from the root
of the repository; it returns 1 if a network is slower.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
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
from tests.zoo import by_name

Subject = tuple[nn.Module, tuple[Any, ...]]

SHARES = (0.2, 0.4, 0.6)
RANDOM = 300
FROM_ZOO = (
    "tv/resnet18@64", "tv/resnet50@224", "tv/resnext50_32x4d@224", "tv/mobilenet_v2@224", "tv/mobilenet_v3_large@160",
    "tv/squeezenet1_1@224", "tv/densenet121@128", "tv/googlenet@224", "tv/mnasnet1_0@64", "tv/shufflenet_v2_x1_0@224",
    "tv/efficientnet_b0@224", "tv/regnet_x_400mf@224", "tv/regnet_y_400mf@224", "tv/inception_v3@299",
    "seg/lraspp_mobilenet_v3_large@320", "seg/deeplabv3_resnet50@128", "yolo/yolov8n@64", "yolo/yolov8n@640",
    "yolo/yolo11n@320", "yolo/yolov5n@640", "yolo/yolov3-tiny@416", "yolo/yolov6n@640", "yolo/yolov9t@640",
    "yolo/yolov8n-seg@320", "timm/resnest14d@224", "timm/res2net50_26w_4s@224", "timm/hrnet_w18_small@224",
    "timm/ghostnet_100@224", "timm/dla34@224", "timm/cspdarknet53@256",
)  # fmt: skip
AS_IT_IS = "as it is"


@dataclass(frozen=True)
class Compared:
    """The predicted seconds of the network that `prune` returned, the way that it chose, and those of the others."""

    way: str
    seconds: float
    others: Mapping[str, float]

    @property
    def slowdown(self) -> float:
        """Its time over that of the fastest other network (1 where neither runs a kernel)."""
        return _ratio(self.seconds, min(self.others.values()))

    @property
    def is_slower(self) -> bool:
        """Whether it is slower than another beyond a near tie, or than the model as it is by more than rounding."""
        return self.slowdown > 1 + NEAR or _ratio(self.seconds, self.others[AS_IT_IS]) > 1 + 1e-9


def _ratio(seconds: float, other: float) -> float:
    return seconds / other if other else 1.0 + seconds


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
        {**others, AS_IT_IS: predict(model, args)},
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


def subjects(count: int, first: int, only: str, part: str) -> Iterator[tuple[str, Callable[[], Subject]]]:
    """The networks with dead channels, by name, to be made."""
    for spec in FROM_ZOO if part != "random" else ():
        for share in SHARES if only in spec else ():
            yield f"{spec}, {share:.0%} dead", partial(deadened, partial(sized, spec), share)
    for index, network in enumerate(drawn(count, first) if part != "zoo" else []):
        share = SHARES[index % len(SHARES)]
        yield f"random {index} of seed {first}", network.build
        yield f"random {index} of seed {first}, {share:.0%} more dead", partial(deadened, network.build, share)


def deadened(build: Callable[[], Subject], share: float) -> Subject:
    """A model with that share of its channels dead, and its example inputs."""
    model, args = build()
    return zeroed(model, share, seed=1), args


def sized(spec: str) -> Subject:
    """A network of the zoo, by "name@pixels"."""
    name, _, size = spec.partition("@")
    return by_name(name).build()[0], (torch.rand(1, 3, int(size), int(size)),)


def line(name: str, target: str, build: Callable[[], Subject]) -> dict[str, Any]:
    """The outcome for one network, as it is stored."""
    found: dict[str, Any] = {"name": name, "target": target}
    try:
        return found | asdict(compared(*build(), target))
    except L1RRError as error:
        return found | {"left_out": str(error).splitlines()[0][:100]}


def main() -> int:
    """Append the lines that are missing, and print the counts of all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("never_slower.jsonl"))
    parser.add_argument("--networks", type=int, default=RANDOM, help="random networks (default: %(default)s)")
    parser.add_argument("--target", default="jetson-tx2")
    parser.add_argument("--only", default="", help="networks of the zoo whose name contains this")
    parser.add_argument("--part", choices=("all", "zoo", "random"), default="all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    lines = [each for each in stored(options.out) if each["target"] == options.target]
    done = {each["name"] for each in lines}
    waiting = [
        each for each in subjects(options.networks, options.seed, options.only, options.part) if each[0] not in done
    ]
    for name, build in track(waiting, "networks"):
        lines.append(line(name, options.target, build))
        with options.out.open("a", encoding="utf-8") as file:
            print(json.dumps(lines[-1]), file=file)
    return summary(lines, options.target)


def stored(path: Path) -> list[dict[str, Any]]:
    """The lines of an earlier run."""
    return [json.loads(text) for text in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def summary(lines: list[dict[str, Any]], target: str) -> int:
    """Print what the lines say; 1 if a network is slower."""
    found = {each["name"]: Compared(each["way"], each["seconds"], each["others"]) for each in lines if "way" in each}
    slower = {name: each for name, each in found.items() if each.is_slower}
    for name, each in slower.items():
        print(f"{name}: {each.slowdown:.4f} of the fastest; {each}")
    print(f"{len(found)} networks predicted on {target}: {len(slower)} slower than another")
    reasons = Counter(each["left_out"] for each in lines if "left_out" in each)
    print(f"{sum(reasons.values())} left out: " + "; ".join(f"{n} {reason}" for reason, n in reasons.most_common()))
    print(f"largest share of the fastest other network's time: {max(e.slowdown for e in found.values()):.4f}")
    ways = Counter(each.way for each in found.values())
    print("ways: " + ", ".join(f"{way} {count}" for way, count in ways.most_common()))
    return bool(slower)


if __name__ == "__main__":
    raise SystemExit(main())
