"""What a tree detector finds in a scene, how well, and what it costs."""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import l1rr_fx
from l1rr_fx.demo.boxes import Detections, average_precision, detections
from l1rr_fx.demo.detector import MULTIPLE
from l1rr_fx.demo.trees import Scene
from passes.graph.isolation import in_float64

THRESHOLDS = (0.3, 0.4, 0.5)
SCALE = 0.8
"""Of the image's resolution. Training crops are all resampled; at exactly 1 the image is sharper than any of them, and
AP50 on the held-out strip was .37 in place of .68 (half-way through a first training)."""


@dataclass(frozen=True)
class Timing:
    """Median milliseconds for the test image, dense and pruned, of paired runs at one thread; `engine` ran both."""

    engine: str
    dense: float
    pruned: float


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
def largest_deviation(first: nn.Module, second: nn.Module, image: Tensor) -> float:
    """The largest difference of any output, relative to that output's largest value, in float64."""
    wanted, got = in_float64(first)(in_float64(image)), in_float64(second)(in_float64(image))
    return max(float((got[name] - each).abs().max() / each.abs().max()) for name, each in wanted.items())


def paired_timing(dense: nn.Module, pruned: nn.Module, image: Tensor, *, rounds: int = 11) -> Timing:
    """Both models timed in turn at one thread: in ONNX Runtime where it is installed, else in PyTorch."""
    onnx = has_onnx()
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


def has_onnx() -> bool:
    """Whether ONNX Runtime and what writes its files are installed."""
    return all(find_spec(name) for name in ("onnx", "onnxruntime"))


def _scaled(scene: Scene) -> tuple[int, int]:
    return round(scene.size[0] * SCALE), round(scene.size[1] * SCALE)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def without_torchs_future_warnings() -> Iterator[None]:
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
