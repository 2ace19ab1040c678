"""Positivity: which tensors are never zero, so that 0 / y is 0 and not undefined.

Derived for sums of a positive number and of tensors that are never negative, and for what keeps their values.
"""

from __future__ import annotations

from typing import Any

from torch.fx import Node

from passes.graph.nodes import operator_name
from passes.graph.values import Values
from passes.rules.views import SAME_VALUES

REDUCED = frozenset("amax amin avg_pool2d max_pool2d mean sum".split())
"""Operators whose result is not negative where nothing that they read is."""

NEVER_NEGATIVE = frozenset(
    "abs cosh exp hardsigmoid linalg_vector_norm norm relu relu6 sigmoid softmax softplus square std var".split()
)


def never_zero(values: Values, value: Any) -> bool:
    """Whether a tensor or number has no zero for any input."""
    if not isinstance(value, Node):
        return bool(value)
    if value.op == "get_attr":
        return bool((values.tensor(value) != 0).all())
    constant = values.constant(value)
    return bool((constant != 0).all()) if constant is not None else _is_positive(value)


def _is_positive(value: Any) -> bool:
    if not isinstance(value, Node):
        return isinstance(value, (int, float)) and value > 0
    name, args = operator_name(value), value.args
    if name in ("clamp_min", "clamp") and len(args) > 1:
        bounds = [bound for bound in args[1:3] if bound is not None]
        return args[1] is not None and all(not isinstance(bound, Node) and _is_positive(bound) for bound in bounds)
    if name == "add" and len(args) == 2 and not value.kwargs:
        left, right = args
        return (_is_positive(left) and _is_not_negative(right)) or (_is_positive(right) and _is_not_negative(left))
    return (name == "sqrt" or name in SAME_VALUES) and _is_positive(args[0])


def _is_not_negative(value: Any) -> bool:
    if not isinstance(value, Node):
        return isinstance(value, (int, float)) and value >= 0
    name, args = operator_name(value), value.args
    if name in NEVER_NEGATIVE or _is_positive(value):
        return True
    if name == "pow":
        return isinstance(args[1], (int, float)) and args[1] % 2 == 0
    if name == "mul" and args[0] is args[1]:
        return True
    if name in ("add", "mul", "div") and not value.kwargs:
        return all(map(_is_not_negative, args))
    return (name == "sqrt" or name in SAME_VALUES | REDUCED) and _is_not_negative(args[0])
