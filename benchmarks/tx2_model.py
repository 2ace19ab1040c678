"""How well does the latency model predict networks on a Jetson TX2 that it was not fitted to?

    python -m benchmarks.tx2_model

Fits the model to the published measurements of `l1rr_fx/latency/published.py` and prints the coefficients. Then each
network in turn (all of its measurements) and each architecture in turn (all of its sizes) is held out and predicted.
Then come layers that no fit has seen, measured with another compiler (benchmarks/tx2_layers.csv: the log of
github.com/tlc-pack/tophub, TVM, FP32), up to one factor; and the paper's budget on YOLOv5s. It ends with an error if
the coefficients in the package are not those of the fit. No time is measured here: all are of the sources named.
"""

from __future__ import annotations

import csv
import math
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

import l1rr_fx
from benchmarks.tx2_networks import NETWORKS, YOLOv5s, build
from l1rr_fx.latency.fit import Fit, Observation, Prior, fit
from l1rr_fx.latency.geometry import Geometry
from l1rr_fx.latency.kernels import Kernel, kernels
from l1rr_fx.latency.model import Coefficients, Work
from l1rr_fx.latency.prediction import FITTED, JETSON_TX2, Latency
from l1rr_fx.latency.published import MEASUREMENTS, SOURCES, Measurement
from passes.frontend.capture import capture

PRIOR = Prior(
    Coefficients(
        launch=10.0,
        efficiency_fp32=0.6,
        efficiency_fp16=0.5,
        winograd_fp32=0.9,
        winograd_fp16=0.8,
        ramp=16.0,
        bandwidth=0.6,
        depthwise=1.0,
    ),
    spread=(1.0, 0.5, 0.5, 0.5, 0.5, 1.5, 0.4, 1.5),
    constants={"tf_to_trt": 1.0, "tf_trt": 1.0, "tkdnn": 0.3, "yolov3": 0.3, "yolov8": 8.0},
)
"""Wide guesses, made before the fit. Constants: transfers and TensorFlow cost about 1 ms, pre-processing several."""
LAYERS = Path(__file__).with_name("tx2_layers.csv")
SHALLOW, DEEP = 0.74, 0.44
"""Channels kept at strides up to 8 and above that reach the paper's budget on YOLOv5s."""
PRUNINGS: Mapping[str, Mapping[str, Any]] = {
    "recombined": {},
    "recombined, multiples of 8": {"channel_multiple": 8},
    "recombined for the TX2": {"target": "jetson-tx2"},
    "union": {"mode": "union"},
}
PAPER = "parameters -77.54 %, FLOPs -65 %, speed on the TX2 +48.5 %"


@dataclass(frozen=True)
class Judged:
    """A measurement with what was predicted for it, in ms; `bare` without its source's factor and constant."""

    measured: Measurement
    predicted: float
    bare: float

    @property
    def error(self) -> float:
        return self.predicted / self.measured.ms - 1


def main() -> None:
    torch.set_num_threads(1)
    work = {name: _work(name) for name in NETWORKS}
    whole = fit([_observation(work, m) for m in MEASUREMENTS], JETSON_TX2, PRIOR)
    _print_fit(whole)
    _print_errors("fitted", [_judged(whole, work, m) for m in MEASUREMENTS])
    for title, group in (("held out by network", network), ("held out by architecture", architecture)):
        _print_errors(title, held_out(work, group), each=True)
    _print_layers(whole)
    _print_paper()
    if any(abs(math.log(a / b)) > 1e-3 for a, b in zip(astuple(whole.coefficients), astuple(FITTED))):
        sys.exit("the coefficients in l1rr_fx/latency/prediction.py are not those of this fit")


def fitted() -> Fit:
    """The model fitted to all measurements, with the tile that it has now."""
    work = {name: _work(name) for name in NETWORKS}
    return fit([_observation(work, m) for m in MEASUREMENTS], JETSON_TX2, PRIOR)


def network(measurement: Measurement) -> str:
    return measurement.network


def architecture(measurement: Measurement) -> str:
    """The network without its sizes: all of MobileNet v1, of YOLOv4 or of YOLOv8 is one."""
    return re.sub(r"(_\d\.\d+)?_\d{3}$|(?<=yolov8).$", "", measurement.network)


def held_out(work: dict[str, Work], group: Callable[[Measurement], str]) -> list[Judged]:
    """Each measurement, predicted by a fit to the measurements of all other groups."""
    judged = []
    for name in dict.fromkeys(map(group, MEASUREMENTS)):
        others = fit([_observation(work, m) for m in MEASUREMENTS if group(m) != name], JETSON_TX2, PRIOR)
        judged += [_judged(others, work, m) for m in MEASUREMENTS if group(m) == name]
    return judged


def _judged(found: Fit, work: dict[str, Work], m: Measurement) -> Judged:
    observation = _observation(work, m)
    return Judged(m, found.ms(observation), found.ms(replace(observation, source="")))


def _work(name: str) -> Work:
    model, args = build(name)
    return Work.of(kernels(capture(model, args)))


