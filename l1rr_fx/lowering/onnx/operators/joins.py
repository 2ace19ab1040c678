"""Pieces side by side: concatenation, split, and writes into a part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from l1rr_fx.lowering.onnx.operators.base import Form
from l1rr_fx.lowering.onnx.writer import Operand, Symbol, Writer
from passes.errors import LoweringError

aten = torch.ops.aten

# Splits


def _parts(axis_at: int) -> Form:
    """The form of a call that cuts along an axis, its argument number `axis_at`; the results have the sizes."""

    def form(w: Writer, out: Sequence[Tensor], x: Symbol, *rest: Any) -> Sequence[Operand]:
        axis = int(rest[axis_at]) % x.rank if len(rest) > axis_at else 0
        sizes = [int(each.shape[axis]) for each in out]
        return w.split(x, sizes, axis) if len(sizes) > 1 else [x]

    return form


def _unbind(w: Writer, out: Sequence[Tensor], x: Symbol, dim: int = 0) -> list[Operand]:
    axis = dim % x.rank
    if x.shape[axis] == 1:
        return [w.reshape(x, out[0].shape)]
    return [w.reshape(part, out[0].shape) for part in w.split(x, [1] * x.shape[axis], axis)]


# Joins


def _cat(w: Writer, out: Tensor, parts: Sequence[Any], dim: int = 0) -> Operand:
    # Without the empty ones: torch ignores vectors without elements among tensors of any rank, readers know neither.
    solid = [w.cast(p, out.dtype) for p in parts if 0 not in p.shape]
    if not solid:
        return torch.empty(out.shape, dtype=out.dtype)
    return solid[0] if len(solid) == 1 else w.op("Concat", *solid, axis=dim % out.dim())


def _stack(w: Writer, out: Tensor, parts: Sequence[Any], dim: int = 0) -> Operand:
    axis = dim % out.dim()
    shape = [1 if a == axis else int(n) for a, n in enumerate(out.shape)]
    return w.op("Concat", *(w.reshape(w.cast(p, out.dtype), shape) for p in parts), axis=axis)


# Writes into a part


def _slice_scatter(
    w: Writer,
    out: Tensor,
    x: Any,
    part: Any,
    dim: int = 0,
    start: int | None = None,
    end: int | None = None,
    step: int = 1,
) -> Operand:
    axis = dim % out.dim()
    length = int(out.shape[axis])
    first, last, step = slice(start, end, step).indices(length)
    if step != 1:
        return _every_nth(w, out, x, part, axis, range(first, last, step))
    pieces = [w.cast(part, out.dtype)]
    if first > 0:
        pieces.insert(0, w.slice(x, axis, 0, first))
    if last < length:
        pieces.append(w.slice(x, axis, last, length))
    return pieces[0] if len(pieces) == 1 else w.op("Concat", *pieces, axis=axis)


def _every_nth(w: Writer, out: Tensor, x: Any, part: Any, axis: int, places: range) -> Operand:
    """A write into every n-th element: as rows of n, of which one column is replaced."""
    shape, step = [int(n) for n in out.shape], places.step
    if shape[axis] % step or places.start >= step or len(places) != shape[axis] // step:
        raise LoweringError(f"a write into elements {places} of {shape[axis]} has no form here")
    before, after = shape[:axis], shape[axis + 1 :]
    rows, column = [*before, len(places), step, *after], [*before, len(places), 1, *after]
    tiles = w.reshape(x, rows)
    pieces = [w.reshape(w.cast(part, out.dtype), column)]
    if places.start > 0:
        pieces.insert(0, w.slice(tiles, axis + 1, 0, places.start))
    if places.start + 1 < step:
        pieces.append(w.slice(tiles, axis + 1, places.start + 1, step))
    return w.reshape(w.op("Concat", *pieces, axis=axis + 1), shape)


def _select_scatter(w: Writer, out: Tensor, x: Any, part: Any, dim: int, index: int) -> Operand:
    axis = dim % out.dim()
    index %= int(out.shape[axis])
    shape = [1 if a == axis else int(n) for a, n in enumerate(out.shape)]
    return _slice_scatter(w, out, x, w.reshape(part, shape), axis, index, index + 1)


FORMS: Mapping[Any, Form] = {
    aten.split_with_sizes.default: _parts(1),
    aten.split.Tensor: _parts(1),
    aten.split.sizes: _parts(1),
    aten.chunk.default: _parts(1),
    aten.tensor_split.sections: _parts(1),
    aten.tensor_split.indices: _parts(1),
    aten.unbind.int: _unbind,
    aten.cat.default: _cat,
    aten.concat.default: _cat,
    aten.stack.default: _stack,
    aten.slice_scatter.default: _slice_scatter,
    aten.select_scatter.default: _select_scatter,
}
