"""Boxes: from raw maps to detections, and how good these are. A box is left, top, right, bottom in pixels."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor
from torch.nn import functional as F

from l1rr_fx.demo.detector import STRIDES


@dataclass(frozen=True)
class Detections:
    """Boxes, shape (n, 4), and their scores in [0, 1], shape (n,), best first."""

    boxes: Tensor
    scores: Tensor

    def above(self, score: float) -> Detections:
        """Those with at least this score."""
        return Detections(self.boxes[self.scores >= score], self.scores[self.scores >= score])


def area(boxes: Tensor) -> Tensor:
    """Areas in square pixels, shape (...,); 0 for an inverted box."""
    return (boxes[..., 2] - boxes[..., 0]).clamp(min=0) * (boxes[..., 3] - boxes[..., 1]).clamp(min=0)


def clipped(boxes: Tensor, limits: tuple[float, float, float, float]) -> Tensor:
    """The parts of the boxes inside `limits`, which may be empty."""
    left, top, right, bottom = limits
    return torch.cat((boxes[:, 0::2].clamp(left, right), boxes[:, 1::2].clamp(top, bottom)), 1)[:, [0, 2, 1, 3]]


def iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of boxes (..., 4) with boxes (..., 4), broadcast."""
    common = area(
        torch.cat((torch.maximum(first[..., :2], second[..., :2]), torch.minimum(first[..., 2:], second[..., 2:])), -1)
    )
    return common / (area(first) + area(second) - common).clamp(min=1e-9)


def centres(height: int, width: int, stride: int, like: Tensor) -> Tensor:
    """The pixel coordinates x, y of the middle of each cell of a map, shape (height * width, 2)."""
    y = (torch.arange(height, dtype=like.dtype, device=like.device) + 0.5) * stride
    x = (torch.arange(width, dtype=like.dtype, device=like.device) + 0.5) * stride
    return torch.stack((x.repeat(height), y.repeat_interleave(width)), 1)


def decode(maps: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Every cell's logit, shape (n, cells), and box in pixels, (n, cells, 4), from a `TreeDetector`'s raw maps."""
    logits, boxes = [], []
    for stride in STRIDES:
        score, sides = maps[f"score_{stride}"], maps[f"sides_{stride}"]
        middle = centres(score.shape[2], score.shape[3], stride, score)
        reach = F.softplus(sides).flatten(2).transpose(1, 2) * stride
        logits.append(score.flatten(1))
        boxes.append(torch.cat((middle - reach[..., :2], middle + reach[..., 2:]), -1))
    return torch.cat(logits, 1), torch.cat(boxes, 1)


def detections(
    maps: Mapping[str, Tensor], size: tuple[int, int], *, overlap: float = 0.4, floor: float = 0.02, most: int = 1000
) -> Detections:
    """The detections of one image of `size` (height, width), by greedy non-maximum suppression at `overlap` IoU.

    Cells below a score of `floor` are left out, and at most `most` detections returned."""
    logits, every = decode(maps)
    scores = logits[0].sigmoid()
    best = scores.topk(min(4 * most, len(scores)))
    found = best.values >= floor
    boxes = clipped(every[0][best.indices[found]], (0, 0, size[1], size[0]))
    kept = _suppressed(boxes, overlap)[:most]
    return Detections(boxes[kept], best.values[found][kept])


def average_precision(
    found: Detections, truth: Tensor, thresholds: Sequence[float], *, sizes: tuple[float, float] = (0, 1e10)
) -> dict[float, float]:
    """COCO's average precision (101 recall points, one class) at each IoU threshold, by pycocotools.

    Only boxes with an area in `sizes` count, in square pixels, and, by COCO's rule, detections that find one of them or
    are of such a size. 0 where there are no detections or no such boxes."""
    areas = area(truth)
    if not len(found.scores) or not bool(((areas >= sizes[0]) & (areas <= sizes[1])).any()):
        return dict.fromkeys(thresholds, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):  # it prints its progress
        annotations = COCO()
        annotations.dataset = {
            "images": [{"id": 1}],
            "categories": [{"id": 1, "name": "tree"}],
            "annotations": [
                {"id": n, "image_id": 1, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
                for n, box in enumerate(_as_coco(truth), 1)
            ],
            "info": {},
        }
        annotations.createIndex()
        rows = numpy.array(
            [[1, *box, score, 1] for box, score in zip(_as_coco(found.boxes), found.scores.tolist(), strict=True)]
        )
        judge = COCOeval(annotations, annotations.loadRes(rows), "bbox")
        judge.params.iouThrs = numpy.array(thresholds)
        judge.params.maxDets = [len(rows)]
        judge.params.areaRng, judge.params.areaRngLbl = [list(sizes)], ["these"]
        judge.evaluate()
        judge.accumulate()
    precision = judge.eval["precision"]  # thresholds, recalls, classes, areas, maxDets
    return {threshold: float(precision[n].mean()) for n, threshold in enumerate(thresholds)}


def _suppressed(boxes: Tensor, overlap: float) -> Tensor:
    """Indices of the boxes, best first, that no better kept one covers by more than `overlap`."""
    kept = []
    left = torch.arange(len(boxes))
    while len(left):
        kept.append(left[0])
        left = left[1:][iou(boxes[left[0]], boxes[left[1:]]) <= overlap]
    return torch.stack(kept) if kept else left


def _as_coco(boxes: Tensor) -> list[list[float]]:
    """Left, top, width, height, as COCO writes a box."""
    return [[left, top, right - left, bottom - top] for left, top, right, bottom in boxes.tolist()]
