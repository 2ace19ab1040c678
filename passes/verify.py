"""Proof by running: the small network against the zeroed one, and the first node that differs if they do."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

TOLERANCE: Mapping[torch.dtype, float] = {
    torch.float64: 1e-10,
    torch.float32: 1e-4,
    torch.float16: 3e-2,
    torch.bfloat16: 2e-1,
}
"""The largest relative deviation that the reassociation of sums explains, by dtype: deep detectors stay a hundred times
below it in float32 and float64; half precision loses more."""


def relative_deviation(zeroed: Any, pruned: Any) -> float:
    """The largest |zeroed - pruned| of any output tensor, relative to that tensor's largest |zeroed|.

    Outputs of different structure or shape deviate infinitely; so does NaN where the other has a number.
    """
    left, right = pytree.tree_leaves(zeroed), pytree.tree_leaves(pruned)
    if len(left) != len(right):
        return float("inf")
    worst = 0.0
    for a, b in zip(left, right, strict=True):
        if isinstance(a, Tensor) != isinstance(b, Tensor):
            return float("inf")
        if not isinstance(a, Tensor):
            continue
        worst = max(worst, _deviation(a, b))
    return worst


def _deviation(a: Tensor, b: Tensor) -> float:
    if a.shape != b.shape:
        return float("inf")
    if a.numel() == 0:
        return 0.0
    x, y = a.detach().double(), b.detach().double()
    if not torch.equal(x.isnan(), y.isnan()) or not torch.equal(x.isinf(), y.isinf()):
        return float("inf")
    finite = x.isfinite()
    if not bool(finite.any()):
        return 0.0
    difference = float((x - y)[finite].abs().max())
    scale = float(x[finite].abs().max())
    return difference / scale if scale > 0 else difference


def tolerance(outputs: Any) -> float:
    """The deviation allowed for outputs of this precision: that of the least precise tensor."""
    dtypes = [t.dtype for t in pytree.tree_leaves(outputs) if isinstance(t, Tensor) and t.is_floating_point()]
    return max((TOLERANCE.get(d, 1e-4) for d in dtypes), default=TOLERANCE[torch.float64])


@torch.no_grad()
def run_aside(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The module's outputs, its buffers left as they were and its inputs not written into."""
    buffers = {name: buffer.clone() for name, buffer in module.named_buffers()}
    args, kwargs = copy.deepcopy(args), copy.deepcopy(dict(kwargs))
    generator = torch.random.get_rng_state()
    try:
        return module(*args, **kwargs)
    finally:
        torch.random.set_rng_state(generator)
        for name, buffer in module.named_buffers():
            buffer.copy_(buffers[name])
