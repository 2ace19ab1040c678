"""The main job on a trained detector and a real aerial image: zero channels, prune, prove, measure, show, lower."""

from __future__ import annotations

import json
import math
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import l1rr_fx
from l1rr_fx.demo.boxes import Detections, average_precision, detections
from l1rr_fx.demo.detector import MULTIPLE, TreeDetector
from l1rr_fx.demo.picture import Panel, write_side_by_side
from l1rr_fx.demo.trees import Scene, test_scene
from passes.errors import InputError, VerifyError

CHECKPOINT = Path(__file__).with_name("trees.safetensors")
THRESHOLDS = (0.3, 0.4, 0.5)
RATIO = 0.48
"""The most that costs no precision on the held-out strip of the training image: see benchmarks/train_trees.py."""
SCALE = 0.8
"""Of the image's resolution. Training crops are all resampled; at exactly 1 the image is sharper than any of them, and
AP50 on the held-out strip was .37 in place of .68 (half-way through a first training)."""
TOLERANCE = 1e-10
"""Relative, in float64: the bound of the contract, pruned == zeroed up to the order of sums."""
SHOWN = 0.25
"""The least score of a detection that is drawn: the best F1 on the held-out strip."""


@dataclass(frozen=True)
class Timing:
    """Median milliseconds for the test image, dense and pruned, of paired runs at one thread; `engine` ran both."""

    engine: str
    dense: float
    pruned: float


@dataclass(frozen=True)
class Summary:
    """What the demo measured on the test image; pairs are (before, after)."""

    ratio: float
    zeroed: int
    precision: Mapping[str, Mapping[float, float]]
    parameters: tuple[int, int]
    macs: tuple[int, int]
    deviation: float
    timing: Timing
    predicted: tuple[float, float]
    picture: Path
    seconds: float


def run(output: Path, *, ratio: float = RATIO, console: Console) -> Summary:
    """Zero `ratio` of the trained detector's channels, prune, and write detections.png and summary.json into `output`.

    InputError for a bad ratio or missing data, VerifyError if the pruned detector differs from the zeroed one."""
    started = time.perf_counter()
    scene = test_scene()
    dense = load_detector()
    zeroed = deepcopy(dense)
    count = zero_smallest(zeroed, ratio)
    console.print(f"zeroed the {count} channels ({ratio:.0%}) of the trained tree detector with the smallest |gamma|")
    image = as_input(scene)
    with _step(console, "removing them"):
        result = l1rr_fx.prune(zeroed, (image,), target="onnxruntime" if _has_onnx() else "cpu")
    pruned = result.module
    console.print(f"MACs after / limit of any exact channel-level method: {result.report.macs_over_limit:.3f}")
    console.print('(what is above 1 makes it faster here than copies would; target="none" gives 1)')
    with _step(console, "comparing with the zeroed detector in float64"):
        deviation = largest_deviation(zeroed, pruned, image)
    if not deviation <= TOLERANCE:
        raise VerifyError(f"the pruned detector differs from the zeroed one by {deviation:.1e} of its largest output")
    console.print(f"pruned and zeroed outputs on the test image agree to {deviation:.1e} (relative, float64)")
    with _step(console, "finding the trees in the test image"):
        found = {name: detected(model, scene) for name, model in _named(dense, zeroed, pruned)}
        judged = {name: average_precision(each, scene.boxes, THRESHOLDS) for name, each in found.items()}
    with _step(console, "timing dense and pruned in turn"):
        timing = paired_timing(dense, pruned, image)
    output.mkdir(parents=True, exist_ok=True)
    with _step(console, "predicting for a Jetson TX2"):
        with _without_torchs_future_warnings():
            predicted = lowered(dense, zeroed, image, output / "jetson-tx2")
    picture = output / "detections.png"
    write_side_by_side(scene.image, _panels(scene, found, judged), picture)
    summary = Summary(
        ratio=ratio,
        zeroed=count,
        precision=judged,
        parameters=(parameters(dense), parameters(pruned)),
        macs=(macs(dense, image), macs(pruned, image)),
        deviation=deviation,
        timing=timing,
        predicted=predicted,
        picture=picture,
        seconds=time.perf_counter() - started,
    )
    (output / "summary.json").write_text(json.dumps(asdict(summary), indent=1, default=str) + "\n")
    console.print(summary_table(summary))
    console.print(f"detections side by side: {picture}  ({summary.seconds:.0f} s in all)")
    return summary


