"""Shapes and orders of axes, repetition, pixels that become channels, and constants in the shape of a value."""

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


# The same elements


def _reshaped(w: Writer, out: Tensor, x: Symbol, *_: Any) -> Operand:
    """Whatever keeps the order of elements (view, flatten, squeeze ...) is one Reshape."""
    return w.reshape(x, [int(n) for n in out.shape])


def _same(w: Writer, out: Tensor, x: Symbol, *_: Any) -> Operand:
    """A copy, or another dtype."""
    return w.cast(x, out.dtype)


def _ordered(w: Writer, x: Symbol, order: Sequence[int]) -> Operand:
    """Axes in another order; where only axes of length 1 move this is a Reshape."""
    long = [a for a in order if x.shape[a] != 1]
    if long == sorted(long):
        return w.reshape(x, [x.shape[a] for a in order])
    return w.op("Transpose", x, perm=list(order))


def _permute(w: Writer, out: Tensor, x: Symbol, dims: Sequence[int]) -> Operand:
    return _ordered(w, x, [d % x.rank for d in dims])


def _transpose(w: Writer, out: Tensor, x: Symbol, first: int = 0, second: int = 1) -> Operand:
    order = list(range(x.rank))
    if x.rank > 1:
        order[first], order[second] = order[second], order[first]
    return _ordered(w, x, order)


def _movedim(w: Writer, out: Tensor, x: Symbol, source: Any, target: Any) -> Operand:
    probe = torch.empty([1 << a for a in range(x.rank)], device="meta").movedim(source, target)  # its sizes name axes
    return _ordered(w, x, [int(n).bit_length() - 1 for n in probe.shape])


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


# Pixels, channels, windows


def _pixel_shuffle(w: Writer, out: Tensor, x: Symbol, factor: int) -> Operand:
    found = w.op("DepthToSpace", w.reshape(x, _batch(x)), blocksize=factor, mode="CRD")
    return found if x.rank == 4 else w.reshape(found, out.shape)


def _batch(x: Symbol) -> tuple[int, int, int, int]:
    """The shape of images, or of one, or of batches of them, as that of one batch."""
    channels, height, width = x.shape[-3:]
    return math.prod(x.shape[:-3]), channels, height, width


def _pixel_unshuffle(w: Writer, out: Tensor, x: Symbol, factor: int) -> Operand:
    n, c, h, v = _batch(x)
    tiles = w.reshape(x, (n, c, h // factor, factor, v // factor, factor))
    return w.reshape(w.op("Transpose", tiles, perm=[0, 1, 3, 5, 2, 4]), out.shape)


def _channel_shuffle(w: Writer, out: Tensor, x: Symbol, groups: int) -> Operand:
    n, c, *rest = x.shape
    tiles = w.reshape(x, (n, groups, c // groups, math.prod(rest)))
    return w.reshape(w.op("Transpose", tiles, perm=[0, 2, 1, 3]), out.shape)


# Constants that only take their shape or dtype from a value


def _copied(w: Writer, out: Tensor, x: Any, source: Any, *_: Any) -> Operand:
    """What overwrites `x` whole."""
    return expanded(
        w, out, source if isinstance(source, Tensor) else Symbol(w.name_of(w.cast(source, out.dtype)), source.like)
    )


def _filled(value: float) -> Form:
    """A constant of the result's shape."""
    return lambda w, out, *_: torch.full(out.shape, value, dtype=out.dtype)


def _new_full(w: Writer, out: Tensor, x: Any, size: Any, fill: Any, *_: Any) -> Tensor:
    return torch.full(out.shape, fill, dtype=out.dtype)


def _full_like(w: Writer, out: Tensor, x: Any, fill: Any, *_: Any) -> Tensor:
    return torch.full(out.shape, fill, dtype=out.dtype)


FORMS: Mapping[Any, Form] = {
    **dict.fromkeys(
        (
            aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints,
            aten.unflatten.int, aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default, aten.unsqueeze.default,
            aten.view_as.default, aten.reshape_as.default,
        ),
        _reshaped,
    ),
    **dict.fromkeys(
        (
            aten.contiguous.default, aten.clone.default, aten.alias.default, aten.detach.default,
            aten.lift_fresh_copy.default, aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.to.other,
            aten._to_copy.default, aten.type_as.default, aten.dropout.default, aten.feature_dropout.default,
            aten.alpha_dropout.default, aten.feature_alpha_dropout.default,
        ),
        _same,
    ),
    aten.permute.default: _permute,
    aten.transpose.int: _transpose,
    aten.t.default: _transpose,
    aten.numpy_T.default: lambda w, out, x: _ordered(w, x, list(reversed(range(x.rank)))),
    aten.mT.default: lambda w, out, x: _transpose(w, out, x, -1, -2),
    aten.movedim.int: _movedim,
    aten.movedim.intlist: _movedim,
    aten.expand.default: expanded,
    aten.expand_as.default: expanded,
    aten.broadcast_to.default: expanded,
    aten.repeat.default: _repeat,
    aten.tile.default: _repeat,
    aten.repeat_interleave.self_int: _repeat_interleave,
    aten.pixel_shuffle.default: _pixel_shuffle,
    aten.pixel_unshuffle.default: _pixel_unshuffle,
    aten.channel_shuffle.default: _channel_shuffle,
    aten.zeros_like.default: _filled(0),
    aten.ones_like.default: _filled(1),
    aten.new_zeros.default: _filled(0),
    aten.new_ones.default: _filled(1),
    aten.new_full.default: _new_full,
    aten.full_like.default: _full_like,
    aten.fill.Scalar: _full_like,
    aten.fill.Tensor: _copied,
    aten.copy.default: _copied,
}  # fmt: skip
