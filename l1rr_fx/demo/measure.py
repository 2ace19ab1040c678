"""What a tree detector finds in a scene, how well, and what it costs."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from l1rr_fx.demo.boxes import Detections, average_precision, detections
from l1rr_fx.demo.detector import MULTIPLE
from l1rr_fx.demo.trees import Scene
from passes.graph.isolation import in_float64

THRESHOLDS = (0.3, 0.4, 0.5)
SCALE = 0.8
"""Of the image's resolution. Training crops are all resampled; at exactly 1 the image is sharper than any of them, and
AP50 on the held-out strip was .37 in place of .68 (half-way through a first training)."""


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


def has_onnx() -> bool:
    """Whether ONNX Runtime and what writes its files are installed."""
    return all(find_spec(name) for name in ("onnx", "onnxruntime"))


def _scaled(scene: Scene) -> tuple[int, int]:
    return round(scene.size[0] * SCALE), round(scene.size[1] * SCALE)


@contextmanager
def without_torchs_future_warnings() -> Iterator[None]:
    """Without those that torch 2.13 gives of its own code when it copies or exports a traced module."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield
