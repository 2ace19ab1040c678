"""Allocation: the path of a model on a machine that is understood, and the state on it that meets a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from l1rr_fx.machines.jetson_tx2 import JetsonTX2
from l1rr_fx.method.attention.loss import FeatureAttention
from l1rr_fx.method.planning.budget import Analysis, Budget
from l1rr_fx.method.planning.curves import Curve
from l1rr_fx.method.planning.families import Family, Ranked, cells, ranked
from l1rr_fx.method.planning.moves import Shapes, shapes
from l1rr_fx.method.planning.paths import Allocatable, Path, greedy
from l1rr_fx.method.planning.search import Search


@dataclass(frozen=True, eq=False)
class Moves:
    """The moves that a machine understands, for one model: its families in the order of their scores, and the kernels
    by the families' widths."""

    analysis: Analysis
    target: JetsonTX2
    ranked: tuple[Ranked, ...]
    shapes: Shapes

    @classmethod
    def of(
        cls, analysis: Analysis, scores: Mapping[str, Tensor], kept: frozenset[str], floor: Callable[[int], int]
    ) -> Moves | None:
        """The moves of a model on its target; None where the target predicts no kernels, or nothing can be removed.

        `scores`: one number a channel of every site that is not `kept` whole. `floor`: how many of so many stay."""
        target = analysis.options.target
        if not isinstance(target, JetsonTX2) or analysis.options.mode != "recombine" or analysis.latency is not None:
            return None
        found = cells(analysis.program, analysis.sites)
        already = analysis.already_zero()
        families = [
            ranked(family, scores, already, floor(family.channels)) for family in found.families(analysis.sites, kept)
        ]
        families = [each for each in families if len(each.scores)]
        if not families:
            return None
        return cls(analysis, target, tuple(families), shapes(found, [each.family for each in families]))

    @property
    def families(self) -> tuple[Family, ...]:
        return tuple(each.family for each in self.ranked)

    def path(self, limits: Mapping[str, float], curves: Mapping[str, Curve], exponent: float = 1.0) -> Path:
        """The path for limits on cost; the losses are those of the curves, or of the scores where there are none."""

        def losses(each: Ranked) -> Tensor:
            if (curve := curves.get(each.family.name)) is None:
                return each.share_lost()
            return torch.tensor([curve.at(n) for n in range(len(each.scores) + 1)], dtype=torch.float64)

        families = [Allocatable(each.family, losses(each)) for each in self.ranked]
        return greedy(self.shapes, families, self.target, limits, exponent=exponent)

    def search(
        self,
        budget: Budget,
        attention: FeatureAttention | None,
        blocked: Mapping[str, str],
        curves: Mapping[str, Curve],
        exponent: float = 1.0,
    ) -> Search:
        """The search for the first state of the path that meets the budget by the compiler's own plan."""
        limits = {name: limit for name, limit in budget.limits.items() if name != "attention"}
        return PathSearch(self.analysis, budget, attention, self.path(limits, curves, exponent), blocked)


class PathSearch(Search):
    """The search along a path, whose states have predicted costs.

    What the compiler predicts is near to it, by a factor that hardly changes from one state to the next. So each
    question says where the next one is to be asked."""

    order: Path

    def count(self) -> int:
        """The first state that meets the limits on cost. InputError if none does, or none within the attention loss."""
        states, low, high = self.order.states, -1, len(self.order)
        count, known = self.order.first(), False
        while low < high:
            true = self._over(count)
            if true <= 1:
                high, known = count, True
            elif count == len(self.order):
                raise self._impossible(count)
            else:
                low = count
            factor = true / states[count].excess if math.isfinite(true) else 1.0
            hoped = self.order.first(1 / factor)
            if known and not low < hoped < high:
                break
            count = min(max(hoped, low + 1), high - known)
        return self._within_attention(high)

    def _over(self, count: int) -> float:
        """The largest share of the dense cost over its limit, as the compiler predicts it; infinite if an output would
        be constant."""
        shares = self.shares(count)
        return math.inf if shares is None else max(shares[name] / limit for name, limit in self.limits.items())
