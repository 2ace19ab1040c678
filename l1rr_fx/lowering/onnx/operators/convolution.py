"""Weights that mix channels: convolutions and linear layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from l1rr_fx.lowering.onnx.operators.base import Form, images, spread
from l1rr_fx.lowering.onnx.operators.products import transposed
from l1rr_fx.lowering.onnx.writer import Symbol, Writer

aten = torch.ops.aten


def bias_of(bias: Any) -> Any:
    """An optional operand; ONNX writes a missing one as an empty name."""
    return "" if bias is None else bias


def _convolution(
    w: Writer, out: Tensor, x: Symbol, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int
) -> Any:
    kernel = [int(n) for n in weight.shape[2:]]
    strides, gaps = spread(stride, len(kernel)), spread(dilation, len(kernel))
    before, after = _padding(padding, kernel, gaps)
    source, flat = images(w, x, len(kernel))
    if flat:
        weight, kernel = w.reshape(weight, (*weight.shape[:2], 1, *kernel)), [1, *kernel]
        strides, gaps, before, after = [1, *strides], [1, *gaps], [0, *before], [0, *after]
    found = w.op(
        "Conv", source, weight, bias_of(bias),
        kernel_shape=kernel, strides=strides, pads=before + after, dilations=gaps, group=groups,
    )  # fmt: skip
    return found if source is x else w.reshape(found, out.shape)


def _padding(padding: Any, kernel: Sequence[int], gaps: Sequence[int]) -> tuple[list[int], list[int]]:
    """Padding before and after, from torch's numbers, "same" or "valid"."""
    if not isinstance(padding, str):
        both = spread(padding, len(kernel))
        return both, both
    total = [d * (k - 1) if padding == "same" else 0 for k, d in zip(kernel, gaps, strict=True)]
    return [n // 2 for n in total], [n - n // 2 for n in total]


def _transposed(
    w: Writer,
    out: Tensor,
    x: Symbol,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    output_padding: Any,
    groups: int,
    dilation: Any,
) -> Any:
    kernel = [int(n) for n in weight.shape[2:]]
    strides, pads, extra, gaps = (spread(v, len(kernel)) for v in (stride, padding, output_padding, dilation))
    source, flat = images(w, x, len(kernel))
    if flat:
        weight, kernel, strides = w.reshape(weight, (*weight.shape[:2], 1, *kernel)), [1, *kernel], [1, *strides]
        pads, extra, gaps = [0, *pads], [0, *extra], [1, *gaps]
    found = w.op(
        "ConvTranspose", source, weight, bias_of(bias),
        kernel_shape=kernel, strides=strides, pads=pads + pads, output_padding=extra, dilations=gaps, group=groups,
    )  # fmt: skip
    return found if source is x else w.reshape(found, out.shape)


def _any_convolution(
    w: Writer,
    out: Tensor,
    x: Symbol,
    weight: Any,
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    *_: Any,
) -> Any:
    if transposed:
        return _transposed(w, out, x, weight, bias, stride, padding, output_padding, groups, dilation)
    return _convolution(w, out, x, weight, bias, stride, padding, dilation, groups)


def _linear(w: Writer, out: Tensor, x: Symbol, weight: Any, bias: Any = None) -> str:
    constant = all(isinstance(each, Tensor) for each in (weight, bias))
    if constant and x.rank == 2 and weight.dim() == 2 and bias.shape == weight.shape[:1]:
        # TensorRT 8.2 takes the number of outputs from the bias: without one, or with one that broadcasts, it fails.
        return w.op("Gemm", x, weight, bias, transB=1)
    vector = (weight.dim() if isinstance(weight, Tensor) else weight.rank) == 1
    product = w.op("MatMul", x, weight if vector else transposed(w, weight))
    return product if bias is None else w.op("Add", product, bias)


FORMS: Mapping[Any, Form] = {
    **dict.fromkeys(
        (
            aten.conv1d.default, aten.conv2d.default, aten.conv3d.default,
            aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding,
        ),
        _convolution,
    ),
    **dict.fromkeys(
        (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input), _transposed
    ),
    aten.convolution.default: _any_convolution,
    aten._convolution.default: _any_convolution,
    aten.linear.default: _linear,
}  # fmt: skip
