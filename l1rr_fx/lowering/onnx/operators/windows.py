"""Overlapping windows along an axis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from l1rr_fx.lowering.onnx.operators.base import Form
from l1rr_fx.lowering.onnx.operators.reindex import gathered
from l1rr_fx.lowering.onnx.writer import Operand, Symbol, Writer

aten = torch.ops.aten


def _windows(w: Writer, out: Tensor, x: Symbol, dim: int, size: int, step: int) -> Operand:
    """Windows along an axis, each a new last axis."""
    axis = dim % x.rank
    starts = torch.arange(0, x.shape[axis] - size + 1, step)
    found = gathered(w, out, x, starts.unsqueeze(1) + torch.arange(size), axis)
    order = [a for a in range(x.rank + 1) if a != axis + 1] + [axis + 1]
    return found if axis == x.rank - 1 else w.op("Transpose", found, perm=order)


FORMS: Mapping[Any, Form] = {
    aten.unfold.default: _windows,
}
