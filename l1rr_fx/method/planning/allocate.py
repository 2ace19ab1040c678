"""Allocation: the path of a model on a machine that is understood, and the state on it that meets a budget."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from l1rr_fx.machines.jetson_tx2 import JetsonTX2
from l1rr_fx.method.attention.loss import FeatureAttention
from l1rr_fx.method.planning.blocks import Block, blocks
from l1rr_fx.method.planning.curves import Curve, Unit
from l1rr_fx.method.planning.families import Family, Ranked, cells, ranked
from l1rr_fx.method.planning.moves import Shapes, shapes
from l1rr_fx.method.planning.paths import Allocatable, Path, greedy
from l1rr_fx.method.planning.search import Search
from l1rr_fx.method.sites.budget import Analysis, Budget


@dataclass(frozen=True, eq=False)
class Moves:
    """The moves that a machine understands, for one model: its families in the order of their scores, its blocks, and
    the kernels by their widths."""

    analysis: Analysis
    target: JetsonTX2
    ranked: tuple[Ranked, ...]
    blocks: tuple[Block, ...]
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
        ends = blocks(analysis.program, analysis.sites, analysis.values, kept)
        return cls(analysis, target, tuple(families), ends, shapes(found, [each.family for each in families], ends))

    @property
    def families(self) -> tuple[Family, ...]:
        return tuple(each.family for each in self.ranked)

    @property
    def units(self) -> tuple[Unit, ...]:
        """The families, and behind them the blocks."""
        return (*self.families, *self.blocks)

    def path(self, limits: Mapping[str, float], curves: Mapping[str, Curve], exponent: float = 1.0) -> Path:
        """The path for limits on cost; the losses are those of the curves, or of the scores where there are none."""

        def losses(unit: Unit, scores: Callable[[], Tensor]) -> Tensor:
            if (curve := curves.get(unit.name)) is None:
                return scores()
            return torch.tensor([curve.at(n) for n in range(len(unit.order) + 1)], dtype=torch.float64)

        found = [Allocatable(each.family, losses(each.family, each.share_lost)) for each in self.ranked]
        for block in self.blocks:
            inner = tuple(number for number, family in enumerate(self.families) if block.holds(family))
            lost = losses(block, partial(self._block_lost, block, inner))
            found.append(Allocatable(block, lost, inner))
        return greedy(self.shapes, found, self.target, limits, exponent=exponent)

    def _block_lost(self, block: Block, inner: Sequence[int]) -> Tensor:
        """The loss of a block from scores alone, shape (2,): its site's share of each family that it has channels of,
        counted as channels are, and all scores of the families inside of it."""
        lost = sum(each.site_lost(block.sites[0].name) for each in self.ranked)
        return torch.tensor([0.0, float(lost + sum(float(self.ranked[n].total) for n in inner))], dtype=torch.float64)

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
