"""Truth values: comparisons, what combines them, and choices by them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from l1rr_fx.lowering.onnx.operators.base import Form
from l1rr_fx.lowering.onnx.writer import Symbol, Writer
from passes.errors import LoweringError

aten = torch.ops.aten


def comparison(kind: str, *, negated: bool = False) -> Form:
    """The form of a comparison: both sides in the dtype that torch compares them in."""

    def form(w: Writer, out: Tensor, a: Any, b: Any) -> str:
        common = torch.result_type(*(each.like if isinstance(each, Symbol) else each for each in (a, b)))
        if common == torch.bool and not (kind == "Equal" and w.target.reads("Equal of BOOL")):
            common = torch.int32
        found = w.op(kind, w.cast(a, common), w.cast(b, common))
        return w.op("Not", found) if negated else found

    return form


def _of_numbers(form: Form, *, else_: bool) -> Form:
    """A form that asks whether numbers are finite; integers and truth values all are."""

    def asked(w: Writer, out: Tensor, x: Any) -> Any:
        if not x.like.dtype.is_floating_point:
            return torch.full(tuple(out.shape), else_)
        return form(w, out, x)

    return asked


def _isinf(w: Writer, out: Tensor, x: Any) -> str:
    return w.op("Equal", w.op("Abs", x), w.number(math.inf))


def _isfinite(w: Writer, out: Tensor, x: Any) -> str:
    return w.op("Less", w.op("Abs", x), w.number(math.inf))


# Combinations


def truth(w: Writer, kind: str, a: Any, b: Any) -> str:
    """And, Or or Xor of two values as booleans."""
    left, right = w.cast(a, torch.bool), w.cast(b, torch.bool)
    if kind == "Xor" and not w.target.reads("Equal of BOOL"):  # TensorRT 8.2 has neither Xor nor Equal of truth values
        return w.op("And", w.op("Or", left, right), w.op("Not", w.op("And", left, right)))
    return w.op(kind, left, right)


def _logical(kind: str) -> Form:
    return lambda w, out, a, b: truth(w, kind, a, b)


def _logical_not(w: Writer, out: Tensor, x: Any) -> str:
    return w.op("Not", w.cast(x, torch.bool))


def _bitwise(kind: str) -> Form:
    """Of booleans what is logical; of integers by bits, which older readers cannot."""

    def form(w: Writer, out: Tensor, a: Any, b: Any) -> str:
        if out.dtype == torch.bool:
            return truth(w, kind, a, b)
        if not w.target.has(f"Bitwise{kind}"):
            raise LoweringError(f"integers bit by bit ({kind.lower()}) have no form on {w.target.name}")
        return w.op(f"Bitwise{kind}", w.cast(a, out.dtype), w.cast(b, out.dtype))

    return form


def _bitwise_not(w: Writer, out: Tensor, x: Any) -> str:
    if out.dtype == torch.bool:
        return _logical_not(w, out, x)
    return w.op("Sub", w.number(-1, out.dtype), x)


# Choices


def where(w: Writer, out: Tensor, condition: Any, a: Any, b: Any) -> str:
    if out.dtype == torch.bool:  # not every reader chooses between truth values
        first = truth(w, "And", condition, a)
        return w.op("Or", first, truth(w, "And", _logical_not(w, out, condition), b))
    return w.op("Where", w.cast(condition, torch.bool), w.cast(a, out.dtype), w.cast(b, out.dtype))


def _masked_fill(w: Writer, out: Tensor, x: Any, mask: Any, value: Any) -> str:
    return where(w, out, mask, value, x)


def _triangle(*, lower: bool) -> Form:
    def form(w: Writer, out: Tensor, x: Symbol, diagonal: int = 0) -> str:
        ones = torch.ones(x.shape[-2:], dtype=torch.bool)
        mask = ones.tril(diagonal) if lower else ones.triu(diagonal)
        return where(w, out, mask, x, False if out.dtype == torch.bool else 0)

    return form


FORMS: Mapping[Any, Form] = {
    aten.isnan.default: _of_numbers(lambda w, out, x: w.op("IsNaN", x), else_=False),
    aten.isinf.default: _of_numbers(_isinf, else_=False),
    aten.isfinite.default: _of_numbers(_isfinite, else_=True),
    aten.logical_and.default: _logical("And"),
    aten.logical_or.default: _logical("Or"),
    aten.logical_xor.default: _logical("Xor"),
    aten.logical_not.default: _logical_not,
    **{
        getattr(getattr(aten, name), overload): _bitwise(name.strip("_").removeprefix("bitwise_").capitalize())
        for name in ("bitwise_and", "bitwise_or", "bitwise_xor", "__and__", "__or__", "__xor__")
        for overload in ("Tensor", "Scalar")
    },
    aten.bitwise_not.default: _bitwise_not,
    **{
        getattr(getattr(aten, name), overload): comparison(kind, negated=name == "ne")
        for name, kind in {
            "eq": "Equal", "ne": "Equal", "lt": "Less", "le": "LessOrEqual", "gt": "Greater", "ge": "GreaterOrEqual",
        }.items()
        for overload in ("Tensor", "Scalar")
    },
    aten.where.self: where,
    aten.where.ScalarSelf: where,
    aten.where.ScalarOther: where,
    aten.where.Scalar: where,
    aten.masked_fill.Scalar: _masked_fill,
    aten.masked_fill.Tensor: _masked_fill,
    aten.tril.default: _triangle(lower=True),
    aten.triu.default: _triangle(lower=False),
}  # fmt: skip
