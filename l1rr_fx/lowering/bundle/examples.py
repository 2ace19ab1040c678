"""`with_image`, `more_examples`: example inputs that show something, by which ranges, FP16 and NMS are checked."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from l1rr_fx.support.arguments import path_of
from l1rr_fx.support.files import blamed
from l1rr_fx.support.packages import required
from passes.errors import InputError

GRAY = 114
"""What Ultralytics puts around an image that has other proportions than the network's input."""
Image = str | os.PathLike[str] | Tensor | Any
"""The path of a picture, its pixels as an array or tensor of uint8 (height, width, channels), or the input itself."""


def with_image(args: tuple[Any, ...], image: Image | None) -> tuple[Any, ...]:
    """The inputs `args`, the first of which is replaced by an image of the same shape; None leaves them.

    A picture is scaled to fit, keeps its proportions, is centred on gray, and goes from 0 to 1, as RGB (gray for one
    channel), once for each image of the batch. Floating point is taken as it is. Raises InputError for what is no image
    of the shape.
    """
    if image is None:
        return args
    first = args[0] if isinstance(args, tuple) and args else None
    if not (isinstance(first, Tensor) and first.is_floating_point() and first.dim() == 4 and first.shape[1] in (1, 3)):
        shape = tuple(first.shape) if isinstance(first, Tensor) else type(first).__name__
        raise InputError(
            f"image: the first input is {shape}; expected a floating-point (images, 3 or 1, height, width)"
        )
    given = _pixels(image, int(first.shape[1])) if isinstance(image, (str, os.PathLike)) else _tensor(image)
    if given.dtype == torch.uint8:
        given = _fitted(given, first)
    if given.dim() == first.dim() - 1:
        given = given.expand_as(first) if given.shape == first.shape[1:] else given
    if not given.is_floating_point() or given.shape != first.shape:
        raise InputError(
            f"image: {tuple(given.shape)} of {given.dtype}; expected the path of a picture, uint8 (height, width, "
            f"channels), or floating point of the input's shape, {tuple(first.shape)}"
        )
    return (given.to(first).contiguous(), *args[1:])


def more_examples(args: tuple[Any, ...], given: Any) -> list[tuple[Any, ...]]:
    """Further example inputs of the shapes of `args`, each given as such a tuple or as an image for the first of them.

    Raises InputError for what is neither.
    """
    if not isinstance(given, (list, tuple)):
        raise InputError(
            f"examples is a {type(given).__name__}; expected a list, each of it a tuple as args or an image"
        )
    found = [each if isinstance(each, tuple) else with_image(args, each) for each in given]
    for i, each in enumerate(found):
        if _shapes(each) != _shapes(args):
            raise InputError(f"examples: number {i} has the inputs {_shapes(each)}; expected {_shapes(args)}, as args")
    return found


def _shapes(args: tuple[Any, ...]) -> list[str]:
    """Shapes and types of the tensors of a call."""
    tensors = (leaf for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor))
    return [f"{tuple(each.shape)} of {str(each.dtype).removeprefix('torch.')}" for each in tensors]


def emptiness(tensors: Iterable[Tensor]) -> tuple[str, ...]:
    """A note if all inputs are constant, such as a black image, by which nothing is checked."""
    found = [each for each in tensors if each.is_floating_point() and each.numel() > 1]
    if not found or any(float(each.min()) != float(each.max()) for each in found):
        return ()
    return (
        "the example input is constant (a black image, for instance), by which FP16 and NMS are hardly checked: lower "
        "with image= (--image FILE)",
    )


def _pixels(path: str | os.PathLike[str], channels: int) -> Tensor:
    pillow = required("pillow", extra="demo", module="PIL.Image")
    with blamed(path, "read"):
        if not path_of("image", path, "a picture").is_file():
            raise InputError(f"image: {path}: there is no such file")
    try:
        with pillow.open(path) as file:
            picture = file.convert("L" if channels == 1 else "RGB")
    except (OSError, ValueError, SyntaxError, ImportError, pillow.DecompressionBombError) as error:
        # ImportError: Ultralytics replaces Image.open by one that asks for a package where a file is no picture
        raise InputError(f"image: {path}: no picture that can be read: {error}") from error
    return torch.from_numpy(required("numpy", extra="onnx").array(picture))


def _tensor(image: Any) -> Tensor:
    try:
        return torch.as_tensor(image)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InputError(
            f"image is a {type(image).__name__}; expected a path, an array or a tensor of pixels"
        ) from error


def _fitted(pixels: Tensor, like: Tensor) -> Tensor:
    """uint8 (height, width[, channels]) as (channels, height, width) of the input's size, from 0 to 1."""
    channels, height, width = (int(n) for n in like.shape[1:])
    planes = pixels[:, :, None] if pixels.dim() == 2 else pixels
    if planes.dim() != 3 or planes.shape[2] != channels or 0 in planes.shape:
        raise InputError(
            f"image: {tuple(pixels.shape)} of uint8; expected (height, width, {channels}), as the input has {channels} "
            "channels"
        )
    rows, columns = int(planes.shape[0]), int(planes.shape[1])
    scale = min(height / rows, width / columns)
    size = max(1, round(rows * scale)), max(1, round(columns * scale))
    scaled = torch.nn.functional.interpolate(
        planes.movedim(2, 0)[None].float(), size, mode="bilinear", align_corners=False, antialias=scale < 1
    )[0]
    found = torch.full((channels, height, width), float(GRAY))
    top, left = (height - size[0]) // 2, (width - size[1]) // 2
    found[:, top : top + size[0], left : left + size[1]] = scaled
    return found.clamp(0, 255) / 255
