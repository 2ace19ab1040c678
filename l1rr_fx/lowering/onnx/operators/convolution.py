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


def _convolution(
    w: Writer, out: Tensor, x: Symbol, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: int
) -> Any:
    kernel = [int(n) for n in weight.shape[2:]]
    strides, gaps = spread(stride, len(kernel)), spread(dilation, len(kernel))
    before, after = _padding(padding, kernel, gaps)
    source, inner, added = images(w, x, len(kernel)), *_bias(w, bias)
    found = w.op(
        "Conv", source, weight, inner,
        kernel_shape=kernel, strides=strides, pads=before + after, dilations=gaps, group=groups,
    )  # fmt: skip
    return _finished(w, out, found, x.rank, len(kernel), added)


def _bias(w: Writer, bias: Any) -> tuple[Any, Any]:
    """The bias that a convolution reads ("": none), and the one that is added to its result (None: none)."""
    if bias is None:
        return "", None
    inside = isinstance(bias, Tensor) or w.target.reads("Conv, ConvTranspose with a computed bias")
    return (bias, None) if inside else ("", bias)


def _finished(w: Writer, out: Tensor, found: str, rank: int, axes: int, bias: Any) -> Any:
    """The result of a convolution with its bias added, without a batch where its input had none."""
    if bias is not None:
        found = w.op("Add", found, w.reshape(bias, (*bias.shape, *(1,) * axes)))
    return found if rank == axes + 2 else w.reshape(found, out.shape)


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
    known = len(kernel) == 2 or w.target.reads("ConvTranspose along one or three axes, with output_padding")
    cut, grown = [0] * len(kernel), [0] * len(kernel)
    if not known:  # the result has to be longer at its end: pad less on both sides, and cut the start
        cut = [min(p, n) for p, n in zip(pads, extra, strict=True)]
        grown = [n - c for n, c in zip(extra, cut, strict=True)]
        pads, extra = [p - c for p, c in zip(pads, cut, strict=True)], [0] * len(kernel)
    source = images(w, x, len(kernel))
    inner, added = ("", bias) if any(grown) else _bias(w, bias)  # what grows has the bias, too
    found = w.op(
        "ConvTranspose", source, weight, inner,
        kernel_shape=kernel, strides=strides, pads=pads + pads, output_padding=extra if any(extra) else None,
        dilations=gaps, group=groups,
    )  # fmt: skip
    for axis, (start, n) in enumerate(zip(cut, out.shape[-len(kernel) :], strict=True), 2):
        found = w.slice(found, axis, start, start + int(n)) if start else found
    if any(grown):
        found = w.op("Pad", found, w.integers([0] * (len(kernel) + 4) + grown))
    return _finished(w, out, found, x.rank, len(kernel), added)


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
