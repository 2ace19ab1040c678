"""The pairs of detector and data of `benchmarks.transfer`: networks, views to train on, and how a network is judged.

"trees": the NEON crowns of the demo. What is learned from is a part of one image; judged are a strip of it that is
never trained on, and another image. "cut-outs": a bus, persons and faces of photographs, turned, scaled and coloured,
on aerial images; the images that are judged have other backgrounds. Small, so that a training takes a minute or two.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib.util import find_spec
from pathlib import Path

import numpy
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from l1rr_fx.demo.boxes import area, average_precision, centres, detections, iou
from l1rr_fx.demo.detector import STRIDES, TreeDetector, Widths
from l1rr_fx.demo.trees import Scene, test_scene, training_scenes
from l1rr_fx.demo.views import Batch, coloured, random_batches

CROP, BATCH = 96, 8
SCALE = {"trees": 0.6, "cut-outs": 1.0}
"""Images are trained on and judged at this part of their resolution."""
THRESHOLD = 0.5
CUT_OUTS: Mapping[str, tuple[tuple[int, tuple[int, int, int, int]], ...]] = {
    "bus.jpg": ((0, (15, 230, 805, 740)), (1, (50, 400, 245, 905)), (1, (223, 405, 345, 860))),
    "zidane.jpg": ((2, (483, 202, 667, 450)), (2, (891, 40, 1071, 285))),
}
"""The class, and left, top, right and bottom of what is cut out of photographs that ship with ultralytics."""
CLASSES = 3
LEAST_SIDE = 20.0
"""Pixels."""
COPIES = 3
"""How often the other background is judged, each time with other objects."""


class Block(nn.Module):
    """Two convolutions, added to the input, which a third one brings to size where it must; ReLU after the sum."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.short = (
            nn.Identity()
            if stride == 1 and inputs == outputs
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.short(x) + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


def block(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    convolution = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.ReLU())


class ResidualDetector(nn.Module):
    """A plain residual detector without anchors, with batch norm and ReLU; outputs are those of `TreeDetector`."""

    def __init__(self, classes: int = 1, widths: tuple[int, int, int, int] = (16, 24, 48, 64)) -> None:
        super().__init__()
        w2, w4, w8, w16 = widths
        self.stem = block(3, w2, 3, 2)
        self.stage4 = nn.Sequential(Block(w2, w4, 2), Block(w4, w4, 1))
        self.stage8 = nn.Sequential(Block(w4, w8, 2), Block(w8, w8, 1))
        self.stage16 = nn.Sequential(Block(w8, w16, 2), Block(w16, w16, 1))
        self.neck8, self.neck16 = block(w8, w8, 1), block(w16, w8, 1)
        self.tower8, self.tower16 = block(w8, w8, 3), block(w8, w8, 3)
        self.score8, self.score16 = nn.Conv2d(w8, classes, 1), nn.Conv2d(w8, classes, 1)
        self.sides8, self.sides16 = nn.Conv2d(w8, 4, 1), nn.Conv2d(w8, 4, 1)
        for layer in (self.score8, self.score16, self.sides8, self.sides16):
            nn.init.constant_(layer.bias, -4.0 if layer.out_channels != 4 else 2.0)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        c8 = self.stage8(self.stage4(self.stem(image)))
        p16 = self.neck16(self.stage16(c8))
        p8 = self.neck8(c8) + F.interpolate(p16, scale_factor=2.0, mode="nearest")
        t8, t16 = self.tower8(p8), self.tower16(p16)
        return {
            "score_8": self.score8(t8),
            "sides_8": self.sides8(t8),
            "score_16": self.score16(t16),
            "sides_16": self.sides16(t16),
        }


@dataclass(frozen=True)
class Labelled:
    """A batch; `labels` has the class of each box of each image."""

    batch: Batch
    labels: tuple[Tensor, ...]

    @property
    def targets(self) -> list[dict[str, Tensor]]:
        """Boxes and labels of each image, as `FeatureAttention` takes them."""
        pairs = zip(self.batch.trees, self.labels, strict=True)
        return [{"boxes": boxes, "labels": labels} for boxes, labels in pairs]


