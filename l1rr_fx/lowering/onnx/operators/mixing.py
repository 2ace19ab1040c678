"""What reads a whole axis: reductions, softmax and orders."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from l1rr_fx.lowering.onnx.operators.base import Form, axes_of
from l1rr_fx.lowering.onnx.writer import Operand, Symbol, Writer
from passes.errors import LoweringError

aten = torch.ops.aten

# Reductions


def _reduction(kind: str) -> Form:
    def form(w: Writer, out: Tensor, x: Symbol, dims: Any = None, keepdim: bool = False, *_: Any) -> Operand:
        return _reduced(w, out, kind, x, axes_of(dims, x.rank), keepdim)

    return form


def _reduced(w: Writer, out: Tensor, kind: str, x: Symbol, axes: Sequence[int], keepdim: bool) -> Operand:
    if out.dtype == torch.bool:
        return _of_booleans(w, kind, x, axes, keepdim)
    source = w.cast(x, out.dtype)
    whole_image = x.rank >= 4 and list(axes) == list(range(2, x.rank))
    if kind == "ReduceMean" and whole_image:  # what pooling is called everywhere
        pooled = w.op("GlobalAveragePool", source)
        return pooled if keepdim else w.reshape(pooled, x.shape[:2])
    return w.reduce(kind, source, axes, keepdims=keepdim)


def _all(kind: str) -> Form:
    """The form of a reduction over everything."""

    def form(w: Writer, out: Tensor, x: Symbol, *_: Any) -> Operand:
        return _reduced(w, out, kind, x, range(x.rank), False)

    return form


NORMS = {1: "ReduceL1", 2: "ReduceL2", math.inf: "ReduceMax", -math.inf: "ReduceMin"}


def _vector_norm(
    w: Writer, out: Tensor, x: Symbol, order: Any = 2, dims: Any = None, keepdim: bool = False, *_: Any
) -> Operand:
    kind = NORMS.get(2 if order is None else order)
    if kind is None:
        raise LoweringError(f"a norm of order {order} has no form here; {', '.join(map(str, NORMS))} have")
    if math.isinf(order or 2):
        x = Symbol(w.op("Abs", x), x.like)
    return _reduced(w, out, kind, x, axes_of(dims, x.rank), keepdim)


def _variance(
    w: Writer, out: Tensor, x: Symbol, dims: Any = None, correction: float | None = None, keepdim: bool = False
) -> Operand:
    axes = axes_of(dims, x.rank)
    count = math.prod(x.shape[a] for a in axes)
    centred = w.op("Sub", x, w.reduce("ReduceMean", x, axes, keepdims=True))
    total = w.reduce("ReduceSum", w.op("Mul", centred, centred), axes, keepdims=keepdim)
    freedom = max(count - (1 if correction is None else correction), 0)
    return w.op("Div", total, w.number(freedom, out.dtype))


def _with_mean(form: Form) -> Form:
    """The variance or deviation and, as a second result, the mean."""

    def both(w: Writer, out: Any, x: Symbol, dims: Any = None, *rest: Any) -> tuple[Operand, Operand]:
        keepdim = bool(rest[1]) if len(rest) > 1 else False
        mean = w.reduce("ReduceMean", x, axes_of(dims, x.rank), keepdims=keepdim)
        return form(w, out[0], x, dims, *rest), mean

    return both


def _variance_unbiased(
    w: Writer, out: Tensor, x: Symbol, dims: Any = None, unbiased: bool = True, keepdim: bool = False
) -> Operand:
    return _variance(w, out, x, dims, float(unbiased), keepdim)


def _deviation(w: Writer, out: Tensor, *rest: Any) -> Operand:
    return w.op("Sqrt", _variance(w, out, *rest))


def _extreme(kind: str) -> Form:
    """The largest or smallest along one axis, and where it is."""

    def form(w: Writer, out: Any, x: Symbol, dim: int, keepdim: bool = False) -> tuple[Operand, Operand]:
        axis = dim % x.rank
        where = w.op(f"Arg{kind}", _numbers(w, x), axis=axis, keepdims=int(keepdim))
        return _reduced(w, out[0], f"Reduce{kind}", x, [axis], keepdim), where

    return form


def _argument(kind: str) -> Form:
    def form(w: Writer, out: Tensor, x: Symbol, dim: int | None = None, keepdim: bool = False) -> Operand:
        if dim is None:
            flat = w.reshape(x, (math.prod(x.shape),))
            return w.reshape(w.op(kind, flat, axis=0, keepdims=0), out.shape)
        return w.op(kind, x, axis=dim % x.rank, keepdims=int(keepdim))

    return form


def _truth(kind: str) -> Form:
    return lambda w, out, x, dims=None, keepdim=False: _of_booleans(w, kind, x, axes_of(dims, x.rank), keepdim)


def _of_booleans(w: Writer, kind: str, x: Symbol, axes: Sequence[int], keepdim: bool) -> str:
    """Whether any, or every, element is true: the largest, or smallest, of 0 and 1."""
    numbers = w.op("Cast", w.cast(x, torch.bool), to=w.float_type)
    return w.op("Cast", w.reduce(kind, numbers, axes, keepdims=keepdim), to="BOOL")


def _cumsum(w: Writer, out: Tensor, x: Symbol, dim: int, *_: Any) -> str:
    return w.op("CumSum", w.cast(x, out.dtype), w.constant(torch.tensor(dim % x.rank)))


# Softmax and orders


def _softmax(kind: str) -> Form:
    def form(w: Writer, out: Tensor, x: Symbol, dim: int, *_: Any) -> str:
        return w.op(kind, w.cast(x, out.dtype), axis=dim % x.rank)

    return form


def _topk(
    w: Writer, out: Any, x: Symbol, k: int, dim: int = -1, largest: bool = True, in_order: bool = True
) -> tuple[str, ...]:
    found, places = w.ops(
        "TopK", 2, _numbers(w, x), w.integers([k]), axis=dim % x.rank, largest=int(largest), sorted=int(in_order)
    )
    return (w.op("Cast", found, to="BOOL") if x.like.dtype == torch.bool else found), places


def _numbers(w: Writer, x: Symbol) -> Operand:
    """What can be ordered: truth values as numbers."""
    return w.op("Cast", x, to=w.float_type) if x.like.dtype == torch.bool else x


def _sort(w: Writer, out: Any, x: Symbol, dim: int = -1, descending: bool = False) -> tuple[str, ...]:
    return _topk(w, out, x, x.shape[dim], dim, descending)


def _argsort(w: Writer, out: Tensor, x: Symbol, dim: int = -1, descending: bool = False) -> str:
    return _sort(w, out, x, dim, descending)[1]


FORMS: Mapping[Any, Form] = {
    aten.mean.dim: _reduction("ReduceMean"),
    aten.mean.default: _all("ReduceMean"),
    aten.sum.dim_IntList: _reduction("ReduceSum"),
    aten.sum.default: _all("ReduceSum"),
    aten.amax.default: _reduction("ReduceMax"),
    aten.amin.default: _reduction("ReduceMin"),
    aten.max.default: _all("ReduceMax"),
    aten.min.default: _all("ReduceMin"),
    aten.prod.dim_int: _reduction("ReduceProd"),
    aten.prod.default: _all("ReduceProd"),
    aten.logsumexp.default: _reduction("ReduceLogSumExp"),
    aten.linalg_vector_norm.default: _vector_norm,
    aten.norm.ScalarOpt_dim: _vector_norm,
    aten.var.correction: _variance,
    aten.var.dim: _variance_unbiased,
    aten.std.correction: _deviation,
    aten.var_mean.correction: _with_mean(_variance),
    aten.std_mean.correction: _with_mean(_deviation),
    aten.max.dim: _extreme("Max"),
    aten.min.dim: _extreme("Min"),
    aten.argmax.default: _argument("ArgMax"),
    aten.argmin.default: _argument("ArgMin"),
    **dict.fromkeys((aten.any.default, aten.any.dim, aten.any.dims), _truth("ReduceMax")),
    **dict.fromkeys((aten.all.default, aten.all.dim, aten.all.dims), _truth("ReduceMin")),
    aten.cumsum.default: _cumsum,
    aten.softmax.int: _softmax("Softmax"),
    aten._softmax.default: _softmax("Softmax"),
    aten.log_softmax.int: _softmax("LogSoftmax"),
    aten.topk.default: _topk,
    aten.sort.default: _sort,
    aten.sort.stable: lambda w, out, x, stable, dim=-1, descending=False: _sort(w, out, x, dim, descending),
    aten.argsort.default: _argsort,
    aten.argsort.stable: lambda w, out, x, stable, dim=-1, descending=False: _argsort(w, out, x, dim, descending),
}
