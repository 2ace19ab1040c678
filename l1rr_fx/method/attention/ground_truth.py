"""The ground truth of a batch of images: boxes with classes, checked once, and masks of the cells that they cover."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from l1rr_fx.support.arguments import of_kind
from passes.errors import InputError

GroundTruth = Tensor | Mapping[str, Any]
"""The boxes of one image, shape (n, 4), as left, top, right, bottom in pixels; or a mapping with "boxes" and, if there
are classes, "labels" of shape (n,)."""


@dataclass(frozen=True, eq=False)
class Batch:
    """One batch: the arguments of the model, and for each image its boxes, shape (n, 4), and classes, shape (n,).

    `size` is the height and width of the images in pixels.
    """

    args: tuple[Any, ...]
    boxes: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    size: tuple[int, int]

    @property
    def classes(self) -> tuple[int, ...]:
        """The classes that occur, in order."""
        return tuple(sorted({int(n) for labels in self.labels for n in labels.tolist()}))


def read_batches(batches: Iterable[Any], *, device: torch.device) -> tuple[Batch, ...]:
    """The batches of an iterable of (images, targets), on `device`.

    `images` is a tensor (n, 3, h, w), or a tuple of the model's arguments that begins with one; `targets` has one
    `GroundTruth` for each image. InputError, with the batch and the image, for boxes that are missing, inverted, not
    finite or outside the image, and for labels that are not whole numbers.
    """
    of_kind("batches", batches, Iterable, ", of (images, targets)")  # type: ignore[type-abstract]  # isinstance takes it
    return tuple(_batch(number, batch, device) for number, batch in enumerate(batches))


def _batch(number: int, batch: Any, device: torch.device) -> Batch:
    where = f"batch {number}"
    if not (isinstance(batch, (tuple, list)) and len(batch) == 2):
        raise InputError(f"{where} is a {type(batch).__name__} without targets; expected (images, targets)")
    images, targets = batch
    args = tuple(images) if isinstance(images, (tuple, list)) else (images,)
    if not args or not isinstance(args[0], Tensor) or args[0].dim() != 4:
        raise InputError(f"{where}: expected images of shape (n, 3, h, w), or a tuple that begins with them")
    count, size = len(args[0]), (args[0].shape[2], args[0].shape[3])
    if not isinstance(targets, Sequence) or len(targets) != count:
        what = f"{len(targets)} targets" if isinstance(targets, Sequence) else f"a {type(targets).__name__} as targets"
        raise InputError(f"{where} has {count} images and {what}; expected one for each image")
    pairs = [_target(f"{where}, image {n}", target, size, device) for n, target in enumerate(targets)]
    on_device = pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), args)
    return Batch(on_device, tuple(boxes for boxes, _ in pairs), tuple(labels for _, labels in pairs), size)


def _target(where: str, target: Any, size: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    if isinstance(target, Mapping):
        boxes, labels = target.get("boxes"), target.get("labels")
    else:
        boxes, labels = target, None
    if not isinstance(boxes, Tensor):
        raise InputError(f"{where} has no targets; expected a tensor of boxes, or a mapping with one as 'boxes'")
    if boxes.numel() == 0:
        return torch.zeros(0, 4, device=device), torch.zeros(0, dtype=torch.int64, device=device)
    if boxes.dim() != 2 or boxes.shape[1] != 4:
        raise InputError(f"{where}: boxes have shape {tuple(boxes.shape)}; expected (n, 4)")
    if boxes.is_complex() or boxes.dtype == torch.bool:
        raise InputError(f"{where}: boxes are {boxes.dtype}; expected numbers of pixels")
    _check_boxes(where, boxes.detach().float(), size)
    if labels is None:
        labels = torch.zeros(len(boxes), dtype=torch.int64)
    if not isinstance(labels, Tensor) or labels.shape != (len(boxes),):
        raise InputError(f"{where}: {len(boxes)} boxes need 'labels' of shape ({len(boxes)},)")
    return boxes.detach().float().to(device), _classes(where, labels.detach()).to(device)


def _classes(where: str, labels: Tensor) -> Tensor:
    """Labels as int64; YOLO's are floats."""
    wrong = labels if labels.is_complex() else labels[labels.to(torch.int64).double() != labels.double()]
    if len(wrong):
        raise InputError(f"{where}: a label is {wrong[0].item()}; expected the whole number of a class")
    return labels.to(torch.int64)


def _check_boxes(where: str, boxes: Tensor, size: tuple[int, int]) -> None:
    height, width = size
    for number, (left, top, right, bottom) in enumerate(boxes.tolist()):
        shown = f"{where}: box {number} ({left:g}, {top:g}, {right:g}, {bottom:g})"
        if not (-math.inf < left < right < math.inf and -math.inf < top < bottom < math.inf):
            raise InputError(f"{shown} is not left, top, right, bottom with left < right and top < bottom, all finite")
        if right <= 0 or bottom <= 0 or left >= width or top >= height:
            raise InputError(f"{shown} lies outside the image of {width} x {height} pixels")


def target_mask(boxes: Tensor, size: tuple[int, int], cells: tuple[int, int]) -> Tensor:
    """The weight of each cell of a map of `cells` (h, w) over an image of `size` pixels, shape (h, w).

    It is the largest 1 / (area in cells, at least 1) of the boxes that cover part of the cell, so that a small object
    counts as much as a large one; 0 where no box is. The part of a box outside the image does not count.
    """
    height, width = cells
    scale = boxes.new_tensor([width / size[1], height / size[0]] * 2)
    limits = boxes.new_tensor([width, height] * 2)
    left, top, right, bottom = (boxes * scale).clamp(min=0).minimum(limits).unbind(1)
    area = ((right - left) * (bottom - top)).clamp(min=1)
    x, y = torch.arange(width, device=boxes.device), torch.arange(height, device=boxes.device)
    across = (x < right[:, None]) & (x + 1 > left[:, None])
    down = (y < bottom[:, None]) & (y + 1 > top[:, None])
    covered = (down[:, :, None] & across[:, None, :]) / area[:, None, None]
    return covered.amax(0) if len(boxes) else boxes.new_zeros(cells)
