"""What all forms share: their type, and how torch states axes and sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from l1rr_fx.lowering.onnx.writer import Operand, Symbol, Writer

Form = Callable[..., Any]
"""`form(writer, result, *arguments)`, see the docstring of this package."""


def dtype_of(value: Symbol | Tensor) -> torch.dtype:
    """The dtype of a value or a constant."""
    return value.like.dtype if isinstance(value, Symbol) else value.dtype


def is_integral(dtype: torch.dtype) -> bool:
    """Whether a dtype is one of integers; truth values are none."""
    return not dtype.is_floating_point and not dtype.is_complex and dtype != torch.bool


def axes_of(dims: Any, rank: int) -> list[int]:
    """The axes that a reduction names, none of them negative; all where it names none."""
    if not rank:
        return []
    if dims is None or (not isinstance(dims, int) and not len(dims)):
        return list(range(rank))
    return sorted(int(d) % rank for d in ([dims] if isinstance(dims, int) else dims))


def spread(value: Any, axes: int) -> list[int]:
    """One number for each spatial axis, where torch takes one for all."""
    values = [value] if isinstance(value, int) else [int(v) for v in value]
    return values * axes if len(values) == 1 else values


def images(w: Writer, x: Symbol, axes: int) -> Operand:
    """A value as a batch of images with this many spatial axes: torch takes one without a batch, ONNX does not."""
    return w.reshape(x, x.shape if x.rank == axes + 2 else (1, *x.shape))


def unary(kind: str, **attributes: float) -> Form:
    """The form of a function that is one ONNX node."""

    def form(w: Writer, out: Tensor, x: Any, *_: Any) -> str:
        return w.op(kind, w.cast(x, out.dtype), **attributes)

    return form
