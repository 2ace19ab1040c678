"""The time of ONNX Runtime's kernels on one CPU: for each kind of kernel a sum of amounts of work times coefficients.

The coefficients are fitted to kernels that were timed on that CPU. They are not negative, so that more work never takes
less time.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from l1rr_fx.latency.cpu_kernels import BLOCKED_KINDS, KINDS, CpuKernel, Work

VARIABLES = len(Work().amounts)


@dataclass(frozen=True)
class Sample:
    """The measured seconds of a kernel of that kind."""

    kind: str
    work: Work
    seconds: float


@dataclass(frozen=True)
class CpuModel:
    """Seconds for each amount of `Work.amounts`, by the kind of kernel; `block` is the number of channels in a block.

    `overhead` is what ONNX Runtime's profiler adds to a kernel there, in seconds; it is in no prediction. Raises
    ValueError for kinds that are missing and for coefficients that are no prices.
    """

    block: int
    overhead: float
    coefficients: Mapping[str, tuple[float, ...]]

    def __post_init__(self) -> None:
        wanted = KINDS if self.block > 1 else [kind for kind in KINDS if kind not in BLOCKED_KINDS]
        if missing := [kind for kind in wanted if len(self.coefficients.get(kind, ())) != VARIABLES]:
            raise ValueError(f"there are no {VARIABLES} coefficients of {', '.join(missing)}")
        if not all(0 <= each < math.inf for prices in self.coefficients.values() for each in prices):
            raise ValueError("a coefficient is negative or no number")

    @classmethod
    def fitted(cls, block: int, overhead: float, samples: Iterable[Sample]) -> CpuModel:
        """The model with the least squares of relative errors. ValueError if a kind has no samples."""
        found: dict[str, list[Sample]] = {}
        for sample in samples:
            found.setdefault(sample.kind, []).append(sample)
        return cls(block, overhead, {kind: _least_squares(each) for kind, each in found.items()})

    def seconds(self, kernels: Iterable[CpuKernel]) -> float:
        """The predicted seconds of kernels that run one after the other."""
        return sum(self.kernel(each.kind, each.work) for each in kernels)

    def kernel(self, kind: str, work: Work) -> float:
        """The predicted seconds of one kernel."""
        return sum(price * amount for price, amount in zip(self.coefficients[kind], work.amounts, strict=True))


def _least_squares(samples: Sequence[Sample]) -> tuple[float, ...]:
    """Of all subsets of the variables whose coefficients are not negative, the one with the least error."""
    seconds = torch.tensor([each.seconds for each in samples], dtype=torch.float64)
    amounts = torch.tensor([each.work.amounts for each in samples], dtype=torch.float64)
    scale = amounts.amax(0).clamp(min=1e-30)
    rows, ones = amounts / scale / seconds[:, None], torch.ones(len(samples), 1, dtype=torch.float64)
    varied = [index for index in range(amounts.shape[1]) if bool((amounts[:, index] > 0).any())]
    best, least = torch.zeros(amounts.shape[1], dtype=torch.float64), math.inf
    for count in range(1, min(len(varied), len(samples)) + 1):
        for chosen in combinations(varied, count):
            found, error = _solved(rows[:, list(chosen)], ones)
            if error < least * (1 - 1e-9) and bool((found >= 0).all()):
                best, least = torch.zeros_like(best), error
                best[list(chosen)] = found
    return tuple((best / scale).tolist())


def _solved(rows: Tensor, ones: Tensor) -> tuple[Tensor, float]:
    found = torch.linalg.lstsq(rows, ones).solution
    return found.flatten(), float((rows @ found - ones).square().sum())