def load_detector(path: Path = CHECKPOINT) -> TreeDetector:
    """The trained detector in evaluation mode. InputError if `path` is missing or not a checkpoint of it."""
    detector = TreeDetector()
    again = "make it again with: python benchmarks/train_trees.py"
    try:
        detector.load_state_dict(load_file(path))
    except FileNotFoundError as error:
        raise InputError(f"there is no checkpoint {path}; {again}") from error
    except (SafetensorError, RuntimeError) as error:
        raise InputError(f"{path} is not a checkpoint of the tree detector ({error}); {again}") from error
    return detector.eval()


@torch.no_grad()
def zero_smallest(model: nn.Module, ratio: float) -> int:
    """Zero gamma and beta of the channels that `smallest_channels` names, in place; how many they are."""
    count = 0
    for norm, mask in smallest_channels(model, ratio):
        norm.weight[mask] = 0
        norm.bias[mask] = 0
        count += int(mask.sum())
    return count


def smallest_channels(model: nn.Module, ratio: float) -> tuple[tuple[nn.BatchNorm2d, Tensor], ...]:
    """Each batch norm with a mask of its channels among the `ratio` of all that have the smallest |gamma|.

    Each layer keeps at least its max(4, 5 %) largest, so that a high ratio may not be reached whole."""
    if not 0 <= ratio < 1:
        raise InputError(f"ratio is {ratio}; it must be at least 0 and less than 1")
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d) and m.affine]
    if not norms:
        raise InputError(f"{type(model).__name__} has no nn.BatchNorm2d with scales to judge channels by")
    sizes = torch.cat([_removable(norm.weight.detach().abs()) for norm in norms])
    count = min(int(ratio * len(sizes)), int(sizes.isfinite().sum()))
    chosen = torch.zeros_like(sizes, dtype=torch.bool)
    chosen[sizes.argsort(stable=True)[:count]] = True
    return tuple(zip(norms, chosen.split([norm.num_features for norm in norms]), strict=True))


def as_input(scene: Scene) -> Tensor:
    """The scene's image in [0, 1] at SCALE, shape (1, 3, h, w), padded right and below to multiples of 32."""
    height, width = _scaled(scene)
    image = F.interpolate(scene.image[None].float() / 255, (height, width), mode="bilinear", antialias=True)
    return F.pad(image, (0, -width % MULTIPLE, 0, -height % MULTIPLE))


@torch.no_grad()
def detected(model: nn.Module, scene: Scene) -> Detections:
    """The trees that the model finds in the scene, in the scene's pixels."""
    found = detections(model(as_input(scene)), _scaled(scene))
    return Detections(found.boxes / SCALE, found.scores)


def precision(model: nn.Module, scene: Scene) -> dict[float, float]:
    """The model's average precision on the scene at each of THRESHOLDS."""
    return average_precision(detected(model, scene), scene.boxes, THRESHOLDS)


def parameters(model: nn.Module) -> int:
    """How many parameters the model has."""
    return sum(p.numel() for p in model.parameters())


@torch.no_grad()
def macs(model: nn.Module, image: Tensor) -> int:
    """Multiply-accumulates of one forward pass, as torch counts them."""
    with FlopCounterMode(display=False) as counter:
        model(image)
    return int(counter.get_total_flops()) // 2


@torch.no_grad()
def lowered(dense: nn.Module, zeroed: nn.Module, image: Tensor, folder: Path) -> tuple[float, float]:
    """Predicted milliseconds on a Jetson TX2 in FP16, dense and pruned for it; the bundle goes into `folder`."""
    small = l1rr_fx.prune(zeroed, (image,), target="jetson-tx2")
    if _has_onnx():
        l1rr_fx.lower(small, (image,), out=folder, overwrite=True)
    latency = l1rr_fx.Latency("jetson-tx2", precision="fp16")
    return latency.of(dense, (image,)).ms, latency.of(small.module, (image,)).ms


