"""Activations, and the bounds that some of them are."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from l1rr_fx.lowering.onnx.operators.base import Form, unary
from l1rr_fx.lowering.onnx.writer import Operand, Symbol, Writer
from passes.errors import LoweringError

aten = torch.ops.aten


def with_attributes(kind: str, *names: str) -> Form:
    """The form of a function whose numbers are attributes of one ONNX node, in this order."""

    def form(w: Writer, out: Tensor, x: Any, *numbers: float) -> str:
        return w.op(kind, x, **{name: float(value) for name, value in zip(names, numbers)})

    return form


def _relu(w: Writer, out: Tensor, x: Operand) -> str:
    return w.op("Relu", x) if out.dtype.is_floating_point else w.op("Max", x, w.number(0, out.dtype))


def _celu(w: Writer, out: Tensor, x: Operand, alpha: float = 1) -> str:
    if alpha == 1:
        return w.op("Elu", x, alpha=1.0)
    if w.target.reads("Celu"):
        return w.op("Celu", x, alpha=float(alpha))
    if alpha < 0:
        raise LoweringError(f"celu with alpha {alpha} has no form on {w.target.name}; expected a positive alpha")
    return w.op("Mul", w.op("Elu", w.op("Mul", x, w.number(1 / alpha)), alpha=1.0), w.number(float(alpha)))


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


def _log_sigmoid(w: Writer, out: Tensor, x: Operand) -> str:
    return w.op("Neg", w.op("Softplus", w.op("Neg", x)))


def _elu(w: Writer, out: Tensor, x: Operand, alpha: float = 1, scale: float = 1, input_scale: float = 1) -> str:
    if input_scale != 1:
        raise LoweringError("elu with an input scale has no ONNX form")
    found = w.op("Elu", x, alpha=float(alpha))
    return found if scale == 1 else w.op("Mul", found, w.number(float(scale)))


def _softshrink(w: Writer, out: Tensor, x: Operand, bound: float = 0.5) -> str:
    above = w.op("Relu", w.op("Sub", x, w.number(float(bound))))
    below = w.op("Relu", w.op("Sub", w.op("Neg", x), w.number(float(bound))))
    return w.op("Sub", above, below)


def _threshold(w: Writer, out: Tensor, x: Operand, threshold: float, value: float) -> str:
    return w.op("Where", w.op("Greater", x, w.number(threshold, out.dtype)), x, w.number(value, out.dtype))


# Bounds


def _clamp(w: Writer, out: Tensor, x: Any, low: Any = None, high: Any = None) -> Any:
    found = w.cast(x, out.dtype)
    if out.dtype.is_floating_point and not any(isinstance(bound, (Tensor, Symbol)) for bound in (low, high)):
        return w.clip(found, *(None if bound is None else float(bound) for bound in (low, high)))
    if low is not None:
        found = w.op("Max", found, w.cast(low, out.dtype))
    return found if high is None else w.op("Min", found, w.cast(high, out.dtype))


def _clamp_max(w: Writer, out: Tensor, x: Any, high: Any) -> Any:
    return _clamp(w, out, x, None, high)


def _hardtanh(w: Writer, out: Tensor, x: Any, low: float = -1, high: float = 1) -> Any:
    return _clamp(w, out, x, low, high)


def _relu6(w: Writer, out: Tensor, x: Any) -> Any:
    return _clamp(w, out, x, 0.0, 6.0)


FORMS: Mapping[Any, Form] = {
    aten.relu.default: _relu,
    aten.sigmoid.default: unary("Sigmoid"),
    aten.selu.default: unary("Selu"),
    aten.celu.default: _celu,
    aten.leaky_relu.default: with_attributes("LeakyRelu", "alpha"),
    aten.hardsigmoid.default: _hardsigmoid,
    aten.hardswish.default: _hardswish,
    aten.silu.default: _silu,
    aten.mish.default: _mish,
    aten.gelu.default: _gelu,
    aten.softplus.default: _softplus,
    aten.log_sigmoid.default: _log_sigmoid,
    aten.elu.default: _elu,
    aten.softshrink.default: _softshrink,
    aten.threshold.default: _threshold,
    aten.rrelu.default: _rrelu,
    aten.relu6.default: _relu6,
    aten.hardtanh.default: _hardtanh,
    aten.clamp.default: _clamp,
    aten.clamp.Tensor: _clamp,
    aten.clip.default: _clamp,
    aten.clamp_min.default: _clamp,
    aten.clamp_min.Tensor: _clamp,
    aten.clamp_max.default: _clamp_max,
    aten.clamp_max.Tensor: _clamp_max,
}
