"""Copies, casts, and constants that only take their shape or dtype from a value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from l1rr_fx.lowering.onnx.operators.base import Form
from l1rr_fx.lowering.onnx.operators.reindex import expanded
from l1rr_fx.lowering.onnx.writer import Operand, Symbol, Writer

aten = torch.ops.aten


def _same(w: Writer, out: Tensor, x: Symbol, *_: Any) -> Operand:
    """A copy, or another dtype."""
    return w.cast(x, out.dtype)


def _copied(w: Writer, out: Tensor, x: Any, source: Any, *_: Any) -> Operand:
    """What overwrites `x` whole."""
    return expanded(
        w, out, source if isinstance(source, Tensor) else Symbol(w.name_of(w.cast(source, out.dtype)), source.like)
    )


def _filled(value: float) -> Form:
    """A constant of the result's shape."""
    return lambda w, out, *_: torch.full(out.shape, value, dtype=out.dtype)


def _new_full(w: Writer, out: Tensor, x: Any, size: Any, fill: Any, *_: Any) -> Tensor:
    return torch.full(out.shape, fill, dtype=out.dtype)


def _full_like(w: Writer, out: Tensor, x: Any, fill: Any, *_: Any) -> Tensor:
    return torch.full(out.shape, fill, dtype=out.dtype)


FORMS: Mapping[Any, Form] = {
    **dict.fromkeys(
        (
            aten.contiguous.default, aten.clone.default, aten.alias.default, aten.detach.default,
            aten.lift_fresh_copy.default, aten.to.dtype, aten.to.device, aten.to.dtype_layout, aten.to.other,
            aten._to_copy.default, aten.type_as.default, aten.dropout.default, aten.feature_dropout.default,
            aten.alpha_dropout.default, aten.feature_alpha_dropout.default,
        ),
        _same,
    ),
    aten.zeros_like.default: _filled(0),
    aten.ones_like.default: _filled(1),
    aten.new_zeros.default: _filled(0),
    aten.new_ones.default: _filled(1),
    aten.new_full.default: _new_full,
    aten.full_like.default: _full_like,
    aten.fill.Scalar: _full_like,
    aten.fill.Tensor: _copied,
    aten.copy.default: _copied,
}  # fmt: skip