@torch.no_grad()
def largest_deviation(first: nn.Module, second: nn.Module, image: Tensor) -> float:
    """The largest difference of any output, relative to that output's largest value, in float64."""
    with _without_torchs_future_warnings():
        wanted, got = deepcopy(first).double()(image.double()), deepcopy(second).double()(image.double())
    return max(float((got[name] - each).abs().max() / each.abs().max()) for name, each in wanted.items())


def paired_timing(dense: nn.Module, pruned: nn.Module, image: Tensor, *, rounds: int = 11) -> Timing:
    """Both models timed in turn at one thread: in ONNX Runtime where it is installed, else in PyTorch."""
    onnx = _has_onnx()
    prepared = _onnx_call if onnx else _eager_call
    calls = (prepared(dense, image), prepared(pruned, image))
    seconds: tuple[list[float], list[float]] = ([], [])
    with _one_thread():
        for call in calls:
            call()
        for _ in range(rounds):
            for call, taken in zip(calls, seconds, strict=True):
                start = time.perf_counter()
                call()
                taken.append(time.perf_counter() - start)
    middle = [statistics.median(taken) * 1e3 for taken in seconds]
    return Timing("ONNX Runtime" if onnx else "PyTorch, eager", middle[0], middle[1])


def summary_table(summary: Summary) -> Table:
    """The summary as a table."""
    table = Table("", "dense", "zeroed", "pruned", title="Tree crowns, NEON test image")
    for threshold in THRESHOLDS:
        row = (f"{each[threshold]:.3f}" for each in summary.precision.values())
        table.add_row(f"AP at IoU {threshold}", *row)
    (p, q), (m, n), t = summary.parameters, summary.macs, summary.timing
    table.add_row("parameters", f"{p:,}", f"{p:,}", f"{q:,} ({q / p - 1:+.0%})")
    table.add_row("MACs", f"{m / 1e9:.2f} G", f"{m / 1e9:.2f} G", f"{n / 1e9:.2f} G ({n / m - 1:+.0%})")
    faster = f"{t.pruned:.0f} ms ({t.dense / t.pruned:.2f}x)"
    table.add_row(f"latency, {t.engine}, 1 thread", f"{t.dense:.0f} ms", "", faster)
    before, after = summary.predicted
    table.add_row("predicted, Jetson TX2, FP16", f"{before:.1f} ms", "", f"{after:.1f} ms ({before / after:.2f}x)")
    return table


def _has_onnx() -> bool:
    return all(find_spec(name) for name in ("onnx", "onnxruntime"))


def _scaled(scene: Scene) -> tuple[int, int]:
    return round(scene.size[0] * SCALE), round(scene.size[1] * SCALE)


def _removable(sizes: Tensor) -> Tensor:
    """The sizes, infinite where a layer must keep the channel."""
    return sizes.index_fill(0, sizes.topk(min(len(sizes), max(4, math.ceil(0.05 * len(sizes))))).indices, torch.inf)


def _named(dense: nn.Module, zeroed: nn.Module, pruned: nn.Module) -> tuple[tuple[str, nn.Module], ...]:
    return ("dense", dense), ("zeroed", zeroed), ("pruned", pruned)


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
    start = time.perf_counter()
    with console.status(doing):
        yield
    console.print(f"{doing}: {time.perf_counter() - start:.1f} s")


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _without_torchs_future_warnings() -> Iterator[None]:
    """Without those that torch 2.13 gives of its own code when it copies or exports a traced module."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def _eager_call(model: nn.Module, image: Tensor) -> Callable[[], object]:
    def call() -> object:
        with torch.no_grad():
            return model(image)

    return call


def _onnx_call(model: nn.Module, image: Tensor) -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.onnx")
        l1rr_fx.to_onnx(model, (image,), path, target="onnxruntime", verify=False)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: image.numpy()}
    return lambda: session.run(None, feed)
