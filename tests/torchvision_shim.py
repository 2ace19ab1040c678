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
import torch.nn.functional as F
from torch import Tensor

ROIS_AT_ONCE = 16
DEFORMABLE = (
    "(Tensor input, Tensor weight, Tensor offset, Tensor mask, Tensor bias, SymInt stride_h, SymInt stride_w, "
    "SymInt pad_h, SymInt pad_w, SymInt dilation_h, SymInt dilation_w, SymInt groups, SymInt offset_groups, "
    "bool use_mask) -> Tensor"
)
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
    torch.library.define("torchvision::deform_conv2d", DEFORMABLE)
    torch.library.impl("torchvision::deform_conv2d", "CompositeExplicitAutograd", deform_conv2d)
    torch.library.register_fake("torchvision::deform_conv2d", _deformed_shape)
    torchvision = importlib.import_module("torchvision")
    sys.modules["torchvision.extension"]._has_ops = _has_operators  # type: ignore[attr-defined]  # a function of theirs
    _use_eager_roi_align(sys.modules["torchvision.ops.roi_align"])
    return torchvision


def _has_operators() -> bool:  # no lambda: packages compile it with torch.jit
    return True


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


def deform_conv2d(
    x: Tensor,
    weight: Tensor,
    offset: Tensor,
    mask: Tensor,
    bias: Tensor,
    *sizes: int,
) -> Tensor:
    """A convolution of values read beside their places: `offset` has (rows, columns) of each tap, `mask` a factor."""
    stride, pad, dilation, (groups, offset_groups, masked) = sizes[:2], sizes[2:4], sizes[4:6], sizes[6:]
    (batch, channels, *image), kernel, (_, _, *out) = x.shape, weight.shape[2:], offset.shape
    taps = kernel[0] * kernel[1]
    shift = offset.view(batch * offset_groups, taps, 2, *out)
    base = [
        torch.arange(out[a]).view([-1 if i == a else 1 for i in (0, 1)]) * stride[a] - pad[a] for a in (0, 1)
    ]  # fmt: skip
    columns = []
    for tap in range(taps):
        at = (tap // kernel[1] * dilation[0], tap % kernel[1] * dilation[1])
        places = [2 * (base[a] + at[a] + shift[:, tap, a]) / max(1, image[a] - 1) - 1 for a in (0, 1)]
        grid = torch.stack((places[1], places[0]), -1).to(x.dtype)
        read = F.grid_sample(
            x.reshape(batch * offset_groups, channels // offset_groups, *image), grid, align_corners=True
        ).view(batch, offset_groups, -1, *out)
        if masked:
            read = read * mask.view(batch, offset_groups, taps, 1, *out)[:, :, tap]
        columns.append(read.reshape(batch, channels, *out))
    whole = torch.stack(columns, 2).view(batch, groups, channels // groups * taps, *out)
    rows = weight.view(groups, len(weight) // groups, -1)
    return torch.einsum("gok,bgkhw->bgohw", rows, whole).reshape(batch, -1, *out) + bias.view(-1, 1, 1)


def _deformed_shape(x: Tensor, weight: Tensor, offset: Tensor, *_: object) -> Tensor:
    return x.new_empty((x.shape[0], weight.shape[0], *offset.shape[2:]))


def _use_eager_roi_align(module: ModuleType) -> None:
    """torchvision has RoI align in Python, but only compiled; take it uncompiled, a few regions at a time."""
    whole = module._roi_align.__wrapped__

    def roi_align(images: Tensor, rois: Tensor, scale: float, *options: int) -> Tensor:
        if len(rois) <= ROIS_AT_ONCE:
            result: Tensor = whole(images, rois, scale, *options)
            return result
        return torch.cat([whole(images, part, scale, *options) for part in rois.split(ROIS_AT_ONCE)])

    module._roi_align = roi_align  # type: ignore[attr-defined]  # a function of theirs
