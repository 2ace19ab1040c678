"""Matrix products and attention."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from l1rr_fx.lowering.onnx.operators.base import Form, dtype_of
from l1rr_fx.lowering.onnx.writer import Operand, Symbol, Writer

aten = torch.ops.aten

LOWEST = -1e30
"""Where a score is masked; FP16 has its own lowest number."""


def transposed(w: Writer, x: Symbol | Tensor) -> Operand:
    """The last two axes exchanged: a constant at once."""
    if isinstance(x, Tensor):
        return x.transpose(-1, -2)
    order = list(range(x.rank))
    order[-2:] = order[-1], order[-2]
    return w.op("Transpose", x, perm=order)


def _matmul(w: Writer, out: Tensor, a: Any, b: Any) -> str:
    first, second = (tuple(int(n) for n in each.shape) for each in (a, b))
    if len(first) == 1 and len(second) > 2 and not w.target.reads("MatMul of a vector by a batch"):
        return w.name_of(w.reshape(w.op("MatMul", w.reshape(a, (1, *first)), b), [int(n) for n in out.shape]))
    return w.op("MatMul", a, b)


def _addmm(w: Writer, out: Tensor, x: Any, a: Any, b: Any, beta: float = 1, alpha: float = 1) -> str:
    product = w.op("MatMul", a, b)
    if alpha != 1:
        product = w.op("Mul", product, w.number(alpha, out.dtype))
    if beta == 0:  # then torch does not read x, not even NaN
        return product
    if beta != 1:
        x = w.op("Mul", x, w.number(beta, out.dtype))
    return w.op("Add", product, x)


# Attention


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
        key, value = (_for_all_heads(w, each, int(query.shape[-3])) for each in (key, value))
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else float(scale)
    scores = w.op("MatMul", w.op("Mul", query, w.number(scale, out.dtype)), transposed(w, key))
    if is_causal:
        mask = torch.ones(int(query.shape[-2]), int(key.shape[-2]), dtype=torch.bool).tril()
    if mask is None:
        return w.op("MatMul", w.op("Softmax", scores, axis=-1), value)
    added, seen = _mask(w, out, mask)
    weights = w.op("Softmax", w.op("Add", scores, added), axis=-1)
    return w.op("MatMul", weights if seen is None else w.op("Mul", weights, seen), value)


def _mask(w: Writer, out: Tensor, mask: Any) -> tuple[Operand, Operand | None]:
    """What is added to the scores, and the factors (0, 1) of their softmax where a query may see no key at all.

    torch gives such a query zeros; the softmax of nothing but -inf is NaN.
    """
    infinite = w.number(-math.inf, out.dtype)
    if isinstance(mask, Tensor):
        added = torch.zeros(mask.shape).masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else mask
        if not bool((added == -math.inf).all(-1).any()):
            return added.to(out.dtype), None
        return added.clamp(min=LOWEST).to(out.dtype), (added != -math.inf).to(out.dtype)
    if dtype_of(mask) == torch.bool:
        seen = w.cast(mask, out.dtype)
        unseen = w.op("Sub", seen, w.number(1.0, out.dtype))
        return w.op("Mul", unseen, w.number(-LOWEST, out.dtype)), seen
    seen = w.op("Cast", w.op("Greater", mask, infinite), to=w.type_of(out.dtype))
    return w.op("Max", mask, w.number(LOWEST, out.dtype)), seen


def _for_all_heads(w: Writer, x: Any, heads: int) -> Symbol:
    """Keys or values that heads share, once for each of them."""
    *batch, shared, length, width = (int(n) for n in x.shape)
    thick = w.reshape(x, (*batch, shared, 1, length, width))
    wide = w.op("Expand", thick, w.integers((*batch, shared, heads // shared, length, width)))
    shape = (*batch, heads, length, width)
    return Symbol(w.name_of(w.reshape(wide, shape)), torch.empty(shape, dtype=dtype_of(x), device="meta"))


FORMS: Mapping[Any, Form] = {
    aten.matmul.default: _matmul,
    aten.mm.default: _matmul,
    aten.bmm.default: _matmul,
    aten.addmm.default: _addmm,
    aten.baddbmm.default: _addmm,
    aten.scaled_dot_product_attention.default: _attention,
}
