"""Layer, RMS and group norm."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from l1rr_fx.lowering.onnx.operators.base import Form
from l1rr_fx.lowering.onnx.writer import Operand, Symbol, Writer

aten = torch.ops.aten


def _layer_norm(
    w: Writer, out: Tensor, x: Symbol, shape: Sequence[int], weight: Any, bias: Any, eps: float = 1e-5, *_: Any
) -> Operand:
    if w.target.has("LayerNormalization"):
        weight = torch.ones(tuple(shape), dtype=out.dtype) if weight is None else weight
        return w.op("LayerNormalization", x, weight, "" if bias is None else bias, axis=-len(shape), epsilon=eps)
    axes = list(range(x.rank - len(shape), x.rank))
    centred = w.op("Sub", x, w.reduce("ReduceMean", x, axes, keepdims=True))
    variance = w.reduce("ReduceMean", w.op("Mul", centred, centred), axes, keepdims=True)
    deviation = w.op("Sqrt", w.op("Add", variance, w.number(eps, out.dtype)))
    return _affine(w, w.op("Div", centred, deviation), weight, bias)


def _rms_norm(
    w: Writer, out: Tensor, x: Symbol, shape: Sequence[int], weight: Any, eps: float | None = None
) -> Operand:
    axes = list(range(x.rank - len(shape), x.rank))
    power = w.reduce("ReduceMean", w.op("Mul", x, x), axes, keepdims=True)
    eps = torch.finfo(out.dtype).eps if eps is None else eps
    return _affine(w, w.op("Div", x, w.op("Sqrt", w.op("Add", power, w.number(eps, out.dtype)))), weight, None)


def group_norm(
    w: Writer, out: Tensor, x: Symbol, groups: int, weight: Any, bias: Any, eps: float = 1e-5, *_: Any
) -> Operand:
    """Each group is an instance's channel: TensorRT has a kernel for that, and none for groups."""
    rows = w.reshape(x, (x.shape[0], groups, math.prod(x.shape[1:]) // groups))
    half = w.float_type == "FLOAT16" and not w.target.reads("Clip, InstanceNormalization with constants of FLOAT16")
    kind = "FLOAT" if half else w.float_type
    ones, zeros = w.constant(torch.ones(groups), kind), w.constant(torch.zeros(groups), kind)
    rows = w.op("Cast", rows, to=kind) if half else rows
    normal = w.op("InstanceNormalization", rows, ones, zeros, epsilon=eps)
    found = w.reshape(w.op("Cast", normal, to=w.float_type) if half else normal, x.shape)
    return _affine(w, found, *(_by_channel(w, each, x.rank) for each in (weight, bias)))


def _affine(w: Writer, x: Operand, weight: Any, bias: Any) -> Operand:
    """`x * weight + bias`, where they are given."""
    found = x if weight is None else w.op("Mul", x, weight)
    return found if bias is None else w.op("Add", found, bias)


def _by_channel(w: Writer, value: Any, rank: int) -> Any:
    """A vector along axis 1 of a tensor of this rank."""
    if value is None:
        return None
    return w.reshape(value, (*value.shape, *(1,) * (rank - 2)))


FORMS: Mapping[Any, Form] = {
    aten.layer_norm.default: _layer_norm,
    aten.rms_norm.default: _rms_norm,
    aten.group_norm.default: group_norm,
}
