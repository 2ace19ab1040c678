"""Bounds of element-wise functions: the interval that f(x, y, ...) lies in, given those of its arguments.

A function that is not listed has no bounds, unless all of its arguments are constant: then f is called (`probe`).
Intervals are closed: exp may underflow to 0, so that its bound 0 is no proof that it is not zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from passes.graph.ranges import Range

Bounds = tuple[Tensor, Tensor]
Bound = Callable[..., Bounds]


def _rising(function: Callable[[Tensor], Tensor]) -> Bound:
    """The bounds of a function that never falls."""
    return lambda x: (function(x.low), function(x.high))


def _within(low: float, high: float) -> Bound:
    """The bounds of a function whose values all lie between two numbers."""
    return lambda x, *_: (torch.full_like(x.low, low), torch.full_like(x.low, high))


def _add(x: Range, y: Range) -> Bounds:
    return x.low + y.low, x.high + y.high


def _sub(x: Range, y: Range) -> Bounds:
    return x.low - y.high, x.high - y.low


def _mul(x: Range, y: Range) -> Bounds:
    corners = [_times(a, b) for a in (x.low, x.high) for b in (y.low, y.high)]
    return _least(corners), _greatest(corners)


def _times(a: Tensor, b: Tensor) -> Tensor:
    """a b, where 0 times infinity is 0: the infinite end of an interval is never reached."""
    return torch.where((a == 0) | (b == 0), 0.0, a * b)


def _div(x: Range, y: Range) -> Bounds:
    inverse = Range(1 / y.high, 1 / y.low)
    low, high = _mul(x, inverse)
    split = ~y.excludes_zero
    return low.masked_fill(split, -math.inf), high.masked_fill(split, math.inf)


def _least(ends: Sequence[Tensor]) -> Tensor:
    return torch.stack(torch.broadcast_tensors(*ends)).amin(0)


def _greatest(ends: Sequence[Tensor]) -> Tensor:
    return torch.stack(torch.broadcast_tensors(*ends)).amax(0)


def _abs(x: Range) -> Bounds:
    ends = (x.low.abs(), x.high.abs())
    across = (x.low <= 0) & (x.high >= 0)
    return _least(ends).masked_fill(across, 0.0), _greatest(ends)


def _square(x: Range) -> Bounds:
    low, high = _abs(x)
    return low * low, high * high


def _pow(x: Range, y: Range) -> Bounds:
    """By a constant exponent: an even one, or any one of a number that is not negative."""
    exponent = float(y.low.reshape(-1)[0]) if bool((y.low == y.high).all()) and y.low.numel() == 1 else math.nan
    if exponent > 0 and exponent % 2 == 0:
        low, high = _abs(x)
        return low**exponent, high**exponent
    ends = (x.low.clamp_min(0) ** exponent, x.high**exponent)
    some = (x.low < 0) | math.isnan(exponent) | ((x.low == 0) & (exponent < 0))
    return _least(ends).masked_fill(some, -math.inf), _greatest(ends).masked_fill(some, math.inf)


def _clamp(x: Range, least: Range | None = None, most: Range | None = None) -> Bounds:
    low, high = x.low, x.high
    if least is not None:
        low, high = torch.maximum(low, least.low), torch.maximum(high, least.high)
    if most is not None:
        low, high = torch.minimum(low, most.low), torch.minimum(high, most.high)
    return low, high


def _hardtanh(x: Range, least: Range | None = None, most: Range | None = None) -> Bounds:
    one = Range.constant(torch.ones(()))
    return _clamp(x, least or Range(-one.low, -one.low), most or one)


def _leaky_relu(x: Range, slope: Range | None = None) -> Bounds:
    slope = slope or Range.constant(torch.tensor(0.01))
    rises = bool((slope.low >= 0).all())
    ends = (x.low, x.high, _times(x.low, slope.low), _times(x.high, slope.low))
    if rises:
        return torch.where(x.low > 0, x.low, ends[2]), torch.where(x.high > 0, x.high, ends[3])
    return _least([e.clamp_max(0) for e in ends]), _greatest([e.clamp_min(0) for e in ends])


def _extreme(which: Callable[[Tensor, Tensor], Tensor]) -> Bound:
    return lambda x, y: (which(x.low, y.low), which(x.high, y.high))


def _sqrt(x: Range) -> Bounds:
    return x.low.clamp_min(0).sqrt(), x.high.clamp_min(0).sqrt()


def _log(x: Range) -> Bounds:
    return x.low.clamp_min(0).log(), x.high.clamp_min(0).log()


BOUNDS: Mapping[str, Bound] = {
    "add": _add,
    "sub": _sub,
    "subtract": _sub,
    "mul": _mul,
    "multiply": _mul,
    **dict.fromkeys(("div", "divide", "true_divide"), _div),
    "neg": lambda x: (-x.high, -x.low),
    "abs": _abs,
    "square": _square,
    "pow": _pow,
    **dict.fromkeys(("clamp", "clip"), _clamp),
    "clamp_min": lambda x, least: _clamp(x, least),
    "clamp_max": lambda x, most: _clamp(x, None, most),
    "hardtanh": _hardtanh,
    "leaky_relu": _leaky_relu,
    **dict.fromkeys(("maximum", "max"), _extreme(torch.maximum)),
    **dict.fromkeys(("minimum", "min"), _extreme(torch.minimum)),
    "relu": _rising(torch.relu),
    "relu6": _rising(lambda x: x.clamp(0, 6)),
    "exp": _rising(torch.exp),
    "sigmoid": _rising(torch.sigmoid),
    "tanh": _rising(torch.tanh),
    "hardsigmoid": _rising(lambda x: (x / 6 + 0.5).clamp(0, 1)),
    "floor": _rising(torch.floor),
    "ceil": _rising(torch.ceil),
    "round": _rising(torch.round),
    "trunc": _rising(torch.trunc),
    **dict.fromkeys(("sign", "sgn"), _rising(torch.sign)),
    "atan": _rising(torch.atan),
    "erf": _rising(torch.erf),
    "sqrt": _sqrt,
    "log": _log,
    "rsqrt": _within(0.0, math.inf),
    "softplus": _within(0.0, math.inf),
    "cosh": _within(1.0, math.inf),
    **dict.fromkeys(("sin", "cos"), _within(-1.0, 1.0)),
}
"""By operator name: from the ranges of the arguments, in their order, to the bounds of the result."""
