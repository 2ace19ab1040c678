"""The halves of a frozen batch norm: a product or a sum with a constant for each channel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

aten = torch.ops.aten

HALVES: Mapping[Any, str] = {
    aten.mul.Tensor: "mul",
    aten.div.Tensor: "div",
    aten.add.Tensor: "add",
    aten.sub.Tensor: "sub",
}


def half_of(node: Node, constants: Mapping[Node, Any]) -> tuple[Node, Tensor, Tensor, int] | None:
    """(source, scale, shift, rank) of x * c, x / c, x + c, x - c or c - x; None for any other node.

    The constant varies along one axis, which is axis 1 of a tensor of this rank. Scale and shift are float64.
    """
    name = HALVES.get(node.target) if node.op == "call_function" else None
    if name is None or node.kwargs or len(node.args) != 2:
        return None
    first, second = node.args
    sides = [side for side in (first, second) if isinstance(side, Node) and side not in constants]
    other: Any = second if sides == [first] else first
    value = constants.get(other) if isinstance(other, Node) else None
    if len(sides) != 1 or not isinstance(value, Tensor) or not value.is_floating_point():
        return None
    lines = [axis for axis, size in enumerate(value.shape) if size > 1]
    if len(lines) != 1 or (name == "div" and other is first):
        return None
    line = value.detach().double().flatten()
    one, zero = torch.ones_like(line), torch.zeros_like(line)
    by_name = {"mul": (line, zero), "div": (1 / line, zero), "add": (one, line), "sub": (one, -line)}
    scale, shift = (-one, line) if name == "sub" and other is first else by_name[name]
    if not bool(scale.isfinite().all()):
        return None
    return sides[0], scale, shift, 1 + value.dim() - lines[0]
