"""Fake quantisation, written in floating-point numbers: rounded to steps, bounded, and scaled back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from l1rr_fx.lowering.onnx.operators.base import Form
from l1rr_fx.lowering.onnx.writer import Symbol, Writer

aten = torch.ops.aten


def _per_tensor(w: Writer, out: Tensor, x: Symbol, scale: Any, point: Any, low: int, high: int) -> Any:
    if isinstance(scale, Symbol) or isinstance(point, Symbol):
        return NotImplemented
    step, zero = float(scale), float(point)
    steps = w.op("Round", w.op("Mul", x, w.number(1 / step)))
    return w.op("Mul", w.clip(steps, low - zero, high - zero), w.number(step))


def _per_channel(w: Writer, out: Tensor, x: Symbol, scale: Any, point: Any, axis: int, low: int, high: int) -> Any:
    if isinstance(scale, Symbol) or isinstance(point, Symbol):
        return NotImplemented
    line = [-1 if a == axis % x.rank else 1 for a in range(x.rank)]
    step, zero = scale.float().reshape(line), point.float().reshape(line)
    steps = w.op("Round", w.op("Mul", x, 1 / step))
    return w.op("Mul", w.op("Min", w.op("Max", steps, low - zero), high - zero), step)


FORMS: Mapping[Any, Form] = {
    aten.fake_quantize_per_tensor_affine.default: _per_tensor,
    aten.fake_quantize_per_tensor_affine.tensor_qparams: _per_tensor,
    aten.fake_quantize_per_channel_affine.default: _per_channel,
}
