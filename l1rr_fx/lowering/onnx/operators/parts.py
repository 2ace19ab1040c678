"""Parts of a tensor, parts put together, and padding."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from l1rr_fx.lowering.onnx.operators.pointwise import Form
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


def _parts(axis_at: int) -> Form:
    """The form of a call that cuts along the axis that is its argument number `axis_at`: the results say where."""

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


def _flip(w: Writer, out: Tensor, x: Symbol, dims: Sequence[int]) -> Operand:
    axes = [d % x.rank for d in dims]
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


# Joins


def _cat(w: Writer, out: Tensor, parts: Sequence[Any], dim: int = 0) -> Operand:
    solid = [w.cast(p, out.dtype) for p in parts if tuple(p.shape) != (0,)]  # torch ignores those, whatever their rank
    return solid[0] if len(solid) == 1 else w.op("Concat", *solid, axis=dim % out.dim())


def _stack(w: Writer, out: Tensor, parts: Sequence[Any], dim: int = 0) -> Operand:
    axis = dim % out.dim()
    shape = [1 if a == axis else int(n) for a, n in enumerate(out.shape)]
    return w.op("Concat", *(w.reshape(w.cast(p, out.dtype), shape) for p in parts), axis=axis)


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


# Padding

PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}


def _pad(w: Writer, out: Tensor, x: Symbol, pad: Sequence[int], mode: str = "constant", value: Any = None) -> Operand:
    """torch counts axes from the last, ONNX from the first."""
    if mode == "circular":
        return _circular(w, x, pad)
    width = len(pad) // 2
    before = [0] * (x.rank - width) + [int(pad[2 * i]) for i in reversed(range(width))]
    after = [0] * (x.rank - width) + [int(pad[2 * i + 1]) for i in reversed(range(width))]
    if not any(before + after):
        return x
    if mode != "constant":
        return w.op("Pad", x, w.integers(before + after), mode=PAD_MODES[mode])
    fill = w.number(value or 0, out.dtype)
    if min(before + after) < 0:  # cropping: not every reader of Pad knows it
        x = _cropped(w, x, before, after)
        before, after = ([max(n, 0) for n in side] for side in (before, after))
        if not any(before + after):
            return x
    return w.op("Pad", x, w.integers(before + after), fill, mode="constant")


def _cropped(w: Writer, x: Symbol, before: Sequence[int], after: Sequence[int]) -> Any:
    found: Operand = x
    for axis, (left, right) in enumerate(zip(before, after, strict=True)):
        if left < 0 or right < 0:
            found = w.slice(found, axis, max(-left, 0), x.shape[axis] + min(right, 0))
    return found


def _circular(w: Writer, x: Symbol, pad: Sequence[int]) -> Operand:
    if min(pad) < 0:
        raise LoweringError("circular padding by a negative number has no form here: cut the edge off with a slice")
    found: Operand = x
    for i in range(len(pad) // 2):
        axis, left, right = x.rank - 1 - i, int(pad[2 * i]), int(pad[2 * i + 1])
        length = x.shape[axis]
        parts = [w.slice(found, axis, length - left, length)] if left else []
        parts += [w.name_of(found)]
        parts += [w.slice(found, axis, 0, right)] if right else []
        found = w.op("Concat", *parts, axis=axis) if len(parts) > 1 else found
    return found


def _padded(mode: str) -> Form:
    return lambda w, out, x, pad: _pad(w, out, x, pad, mode)


FORMS: Mapping[Any, Form] = {
    aten.slice.Tensor: sliced,
    aten.narrow.default: _narrow,
    aten.select.int: _select,
    aten.split_with_sizes.default: _parts(1),
    aten.split.Tensor: _parts(1),
    aten.split.sizes: _parts(1),
    aten.chunk.default: _parts(1),
    aten.tensor_split.sections: _parts(1),
    aten.tensor_split.indices: _parts(1),
    aten.unbind.int: _unbind,
    aten.flip.default: _flip,
    aten.roll.default: _roll,
    aten.cat.default: _cat,
    aten.concat.default: _cat,
    aten.stack.default: _stack,
    aten.slice_scatter.default: _slice_scatter,
    aten.select_scatter.default: _select_scatter,
    aten.pad.default: _pad,
    aten.constant_pad_nd.default: lambda w, out, x, pad, value=0: _pad(w, out, x, pad, "constant", value),
    **{getattr(aten, f"reflection_pad{n}d").default: _padded("reflect") for n in (1, 2, 3)},
    **{getattr(aten, f"replication_pad{n}d").default: _padded("replicate") for n in (1, 2, 3)},
}
