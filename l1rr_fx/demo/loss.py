"""What the tree detector learns from: scores aligned with overlap, boxes by generalised IoU.

Targets are assigned by alignment of score and overlap (Feng et al. 2021, "TOOD").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from l1rr_fx.demo.boxes import area, centres, decode, iou
from l1rr_fx.demo.detector import STRIDES
from l1rr_fx.demo.views import Batch


@dataclass(frozen=True)
class Targets:
    """For each cell the score to learn, the box to learn, and whether it counts."""

    scores: Tensor
    boxes: Tensor
    counts: Tensor


def assigned(logits: Tensor, boxes: Tensor, middle: Tensor, trees: Tensor, cut: Tensor, *, cells: int = 9) -> Targets:
    """For each tree the cells inside it that are best aligned with it; a cell goes to the tree it overlaps most."""
    counts = ~_inside(middle, cut, 0).any(0) if len(cut) else torch.ones_like(logits, dtype=torch.bool)
    if not len(trees):
        return Targets(torch.zeros_like(logits), boxes, counts)
    overlap = iou(boxes[None], trees[:, None])
    fits = logits.sigmoid().sqrt() * overlap**4 * _inside(middle, trees, 6)
    chosen = torch.zeros_like(fits).scatter_(1, fits.topk(cells, 1).indices, 1.0) * (fits > 0)
    tree = (chosen * (overlap + 1e-6)).max(0)
    own = chosen * F.one_hot(tree.indices, len(trees)).T
    best = (fits * own).amax(1, keepdim=True).clamp(min=1e-12)
    scores = (fits * own / best * (overlap * own).amax(1, keepdim=True)).amax(0)
    return Targets(scores, trees[tree.indices], counts | (scores > 0))


def _inside(middle: Tensor, boxes: Tensor, least: float) -> Tensor:
    """Whether each cell's middle lies in each box, or within `least` pixels of the box's middle on both axes."""
    centre = (boxes[:, None, :2] + boxes[:, None, 2:]) / 2
    half = ((boxes[:, None, 2:] - boxes[:, None, :2]) / 2).clamp(min=least)
    return ((middle[None] - centre).abs() < half).all(-1)


def loss_of(maps: Mapping[str, Tensor], batch: Batch) -> Tensor:
    """Binary cross-entropy to the aligned scores plus twice the generalised IoU loss, by the sum of target scores."""
    maps = {name: values.float() for name, values in maps.items()}
    logits, boxes = decode(maps)
    middle = torch.cat([centres(maps[f"score_{s}"].shape[2], maps[f"score_{s}"].shape[3], s, logits) for s in STRIDES])
    with torch.no_grad():
        each = [
            assigned(logit, box, middle, trees, cut)
            for logit, box, trees, cut in zip(logits, boxes, batch.trees, batch.cut, strict=True)
        ]
    scores, counts = torch.stack([t.scores for t in each]), torch.stack([t.counts for t in each])
    total = scores.sum().clamp(min=1)
    named = F.binary_cross_entropy_with_logits(logits, scores, reduction="none")[counts].sum()
    found = scores > 0
    missed = 1 - _generalised_iou(boxes[found], torch.stack([t.boxes for t in each])[found])
    combined: Tensor = (named + 2 * (missed * scores[found]).sum()) / total
    return combined


def _generalised_iou(first: Tensor, second: Tensor) -> Tensor:
    """IoU less the part of the common hull that neither box covers (Rezatofighi et al. 2019)."""
    hull = area(
        torch.cat((torch.minimum(first[:, :2], second[:, :2]), torch.maximum(first[:, 2:], second[:, 2:])), 1)
    ).clamp(min=1e-9)
    overlap = iou(first, second)
    union = (area(first) + area(second)) / (1 + overlap)
    return overlap - (hull - union) / hull
