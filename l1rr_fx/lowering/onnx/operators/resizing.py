"""An image in another size.

What readers lack or disagree on (cubic, antialiased) is written as products with constant matrices, see `pooling`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from l1rr_fx.lowering.onnx.operators.base import Form
from l1rr_fx.lowering.onnx.operators.pooling import along_axes
from l1rr_fx.lowering.onnx.writer import Operand, Symbol, Writer

aten = torch.ops.aten

ROUNDING = 1e-5
NEAREST = {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}
NEAREST_EXACT = {"coordinate_transformation_mode": "half_pixel", "nearest_mode": "round_prefer_ceil"}


def _resize(mode: str, axes: int, **attributes: str) -> Form:
    """The form of a resize; `attributes` are ONNX's. The last arguments of the call are its scales, if it has any."""

    def form(w: Writer, out: Tensor, x: Symbol, size: Any, *rest: Any) -> Operand:
        given, wanted = x.shape[-axes:], [int(n) for n in out.shape[-axes:]]
        if list(given) == wanted:
            return x
        flags, exact = dict(attributes), attributes.get("nearest_mode") == NEAREST_EXACT["nearest_mode"]
        if mode == "linear":
            flags["coordinate_transformation_mode"] = "align_corners" if rest[0] else "half_pixel"
        scales = [m / n for n, m in zip(given, wanted, strict=True)]
        stated = rest[-1] if rest and isinstance(rest[-1], (list, tuple)) else None
        if stated:
            scales = [float(s) for s in stated]
        stored = torch.tensor([1.0] * (x.rank - axes) + scales, dtype=torch.float32)
        if mode == "nearest" and (places := _other_places(given, wanted, stated, scales, exact=exact)) is not None:
            return _picked(w, x, places)
        products = [stored.to(dtype) * torch.tensor(x.shape) for dtype in (torch.float32, torch.float64)]
        if all(each.floor().tolist()[-axes:] == wanted for each in products):  # readers multiply in either
            return w.op("Resize", x, "", w.constant(stored, "FLOAT"), mode=mode, **flags)
        return w.op("Resize", x, "", "", w.integers(x.shape[: x.rank - axes] + tuple(wanted)), mode=mode, **flags)

    return form


def _other_places(
    given: Sequence[int], wanted: Sequence[int], stated: Any, scales: Sequence[float], *, exact: bool
) -> list[Tensor] | None:
    """Which pixels torch takes along each axis, if a reader, who divides by the scale in float32, may take others."""
    found, same = [], True
    for axis, length in enumerate(given):
        size = wanted[axis]
        row = torch.arange(length, dtype=torch.float32).view(1, 1, length)
        options = {"scale_factor": float(stated[axis])} if stated else {"size": size}
        ours = F.interpolate(row, **options, mode="nearest-exact" if exact else "nearest").long().view(-1)
        scale = torch.tensor(scales[axis], dtype=torch.float32).double()
        place = (torch.arange(size) + (0.5 if exact else 0)) / scale
        doubtful = bool(((place - place.round()).abs() < ROUNDING * place).any()) and float(scale) * length != size
        same &= not doubtful and torch.equal(place.floor().long().clamp(max=length - 1), ours)
        found.append(ours)
    return None if same else found


def _picked(w: Writer, x: Symbol, places: Sequence[Tensor]) -> Operand:
    """Pixels of an image by their numbers along each of the last axes."""
    found: Operand = x
    for axis, numbers in enumerate(places, x.rank - len(places)):
        if not torch.equal(numbers, torch.arange(x.shape[axis])):
            found = w.op("Gather", found, numbers, axis=axis)
    return found


def _by_matrix(axes: int, **options: Any) -> Form:
    """The form of a resize that readers disagree on or lack: its own weights, as matrices."""

    def form(w: Writer, out: Tensor, x: Symbol, size: Any, align_corners: bool, *rest: Any) -> Operand:
        wanted = [int(n) for n in out.shape[-axes:]]
        stated = rest[-1] if rest and isinstance(rest[-1], (list, tuple)) and rest[-1] else None

        def resized(rows: Tensor, axis: int) -> Tensor:
            thin = rows.unsqueeze(2)  # an image one pixel high
            scale = {"scale_factor": (1.0, float(stated[axis]))} if stated else {"size": (1, wanted[axis])}
            return F.interpolate(thin, align_corners=align_corners, **options, **scale).squeeze(2)

        return along_axes(w, x, wanted, resized)

    return form


FORMS: Mapping[Any, Form] = {
    aten.upsample_nearest1d.vec: _resize("nearest", 1, **NEAREST),
    aten.upsample_nearest2d.vec: _resize("nearest", 2, **NEAREST),
    aten.upsample_nearest3d.vec: _resize("nearest", 3, **NEAREST),
    aten.upsample_nearest2d.default: _resize("nearest", 2, **NEAREST),
    aten._upsample_nearest_exact2d.vec: _resize("nearest", 2, **NEAREST_EXACT),
    aten.upsample_linear1d.vec: _resize("linear", 1),
    aten.upsample_bilinear2d.vec: _resize("linear", 2),
    aten.upsample_bilinear2d.default: _resize("linear", 2),
    aten.upsample_trilinear3d.vec: _resize("linear", 3),
    aten.upsample_bicubic2d.vec: _by_matrix(2, mode="bicubic"),
    aten._upsample_bilinear2d_aa.vec: _by_matrix(2, mode="bilinear", antialias=True),
    aten._upsample_bicubic2d_aa.vec: _by_matrix(2, mode="bicubic", antialias=True),
}
