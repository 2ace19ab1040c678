"""Element by element: functions of one tensor, of two, and choices between them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from l1rr_fx.lowering.onnx.writer import Operand, Symbol, Writer
from passes.errors import LoweringError

aten = torch.ops.aten
Form = Callable[..., Any]


def dtype_of(value: Symbol | Tensor) -> torch.dtype:
    """The dtype of a value or a constant."""
    return value.like.dtype if isinstance(value, Symbol) else value.dtype


def unary(kind: str, **attributes: float) -> Form:
    """The form of a function that is one ONNX node."""

    def form(w: Writer, out: Tensor, x: Any, *_: Any) -> str:
        return w.op(kind, w.cast(x, out.dtype), **attributes)

    return form


def with_attributes(kind: str, *names: str) -> Form:
    """The form of a function whose numbers are attributes of one ONNX node, in this order."""

    def form(w: Writer, out: Tensor, x: Any, *numbers: float) -> str:
        return w.op(kind, x, **{name: float(value) for name, value in zip(names, numbers)})

    return form


def binary(kind: str, of_booleans: str = "") -> Form:
    """The form of a function of two tensors, or a tensor and a number, in the dtype of the result."""

    def form(w: Writer, out: Tensor, a: Any, b: Any, *_: Any) -> str:
        if out.dtype == torch.bool:
            return _truth(w, of_booleans, a, b)
        return w.op(kind, w.cast(a, out.dtype), w.cast(b, out.dtype))

    return form


def comparison(kind: str, *, negated: bool = False) -> Form:
    """The form of a comparison: both sides in the dtype that torch compares them in."""

    def form(w: Writer, out: Tensor, a: Any, b: Any) -> str:
        common = torch.result_type(*(each.like if isinstance(each, Symbol) else each for each in (a, b)))
        if common == torch.bool and kind != "Equal":
            common = torch.int32
        found = w.op(kind, w.cast(a, common), w.cast(b, common))
        return w.op("Not", found) if negated else found

    return form


def _scaled(kind: str) -> Form:
    """Addition and subtraction, whose second operand has a factor."""

    def form(w: Writer, out: Tensor, a: Any, b: Any, alpha: float = 1) -> str:
        if out.dtype == torch.bool:  # torch subtracts no booleans
            return _truth(w, "Or", a, b)
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
    return found if rounding_mode is None or not out.dtype.is_floating_point else _trunc(w, out, found)


def _floor_divide(w: Writer, out: Tensor, a: Any, b: Any) -> str:
    left, right = w.cast(a, out.dtype), w.cast(b, out.dtype)
    found = w.op("Div", left, right)
    if out.dtype.is_floating_point:
        return w.op("Floor", found)
    rest = w.op(
        "Sub", left, w.op("Mul", found, right)
    )  # ONNX drops the fraction: up, if rest and divisor differ in sign
    rounded_up = w.op("Less", w.op("Mul", w.op("Sign", rest), _sign(w, out, b)), w.number(0, out.dtype))
    return w.op("Sub", found, w.op("Cast", rounded_up, to=w.type_of(out.dtype)))


def _sign(w: Writer, out: Tensor, x: Any) -> Operand:
    if isinstance(x, Symbol):
        return w.op("Sign", w.cast(x, out.dtype))
    return w.cast(torch.as_tensor(x).sign(), out.dtype)


def _trunc(w: Writer, out: Tensor, x: Operand) -> str:
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
    return w.op("Pow", base, w.cast(exponent, out.dtype))


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


# Activations


def _silu(w: Writer, out: Tensor, x: Operand) -> str:
    return w.op("Mul", x, w.op("Sigmoid", x))


def _hardswish(w: Writer, out: Tensor, x: Operand) -> str:
    return w.op("HardSwish", x) if w.target.has("HardSwish") else w.op("Mul", x, _hardsigmoid(w, out, x))


def _hardsigmoid(w: Writer, out: Tensor, x: Operand) -> str:
    return w.op("HardSigmoid", x, alpha=1 / 6, beta=0.5)


def _mish(w: Writer, out: Tensor, x: Operand) -> str:
    return w.op("Mish", x) if w.target.has("Mish") else w.op("Mul", x, w.op("Tanh", w.op("Softplus", x)))


def _gelu(w: Writer, out: Tensor, x: Operand, approximate: str = "none") -> str:
    half = w.op("Mul", x, w.number(0.5))
    if approximate == "none":
        bent = w.op("Erf", w.op("Mul", x, w.number(math.sqrt(0.5))))
    else:  # "tanh"
        cubed = w.op("Mul", w.op("Mul", x, w.op("Mul", x, x)), w.number(0.044715))
        bent = w.op("Tanh", w.op("Mul", w.op("Add", x, cubed), w.number(math.sqrt(2 / math.pi))))
    return w.op("Mul", half, w.op("Add", bent, w.number(1.0)))


def _softplus(w: Writer, out: Tensor, x: Operand, beta: float = 1, threshold: float = 20) -> str:
    steep = x if beta == 1 else w.op("Mul", x, w.number(float(beta)))
    found = w.op("Softplus", steep)
    if beta != 1:
        found = w.op("Mul", found, w.number(1 / beta))
    if threshold >= 20:  # from where float32 knows no difference
        return found
    return w.op("Where", w.op("Greater", steep, w.number(float(threshold))), x, found)


def _rrelu(w: Writer, out: Tensor, x: Operand, lower: float, upper: float, *_: Any) -> str:
    return w.op("LeakyRelu", x, alpha=(lower + upper) / 2)


def _exp2(w: Writer, out: Tensor, x: Operand) -> str:
    return w.op("Exp", w.op("Mul", x, w.number(math.log(2))))


def _log_sigmoid(w: Writer, out: Tensor, x: Operand) -> str:
    return w.op("Neg", w.op("Softplus", w.op("Neg", x)))


def _elu(w: Writer, out: Tensor, x: Operand, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> str:
    if input_scale != 1:
        raise LoweringError("elu with an input scale has no ONNX form")
    found = w.op("Elu", x, alpha=float(alpha))
    return found if scale == 1 else w.op("Mul", found, w.number(float(scale)))


def _prelu(w: Writer, out: Tensor, x: Symbol, slope: Any) -> str:
    if slope.shape and x.rank > 1:  # one slope a channel; channels are axis 1
        slope = w.reshape(slope, (*slope.shape, *(1,) * (x.rank - 2)))
    return w.op("PRelu", x, slope)


def _softshrink(w: Writer, out: Tensor, x: Operand, bound: float = 0.5) -> str:
    above = w.op("Relu", w.op("Sub", x, w.number(float(bound))))
    below = w.op("Relu", w.op("Sub", w.op("Neg", x), w.number(float(bound))))
    return w.op("Sub", above, below)


def _threshold(w: Writer, out: Tensor, x: Operand, threshold: float, value: float) -> str:
    return w.op("Where", w.op("Greater", x, w.number(threshold, out.dtype)), x, w.number(value, out.dtype))


# Bounds and choices


def _clamp(w: Writer, out: Tensor, x: Any, low: Any = None, high: Any = None) -> Any:
    found = w.cast(x, out.dtype)
    if out.dtype.is_floating_point and not any(isinstance(bound, (Tensor, Symbol)) for bound in (low, high)):
        bounds = ["" if bound is None else w.number(float(bound), out.dtype) for bound in (low, high)]
        return w.op("Clip", found, *bounds)
    if low is not None:
        found = w.op("Max", found, w.cast(low, out.dtype))
    return found if high is None else w.op("Min", found, w.cast(high, out.dtype))


def _clamp_max(w: Writer, out: Tensor, x: Any, high: Any) -> Any:
    return _clamp(w, out, x, None, high)


def _hardtanh(w: Writer, out: Tensor, x: Any, low: float = -1, high: float = 1) -> Any:
    return _clamp(w, out, x, low, high)


def _relu6(w: Writer, out: Tensor, x: Any) -> Any:
    return _clamp(w, out, x, 0.0, 6.0)


def where(w: Writer, out: Tensor, condition: Any, a: Any, b: Any) -> str:
    if out.dtype == torch.bool:  # not every reader chooses between truth values
        first = _truth(w, "And", condition, a)
        return w.op("Or", first, _truth(w, "And", _logical_not(w, out, condition), b))
    return w.op("Where", w.cast(condition, torch.bool), w.cast(a, out.dtype), w.cast(b, out.dtype))


def _masked_fill(w: Writer, out: Tensor, x: Any, mask: Any, value: Any) -> str:
    return where(w, out, mask, value, x)


def _truth(w: Writer, kind: str, a: Any, b: Any) -> str:
    """And, Or or Xor of two values as booleans."""
    left, right = w.cast(a, torch.bool), w.cast(b, torch.bool)
    return w.op("Not", w.op("Equal", left, right)) if kind == "Xor" else w.op(kind, left, right)


def _logical(kind: str) -> Form:
    return lambda w, out, a, b: _truth(w, kind, a, b)


def _bitwise(kind: str) -> Form:
    """Of booleans what is logical; of integers by bits, which older readers cannot."""

    def form(w: Writer, out: Tensor, a: Any, b: Any) -> str:
        if out.dtype == torch.bool:
            return _truth(w, kind, a, b)
        if not w.target.has(f"Bitwise{kind}"):
            raise LoweringError(f"integers bit by bit ({kind.lower()}) have no form on {w.target.name}")
        return w.op(f"Bitwise{kind}", w.cast(a, out.dtype), w.cast(b, out.dtype))

    return form


def _bitwise_not(w: Writer, out: Tensor, x: Any) -> str:
    if out.dtype == torch.bool:
        return _logical_not(w, out, x)
    return w.op("Sub", w.number(-1, out.dtype), x)


def _isinf(w: Writer, out: Tensor, x: Any) -> str:
    return w.op("Equal", w.op("Abs", x), w.number(math.inf))


def _isfinite(w: Writer, out: Tensor, x: Any) -> str:
    return w.op("Less", w.op("Abs", x), w.number(math.inf))


def _logical_not(w: Writer, out: Tensor, x: Any) -> str:
    return w.op("Not", w.cast(x, torch.bool))


def _addcmul(w: Writer, out: Tensor, x: Any, a: Any, b: Any, value: float = 1) -> Any:
    product = w.op("Mul", a, b)
    return _scaled("Add")(w, out, x, product, value)


def _lerp(w: Writer, out: Tensor, start: Any, end: Any, weight: Any) -> str:
    step = w.op("Mul", w.op("Sub", end, start), w.cast(weight, out.dtype))
    return w.op("Add", start, step)


NODES: Mapping[str, str] = {
    "relu": "Relu", "sigmoid": "Sigmoid", "tanh": "Tanh", "exp": "Exp", "log": "Log", "sqrt": "Sqrt", "abs": "Abs",
    "neg": "Neg", "erf": "Erf", "floor": "Floor", "ceil": "Ceil", "round": "Round", "reciprocal": "Reciprocal",
    "sign": "Sign", "sin": "Sin", "cos": "Cos", "tan": "Tan", "asin": "Asin", "acos": "Acos", "atan": "Atan",
    "sinh": "Sinh", "cosh": "Cosh", "asinh": "Asinh", "acosh": "Acosh", "atanh": "Atanh",
}  # fmt: skip

FORMS: Mapping[Any, Form] = {
    **{getattr(aten, name).default: unary(kind) for name, kind in NODES.items()},
    aten.selu.default: unary("Selu"),
    aten.celu.default: with_attributes("Celu", "alpha"),
    aten.leaky_relu.default: with_attributes("LeakyRelu", "alpha"),
    aten.hardsigmoid.default: _hardsigmoid,
    aten.hardswish.default: _hardswish,
    aten.silu.default: _silu,
    aten.mish.default: _mish,
    aten.gelu.default: _gelu,
    aten.softplus.default: _softplus,
    aten.log_sigmoid.default: _log_sigmoid,
    aten.elu.default: _elu,
    aten.prelu.default: _prelu,
    aten._prelu_kernel.default: lambda w, out, x, slope: w.op("PRelu", x, slope),
    aten.softshrink.default: _softshrink,
    aten.threshold.default: _threshold,
    aten.relu6.default: _relu6,
    aten.hardtanh.default: _hardtanh,
    aten.clamp.default: _clamp,
    aten.clamp.Tensor: _clamp,
    aten.clip.default: _clamp,
    aten.clamp_min.default: _clamp,
    aten.clamp_min.Tensor: _clamp,
    aten.clamp_max.default: _clamp_max,
    aten.clamp_max.Tensor: _clamp_max,
    aten.rrelu.default: _rrelu,
    aten.exp2.default: _exp2,
    aten.rsqrt.default: _rsqrt,
    aten.square.default: _square,
    aten.expm1.default: _expm1,
    aten.log1p.default: _log1p,
    aten.log2.default: _log2,
    aten.log10.default: _log10,
    aten.erfc.default: _erfc,
    aten.isnan.default: lambda w, out, x: w.op("IsNaN", x),
    aten.isinf.default: _isinf,
    aten.isfinite.default: _isfinite,
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
    aten.where.self: where,
    aten.where.ScalarSelf: where,
    aten.where.ScalarOther: where,
    aten.where.Scalar: where,
    aten.masked_fill.Scalar: _masked_fill,
    aten.masked_fill.Tensor: _masked_fill,
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
}  # fmt: skip
