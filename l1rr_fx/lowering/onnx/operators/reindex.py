"""Movements along an axis: slices, flips, rolls, selections, repetition, expansion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from l1rr_fx.lowering.onnx.operators.base import Form
from l1rr_fx.lowering.onnx.writer import Operand, Symbol, Writer
from passes.errors import LoweringError

aten = torch.ops.aten

LONGEST = 2**31 - 1
"""An end that is beyond every axis; TensorRT keeps indices in 32 bits."""


# Parts


def sliced(
    w: Writer, out: Tensor, x: Symbol, dim: int = 0, start: int | None = None, end: int | None = None, step: int = 1
) -> Operand:
    axis = dim % x.rank
    length = x.shape[axis]
    first, last, step = slice(start, end, step).indices(length)
    return x if (first, step) == (0, 1) and last >= length else w.slice(x, axis, first, max(last, first), step)


def _narrow(w: Writer, out: Tensor, x: Symbol, dim: int, start: int, length: int) -> Operand:
    return sliced(w, out, x, dim, start, start + length)


def _select(w: Writer, out: Tensor, x: Symbol, dim: int, index: int) -> Operand:
    axis = dim % x.rank
    part = sliced(w, out, x, axis, index % x.shape[axis], index % x.shape[axis] + 1)
    return w.reshape(part, [int(n) for n in out.shape])


def index_select(w: Writer, out: Tensor, x: Any, dim: int, index: Any) -> Operand:
    rank = x.rank if isinstance(x, Symbol) else x.dim()
    axis = dim % max(rank, 1)
    run = consecutive(index) if isinstance(index, Tensor) else None
    if run is not None and isinstance(x, Symbol):
        return sliced(w, out, x, axis, run[0], run[1])
    return gathered(w, out, x, index, axis)


def gathered(w: Writer, out: Tensor, x: Operand, index: Operand, axis: int) -> str:
    """A Gather; truth values go as INT32, for not every reader gathers them."""
    if out.dtype != torch.bool:
        return w.op("Gather", x, index, axis=axis)
    return w.op("Cast", w.op("Gather", w.op("Cast", x, to="INT32"), index, axis=axis), to="BOOL")


def consecutive(index: Tensor) -> tuple[int, int] | None:
    """The bounds of an index vector whose entries follow each other; None for any other."""
    if index.dim() != 1 or not index.numel() or int(index[0]) < 0:
        return None
    first = int(index[0])
    return (first, first + len(index)) if torch.equal(index.cpu(), torch.arange(first, first + len(index))) else None


# Orders


def _flip(w: Writer, out: Tensor, x: Symbol, dims: Sequence[int]) -> Operand:
    axes = [d % x.rank for d in dims]
    if not axes:
        return x
    starts, ends, steps = ([n] * len(axes) for n in (-1, -LONGEST, -1))
    return w.op("Slice", x, *map(w.integers, (starts, ends, axes, steps)))


def _roll(w: Writer, out: Tensor, x: Symbol, shifts: Any, dims: Any = ()) -> Operand:
    if not dims:
        flat = _roll_axis(w, w.reshape(x, (math.prod(x.shape),)), math.prod(x.shape), 0, shifts[0])
        return w.reshape(flat, x.shape)
    found: Operand = x
    for shift, dim in zip(shifts, dims, strict=True):
        found = _roll_axis(w, found, x.shape[dim], dim % x.rank, shift)
    return found


def _roll_axis(w: Writer, x: Operand, length: int, axis: int, shift: int) -> Operand:
    cut = -shift % length
    if cut == 0:
        return x
    return w.op("Concat", w.slice(x, axis, cut, length), w.slice(x, axis, 0, cut), axis=axis)


def _channel_shuffle(w: Writer, out: Tensor, x: Symbol, groups: int) -> Operand:
    n, c, *rest = x.shape
    tiles = w.reshape(x, (n, groups, c // groups, math.prod(rest)))
    return w.reshape(w.op("Transpose", tiles, perm=[0, 2, 1, 3]), out.shape)


# Repetition


def expanded(w: Writer, out: Tensor, x: Any, *_: Any) -> Operand:
    shape = [int(n) for n in out.shape]
    return x if x.shape == tuple(shape) else w.op("Expand", x, w.integers(shape))


def _repeat(w: Writer, out: Tensor, x: Symbol, times: Sequence[int]) -> Operand:
    thick = (1,) * (len(times) - x.rank) + x.shape
    return w.op("Tile", w.reshape(x, thick), w.integers([1] * (len(thick) - len(times)) + list(times)))


def _repeat_interleave(w: Writer, out: Tensor, x: Symbol, times: Any, dim: int | None = None, *_: Any) -> Operand:
    if not isinstance(times, int) or dim is None:
        raise LoweringError("repeat_interleave without an axis, or by a tensor, has no form here")
    axis = dim % x.rank
    thick = w.reshape(x, (*x.shape[: axis + 1], 1, *x.shape[axis + 1 :]))
    wide = w.op("Expand", thick, w.integers((*x.shape[: axis + 1], times, *x.shape[axis + 1 :])))
    return w.reshape(wide, out.shape)


FORMS: Mapping[Any, Form] = {
    aten.slice.Tensor: sliced,
    aten.narrow.default: _narrow,
    aten.select.int: _select,
    aten.index_select.default: index_select,
    aten.flip.default: _flip,
    aten.roll.default: _roll,
    aten.channel_shuffle.default: _channel_shuffle,
    aten.expand.default: expanded,
    aten.expand_as.default: expanded,
    aten.broadcast_to.default: expanded,
    aten.repeat.default: _repeat,
    aten.tile.default: _repeat,
    aten.repeat_interleave.self_int: _repeat_interleave,
}
