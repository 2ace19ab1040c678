"""New inputs for a network, and how far apart two results are."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

NOISE = 1e-2
CONSTANT = 1e-12


def fresh(args: Any, seed: int, batch: int | None = None) -> Any:
    """New random inputs like `args`; `batch` replaces the length of axis 0."""
    generator = torch.Generator().manual_seed(seed)

    def draw(old: Any) -> Any:
        if not isinstance(old, Tensor):
            return old
        shape = (old.shape if batch is None else (batch, *old.shape[1:])) if old.ndim else ()
        if old.is_floating_point():
            return torch.randn(shape, generator=generator, dtype=old.dtype)
        return torch.randint(0, int(old.max()) + 1, shape, generator=generator, dtype=old.dtype)

    return pytree.tree_map(draw, args)


def differences(actual: Any, expected: Any) -> list[float]:
    """The deviation of every output, max |a - e| / max |e|; infinite where structure, shape or kind differ.

    Activations here are of order 1: outputs below `NOISE` are differences of equal numbers, and compared as if they
    were that large.
    """
    left, left_spec = pytree.tree_flatten(actual)
    right, right_spec = pytree.tree_flatten(expected)
    if left_spec != right_spec:
        return [math.inf]
    return [_difference(a, e) for a, e in zip(left, right, strict=True)]


def _difference(actual: Any, expected: Any) -> float:
    if not isinstance(expected, Tensor):
        return 0.0 if actual == expected else math.inf
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return math.inf
    if not (expected.is_floating_point() or expected.is_complex()):
        return 0.0 if torch.equal(actual, expected) else math.inf
    if expected.numel() == 0 or torch.equal(actual, expected):
        return 0.0
    if not torch.equal(actual.isnan(), expected.isnan()):
        return math.inf
    actual, expected = actual.detach(), expected.detach()
    gap = (actual - expected).nan_to_num(0.0).abs().max()
    return float(gap / expected.nan_to_num(0.0).abs().max().clamp_min(NOISE))


def has_constant_output(model: nn.Module, args: tuple[Any, ...]) -> bool:
    """Whether some output is the same for two random inputs."""
    with torch.no_grad():
        runs = [pytree.tree_leaves(copy.deepcopy(model)(*fresh(args, seed))) for seed in (1, 2)]
    return any(max(differences(a, b)) < CONSTANT for a, b in zip(*runs, strict=True) if isinstance(a, Tensor))
