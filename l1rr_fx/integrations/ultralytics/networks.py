"""Networks of YOLO objects and checkpoints, and what is to be known of one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from l1rr_fx.method.sites.zeroing import unwrapped
from l1rr_fx.support.packages import required
from passes.errors import InputError
from passes.graph.isolation import detached_copy

PACKAGE, OLDEST = "ultralytics", "8.3.0"
LICENCE = "it is licensed under AGPL-3.0 or a licence bought from its makers"

Source = Any
"""A `YOLO` object, one of its networks, or the path of a checkpoint (.pt)."""
Size = int | tuple[int, int]
"""Pixels, or height and width."""


def load(source: Source) -> nn.Module:
    """A copy of the network in `source` for inference, in float32, as it would predict.

    InputError if `source` is something else, or is a file and Ultralytics is not installed.
    """
    if isinstance(source, (str, os.PathLike)):
        if not Path(source).is_file():
            raise InputError(f"{source}: there is no such file")
        source = required(PACKAGE, OLDEST, note=LICENCE).YOLO(str(source))
    network = source.model if hasattr(source, "add_callback") else source
    if isinstance(network, nn.Module):
        network = trained_network(network)
    if not isinstance(network, nn.Module) or not hasattr(network, "yaml"):
        raise InputError(
            f"expected a YOLO object, its network or the path of a .pt file, not a {type(source).__name__}"
        )
    return detached_copy(network).float().eval()


def trained_network(model: nn.Module) -> nn.Module:
    """The network that a trainer trains: without wrappers, and without the teacher of a distillation."""
    inner = unwrapped(model)
    student = getattr(inner, "student_model", None)
    return student if isinstance(student, nn.Module) else inner


def task_of(model: nn.Module) -> str:
    kinds = {"Classification": "classify", "Segmentation": "segment", "Pose": "pose", "OBB": "obb"}
    return next((task for kind, task in kinds.items() if type(model).__name__.startswith(kind)), "detect")


def channels_of(model: nn.Module) -> int:
    return int(model.yaml.get("channels", 3))  # type: ignore[union-attr, operator]  # a dictionary


def pixels(imgsz: Size) -> tuple[int, int]:
    """Height and width. InputError where these are not whole numbers of at least 1."""
    sides = tuple(imgsz) if isinstance(imgsz, (tuple, list)) else (imgsz, imgsz)
    if len(sides) != 2 or not all(type(side) is int and side >= 1 for side in sides):
        raise InputError(f"imgsz is {imgsz!r}; expected a whole number of pixels, or (height, width)")
    return sides


def example_image(model: nn.Module, imgsz: Size) -> Tensor:
    """An image to compare networks on: a smooth pattern, the same each time, in which every feature differs by place.

    Of a black image a detector sees its biases alone.
    """
    height, width = pixels(imgsz)
    generator = torch.Generator().manual_seed(0)
    cells = torch.rand(1, channels_of(model), max(2, height // 16), max(2, width // 16), generator=generator)
    image = F.interpolate(cells, (height, width), mode="bicubic", align_corners=False).clamp(0, 1)
    return image.to(next(model.parameters()).device)


def blank_image(model: nn.Module, imgsz: Size) -> Tensor:
    device = next(model.parameters()).device
    return torch.zeros(1, channels_of(model), *pixels(imgsz), device=device)
