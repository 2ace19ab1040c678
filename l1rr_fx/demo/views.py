"""Random views of an aerial image to train on: crops, turned, scaled and coloured, with the trees in them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from l1rr_fx.demo.boxes import area, centres, clipped
from l1rr_fx.demo.trees import Scene


@dataclass(frozen=True)
class Sample:
    """A square crop in [0, 1], the trees in it, and the trees cut so much by its border that they count neither way."""

    image: Tensor
    trees: Tensor
    cut: Tensor


def mosaic(scene: Scene, size: int, dice: torch.Generator) -> Sample:
    """Two by two random crops of half the size, so that trees are seen in more company than the image has."""
    four = [sample(scene, size // 2, dice) for _ in range(4)]
    rows = [torch.cat([each.image for each in four[n : n + 2]], 2) for n in (0, 2)]
    corners = torch.tensor([[x, y, x, y] for y in (0, size // 2) for x in (0, size // 2)])
    return Sample(
        torch.cat(rows, 1),
        torch.cat([each.trees + corner for each, corner in zip(four, corners, strict=True)]),
        torch.cat([each.cut + corner for each, corner in zip(four, corners, strict=True)]),
    )


def sample(scene: Scene, size: int, dice: torch.Generator) -> Sample:
    """A random square view: three in four near a given tree; scale, aspect, mirror, angle, colours and noise vary.

    A crown is taken for the ellipse in its box, so that its box is known at any angle (exact at quarter turns)."""

    def uniform(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=dice))

    zoom, aspect = math.exp(uniform(-0.65, 0.45)), math.exp(uniform(-0.12, 0.12))
    angle = int(uniform(0, 4)) * math.pi / 2 + (uniform(-0.8, 0.8) if uniform(0, 1) < 0.5 else 0)
    mirrored = 1 if uniform(0, 1) < 0.5 else -1
    turn = torch.tensor([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    to_scene = turn @ torch.diag(torch.tensor([mirrored * aspect, 1 / aspect]) / zoom)
    extent = torch.tensor(scene.size[::-1])
    middle = torch.rand(2, generator=dice) * extent
    if uniform(0, 1) < 0.75:
        tree = scene.boxes[int(uniform(0, len(scene.boxes)))]
        middle = (tree[:2] + tree[2:]) / 2 + (torch.rand(2, generator=dice) - 0.5) * 0.8 * size / zoom
    half = torch.tensor(size / zoom / 2)
    middle = torch.minimum(torch.maximum(middle, half), extent - half)
    image = coloured(_view(scene.image, to_scene, middle, size), dice)
    boxes = _seen(scene.boxes, to_scene, middle, size)
    inside = clipped(boxes, (0, 0, size, size))
    visible = area(inside) / area(boxes)
    return Sample(image, inside[visible >= 0.4], inside[(visible > 0) & (visible < 0.4)])


def _view(image: Tensor, to_scene: Tensor, middle: Tensor, size: int) -> Tensor:
    """What lies at `middle + to_scene @ (pixel - size / 2)` for each pixel of a square; black outside the image."""
    pixels = centres(size, size, 1, to_scene) - size / 2
    places = (pixels @ to_scene.T + middle).reshape(1, size, size, 2)
    low, high = places.amin((0, 1, 2)).long() - 1, places.amax((0, 1, 2)).long() + 2
    low, high = low.clamp(min=0), torch.minimum(high, torch.tensor(image.shape[:0:-1]))
    patch = image[None, :, int(low[1]) : int(high[1]), int(low[0]) : int(high[0])].float() / 255
    return F.grid_sample(patch, (places - low) / (high - low) * 2 - 1, align_corners=False)[0]


def _seen(boxes: Tensor, to_scene: Tensor, middle: Tensor, size: int) -> Tensor:
    """The boxes of the ellipses in `boxes` in the view's pixels."""
    back = torch.linalg.inv(to_scene)
    centre = ((boxes[:, :2] + boxes[:, 2:]) / 2 - middle) @ back.T + size / 2
    reach = (((boxes[:, 2:] - boxes[:, :2]) / 2) ** 2 @ (back**2).T).sqrt()
    return torch.cat((centre - reach, centre + reach), 1)


def coloured(image: Tensor, dice: torch.Generator) -> Tensor:
    """The image with random saturation, contrast, colour balance, brightness, gamma and, one time in three, noise."""
    r = torch.rand(7, generator=dice)
    grey = image.mean(0, keepdim=True)
    image = grey + (image - grey) * (0.4 + 1.2 * r[0])
    middle = image.mean()
    image = middle + (image - middle) * (0.7 + 0.7 * r[1])
    image = image * (0.85 + 0.3 * r[2:5])[:, None, None] + 0.2 * (r[5] - 0.5)
    image = image.clamp(1e-3, 1) ** (0.7 + 0.7 * float(r[6]))
    noise = max(0.0, 3 * float(torch.rand((), generator=dice)) - 2) * 0.08
    return (image + noise * torch.randn(image.shape, generator=dice)).clamp(0, 1)


@dataclass(frozen=True)
class Batch:
    """Samples together: images of shape (n, 3, h, w), and the trees and the cut trees of each."""

    images: Tensor
    trees: tuple[Tensor, ...]
    cut: tuple[Tensor, ...]


def random_batch(scene: Scene, size: int, crop: int, dice: torch.Generator, *, mosaics: float = 0.3) -> Batch:
    """`size` views of `crop` by `crop` pixels, of which the part `mosaics` are put together of four."""
    chosen = torch.rand(size, generator=dice) < mosaics
    samples = [(mosaic if each else sample)(scene, crop, dice) for each in chosen]
    images = torch.stack([each.image for each in samples])
    return Batch(images, tuple(each.trees for each in samples), tuple(each.cut for each in samples))


def random_batches(scene: Scene, count: int, *, size: int, crop: int, seed: int) -> Iterator[Batch]:
    """So many batches, the same for the same seed."""
    dice = torch.Generator().manual_seed(seed)
    return (random_batch(scene, size, crop, dice) for _ in range(count))
