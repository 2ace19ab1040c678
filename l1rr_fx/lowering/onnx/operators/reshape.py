"""The same elements under other axes: reshapes, permutations, pixel shuffles."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from l1rr_fx.lowering.onnx.operators.base import Form
from l1rr_fx.lowering.onnx.writer import Operand, Symbol, Writer

aten = torch.ops.aten


def _reshaped(w: Writer, out: Tensor, x: Symbol, *_: Any) -> Operand:
    """Whatever keeps the order of elements (view, flatten, squeeze ...) is one Reshape."""
    return w.reshape(x, [int(n) for n in out.shape])


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


# Pixels and channels


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


FORMS: Mapping[Any, Form] = {
    **dict.fromkeys(
        (
            aten.view.default, aten.reshape.default, aten._unsafe_view.default, aten.flatten.using_ints,
            aten.unflatten.int, aten.squeeze.dim, aten.squeeze.dims, aten.squeeze.default, aten.unsqueeze.default,
            aten.view_as.default, aten.reshape_as.default,
        ),
        _reshaped,
    ),
    aten.permute.default: _permute,
    aten.transpose.int: _transpose,
    aten.t.default: _transpose,
    aten.numpy_T.default: lambda w, out, x: _ordered(w, x, list(reversed(range(x.rank)))),
    aten.mT.default: lambda w, out, x: _transpose(w, out, x, -1, -2),
    aten.movedim.int: _movedim,
    aten.movedim.intlist: _movedim,
    aten.pixel_shuffle.default: _pixel_shuffle,
    aten.pixel_unshuffle.default: _pixel_unshuffle,
}  # fmt: skip
