"""Element by element: functions of one tensor, and arithmetic."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from l1rr_fx.lowering.onnx.operators.base import Form, unary
from l1rr_fx.lowering.onnx.operators.logic import truth
from l1rr_fx.lowering.onnx.writer import Operand, Symbol, Writer

aten = torch.ops.aten


def binary(kind: str, of_booleans: str = "") -> Form:
    """The form of a function of two tensors, or a tensor and a number, in the dtype of the result."""

    def form(w: Writer, out: Tensor, a: Any, b: Any, *_: Any) -> str:
        if out.dtype == torch.bool:
            return truth(w, of_booleans, a, b)
        return w.op(kind, w.cast(a, out.dtype), w.cast(b, out.dtype))

    return form


def _scaled(kind: str) -> Form:
    """Addition and subtraction, whose second operand has a factor."""

    def form(w: Writer, out: Tensor, a: Any, b: Any, alpha: float = 1) -> str:
        if out.dtype == torch.bool:  # torch subtracts no booleans
            return truth(w, "Or", a, b)
        left, right = w.cast(a, out.dtype), w.cast(b, out.dtype)
        if alpha != 1:
            right = w.op("Mul", right, w.number(alpha, out.dtype))
        return w.op(kind, left, right)

    return form


def _rsub(w: Writer, out: Tensor, a: Any, b: Any, alpha: float = 1) -> Any:
    return _scaled("Sub")(w, out, b, a, alpha)


def _div(w: Writer, out: Tensor, a: Any, b: Any, rounding_mode: str | None = None) -> str:
    left, right = w.cast(a, out.dtype), w.cast(b, out.dtype)
    if rounding_mode == "floor":
        return _floor_divide(w, out, a, b)
    found = w.op("Div", left, right)
    return found if rounding_mode is None else w.name_of(_trunc(w, out, found))


def _floor_divide(w: Writer, out: Tensor, a: Any, b: Any) -> str:
    left, right = w.cast(a, out.dtype), w.cast(b, out.dtype)
    found = w.op("Div", left, right)
    if out.dtype.is_floating_point:
        return w.op("Floor", found)
    # ONNX truncates, which rounds up where the rest and the divisor differ in sign.
    rest = w.op("Sub", left, w.op("Mul", found, right))
    return w.op("Sub", found, w.op("Cast", _differ_in_sign(w, out, rest, b), to=w.type_of(out.dtype)))


def _differ_in_sign(w: Writer, out: Tensor, rest: str, divisor: Any) -> str:
    """Where one of two integers is negative and the other is positive."""
    zero = w.number(0, out.dtype)
    if not isinstance(divisor, Symbol):
        known = torch.as_tensor(divisor)
        if bool((known > 0).all()):
            return w.op("Less", rest, zero)
        if bool((known < 0).all()):
            return w.op("Greater", rest, zero)
    right = w.cast(divisor, out.dtype)
    first, second = (
        w.op("And", w.op(one, rest, zero), w.op(other, right, zero))
        for one, other in (("Less", "Greater"), ("Greater", "Less"))
    )
    return w.op("Or", first, second)


def _sign(w: Writer, out: Tensor, x: Symbol) -> Any:
    if out.dtype == torch.bool:
        return x
    if out.dtype.is_floating_point or w.target.reads("Sign of integers"):
        return w.op("Sign", x)
    zero, kind = w.number(0, out.dtype), w.type_of(out.dtype)
    above, below = (w.op("Cast", w.op(each, x, zero), to=kind) for each in ("Greater", "Less"))
    return w.op("Sub", above, below)


def _rounding(kind: str) -> Form:
    """The form of a function that gives whole numbers; ONNX has it for numbers that are not whole alone."""
    return lambda w, out, x, *_: w.op(kind, x) if out.dtype.is_floating_point else x


def _trunc(w: Writer, out: Tensor, x: Operand) -> Operand:
    if not out.dtype.is_floating_point:
        return x
    return w.op("Mul", w.op("Sign", x), w.op("Floor", w.op("Abs", x)))


def _remainder(w: Writer, out: Tensor, a: Any, b: Any) -> str:
    left, right = w.cast(a, out.dtype), w.cast(b, out.dtype)
    return w.op("Sub", left, w.op("Mul", _floor_divide(w, out, a, b), right))


def _fmod(w: Writer, out: Tensor, a: Any, b: Any) -> str:
    left, right = w.cast(a, out.dtype), w.cast(b, out.dtype)
    return w.op("Sub", left, w.op("Mul", _div(w, out, a, b, "trunc"), right))


def _pow(w: Writer, out: Tensor, x: Any, exponent: Any) -> Any:
    base = w.cast(x, out.dtype)
    if isinstance(exponent, (int, float)):
        if exponent == 1:
            return base
        if exponent == 2:
            return w.op("Mul", base, base)
        if exponent == 0.5:
            return w.op("Sqrt", base)
    if out.dtype.is_floating_point or w.target.reads("Pow of integers"):
        return w.op("Pow", base, w.cast(exponent, out.dtype))
    return _integer_power(w, out, x, exponent)


def _integer_power(w: Writer, out: Tensor, x: Any, exponent: Any) -> Any:
    """A power of integers by multiplication, exact; by a computed exponent in FLOAT, exact below 2**24."""
    if isinstance(exponent, int) and exponent > 0:
        square, found = w.name_of(w.cast(x, out.dtype)), ""
        while exponent:
            if exponent & 1:
                found = w.op("Mul", found, square) if found else square
            exponent >>= 1
            square = w.op("Mul", square, square) if exponent else square
        return found
    base, power = (w.cast(each, torch.float32) for each in (x, exponent))
    return w.op("Cast", w.op("Round", w.op("Pow", base, power)), to=w.type_of(out.dtype))


def _addcmul(w: Writer, out: Tensor, x: Any, a: Any, b: Any, value: float = 1) -> Any:
    product = w.op("Mul", a, b)
    return _scaled("Add")(w, out, x, product, value)


def _lerp(w: Writer, out: Tensor, start: Any, end: Any, weight: Any) -> str:
    step = w.op("Mul", w.op("Sub", end, start), w.cast(weight, out.dtype))
    return w.op("Add", start, step)


# Functions of one tensor


def _promoted(form: Form) -> Form:
    """A form that reads its input in the dtype of the result: torch computes such functions of integers in float."""
    return lambda w, out, x: form(w, out, w.cast(x, out.dtype))


def _square(w: Writer, out: Tensor, x: Operand) -> str:
    return w.op("Mul", x, x)


def _rsqrt(w: Writer, out: Tensor, x: Operand) -> str:
    return w.op("Reciprocal", w.op("Sqrt", x))


def _expm1(w: Writer, out: Tensor, x: Operand) -> str:
    halved = w.op("Tanh", w.op("Mul", x, w.number(0.5)))  # keeps the digits of small numbers, as torch does
    return w.op("Mul", halved, w.op("Add", w.op("Exp", x), w.number(1.0)))


def _log1p(w: Writer, out: Tensor, x: Operand) -> str:
    plain = w.op("Log", w.op("Add", x, w.number(1.0)))
    small = w.op("Atanh", w.op("Div", x, w.op("Add", x, w.number(2.0))))  # keeps the digits of small numbers
    return w.op("Where", w.op("Less", w.op("Abs", x), w.number(0.5)), w.op("Mul", small, w.number(2.0)), plain)


def _log10(w: Writer, out: Tensor, x: Operand) -> str:
    return w.op("Mul", w.op("Log", x), w.number(1 / math.log(10)))


def _erfc(w: Writer, out: Tensor, x: Operand) -> str:
    return w.op("Sub", w.number(1.0), w.op("Erf", x))


def _log2(w: Writer, out: Tensor, x: Operand) -> str:
    return w.op("Mul", w.op("Log", x), w.number(1 / math.log(2)))


def _exp2(w: Writer, out: Tensor, x: Operand) -> str:
    return w.op("Exp", w.op("Mul", x, w.number(math.log(2))))


NODES: Mapping[str, str] = {
    "tanh": "Tanh", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "abs": "Abs", "neg": "Neg", "erf": "Erf",
    "reciprocal": "Reciprocal",
    "sin": "Sin", "cos": "Cos", "tan": "Tan", "asin": "Asin", "acos": "Acos", "atan": "Atan",
    "sinh": "Sinh", "cosh": "Cosh", "asinh": "Asinh", "acosh": "Acosh", "atanh": "Atanh",
}  # fmt: skip
"""Operators that are one ONNX node of one input, by name."""
FUNCTIONS: Mapping[str, Form] = {
    "exp2": _exp2, "rsqrt": _rsqrt, "square": _square, "expm1": _expm1, "log1p": _log1p, "log2": _log2,
    "log10": _log10, "erfc": _erfc,
}  # fmt: skip
"""Operators of one input that take several ONNX nodes, by name."""

FORMS: Mapping[Any, Form] = {
    **{getattr(aten, name).default: unary(kind) for name, kind in NODES.items()},
    **{getattr(aten, name).default: _rounding(name.capitalize()) for name in ("floor", "ceil", "round")},
    **{getattr(aten, name).default: _promoted(form) for name, form in FUNCTIONS.items()},
    aten.sign.default: _sign,
    aten.trunc.default: _trunc,
    aten.add.Tensor: _scaled("Add"),
    aten.add.Scalar: _scaled("Add"),
    aten.sub.Tensor: _scaled("Sub"),
    aten.sub.Scalar: _scaled("Sub"),
    aten.rsub.Scalar: _rsub,
    aten.rsub.Tensor: _rsub,
    aten.mul.Tensor: binary("Mul", "And"),
    aten.mul.Scalar: binary("Mul", "And"),
    aten.div.Tensor: _div,
    aten.div.Scalar: _div,
    aten.div.Tensor_mode: _div,
    aten.div.Scalar_mode: _div,
    aten.floor_divide.default: _floor_divide,
    aten.remainder.Scalar: _remainder,
    aten.remainder.Scalar_Tensor: _remainder,
    aten.remainder.Tensor: _remainder,
    aten.fmod.Scalar: _fmod,
    aten.fmod.Tensor: _fmod,
    aten.pow.Tensor_Scalar: _pow,
    aten.pow.Tensor_Tensor: _pow,
    aten.pow.Scalar: _pow,
    aten.maximum.default: binary("Max", "Or"),
    aten.max.other: binary("Max", "Or"),
    aten.minimum.default: binary("Min", "And"),
    aten.min.other: binary("Min", "And"),
    aten.addcmul.default: _addcmul,
    aten.lerp.Scalar: _lerp,
    aten.lerp.Tensor: _lerp,
}
