"""The whole method on a trained detector and a real aerial image: choose, fine-tune, prune, prove, show, lower."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

import l1rr_fx
from l1rr_fx.demo.boxes import Detections, average_precision
from l1rr_fx.demo.detector import TreeDetector
from l1rr_fx.demo.measure import (
    THRESHOLDS,
    as_input,
    detected,
    has_onnx,
    largest_deviation,
    macs,
    parameters,
    without_torchs_future_warnings,
)
from l1rr_fx.demo.picture import Panel, write_side_by_side
from l1rr_fx.demo.plots import write_curves, write_kept, write_scales
from l1rr_fx.demo.training import Settings, Training
from l1rr_fx.demo.trees import Scene, test_scene, training_scenes
from l1rr_fx.demo.views import Batch, random_batches
from l1rr_fx.method.attention.loss import FeatureAttention
from l1rr_fx.method.planning.choose import choose
from l1rr_fx.method.planning.curves import read_curves
from l1rr_fx.method.planning.plan import Plan
from l1rr_fx.method.sites.budget import Budget
from l1rr_fx.method.training.recalibrate import recalibrate_batch_norm
from l1rr_fx.pages import page_of
from l1rr_fx.support.choices import TargetName
from l1rr_fx.support.files import write_file
from passes.errors import InputError, VerifyError

SAVED, PAGE, BUNDLES = "small", "report.html", ("dense", "pruned")
CHECKPOINT = Path(__file__).with_name("trees.safetensors")
BUDGET = Budget(latency=0.7)
"""Of the dense detector's time on the target, as predicted."""
TARGET: TargetName = "jetson-tx2"
"""A cost model that is fixed: what is chosen, written and predicted does not depend on the machine of the demo."""
TOLERANCE = 1e-10
"""Relative, in float64: the bound of the contract, pruned == zeroed up to the order of sums."""
SHOWN = 0.25
"""The least score of a detection that is drawn: the best F1 on the held-out strip."""


@dataclass(frozen=True)
class Effort:
    """How much is done: batches that attention is measured on, steps of the fine-tune and their highest learning rate
    (chosen on the held-out strip), images of a batch, and their width and height."""

    attention: int = 1
    steps: int = 60
    rate: float = 3e-4
    batch: int = 8
    crop: int = 256


@dataclass(frozen=True)
class Summary:
    """What the demo measured on the test image; pairs are (before, after). `tau` and `method` are the plan's."""

    budget: Budget
    zeroed: int
    method: str
    tau: float
    precision: Mapping[str, Mapping[float, float]]
    parameters: tuple[int, int]
    macs: tuple[int, int]
    deviation: float
    predicted: tuple[float, float]
    pictures: tuple[Path, ...]
    seconds: float