class Feed:
    """Batches that all rows share, rendered once and kept as bytes."""

    def __init__(self, batches: Iterable[Labelled]) -> None:
        self._kept = [
            replace(each, batch=replace(each.batch, images=(each.batch.images * 255).round().to(torch.uint8)))
            for each in batches
        ]

    def epochs(self, steps: int, seed: int) -> Iterator[Labelled]:
        """So many batches: all of them in a random order, again and again."""
        dice = torch.Generator().manual_seed(seed)
        order: list[int] = []
        for _ in range(steps):
            order = order or torch.randperm(len(self._kept), generator=dice).tolist()
            yield self.at(order.pop())

    def at(self, number: int) -> Labelled:
        """One of the batches, in [0, 1]."""
        each = self._kept[number]
        return replace(each, batch=replace(each.batch, images=each.batch.images.float() / 255))


@dataclass(frozen=True)
class Pair:
    """A detector and data. `judged`: by name a scene with the class of each of its boxes."""

    network: Callable[[], nn.Module]
    data: str
    classes: int = 1

    def feed(self, count: int, seed: int) -> Feed:
        """So many batches, the same for the same seed."""
        if self.data == "trees":
            batches = random_batches(_trees()[0], count, size=BATCH, crop=CROP, seed=seed)
            return Feed(Labelled(b, tuple(torch.zeros(len(t), dtype=torch.int64) for t in b.trees)) for b in batches)
        dice = torch.Generator().manual_seed(seed)
        return Feed(_pasted_batch(_trees()[0].image, dice) for _ in range(count))

    def loss(self, model: nn.Module, each: Labelled) -> Tensor:
        """What the model learns from, on one batch; forward is in bfloat16."""
        with torch.autocast("cpu", torch.bfloat16):
            maps = model(each.batch.images.to(memory_format=torch.channels_last))
        return detection_loss({name: values.float() for name, values in maps.items()}, each)

    @torch.no_grad()
    def judged(self, model: nn.Module) -> dict[str, float]:
        """AP50 on each scene, the mean over classes."""
        found = {}
        for name, (scene, labels) in (_tree_scenes() if self.data == "trees" else _pasted_scenes()).items():
            maps = model(as_input(scene))
            precisions = [
                average_precision(detections(_class_maps(maps, n), scene.size), scene.boxes[labels == n], (THRESHOLD,))
                for n in range(self.classes)
            ]
            found[name] = statistics.fmean(each[THRESHOLD] for each in precisions)
        return found


def detection_loss(maps: Mapping[str, Tensor], each: Labelled) -> Tensor:
    """Binary cross-entropy to the overlap of what is found, plus twice the loss of overlap.

    Cells in the middle of a box learn it, the smallest box where several meet; cells in cut boxes do not count.
    """
    scores, sides = ([maps[f"{name}_{s}"] for s in STRIDES] for name in ("score", "sides"))
    logits = torch.cat([score.flatten(2).transpose(1, 2) for score in scores], 1)
    strides = torch.cat(
        [torch.full((score[0, 0].numel(), 1), float(s)) for s, score in zip(STRIDES, scores, strict=True)]
    )
    middle = torch.cat([centres(*score.shape[2:], s, logits) for s, score in zip(STRIDES, scores, strict=True)])
    reach = F.softplus(torch.cat([side.flatten(2).transpose(1, 2) for side in sides], 1)) * strides
    boxes = torch.cat((middle - reach[..., :2], middle + reach[..., 2:]), -1)
    truth, labels = pad_sequence(each.batch.trees, batch_first=True), pad_sequence(each.labels, batch_first=True)
    ignored = pad_sequence(each.batch.cut, batch_first=True)
    counts = ~_within(middle, ignored, 1.0, 0.0).any(2)
    target = torch.zeros_like(logits)
    missed = logits.new_zeros(())
    if truth.shape[1]:
        inside = _within(middle, truth, 0.4, 6.0)
        found = inside.any(2)
        own = torch.where(inside, area(truth)[:, None], torch.inf).argmin(2)
        wanted = truth.gather(1, own[..., None].expand(-1, -1, 4))
        overlap = iou(boxes, wanted)
        learned = (
            F.one_hot(labels.gather(1, own), logits.shape[2]) * (found * overlap.detach().clamp(min=0.1))[..., None]
        )
        target, counts = learned.to(logits), counts | found
        missed = (1 - overlap)[found].sum() / found.sum().clamp(min=1)
    named = F.binary_cross_entropy_with_logits(logits, target, reduction="none")[counts].sum()
    total: Tensor = named / target.sum().clamp(min=1) + 2 * missed
    return total