def _observation(work: dict[str, Work], m: Measurement) -> Observation:
    return Observation(work[m.network], m.precision, SOURCES[m.source].clock, m.ms, m.source)


def _print_fit(found: Fit) -> None:
    print(found.coefficients)
    for source in SOURCES:
        print(f"  {source:10s} factor {found.factors[source]:.2f}, constant {found.constants[source]:5.2f} ms")


def _print_errors(title: str, judged: Sequence[Judged], *, each: bool = False) -> None:
    errors = sorted(abs(j.error) for j in judged)
    worst = max(judged, key=lambda j: abs(j.error)).measured
    print(
        f"\n{title}: median error {statistics.median(errors):.1%}, 90th percentile "
        f"{errors[int(0.9 * (len(errors) - 1))]:.1%}, worst {errors[-1]:.1%} ({worst.network}, {worst.precision}, "
        f"{worst.source}); {len(judged)} measurements"
    )
    bare = statistics.median(abs(j.bare / j.measured.ms - 1) for j in judged)
    print(f"  without the source's factor and constant, as `Latency` predicts: median error {bare:.1%}")
    if each:
        print("\n| network | precision | source | measured ms | predicted ms | error |\n|---|---|---|---:|---:|---:|")
        for j in judged:
            m = j.measured
            print(f"| {m.network} | {m.precision} | {m.source} | {m.ms:.2f} | {j.predicted:.2f} | {j.error:+.1%} |")


def _print_layers(found: Fit) -> None:
    """The spread of predicted / measured, by kind, after one factor for all convolutions and one for depthwise ones."""
    model = Latency("jetson-tx2", precision="fp32", coefficients=found.coefficients)
    with LAYERS.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    ratios: dict[str, list[float]] = {}
    for row in rows:
        kernel = layer_kernel(row)
        ratios.setdefault(kernel.kind, []).append(model.of_kernels([kernel]).ms / float(row["ms"]))
    print("\nlayers that no fit has seen (TVM, FP32):")
    for kind, values in ratios.items():
        factor = statistics.median(values)
        off = [abs(value / factor - 1) for value in values]
        print(
            f"  {len(values)} {kind}: predicted / measured {factor:.2f} in the middle; around it "
            f"median error {statistics.median(off):.1%}, worst {max(off):.1%}"
        )


def layer_kernel(row: dict[str, str]) -> Kernel:
    """The kernel of a row of the table of layers."""
    given, weight, stride, pad = ([int(n) for n in row[f].split("x")] for f in ("input", "weight", "stride", "padding"))
    groups = int(row["groups"])
    high = (given[2] + pad[0] + pad[2] - weight[2]) // stride[0] + 1
    wide = (given[3] + pad[1] + pad[3] - weight[3]) // stride[1] + 1
    kind = "depthwise" if groups > 1 else "convolution"
    columns, plain = given[0] * high * wide, weight[2:] == [3, 3] and stride == [1, 1]
    shape = Geometry(
        kind, weight[0] // groups, math.prod(weight[1:]), columns, groups, math.prod(weight), 0, plain and groups == 1
    )
    return Kernel("layer", kind, math.prod(given) + weight[0] * columns, shape)


def _print_paper() -> None:
    """The paper's budget on YOLOv5s: random channels, more of them in deep layers, recombined and not."""
    torch.manual_seed(0)
    model, args = YOLOv5s().eval(), (torch.rand(1, 3, 640, 640),)
    dense = sum(p.numel() for p in model.parameters())
    zero_random(model)
    print(f"\nYOLOv5s at 640, predicted; the paper states: {PAPER}")
    for precision in ("fp16", "fp32"):
        latency = Latency("jetson-tx2", precision=precision)
        before = latency.of(model, args)
        for title, options in PRUNINGS.items():
            pruned = l1rr_fx.prune(model, args, verify=False, **options)
            after = latency.of(pruned.module, args)
            parameters = sum(p.numel() for p in pruned.module.parameters()) / dense - 1
            macs = pruned.report.after.macs / pruned.report.before.macs - 1
            print(
                f"  {precision} {title}: parameters {parameters:+.1%}, MACs {macs:+.1%}, "
                f"predicted {before.ms:.1f} -> {after.ms:.1f} ms, speed {before.ms / after.ms - 1:+.1%} "
                f"({len(after.copies)} copies, {len(before.copies)} before)"
            )


@torch.no_grad()
def zero_random(model: YOLOv5s, seed: int = 0) -> None:
    """Zero channels at random, as many in each layer as reach the paper's budget."""
    generator = torch.Generator().manual_seed(seed)
    shallow = {*model.stem.modules(), *model.stage8.modules(), *model.top8.modules()}
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            keep = SHALLOW if norm in shallow else DEEP
            count = norm.num_features - max(1, round(norm.num_features * keep))
            dead = torch.randperm(norm.num_features, generator=generator)[:count]
            norm.weight[dead] = 0
            norm.bias[dead] = 0


if __name__ == "__main__":
    main()