def run(output: Path, *, budget: Budget = BUDGET, effort: Effort = Effort(), console: Console) -> Summary:
    """Prune the trained detector to `budget`.

    Into `output` go pictures, summary.json, the plan, the small network with its page, and two bundles for the device.
    InputError for a budget that cannot be met or missing data, VerifyError if pruned and zeroed detector differ."""
    started = time.perf_counter()
    scene, dense = test_scene(), load_detector()
    learn, _ = training_scenes()
    image = as_input(scene)
    output.mkdir(parents=True, exist_ok=True)
    console.print("a detector of tree crowns, trained with a sparsity penalty (benchmarks/train_trees.py)")
    limits = " and ".join(f"{share:.0%} of the {name}" for name, share in budget.limits.items())
    doing = f"choosing what to zero for {limits} on a {TARGET}: attention to the trees, layer by layer"
    with _step(console, doing), without_torchs_future_warnings():
        batches = _batches(learn, effort.attention, effort, seed=1)
        plan = chosen(dense, batches, budget, output / "curves.jsonl", image, TARGET)
    (output / "plan.json").write_text(plan.to_json())
    console.print(f"{plan.zeroed} channels, by {plan.method}; the plan is {output / 'plan.json'}")
    with _step(console, f"training dense and zeroed for {effort.steps} steps"):
        lessons = _batches(learn, effort.steps, effort, seed=2)
        trained, zeroed = (fine_tuned(dense, lessons, effort.rate, each) for each in (None, plan))
    with _step(console, "removing what is zero"):
        result = l1rr_fx.prune(zeroed, (image,), target=TARGET)
    pruned = result.module
    console.print(f"MACs after / limit of any exact channel-level method: {result.report.macs_over_limit:.3f}")
    with _step(console, "comparing with the zeroed detector in float64"):
        deviation = largest_deviation(zeroed, pruned, image)
    if not deviation <= TOLERANCE:
        raise VerifyError(f"the pruned detector differs from the zeroed one by {deviation:.1e} of its largest output")
    console.print(f"pruned and zeroed outputs on the test image agree to {deviation:.1e} (relative, float64)")
    with _step(console, "finding the trees in the test image"):
        models = {"dense": dense, "dense, fine-tuned": trained, "zeroed": zeroed, "pruned": pruned}
        found = {name: detected(model, scene) for name, model in models.items()}
        judged = {name: average_precision(each, scene.boxes, THRESHOLDS) for name, each in found.items()}
    with _step(console, f"predicting for a {TARGET}, and writing what it needs"), without_torchs_future_warnings():
        predicted = written(dense, result, image, output)
    with _step(console, "drawing"):
        pictures = drawn(output, scene, found, judged, plan, dense, zeroed)
        counted = ((parameters(model), macs(model, image)) for model in (dense, pruned))
        costs = {name: (*pair, ms) for name, pair, ms in zip(("dense", "pruned"), counted, predicted, strict=True)}
        pictures = (*pictures, before_after(output / "before-after.jpg", scene, found, costs))
    summary = Summary(
        budget=budget,
        zeroed=plan.zeroed,
        method=plan.method,
        tau=plan.tau,
        precision=judged,
        parameters=(costs["dense"][0], costs["pruned"][0]),
        macs=(costs["dense"][1], costs["pruned"][1]),
        deviation=deviation,
        predicted=predicted,
        pictures=pictures,
        seconds=time.perf_counter() - started,
    )
    (output / "summary.json").write_text(json.dumps(asdict(summary), indent=1, default=str) + "\n")
    console.print(summary_table(summary))
    for picture in pictures:
        console.print(str(picture), soft_wrap=True)
    for line in next_steps(output):
        console.print(line, soft_wrap=True)
    console.print(f"{summary.seconds:.0f} s in all")
    return summary


def load_detector(path: Path = CHECKPOINT) -> TreeDetector:
    """The trained detector in evaluation mode. InputError if `path` is missing or not a checkpoint of it."""
    detector = TreeDetector()
    again = "make it again with: python -m benchmarks.train_trees"
    try:
        detector.load_state_dict(load_file(path))
    except FileNotFoundError as error:
        raise InputError(f"there is no checkpoint {path}; {again}") from error
    except (SafetensorError, RuntimeError) as error:
        raise InputError(f"{path} is not a checkpoint of the tree detector ({error}); {again}") from error
    return detector.eval()


def chosen(
    model: nn.Module, batches: list[Batch], budget: Budget, curves: Path, image: Tensor, target: TargetName = "none"
) -> Plan:
    """The plan for networks of such an `image`, by attention on `batches`; what was measured is written to `curves`."""
    curves.unlink(missing_ok=True)
    attention = FeatureAttention(model, (image,), [(batch.images, batch.trees) for batch in batches])
    return choose(model, (image,), budget=budget, attention=attention, curves=curves, target=target)


def fine_tuned(model: nn.Module, batches: list[Batch], rate: float, plan: Plan | None) -> nn.Module:
    """A copy, trained for one step on each batch; with a plan, its channels are zeroed before and held at zero."""
    copy = deepcopy(model)
    if plan is None:
        return _trained(copy, batches, rate)
    with plan.hold(copy):
        recalibrate_batch_norm(copy, [batch.images for batch in batches[:16]])
        return _trained(copy, batches, rate)


@torch.no_grad()
def written(dense: nn.Module, small: l1rr_fx.Pruned, image: Tensor, output: Path) -> tuple[float, float]:
    """Predicted milliseconds on a Jetson TX2 in FP16, dense and pruned.

    The small network and its page go into `output`, and a bundle of each, where the packages for ONNX are installed.
    """
    small.save(output / SAVED, overwrite=True)
    write_file(output / PAGE, page_of(small, "tree crowns, pruned").encode())
    if has_onnx():
        networks: tuple[nn.Module | l1rr_fx.Pruned, ...] = (dense, small)
        for network, name in zip(networks, BUNDLES, strict=True):
            l1rr_fx.lower(network, (image,), out=output / name, label=name, overwrite=True)
    latency = l1rr_fx.Latency("jetson-tx2", precision="fp16")
    return latency.of(dense, (image,)).ms, latency.of(small.module, (image,)).ms