def _within(middle: Tensor, boxes: Tensor, part: float, least: float) -> Tensor:
    """Whether each cell's middle lies in the central part of each box, (n, cells, boxes); padding holds no cell."""
    centre, half = (boxes[..., :2] + boxes[..., 2:]) / 2, (boxes[..., 2:] - boxes[..., :2]) / 2
    reach = (half * part).clamp(min=least) * (half > 0)
    inside: Tensor = ((middle[None, :, None] - centre[:, None]).abs() < reach[:, None]).all(-1)
    return inside


PAIRS: Mapping[str, Pair] = {
    "residual, cut-outs": Pair(lambda: ResidualDetector(CLASSES), "cut-outs", CLASSES),
    "residual, trees": Pair(ResidualDetector, "trees"),
    "demo, trees": Pair(lambda: TreeDetector(Widths(16, 24, 48, 64, 64, 48)), "trees"),
    "wide residual, cut-outs": Pair(lambda: ResidualDetector(CLASSES, (24, 32, 64, 96)), "cut-outs", CLASSES),
}


def as_input(scene: Scene) -> Tensor:
    """The scene's image in [0, 1], padded to multiples of 32."""
    return F.pad(scene.image[None].float() / 255, (0, -scene.size[1] % 32, 0, -scene.size[0] % 32))


def _class_maps(maps: Mapping[str, Tensor], label: int) -> dict[str, Tensor]:
    return {name: each[:, label : label + 1] if "score" in name else each for name, each in maps.items()}


@cache
def _trees() -> tuple[Scene, Scene, Scene]:
    """What is learned from, the strip that is held out, and the other image."""
    return tuple(_scaled(scene, SCALE["trees"]) for scene in (*training_scenes(), test_scene()))  # type: ignore[return-value]


def _scaled(scene: Scene, by: float) -> Scene:
    size = tuple(round(by * side) for side in scene.size)
    image = F.interpolate(scene.image[None].float(), size, mode="bilinear", antialias=True)[0]
    return Scene(image.round().to(torch.uint8), scene.boxes * by)


def _tree_scenes() -> Mapping[str, tuple[Scene, Tensor]]:
    scenes = dict(zip(("held out", "other image"), _trees()[1:], strict=True))
    return {name: (scene, torch.zeros(len(scene.boxes), dtype=torch.int64)) for name, scene in scenes.items()}


