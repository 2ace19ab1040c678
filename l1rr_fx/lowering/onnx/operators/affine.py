"""A scale and a shift for each channel: batch norm, instance norm, PReLU."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from l1rr_fx.lowering.onnx.operators.base import Form
from l1rr_fx.lowering.onnx.operators.normalisation import group_norm
from l1rr_fx.lowering.onnx.writer import Operand, Symbol, Writer
from passes.errors import LoweringError

aten = torch.ops.aten


def _batch_norm(
    w: Writer,
    out: Tensor,
    x: Symbol,
    weight: Any,
    bias: Any,
    mean: Any,
    variance: Any,
    training: bool,
    momentum: float,
    eps: float,
    *_: Any,
) -> str:
    if training or mean is None:
        raise LoweringError("batch norm that uses the batch's statistics: call .eval(), and keep running statistics")
    channels = x.shape[1]
    weight = torch.ones(channels, dtype=out.dtype) if weight is None else weight
    bias = torch.zeros(channels, dtype=out.dtype) if bias is None else bias
    return w.op("BatchNormalization", x, weight, bias, mean, variance, epsilon=eps)


def _instance_norm(
    w: Writer,
    out: Tensor,
    x: Symbol,
    weight: Any,
    bias: Any,
    mean: Any,
    variance: Any,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    *_: Any,
) -> Operand:
    if not use_input_stats:
        return _batch_norm(w, out, x, weight, bias, mean, variance, False, momentum, eps)
    return group_norm(w, out, x, x.shape[1], weight, bias, eps)


def _prelu(w: Writer, out: Tensor, x: Symbol, slope: Any) -> str:
    if slope.shape and x.rank > 1:  # one slope a channel; channels are axis 1
        slope = w.reshape(slope, (*slope.shape, *(1,) * (x.rank - 2)))
    return w.op("PRelu", x, slope)


FORMS: Mapping[Any, Form] = {
    aten.batch_norm.default: _batch_norm,
    aten.instance_norm.default: _instance_norm,
    aten.prelu.default: _prelu,
    aten._prelu_kernel.default: lambda w, out, x, slope: w.op("PRelu", x, slope),
}
