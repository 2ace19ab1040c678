"""Products: convolutions, linear layers, matrix products, attention."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from l1rr_fx.lowering.operators.pointwise import Form, dtype_of
from l1rr_fx.lowering.writer import Operand, Symbol, Writer
from passes.errors import LoweringError

aten = torch.ops.aten


def spread(value: Any, axes: int) -> list[int]:
    """One number for each spatial axis, where torch takes one for all."""
    values = [value] if isinstance(value, int) else [int(v) for v in value]
    return values * axes if len(values) == 1 else values


def images(w: Writer, x: Symbol, axes: int) -> tuple[Operand, bool]:
    """A value as a batch of images with this many spatial axes, and whether a single axis became two.

    torch takes an image without a batch, ONNX does not; some readers know no convolution along a single axis.
    """
    shape = x.shape if x.rank == axes + 2 else (1, *x.shape)
    flat = w.target.planar and axes == 1
    return w.reshape(x, (*shape[:2], 1, shape[2]) if flat else shape), flat


def bias_of(bias: Any) -> Any:
    """An optional operand: what ONNX writes as an empty name where there is none."""
    return "" if bias is None else bias


# Convolutions


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


# Matrix products


def transposed(w: Writer, x: Symbol | Tensor) -> Operand:
    """The last two axes exchanged: a constant at once."""
    if isinstance(x, Tensor):
        return x.transpose(-1, -2)
    order = list(range(x.rank))
    order[-2:] = order[-1], order[-2]
    return w.op("Transpose", x, perm=order)


def _linear(w: Writer, out: Tensor, x: Symbol, weight: Any, bias: Any = None) -> str:
    if x.rank == 2 and isinstance(weight, Tensor) and weight.dim() == 2:
        return w.op("Gemm", x, weight, bias_of(bias), transB=1)
    vector = (weight.dim() if isinstance(weight, Tensor) else weight.rank) == 1
    product = w.op("MatMul", x, weight if vector else transposed(w, weight))
    return product if bias is None else w.op("Add", product, bias)


def _matmul(w: Writer, out: Tensor, a: Any, b: Any) -> str:
    return w.op("MatMul", a, b)


def _addmm(w: Writer, out: Tensor, x: Any, a: Any, b: Any, beta: float = 1, alpha: float = 1) -> str:
    product = w.op("MatMul", a, b)
    if alpha != 1:
        product = w.op("Mul", product, w.number(alpha, out.dtype))
    if beta != 1:
        x = w.op("Mul", x, w.number(beta, out.dtype))
    return w.op("Add", product, x)


def _einsum(w: Writer, out: Tensor, equation: str, operands: Sequence[Any], path: Any = None) -> str:
    if "." in equation:
        raise LoweringError(f"einsum {equation!r} has an ellipsis, which ONNX readers differ on: write its letters")
    return w.op("Einsum", *operands, equation=equation.replace(" ", ""))


def _attention(
    w: Writer,
    out: Tensor,
    query: Any,
    key: Any,
    value: Any,
    mask: Any = None,
    dropout: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> str:
    if enable_gqa:
        raise LoweringError("attention whose heads share keys (enable_gqa) has no form here: repeat the keys")
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else float(scale)
    scores = w.op("MatMul", w.op("Mul", query, w.number(scale, out.dtype)), transposed(w, key))
    if is_causal:
        mask = torch.ones(int(query.shape[-2]), int(key.shape[-2]), dtype=torch.bool).tril()
    if mask is not None:
        scores = _masked(w, out, scores, mask)
    return w.op("MatMul", w.op("Softmax", scores, axis=-1), value)


def _masked(w: Writer, out: Tensor, scores: str, mask: Any) -> str:
    if dtype_of(mask) != torch.bool:
        return w.op("Add", scores, mask)
    if isinstance(mask, Tensor):
        return w.op("Add", scores, torch.zeros(mask.shape, dtype=out.dtype).masked_fill(~mask, float("-inf")))
    return w.op("Where", mask, scores, w.number(float("-inf"), out.dtype))


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
    aten.matmul.default: _matmul,
    aten.mm.default: _matmul,
    aten.bmm.default: _matmul,
    aten.addmm.default: _addmm,
    aten.baddbmm.default: _addmm,
    aten.einsum.default: _einsum,
    aten.scaled_dot_product_attention.default: _attention,
}  # fmt: skip
