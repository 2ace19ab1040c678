"""torchvision without its C++ operators.

`pip install --no-deps torchvision` beside another build of torch leaves the compiled operators unloadable, and then
`import torchvision` itself fails. `import_torchvision()` declares what is missing, in Python, so that the models and
their detectors run. Where the real operators load, it does nothing.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType

import torch
from torch import Tensor

ROIS_AT_ONCE = 16
SCHEMA = "(Tensor boxes, Tensor scores, float iou_threshold) -> Tensor"


def import_torchvision() -> ModuleType:
    """The module torchvision, with working NMS and RoI align."""
    if "torchvision" in sys.modules:
        return sys.modules["torchvision"]
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
    for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
        del sys.modules[name]
    for operator in ("nms", "qnms"):
        torch.library.define(f"torchvision::{operator}", SCHEMA)
        torch.library.impl(f"torchvision::{operator}", "CPU", nms)
    torchvision = importlib.import_module("torchvision")
    sys.modules["torchvision.extension"]._has_ops = lambda: True  # type: ignore[attr-defined]  # a function of theirs
    _use_eager_roi_align(sys.modules["torchvision.ops.roi_align"])
    return torchvision


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float) -> Tensor:
    """Indices of the boxes (x1, y1, x2, y2) that no better one overlaps by more than `iou_threshold`, best first."""
    order = scores.argsort(descending=True, stable=True)
    boxes = boxes[order].to(torch.promote_types(boxes.dtype, torch.float32))
    area = (boxes[:, 2:] - boxes[:, :2]).prod(1)
    free = torch.ones(len(boxes), dtype=torch.bool, device=boxes.device)
    chosen = []
    for i in range(len(boxes)):
        if not free[i]:
            continue
        chosen.append(i)
        corners = torch.minimum(boxes[i, 2:], boxes[:, 2:]) - torch.maximum(boxes[i, :2], boxes[:, :2])
        overlap = corners.clamp(min=0).prod(1)
        free &= overlap <= iou_threshold * (area[i] + area - overlap)
    return order[torch.tensor(chosen, dtype=torch.long, device=order.device)]


def _use_eager_roi_align(module: ModuleType) -> None:
    """torchvision has RoI align in Python, but only compiled; take it uncompiled, a few regions at a time."""
    whole = module._roi_align.__wrapped__

    def roi_align(images: Tensor, rois: Tensor, scale: float, *options: int) -> Tensor:
        if len(rois) <= ROIS_AT_ONCE:
            result: Tensor = whole(images, rois, scale, *options)
            return result
        return torch.cat([whole(images, part, scale, *options) for part in rois.split(ROIS_AT_ONCE)])

    module._roi_align = roi_align  # type: ignore[attr-defined]  # a function of theirs
