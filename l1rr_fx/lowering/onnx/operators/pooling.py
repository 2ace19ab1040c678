"""Windows over an image that overlap or tile it.

Adaptive pooling into unequal windows has no node of its own. It is linear along each axis, so it is written as a
product with a constant matrix: the operator's own values on the unit vectors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from l1rr_fx.lowering.onnx.operators.base import Form, images, spread
from l1rr_fx.lowering.onnx.writer import Operand, Symbol, Writer

aten = torch.ops.aten


def _window(
    kernel: Any, stride: Any, padding: Any, dilation: Any, axes: int
) -> tuple[list[int], list[int], list[int], list[int]]:
    size = spread(kernel, axes)
    return size, spread(stride, axes) if stride else size, spread(padding, axes), spread(dilation, axes)


def _beyond(x: Symbol, out: Tensor, window: Sequence[Sequence[int]]) -> list[int]:
    """How far the last windows reach over the padded image, for each axis (`ceil_mode`); never negative."""
    axes = range(len(window[0]))
    sizes, found = x.shape[-len(axes) :], out.shape[-len(axes) :]
    kernel, stride, pad, gap = window
    return [
        max((int(found[a]) - 1) * stride[a] + gap[a] * (kernel[a] - 1) + 1 - sizes[a] - 2 * pad[a], 0) for a in axes
    ]


def _pool(w: Writer, out: Tensor, kind: str, x: Symbol, window: Sequence[list[int]], **attributes: Any) -> Operand:
    kernel, stride, pad, gap = window
    after = [p + n for p, n in zip(pad, _beyond(x, out, window), strict=True)]
    dilations: list[int] | None = gap if any(n != 1 for n in gap) else None
    source = images(w, x, len(kernel))
    found = w.op(
        kind, source,
        kernel_shape=kernel, strides=stride, pads=pad + after, dilations=dilations, **attributes,
    )  # fmt: skip
    return found if source is x else w.reshape(found, out.shape)


def _max_pool(axes: int) -> Form:
    def form(
        w: Writer, out: Tensor, x: Symbol, kernel: Any, stride: Any = (), padding: Any = 0, dilation: Any = 1, *_: Any
    ) -> Operand:
        return _pool(w, out, "MaxPool", x, _window(kernel, stride, padding, dilation, axes))

    return form


def _average_pool(axes: int) -> Form:
    def form(
        w: Writer,
        out: Tensor,
        x: Symbol,
        kernel: Any,
        stride: Any = (),
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Operand:
        window = _window(kernel, stride, padding, 1, axes)
        if not any(_beyond(x, out, window)) and divisor_override is None:
            return _pool(w, out, "AveragePool", x, window, count_include_pad=int(count_include_pad))
        size, step, pad, _ = window

        def averaged(rows: Tensor, axis: int) -> Tensor:  # windows over the edge: their weights are written down
            return F.avg_pool2d(
                rows.unsqueeze(2),  # an image one pixel high
                kernel_size=(1, size[axis]), stride=(1, step[axis]), padding=(0, pad[axis]),
                ceil_mode=ceil_mode, count_include_pad=count_include_pad,
                divisor_override=None if divisor_override is None else 1 if axis else divisor_override,
            ).squeeze(2)  # fmt: skip

        return along_axes(w, x, out.shape[-axes:], averaged)

    return form


def along_axes(w: Writer, x: Symbol, sizes: Sequence[int], function: Callable[[Tensor, int], Tensor]) -> Operand:
    """A function that is linear along each of the last axes by itself, as products with constant matrices.

    `function(rows, axis)` applies it to rows of shape (n, 1, length), along the axis that is `axis`-th of the last.
    """
    found: Operand = x
    shape = list(x.shape)
    for axis, size in enumerate(sizes):
        at = x.rank - len(sizes) + axis
        matrix = function(torch.eye(shape[at], dtype=torch.float64).unsqueeze(1), axis).squeeze(1)  # (in, out)
        tail = math.prod(shape[at + 1 :])
        rows = w.reshape(found, (math.prod(shape[:at]), shape[at], tail)) if at != x.rank - 1 else found
        shape[at] = int(size)
        product = w.op("MatMul", rows, matrix) if rows is found else w.op("MatMul", matrix.t(), rows)
        found = product if rows is found else w.reshape(product, shape)
    return found


def _adaptive(kind: str, axes: int) -> Form:
    def form(w: Writer, out: Tensor, x: Symbol, size: Any) -> Operand:
        wanted = [int(n) for n in out.shape[-axes:]]
        given = x.shape[-axes:]
        if set(wanted) == {1}:
            source = images(w, x, axes)
            found = w.op(f"Global{kind}Pool", source)
            return found if source is x else w.reshape(found, out.shape)
        if all(n % m == 0 for n, m in zip(given, wanted, strict=True)):
            kernel = [n // m for n, m in zip(given, wanted, strict=True)]
            return _pool(w, out, f"{kind}Pool", x, (kernel, kernel, [0] * axes, [1] * axes))
        if kind == "Max":
            return _largest_of_windows(w, x, wanted)
        return along_axes(w, x, wanted, lambda rows, axis: F.adaptive_avg_pool1d(rows, wanted[axis]))

    return form


def _largest_of_windows(w: Writer, x: Symbol, sizes: Sequence[int]) -> Operand:
    """The maxima of windows that differ in size, along one axis after the other."""
    found: Operand = x
    for axis, size in enumerate(sizes, x.rank - len(sizes)):
        bounds = [(i * x.shape[axis] // size, -(-(i + 1) * x.shape[axis] // size)) for i in range(size)]
        parts = [w.reduce("ReduceMax", w.slice(found, axis, *each), [axis], keepdims=True) for each in bounds]
        found = w.op("Concat", *parts, axis=axis) if size > 1 else parts[0]
    return found


def _adaptive_max(axes: int) -> Form:
    form = _adaptive("Max", axes)
    return lambda w, out, x, size: (form(w, out[0], x, size), None)


def _max_pool_with_places(axes: int) -> Form:
    form = _max_pool(axes)
    return lambda w, out, *rest: (form(w, out[0], *rest), None)


FORMS: Mapping[Any, Form] = {
    aten.max_pool1d.default: _max_pool(1),
    aten.max_pool2d.default: _max_pool(2),
    aten.max_pool3d.default: _max_pool(3),
    aten.max_pool2d_with_indices.default: _max_pool_with_places(2),
    aten.max_pool3d_with_indices.default: _max_pool_with_places(3),
    aten.avg_pool1d.default: _average_pool(1),
    aten.avg_pool2d.default: _average_pool(2),
    aten.avg_pool3d.default: _average_pool(3),
    aten.adaptive_avg_pool1d.default: _adaptive("Average", 1),
    aten.adaptive_avg_pool2d.default: _adaptive("Average", 2),
    aten.adaptive_avg_pool3d.default: _adaptive("Average", 3),
    aten.adaptive_max_pool1d.default: _adaptive_max(1),
    aten.adaptive_max_pool2d.default: _adaptive_max(2),
    aten.adaptive_max_pool3d.default: _adaptive_max(3),
}
