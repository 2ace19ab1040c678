"""Padding, by a number or by what the tensor holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from l1rr_fx.lowering.onnx.operators.base import Form
from l1rr_fx.lowering.onnx.writer import Operand, Symbol, Writer
from passes.errors import LoweringError

aten = torch.ops.aten

PAD_MODES = {"constant": "constant", "reflect": "reflect", "replicate": "edge"}


def _pad(w: Writer, out: Tensor, x: Symbol, pad: Sequence[int], mode: str = "constant", value: Any = None) -> Operand:
    """torch counts axes from the last, ONNX from the first."""
    if mode == "circular":
        return _circular(w, x, pad)
    width = len(pad) // 2
    before = [0] * (x.rank - width) + [int(pad[2 * i]) for i in reversed(range(width))]
    after = [0] * (x.rank - width) + [int(pad[2 * i + 1]) for i in reversed(range(width))]
    if not any(before + after):
        return x
    if mode != "constant":
        return w.op("Pad", x, w.integers(before + after), mode=PAD_MODES[mode])
    if min(before + after) < 0:  # cropping: not every reader of Pad knows it
        x = _cropped(w, x, before, after)
        before, after = ([max(n, 0) for n in side] for side in (before, after))
        if not any(before + after):
            return x
    return _filled(w, out, x, w.integers(before + after), value or 0)


def _filled(w: Writer, out: Tensor, x: Any, widths: str, value: Any) -> str:
    """Padding by a number. Where only FLOAT is padded by other than 0, the values are padded less the number."""
    if out.dtype == torch.bool and not w.target.reads("Pad of BOOL"):
        numbers = w.op("Cast", w.op("Not", x) if value else x, to="INT32")
        found = w.op("Cast", w.op("Pad", numbers, widths, mode="constant"), to="BOOL")
        return w.op("Not", found) if value else found
    kind, plain = w.type_of(out.dtype), w.target.reads("Pad by a number that is not FLOAT")
    if not value or kind == "FLOAT" or plain:
        return w.op("Pad", x, widths, w.number(value, out.dtype), mode="constant")
    if kind == "FLOAT16":
        fill = w.constant(torch.tensor(float(value)), "FLOAT")
        return w.op("Cast", w.op("Pad", w.op("Cast", x, to="FLOAT"), widths, fill, mode="constant"), to=kind)
    fill = w.number(value, out.dtype)
    return w.op("Add", w.op("Pad", w.op("Sub", x, fill), widths, mode="constant"), fill)


def _cropped(w: Writer, x: Symbol, before: Sequence[int], after: Sequence[int]) -> Any:
    found: Operand = x
    for axis, (left, right) in enumerate(zip(before, after, strict=True)):
        if left < 0 or right < 0:
            found = w.slice(found, axis, max(-left, 0), x.shape[axis] + min(right, 0))
    return found


def _circular(w: Writer, x: Symbol, pad: Sequence[int]) -> Operand:
    if min(pad) < 0:
        raise LoweringError("circular padding by a negative number has no form here: cut the edge off with a slice")
    found: Operand = x
    for i in range(len(pad) // 2):
        axis, left, right = x.rank - 1 - i, int(pad[2 * i]), int(pad[2 * i + 1])
        length = x.shape[axis]
        parts = [w.slice(found, axis, length - left, length)] if left else []
        parts += [w.name_of(found)]
        parts += [w.slice(found, axis, 0, right)] if right else []
        found = w.op("Concat", *parts, axis=axis) if len(parts) > 1 else found
    return found


def _padded(mode: str) -> Form:
    return lambda w, out, x, pad: _pad(w, out, x, pad, mode)


FORMS: Mapping[Any, Form] = {
    aten.pad.default: _pad,
    aten.constant_pad_nd.default: lambda w, out, x, pad, value=0: _pad(w, out, x, pad, "constant", value),
    **{getattr(aten, f"reflection_pad{n}d").default: _padded("reflect") for n in (1, 2, 3)},
    **{getattr(aten, f"replication_pad{n}d").default: _padded("replicate") for n in (1, 2, 3)},
}
