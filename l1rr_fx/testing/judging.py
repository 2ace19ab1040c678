"""New inputs for a network, and how far apart two results are."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from passes.audit.leaves import NUMBERS, Leaf, leaves_of

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

    Outputs are taken apart down to numbers, also those in objects that torch does not know; the list is empty where
    there are none. Activations here are of order 1: outputs below `NOISE` are differences of equal numbers, and
    compared as if they were that large.
    """
    left, right = leaves_of(actual), leaves_of(expected)
    if [leaf.path for leaf in left] != [leaf.path for leaf in right] or _structure(actual) != _structure(expected):
        return [math.inf]
    pairs = [(_number(a), _number(e)) for a, e in zip(left, right, strict=True) if not (a.opaque and e.opaque)]
    return [_difference(a, e) for a, e in pairs if not _says_nothing(a, e)]


def _structure(outputs: Any) -> Any:
    return pytree.tree_flatten(outputs)[1]


def _number(leaf: Leaf) -> Any:
    """The value of a leaf, with fractions of Python and sparse tensors as plain tensors."""
    if isinstance(leaf.value, (float, complex)):
        return torch.tensor(leaf.value, dtype=torch.complex128 if isinstance(leaf.value, complex) else torch.float64)
    return leaf.value.to_dense() if isinstance(leaf.value, Tensor) and leaf.value.is_sparse else leaf.value


def _says_nothing(actual: Any, expected: Any) -> bool:
    """Whether two values are the same and hold no number."""
    if isinstance(actual, Tensor) and isinstance(expected, Tensor):
        return actual.shape == expected.shape and expected.numel() == 0
    return not isinstance(expected, (Tensor, *NUMBERS)) and bool(actual == expected)


def _difference(actual: Any, expected: Any) -> float:
    if not isinstance(expected, Tensor) or not isinstance(actual, Tensor):
        return 0.0 if type(actual) is type(expected) and actual == expected else math.inf
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return math.inf
    if not (expected.is_floating_point() or expected.is_complex()):
        return 0.0 if torch.equal(actual, expected) else math.inf
    if torch.equal(actual, expected):
        return 0.0
    if not torch.equal(actual.isnan(), expected.isnan()):
        return math.inf
    actual, expected = actual.detach(), expected.detach()
    gap = (actual - expected).nan_to_num(0.0).abs().max()
    return float(gap / expected.nan_to_num(0.0).abs().max().clamp_min(NOISE))


def has_constant_output(model: nn.Module, args: tuple[Any, ...]) -> bool:
    """Whether some output is the same for two random inputs."""
    with torch.no_grad():
        runs = [leaves_of(copy.deepcopy(model)(*fresh(args, seed))) for seed in (1, 2)]
    pairs = [(a.value, b.value) for a, b in zip(*runs, strict=True) if isinstance(a.value, Tensor)]
    return any(max(differences(a, b), default=0.0) < CONSTANT for a, b in pairs)
