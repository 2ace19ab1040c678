"""What reads a whole axis: reductions, softmax and orders."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from l1rr_fx.lowering.onnx.operators.base import Form, axes_of, is_integral
from l1rr_fx.lowering.onnx.writer import Operand, Symbol, Writer
from passes.errors import LoweringError

aten = torch.ops.aten

LARGEST = 1e38
"""More than any finite number that a network computes; FP16 has its own largest number."""

# Reductions


def _reduction(kind: str) -> Form:
    def form(w: Writer, out: Tensor, x: Symbol, dims: Any = None, keepdim: bool = False, *_: Any) -> Operand:
        return _reduced(w, out, kind, x, axes_of(dims, x.rank), keepdim)

    return form


def _reduced(w: Writer, out: Tensor, kind: str, x: Symbol, axes: Sequence[int], keepdim: bool) -> Operand:
    if out.dtype == torch.bool:
        return _of_booleans(w, kind, x, axes, keepdim)
    source = w.cast(x, out.dtype)
    if not axes:  # of a single number; no axes would mean all of them, which not every reader knows
        return w.op("Abs", source) if kind in ("ReduceL1", "ReduceL2") else source
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
        numbers = torch.empty(x.shape, dtype=torch.float32, device="meta") if x.like.dtype == torch.bool else x.like
        where = _place(w, f"Arg{kind}", Symbol(w.name_of(_numbers(w, x)), numbers), axis, keepdim)
        return _reduced(w, out[0], f"Reduce{kind}", x, [axis], keepdim), where

    return form


def _argument(kind: str) -> Form:
    def form(w: Writer, out: Tensor, x: Symbol, dim: int | None = None, keepdim: bool = False) -> Operand:
        if dim is None:
            size = math.prod(x.shape)
            flat = Symbol(w.name_of(w.reshape(x, (size,))), torch.empty(size, dtype=x.like.dtype, device="meta"))
            found = _place(w, kind, flat, 0, False)
            return w.reshape(found, out.shape) if out.dim() else found
        return _place(w, kind, x, dim % x.rank, keepdim)

    return form


def _place(w: Writer, kind: str, x: Symbol, axis: int, keepdim: bool) -> str:
    """Where the first largest or smallest element is: of integers where the first is that equals it."""
    source = _last_four(w, x, axis)
    if source is not x:
        shape = (*x.shape[:axis], *(1,) * keepdim, *x.shape[axis + 1 :])
        return w.name_of(w.reshape(_place(w, kind, source, axis, keepdim), shape))
    numbers: Operand = x
    if is_integral(x.like.dtype) and not w.target.reads("ArgMax, ArgMin of integers"):
        best = w.reduce(kind.replace("Arg", "Reduce"), x, [axis], keepdims=True)
        kind, numbers = "ArgMax", w.op("Cast", w.op("Equal", x, best), to="FLOAT")  # FP16 would do, too
    return w.op(kind, numbers, axis=axis, keepdims=int(keepdim))


def _truth(kind: str) -> Form:
    return lambda w, out, x, dims=None, keepdim=False: _of_booleans(w, kind, x, axes_of(dims, x.rank), keepdim)


def _of_booleans(w: Writer, kind: str, x: Symbol, axes: Sequence[int], keepdim: bool) -> str:
    """Whether any, or every, element is true: the largest, or smallest, of 0 and 1."""
    numbers = w.op("Cast", w.cast(x, torch.bool), to=w.float_type)
    return w.truth(w.reduce(kind, numbers, axes, keepdims=keepdim) if axes else numbers)


def _cumsum(w: Writer, out: Tensor, x: Symbol, dim: int, *_: Any) -> str:
    return w.op("CumSum", w.cast(x, out.dtype), w.constant(torch.tensor(dim % x.rank)))


# Softmax and orders


def _softmax(kind: str) -> Form:
    def form(w: Writer, out: Tensor, x: Symbol, dim: int, *_: Any) -> str:
        return w.op(kind, w.cast(x, out.dtype), axis=dim % x.rank)

    return form


def _log_softmax(w: Writer, out: Tensor, x: Symbol, dim: int, *_: Any) -> str:
    numbers, axis = w.cast(x, out.dtype), dim % max(x.rank, 1)
    if w.target.reads("ReduceLogSumExp, LogSoftmax"):
        return w.op("LogSoftmax", numbers, axis=axis)
    below = w.op("Sub", numbers, w.reduce("ReduceMax", numbers, [axis], keepdims=True))
    return w.op("Sub", below, w.op("Log", w.reduce("ReduceSum", w.op("Exp", below), [axis], keepdims=True)))


def _log_sum_exp(w: Writer, out: Tensor, x: Symbol, dims: Any, keepdim: bool = False) -> Operand:
    axes, numbers = axes_of(dims, x.rank), w.cast(x, out.dtype)
    if not axes or w.target.reads("ReduceLogSumExp, LogSoftmax"):
        return _reduced(w, out, "ReduceLogSumExp", x, axes, keepdim)
    largest = w.reduce("ReduceMax", numbers, axes, keepdims=True)
    # infinity less infinity is no number
    finite = w.op("Max", w.op("Min", largest, w.number(LARGEST, out.dtype)), w.number(-LARGEST, out.dtype))
    total = w.reduce("ReduceSum", w.op("Exp", w.op("Sub", numbers, finite)), axes, keepdims=True)
    return _shaped(w, w.op("Add", w.op("Log", total), finite), out, keepdim)


def _shaped(w: Writer, x: str, out: Tensor, keepdim: bool) -> Operand:
    return x if keepdim else w.reshape(x, [int(n) for n in out.shape])


def _topk(
    w: Writer, out: Any, x: Symbol, k: int, dim: int = -1, largest: bool = True, in_order: bool = True
) -> tuple[Operand, ...]:
    values, places = out
    if not x.rank:
        return x, torch.zeros((), dtype=places.dtype)
    most = w.target.most_sorted
    if most is not None and k > most:
        raise LoweringError(
            f"the first {k} of {x.shape[dim]} elements in order; expected at most {most} on {w.target.name}: take "
            "fewer with topk, or end the network before the order (outputs=...) and sort outside"
        )
    found, places = _ordered(w, x, k, dim % x.rank, largest, in_order)
    return (w.truth(found) if values.dtype == torch.bool else found), places


def _ordered(w: Writer, x: Symbol, k: int, axis: int, largest: bool, in_order: bool) -> tuple[str, str]:
    """The first `k` in order and their places; where only the largest are given, the smallest by their negatives."""
    source = _last_four(w, x, axis)
    if source is not x:
        found, places = _ordered(w, source, k, axis, largest, in_order)
        shape = (*x.shape[:axis], k, *x.shape[axis + 1 :])
        return w.name_of(w.reshape(found, shape)), w.name_of(w.reshape(places, shape))
    numbers, kind = _numbers(w, x), w.type_of(x.like.dtype)
    rounded = is_integral(x.like.dtype) and not w.target.reads("TopK of integers")  # beyond 2**24, see the docs
    if rounded:
        numbers = w.op("Cast", numbers, to="FLOAT")
    negated = not largest and not w.target.reads("TopK, largest=0")
    if negated:
        numbers = w.op("Neg", numbers)
    found, places = w.ops(
        "TopK", 2, numbers, w.integers([k]), axis=axis, largest=int(largest or negated), sorted=int(in_order)
    )
    if negated:
        found = w.op("Neg", found)
    return (w.op("Cast", found, to=kind) if rounded else found), places


def _last_four(w: Writer, x: Symbol, axis: int) -> Symbol:
    """`x` with the axes behind `axis` as one, where a reader orders along the last four alone."""
    if x.rank - axis <= 4 or w.target.reads("TopK, ArgMax, ArgMin along an axis before the last four"):
        return x
    shape = (*x.shape[: axis + 1], math.prod(x.shape[axis + 1 :]))
    return Symbol(w.name_of(w.reshape(x, shape)), torch.empty(shape, dtype=x.like.dtype, device="meta"))


def _numbers(w: Writer, x: Symbol) -> Operand:
    """What can be ordered: truth values as numbers."""
    return w.op("Cast", x, to=w.float_type) if x.like.dtype == torch.bool else x


def _kth(w: Writer, out: Any, x: Symbol, k: int, dim: int = -1, keepdim: bool = False) -> tuple[Operand, ...]:
    """The k-th smallest element and its place: the last of the k smallest."""
    if not x.rank:
        return x, torch.zeros((), dtype=out[1].dtype)
    axis, shape = dim % x.rank, [int(n) for n in out[0].shape]
    both = _topk(w, out, x, k, dim, largest=False)
    last = [w.slice(each, axis, k - 1, k) if x.shape[axis] > 1 else w.name_of(each) for each in both]
    return tuple(each if keepdim else w.reshape(each, shape) for each in last)


def _median(w: Writer, out: Any, x: Symbol, dim: int = -1, keepdim: bool = False) -> tuple[Operand, ...]:
    """The median; of an even number of elements the smaller of the two in the middle."""
    return _kth(w, out, x, ((x.shape[dim] if x.rank else 1) + 1) // 2, dim, keepdim)


def _sort(w: Writer, out: Any, x: Symbol, dim: int = -1, descending: bool = False) -> tuple[Operand, ...]:
    return _topk(w, out, x, x.shape[dim] if x.rank else 1, dim, descending)


def _argsort(w: Writer, out: Tensor, x: Symbol, dim: int = -1, descending: bool = False) -> Operand:
    return _sort(w, (x.like, out), x, dim, descending)[1]


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
    aten.logsumexp.default: _log_sum_exp,
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
    aten.log_softmax.int: _log_softmax,
    aten._log_softmax.default: _log_softmax,
    aten.topk.default: _topk,
    aten.kthvalue.default: _kth,
    aten.median.dim: _median,
    aten.sort.default: _sort,
    aten.sort.stable: lambda w, out, x, stable, dim=-1, descending=False: _sort(w, out, x, dim, descending),
    aten.argsort.default: _argsort,
    aten.argsort.stable: lambda w, out, x, stable, dim=-1, descending=False: _argsort(w, out, x, dim, descending),
}
