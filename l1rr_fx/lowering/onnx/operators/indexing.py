"""Elements picked by index, or by where they stand."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from l1rr_fx.lowering.onnx.operators.parts import sliced
from l1rr_fx.lowering.onnx.operators.pointwise import Form, dtype_of, where
from l1rr_fx.lowering.onnx.writer import Operand, Symbol, Writer
from passes.errors import LoweringError

aten = torch.ops.aten


def _index_select(w: Writer, out: Tensor, x: Any, dim: int, index: Any) -> Operand:
    rank = x.rank if isinstance(x, Symbol) else x.dim()
    axis = dim % max(rank, 1)
    run = consecutive(index) if isinstance(index, Tensor) else None
    if run is not None and isinstance(x, Symbol):
        return sliced(w, out, x, axis, run[0], run[1])
    return _gathered(w, out, x, index, axis)


def _gathered(w: Writer, out: Tensor, x: Operand, index: Operand, axis: int) -> str:
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


def _index(w: Writer, out: Tensor, x: Symbol, indices: Sequence[Any]) -> Operand:
    """Advanced indexing: the axes become one, and one Gather takes from it."""
    axes = [a for a, index in enumerate(indices) if index is not None]
    given = [indices[a] for a in axes]
    if len(axes) == 1 and getattr(given[0], "dtype", None) != torch.bool:
        return _index_select(w, out, x, axes[0], given[0])
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
    return _gathered(w, out, merged, flat, at)


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
    return _gathered(w, out, weight, index, 0)


def _gather(w: Writer, out: Tensor, x: Any, dim: int, index: Any, *_: Any) -> str:
    return w.op("GatherElements", x, index, axis=dim % out.dim())


def _triangle(*, lower: bool) -> Form:
    def form(w: Writer, out: Tensor, x: Symbol, diagonal: int = 0) -> str:
        ones = torch.ones(x.shape[-2:], dtype=torch.bool)
        mask = ones.tril(diagonal) if lower else ones.triu(diagonal)
        return where(w, out, mask, x, False if out.dtype == torch.bool else 0)

    return form


def _windows(w: Writer, out: Tensor, x: Symbol, dim: int, size: int, step: int) -> Operand:
    """Windows along an axis, each a new last axis."""
    axis = dim % x.rank
    starts = torch.arange(0, x.shape[axis] - size + 1, step)
    found = _gathered(w, out, x, starts.unsqueeze(1) + torch.arange(size), axis)
    order = [a for a in range(x.rank + 1) if a != axis + 1] + [axis + 1]
    return found if axis == x.rank - 1 else w.op("Transpose", found, perm=order)


FORMS: Mapping[Any, Form] = {
    aten.unfold.default: _windows,
    aten.index_select.default: _index_select,
    aten.index.Tensor: _index,
    aten.gather.default: _gather,
    aten.embedding.default: _embedding,
    aten.tril.default: _triangle(lower=True),
    aten.triu.default: _triangle(lower=False),
}