@cache
def _pasted_scenes() -> Mapping[str, tuple[Scene, Tensor]]:
    """Another image, several times one above the other, with objects in a grid of places."""
    background, dice = _trees()[2].image, torch.Generator().manual_seed(7)
    side = 64
    height, width = (side * (each // side) for each in background.shape[1:])
    image = background[:, :height, :width].float().repeat(1, COPIES, 1) / 255
    boxes, labels = [], []
    for top in range(0, COPIES * height, side):
        for left in range(0, width, side):
            cell = image[:, top : top + side, left : left + side]
            placed = _paste(cell, dice, (side / 2, side / 2), most=48)
            if placed is not None:
                boxes.append(placed[0] + torch.tensor([left, top, left, top]))
                labels.append(placed[1])
    return {
        "other background": (Scene((image * 255).round().to(torch.uint8), torch.stack(boxes)), torch.tensor(labels))
    }


def _pasted_batch(background: Tensor, dice: torch.Generator) -> Labelled:
    images, boxes, labels = [], [], []
    for _ in range(BATCH):
        top, left = (int(torch.randint(each - CROP, (), generator=dice)) for each in background.shape[1:])
        image = background[:, top : top + CROP, left : left + CROP].float() / 255
        found = []
        for place in torch.randperm(4, generator=dice)[: int(torch.randint(1, 5, (), generator=dice))].tolist():
            centre = (CROP * (0.25 + 0.5 * (place % 2)), CROP * (0.25 + 0.5 * (place // 2)))
            found.append(_paste(image, dice, centre, most=48))
        kept = [each for each in found if each is not None]
        images.append(coloured(image, dice))
        boxes.append(torch.stack([box for box, _ in kept]) if kept else torch.zeros(0, 4))
        labels.append(torch.tensor([label for _, label in kept], dtype=torch.int64))
    nothing = tuple(torch.zeros(0, 4) for _ in images)
    return Labelled(Batch(torch.stack(images), tuple(boxes), nothing), tuple(labels))


def _paste(
    image: Tensor, dice: torch.Generator, centre: tuple[float, float], *, most: float
) -> tuple[Tensor, int] | None:
    """Paste an object into an image in place, its longer side LEAST_SIDE to `most` pixels: its box and class.

    None one time in eight. Objects are ellipses, so that their boxes are known at any angle."""
    chance, size, angle, x, y, light = torch.rand(6, generator=dice).tolist()
    if chance < 0.125:
        return None
    label, patch = _cut_outs()[int(torch.randint(len(_cut_outs()), (), generator=dice))]
    longer = max(patch.shape[1:])
    scale = (LEAST_SIDE + (most - LEAST_SIDE) * size) / longer
    half = torch.tensor([patch.shape[2], patch.shape[1]]) * scale / 2
    angle = (angle - 0.5) * 2.4
    turn = torch.tensor([[numpy.cos(angle), -numpy.sin(angle)], [numpy.sin(angle), numpy.cos(angle)]]).float()
    reach = ((half**2) @ (turn.T**2)).sqrt()
    middle = torch.tensor(centre) + (torch.tensor([x, y]) - 0.5) * 8
    low, high = (middle - reach).floor().long(), (middle + reach).ceil().long()
    low, high = low.clamp(min=0), torch.minimum(high, torch.tensor([image.shape[2], image.shape[1]]))
    ys, xs = torch.meshgrid(torch.arange(low[1], high[1]) + 0.5, torch.arange(low[0], high[0]) + 0.5, indexing="ij")
    places = (torch.stack((xs, ys), -1) - middle) @ turn / half  # in the object's own frame, [-1, 1]
    colours = F.grid_sample(_shrunk(patch, scale)[None], places[None], align_corners=False)[0]
    inside = (places.square().sum(-1) <= 1).float()
    seen = image[:, low[1] : high[1], low[0] : high[0]]
    seen.copy_(seen * (1 - inside) + (colours * (0.7 + 0.6 * light)).clamp(0, 1) * inside)
    box = torch.cat((middle - reach, middle + reach))
    limits = torch.tensor([image.shape[2], image.shape[1]] * 2)
    box = torch.minimum(box.clamp(min=0), limits)
    return (box, label) if float(area(box)) > 0 else None


def _shrunk(patch: Tensor, scale: float) -> Tensor:
    """The patch at about its size in the image, smoothed; twice the size, so that turning does not blur it."""
    size = [max(4, round(2 * scale * side)) for side in patch.shape[1:]]
    return F.interpolate(patch[None], size, mode="bilinear", antialias=True)[0]


@cache
def _cut_outs() -> tuple[tuple[int, Tensor], ...]:
    """The class and the pixels in [0, 1] of each object, at most 96 pixels long."""
    spec = find_spec("ultralytics")
    if spec is None or spec.origin is None:
        raise SystemExit(
            "the cut-outs are of photographs that come with ultralytics: pip install --no-deps ultralytics"
        )
    found = []
    for name, objects in CUT_OUTS.items():
        with Image.open(Path(spec.origin).parent / "assets" / name) as picture:
            pixels = torch.from_numpy(numpy.array(picture.convert("RGB"))).permute(2, 0, 1).float() / 255
        for label, (left, top, right, bottom) in objects:
            patch = pixels[:, top:bottom, left:right]
            by = 96 / max(patch.shape[1:])
            size = [round(by * side) for side in patch.shape[1:]]
            found.append((label, F.interpolate(patch[None], size, mode="bilinear", antialias=True)[0]))
    return tuple(found)
