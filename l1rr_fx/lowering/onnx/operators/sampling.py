"""Sampling an image at computed places: one node where the target has it, else four gathers and their weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from l1rr_fx.lowering.onnx.operators.pointwise import Form
from l1rr_fx.lowering.onnx.writer import Operand, Symbol, Writer
from passes.errors import LoweringError

aten = torch.ops.aten

MODES = ("bilinear", "nearest", "bicubic")
PADDINGS = ("zeros", "border", "reflection")


def _grid_sample(
    w: Writer, out: Tensor, x: Symbol, grid: Symbol, mode: int, padding: int, align_corners: bool
) -> Operand:
    if w.target.has("GridSample") and x.rank == 4:
        names = {"mode": MODES[mode], "padding_mode": PADDINGS[padding]}
        return w.op("GridSample", x, grid, align_corners=int(align_corners), **names)
    if x.rank != 4 or mode != 0 or padding == 2:
        raise LoweringError("only bilinear sampling of images, with zeros or the border around them, has a form here")
    return _bilinear(w, out, x, grid, zeros=padding == 0, align_corners=align_corners)


def _bilinear(w: Writer, out: Tensor, x: Symbol, grid: Symbol, *, zeros: bool, align_corners: bool) -> Operand:
    batch, channels, height, width = x.shape
    places = int(out.shape[2] * out.shape[3])
    flat = w.reshape(x, (batch, channels, height * width))
    across, down = (
        _pixels(w, w.reshape(w.slice(grid, 3, axis, axis + 1), (batch, 1, places)), size, zeros, align_corners)
        for axis, size in ((0, width), (1, height))
    )
    total: str | None = None
    for column, right, inside_x in _neighbours(w, across, width):
        for row, lower, inside_y in _neighbours(w, down, height):
            index = w.op("Cast", w.op("Add", w.op("Mul", row, w.number(float(width))), column), to="INT64")
            spread = w.op("Expand", index, w.integers((batch, channels, places)))
            weight = w.op("Mul", right, lower)
            if zeros:
                weight = w.op("Mul", weight, w.op("Mul", inside_x, inside_y))
            term = w.op("Mul", w.op("GatherElements", flat, spread, axis=2), weight)
            total = term if total is None else w.op("Add", total, term)
    assert total is not None
    return w.reshape(total, [int(n) for n in out.shape])


def _pixels(w: Writer, place: Operand, size: int, zeros: bool, align_corners: bool) -> str:
    """Places from -1 to 1 as numbers of pixels."""
    scale, shift = ((size - 1) / 2, (size - 1) / 2) if align_corners else (size / 2, (size - 1) / 2)
    found = w.op("Add", w.op("Mul", place, w.number(scale)), w.number(shift))
    return found if zeros else _bounded(w, found, size)


def _bounded(w: Writer, place: str, size: int) -> str:
    return w.op("Clip", place, w.number(0.0), w.number(float(size - 1)))


def _neighbours(w: Writer, place: str, size: int) -> list[tuple[str, str, str]]:
    """The two pixels beside each place: their number within the image, their weight, and 1 where they are inside."""
    first = w.op("Floor", place)
    after = w.op("Sub", place, first)
    before = w.op("Sub", w.number(1.0), after)
    found = []
    for pixel, weight in ((first, before), (w.op("Add", first, w.number(1.0)), after)):
        inside = _bounded(w, pixel, size)
        outside = w.op("Abs", w.op("Sub", pixel, inside))  # 0, or at least 1
        found.append((inside, weight, w.op("Relu", w.op("Sub", w.number(1.0), outside))))
    return found


FORMS: Mapping[Any, Form] = {
    aten.grid_sampler.default: _grid_sample,
    aten.grid_sampler_2d.default: _grid_sample,
}