def next_steps(output: Path) -> Iterator[str]:
    """What can be done with the folder, line by line."""
    yield f"look:    {output / PAGE}"
    if has_onnx():
        for name in BUNDLES:
            script = output / name / "build_and_measure.py"
            yield f"measure: {Path(sys.executable).name} {script} --engine onnxruntime  # here"
        yield f"compare: l1rr-fx compare {' '.join(str(output / name / 'results.json') for name in BUNDLES)}"


def drawn(
    output: Path,
    scene: Scene,
    found: Mapping[str, Detections],
    judged: Mapping[str, Mapping[float, float]],
    plan: Plan,
    dense: nn.Module,
    zeroed: nn.Module,
) -> tuple[Path, ...]:
    """The pictures: detections side by side, the curves, the scales before and after, what each layer keeps."""
    paths = tuple(output / f"{name}.png" for name in ("detections", "curves", "scales", "kept"))
    write_side_by_side(scene.image, _panels(scene, found, judged), paths[0])
    write_curves(read_curves(output / "curves.jsonl"), plan, paths[1])
    write_scales(dense, zeroed, paths[2])
    write_kept(plan, paths[3])
    return paths


def before_after(
    path: Path, scene: Scene, found: Mapping[str, Detections], costs: Mapping[str, tuple[int, int, float]]
) -> Path:
    """The picture of the front page: what each detector finds, under its parameters, MACs and predicted time."""
    panels = [
        Panel(
            f"{name}: {count / 1e3:.0f} k parameters, {products / 1e9:.2f} G MACs, TX2 {ms:.1f} ms (predicted)",
            found[name].above(SHOWN).boxes,
            (0, 230, 255),
        )
        for name, (count, products, ms) in costs.items()
    ]
    write_side_by_side(scene.image, panels, path, width=640)
    return path


def summary_table(summary: Summary) -> Table:
    """The summary as a table."""
    table = Table("", *summary.precision, title="Tree crowns, NEON test image")
    for threshold in THRESHOLDS:
        row = (f"{each[threshold]:.3f}" for each in summary.precision.values())
        table.add_row(f"AP at IoU {threshold}", *row)
    (p, q), (m, n) = summary.parameters, summary.macs
    table.add_row("parameters", f"{p:,}", "", "", f"{q:,} ({q / p - 1:+.0%})")
    table.add_row("MACs", f"{m / 1e9:.2f} G", "", "", f"{n / 1e9:.2f} G ({n / m - 1:+.0%})")
    before, after = summary.predicted
    table.add_row("predicted, Jetson TX2, FP16", f"{before:.1f} ms", "", "", f"{after:.1f} ms ({before / after:.2f}x)")
    return table


def _batches(scene: Scene, count: int, effort: Effort, *, seed: int) -> list[Batch]:
    return list(random_batches(scene, count, size=effort.batch, crop=effort.crop, seed=seed))


def _trained(model: nn.Module, batches: list[Batch], rate: float) -> nn.Module:
    training = Training(model, Settings(len(batches), rate, warm_up=10))
    for batch in batches:
        training.advance(batch)
    return training.average


def _panels(
    scene: Scene, found: Mapping[str, Detections], judged: Mapping[str, Mapping[float, float]]
) -> tuple[Panel, ...]:
    truth = Panel(f"drawn by people: {len(scene.boxes)} trees", scene.boxes, (255, 230, 0))
    colours = {"dense": (0, 230, 255), "pruned": (255, 120, 220)}
    shown = {name: found[name].above(SHOWN).boxes for name in colours}
    return (truth,) + tuple(
        Panel(f"{name}: {len(shown[name])} trees above {SHOWN}, AP40 {judged[name][0.4]:.2f}", shown[name], colour)
        for name, colour in colours.items()
    )


@contextmanager
def _step(console: Console, doing: str) -> Iterator[None]:
    """Say what is done before it is done, also where there is no terminal, and then how long it took."""
    start = time.perf_counter()
    console.print(f"{doing} ...")
    with console.status(doing):
        yield
    console.print(f"    {time.perf_counter() - start:.1f} s")
