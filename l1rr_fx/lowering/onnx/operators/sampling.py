"""Values read at computed places: advanced indexing, embeddings, images sampled by a grid."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from l1rr_fx.lowering.onnx.operators.base import Form, dtype_of
from l1rr_fx.lowering.onnx.operators.reindex import gathered, index_select
from l1rr_fx.lowering.onnx.writer import Operand, Symbol, Writer
from passes.errors import LoweringError

aten = torch.ops.aten

# Indices


def _index(w: Writer, out: Tensor, x: Symbol, indices: Sequence[Any]) -> Operand:
    """Advanced indexing: the axes become one, and one Gather takes from it."""
    axes = [a for a, index in enumerate(indices) if index is not None]
    given = [indices[a] for a in axes]
    if len(axes) == 1 and getattr(given[0], "dtype", None) != torch.bool:
        return index_select(w, out, x, axes[0], given[0])
    if any(dtype_of(i) == torch.bool for i in given):
        raise LoweringError("indexing by a mask has no form here (its size depends on values): use torch.where")
    at, shape = axes[0], x.shape
    source: Operand = x
    sizes = [shape[a] for a in axes]
    if axes != list(range(at, at + len(axes))):  # then torch puts the indexed axes first
        order = axes + [a for a in range(x.rank) if a not in axes]
        at, shape, source = 0, tuple(shape[a] for a in order), w.op("Transpose", x, perm=order)
    flat = _flat_index(w, given, sizes)
    merged = w.reshape(source, (*shape[:at], math.prod(sizes), *shape[at + len(axes) :]))
    return gathered(w, out, merged, flat, at)


def _flat_index(w: Writer, given: Sequence[Any], sizes: Sequence[int]) -> Operand:
    """Indices into several axes as one into their product."""
    if all(isinstance(index, Tensor) for index in given):
        flat = torch.zeros((), dtype=torch.int64)
        for index, size in zip(given, sizes, strict=True):
            flat = flat * size + index.cpu() % size
        return flat
    total: Operand | None = None
    for index, size in zip(given, sizes, strict=True):
        inside = index % size if isinstance(index, Tensor) else _not_negative(w, index, size)
        total = inside if total is None else w.op("Add", w.op("Mul", total, w.number(size, torch.int64)), inside)
    assert total is not None
    return total


def _not_negative(w: Writer, index: Symbol, size: int) -> str:
    """An index that may count from the end, counted from the start."""
    number = w.cast(index, torch.int64)
    from_end = w.op("Add", number, w.number(size, torch.int64))
    return w.op("Where", w.op("Less", number, w.number(0, torch.int64)), from_end, number)


def _embedding(w: Writer, out: Tensor, weight: Any, index: Any, *_: Any) -> str:
    return gathered(w, out, weight, index, 0)


def _gather(w: Writer, out: Tensor, x: Any, dim: int, index: Any, *_: Any) -> str:
    return w.op("GatherElements", x, index, axis=dim % out.dim())


# Grids

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
    return w.name_of(w.clip(place, 0.0, float(size - 1)))


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
    aten.index.Tensor: _index,
    aten.gather.default: _gather,
    aten.embedding.default: _embedding,
    aten.grid_sampler.default: _grid_sample,
    aten.grid_sampler_2d.default: _grid_sample,
}
