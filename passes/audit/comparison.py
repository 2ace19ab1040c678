"""Comparison: how far the outputs of two networks are apart, and what was compared."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from passes.audit.leaves import NUMBERS, Leaf, leaves_of

TOLERANCE: Mapping[torch.dtype, float] = {
    torch.float64: 1e-10,
    torch.float32: 1e-4,
    torch.float16: 3e-2,
    torch.bfloat16: 2e-1,
}
"""The largest relative deviation that the reassociation of sums explains, by dtype.

Deep detectors stay a hundred times below it in float32 and float64; half precision loses more.
"""

FLAT = re.compile(r"(\[\d+\])?")
SHOWN_PLACES = 3


@dataclass(frozen=True)
class ComparedLeaf:
    """What the comparison of one leaf gave.

    `deviation` is max |a - b| / max |a| over the finite numbers, `numbers` their count and `infinite` that of the
    others, which are the same kind of NaN or infinity on both sides (or `deviation` is infinite). `unequal`: integers
    or words differ, which no rounding explains. `opaque`: it could not be compared.
    """

    path: str
    deviation: float = 0.0
    numbers: int = 0
    infinite: int = 0
    unequal: bool = False
    opaque: bool = False

    def within(self, allowed: float) -> bool:
        return self.deviation <= allowed and not self.unequal


@dataclass(frozen=True)
class Comparison:
    """The outputs of two networks compared, leaf by leaf; `problem` says why they could not be (None: they were)."""

    leaves: tuple[ComparedLeaf, ...]
    problem: str | None = None

    @property
    def deviation(self) -> float:
        """The largest relative deviation of a leaf; infinite where the structures differ."""
        return math.inf if self.problem else max((leaf.deviation for leaf in self.leaves), default=0.0)

    @property
    def compared(self) -> int:
        """How many finite numbers were compared."""
        return sum(leaf.numbers for leaf in self.leaves)

    def within(self, allowed: float) -> bool:
        """Whether no leaf deviates by more, and no integer or word differs."""
        return not self.problem and all(leaf.within(allowed) for leaf in self.leaves)

    def without(self, paths: Collection[str]) -> Comparison:
        """The comparison of the leaves elsewhere."""
        return Comparison(tuple(leaf for leaf in self.leaves if leaf.path not in paths), self.problem)

    def notes(self) -> tuple[str, ...]:
        """Lines on what this comparison does not say."""
        lines = []
        if not self.problem and self.compared == 0:
            lines.append("the outputs hold no finite number on this example: nothing of them was compared")
        elif infinite := sum(leaf.infinite for leaf in self.leaves):
            lines.append(f"{infinite:,} numbers of the outputs are NaN or infinite in both networks, which says little")
        if opaque := [leaf.path for leaf in self.leaves if leaf.opaque]:
            lines.append(f"not compared, because it cannot be taken apart: {places(opaque)}")
        return tuple(lines)

    def __str__(self) -> str:
        if self.problem:
            return self.problem
        if unequal := [leaf.path for leaf in self.leaves if leaf.unequal]:
            return f"deviates by {self.deviation:.3g}, and by integers or words at {places(unequal)}"
        return f"deviates by {self.deviation:.3g}"


def compare(zeroed: Any, pruned: Any) -> Comparison:
    """The outputs of two networks, taken apart and compared number by number.

    Leaves are those of the same path. A flat list of leaves, as a graph gives it, fits any structure by their order.
    """
    left, right = leaves_of(zeroed), leaves_of(pruned)
    pairs = _pairs(left, right)
    if pairs is None:
        return Comparison((), f"has outputs of another structure ({len(right)} leaves for {len(left)})")
    return Comparison(tuple(_compared(a, b) for a, b in pairs))


def relative_deviation(zeroed: Any, pruned: Any) -> float:
    """The largest |zeroed - pruned| of any output, relative to that output's largest |zeroed|.

    Infinite for outputs of different structure or shape, and where one has a NaN or an infinity and the other has none.
    0.0 where there is no number to compare: `compare` counts them.
    """
    return compare(zeroed, pruned).deviation


def tolerance(outputs: Any, computed_in: Iterable[Tensor] = ()) -> float:
    """The deviation allowed between outputs: that of their least precise tensor.

    Numbers that are no tensors are as precise as the least precise of `computed_in`.
    """
    leaves = [leaf.value for leaf in leaves_of(outputs) if leaf.is_number]
    tensors = [value for value in leaves if isinstance(value, Tensor)]
    if len(tensors) < len(leaves):
        tensors.extend(computed_in)
    dtypes = [value.dtype for value in tensors if value.is_floating_point() or value.is_complex()]
    return max((TOLERANCE.get(_real(dtype), 1e-4) for dtype in dtypes), default=TOLERANCE[torch.float64])


def _real(dtype: torch.dtype) -> torch.dtype:
    return dtype.to_real() if dtype.is_complex else dtype


def places(paths: Collection[str]) -> str:
    """The first of these places, as a phrase."""
    shown = [f"output{path}" for path in list(paths)[:SHOWN_PLACES]]
    rest = len(paths) - len(shown)
    return ", ".join(shown) + (f" and {rest} more" if rest else "")


def _pairs(left: tuple[Leaf, ...], right: tuple[Leaf, ...]) -> list[tuple[Leaf, Leaf]] | None:
    """Which leaf is compared with which; None where the structures differ."""
    if len(left) != len(right):
        return None
    ours, theirs = [leaf.path for leaf in left], [leaf.path for leaf in right]
    if ours == theirs or any(all(FLAT.fullmatch(path) for path in paths) for paths in (ours, theirs)):
        return list(zip(left, right, strict=True))
    by_path = {leaf.path: leaf for leaf in right}
    if by_path.keys() != set(ours) or len(by_path) != len(right):
        return None
    return [(leaf, by_path[leaf.path]) for leaf in left]


def _compared(a: Leaf, b: Leaf) -> ComparedLeaf:
    if a.opaque or b.opaque:
        return ComparedLeaf(a.path, opaque=True)
    x, y = a.value, b.value
    if isinstance(x, Tensor) and isinstance(y, Tensor):
        return compared_tensors(x, y, a.path)
    if isinstance(x, NUMBERS) and isinstance(y, NUMBERS):
        return _compared_numbers(x, y, a.path)
    if isinstance(x, Tensor) or isinstance(y, Tensor):
        return ComparedLeaf(a.path, math.inf)
    return ComparedLeaf(a.path, unequal=type(x) is not type(y) or bool(x != y))


def _compared_numbers(x: Any, y: Any, path: str) -> ComparedLeaf:
    """Numbers of Python; integers may be larger than those of a tensor."""
    if isinstance(x, int) and isinstance(y, int):
        return ComparedLeaf(path, min(1.0, abs(x - y) / max(1, abs(x))), 1, unequal=x != y)
    kind = torch.complex128 if isinstance(x, complex) or isinstance(y, complex) else torch.float64
    return compared_tensors(torch.tensor(x, dtype=kind), torch.tensor(y, dtype=kind), path)


def compared_tensors(a: Tensor, b: Tensor, path: str = "") -> ComparedLeaf:
    """Two tensors compared; sparse ones are compared where either has an element."""
    if a.shape != b.shape or a.is_sparse != b.is_sparse:
        return ComparedLeaf(path, math.inf)
    if a.is_sparse:
        return _compared_sparse(a.detach().coalesce(), b.detach().coalesce(), path)
    if a.numel() == 0:
        return ComparedLeaf(path)
    a, b = a.detach(), b.detach().to(a.device)
    exact = not (a.is_floating_point() or a.is_complex())
    unequal = exact and not torch.equal(a, b.to(a.dtype))
    x, y = _as_double(a), _as_double(b)
    difference = float((x - y).abs().max())
    if math.isfinite(difference):  # so is every number
        scale = float(x.abs().max())
        return ComparedLeaf(path, difference / scale if scale > 0 else difference, a.numel(), unequal=unequal)
    if any(not torch.equal(kind(x), kind(y)) for kind in (torch.isnan, torch.isposinf, torch.isneginf)):
        return ComparedLeaf(path, math.inf)
    finite = x.isfinite()
    count = int(finite.sum())
    infinite = x.numel() - count
    if not count:
        return ComparedLeaf(path, infinite=infinite)
    difference, scale = float((x - y)[finite].abs().max()), float(x[finite].abs().max())
    return ComparedLeaf(path, difference / scale if scale > 0 else difference, count, infinite)


def _compared_sparse(a: Tensor, b: Tensor, path: str) -> ComparedLeaf:
    if torch.equal(a.indices(), b.indices()):
        return compared_tensors(a.values(), b.values(), path)
    difference = (a - b).coalesce().values()
    scale = float(a.values().abs().max()) if a.values().numel() else 0.0
    worst = float(difference.abs().max()) if difference.numel() else 0.0
    if not math.isfinite(worst):
        return ComparedLeaf(path, math.inf)
    return ComparedLeaf(path, worst / scale if scale > 0 else worst, difference.numel())


def _as_double(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor.resolve_conj().to(torch.complex128)) if tensor.is_complex() else tensor.double()
