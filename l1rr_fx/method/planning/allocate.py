"""Allocation: in which order the families lose their channels, so that a machine's time falls at the least loss.

The moves are steps of the machine: as many channels of a family as bring its width to the next multiple of the target,
to the next tile of a kernel's rows, or a few of these at once. The next move is the one with the least loss for what it
saves, with all costs predicted again after each move. The moves form one path, whatever the budget is. So a
smaller budget is a longer part of the path: it never has a smaller loss, nor a larger time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from l1rr_fx.latency import model
from l1rr_fx.machines.jetson_tx2 import JetsonTX2
from l1rr_fx.method.attention.loss import FeatureAttention
from l1rr_fx.method.planning.budget import Analysis, Budget
from l1rr_fx.method.planning.curves import Curve
from l1rr_fx.method.planning.explain import Move
from l1rr_fx.method.planning.families import Family, Ranked, cells, ranked
from l1rr_fx.method.planning.moves import Shapes, costs, shapes
from l1rr_fx.method.planning.search import Removal, Search

STEPS = (1, 2, 4, 8)
"""Multiples of the target's multiple that a move removes, besides those up to the next tiles."""


@dataclass(frozen=True, eq=False)
class Allocatable:
    """A family with the loss of removing its first n channels, `losses`, shape (removable + 1,), which never falls."""

    family: Family
    losses: Tensor

    @property
    def least(self) -> int:
        """The width that stays at least."""
        return self.family.channels - (len(self.losses) - 1)


@dataclass(frozen=True)
class Step:
    """One move: `channels` of a family go. After it the whole loses `loss`, and costs these predicted shares."""

    family: str
    channels: int
    loss: float
    latency: float
    macs: float
    params: float


@dataclass(frozen=True, eq=False)
class Path:
    """Moves in order; `widths[n]`, shape (families,), are the widths after n of them."""

    families: tuple[Allocatable, ...]
    steps: tuple[Step, ...]
    widths: Tensor

    def removals(self) -> list[Removal]:
        """The moves as removals, each of the channels that its family has lost up to then."""
        found = []
        index = {each.family.name: number for number, each in enumerate(self.families)}
        for number, step in enumerate(self.steps, start=1):
            each = self.families[index[step.family]]
            gone = each.family.channels - int(self.widths[number, index[step.family]])
            found.append(Removal(each.family, gone - 1, step.loss))
        return found

    def first(self, limits: Mapping[str, float]) -> int:
        """The least number of moves after which the predicted costs meet the limits, or all of them."""
        met = (
            number
            for number, step in enumerate(self.steps, start=1)
            if all(getattr(step, name) <= limit for name, limit in limits.items())
        )
        return next(met, len(self.steps))


def greedy(
    kernels: Shapes,
    families: Sequence[Allocatable],
    target: JetsonTX2,
    limits: Mapping[str, float],
    *,
    exponent: float = 1.0,
    beyond: float = 0.9,
) -> Path:
    """The path on which each move has the least loss for what it saves ** `exponent`, to `beyond` times the limits.

    With one limit the path does not depend on it. With several, what is saved below `beyond` times a limit does not
    count.
    """
    widths = torch.tensor([each.family.channels for each in families], dtype=torch.float64)
    dense = costs(kernels, widths[None], target)
    losses = torch.zeros(len(families), dtype=torch.float64)
    now, found, steps = _above(dense.shares(dense), limits, beyond)[0], [widths], list[Step]()
    while not steps or any(getattr(steps[-1], name) > beyond * limit for name, limit in limits.items()):
        index, after = candidates(kernels, families, widths, target.multiple)
        if not len(index):
            break
        tried = widths.repeat(len(index), 1)
        tried[torch.arange(len(index)), index] = after
        shares = costs(kernels, tried, target).shares(dense)
        saved = now - _above(shares, limits, beyond)
        lost = torch.stack([_loss(families[i], w) for i, w in zip(index.tolist(), after.tolist(), strict=True)])
        price = (lost - losses[index]) / saved.clamp(min=1e-30) ** exponent
        best = int(price.where(saved > 0, torch.inf).argmin())
        if float(saved[best]) <= 0:
            break
        family = int(index[best])
        gone = int(widths[family] - after[best])
        widths, now, losses[family] = tried[best], now - saved[best], lost[best]
        spent = {name: float(share[best]) for name, share in shares.items()}
        steps.append(Step(families[family].family.name, gone, float(losses.sum()), **spent))
        found.append(widths)
    return Path(tuple(families), tuple(steps), torch.stack(found))


def _above(shares: Mapping[str, Tensor], limits: Mapping[str, float], least: float) -> Tensor:
    """The sum of the limited costs, each over its limit; with several limits, each counts `least` at least."""
    found = [shares[name] / limit for name, limit in limits.items()]
    return torch.stack(found if len(found) == 1 else [each.clamp(min=least) for each in found]).sum(0)


def candidates(
    kernels: Shapes, families: Sequence[Allocatable], widths: Tensor, multiple: int
) -> tuple[Tensor, Tensor]:
    """The next moves from some widths: the index of the family and its width after each."""
    full = torch.cat([torch.ones(1, dtype=torch.float64), widths])
    over = (kernels.rows @ full).round() - 1
    over = over.remainder(model.ROW_TILE) + 1  # rows above the tile below
    index, after = [], []
    for number, each in enumerate(families):
        width, share = int(widths[number]), kernels.rows[:, 1 + number]
        takes = share > 0
        found = {width - step * multiple for step in STEPS}
        for extra in (0, model.ROW_TILE):
            found |= {int(width - n) for n in ((over[takes] + extra) / share[takes]).ceil().unique().tolist()}
        aligned = {-(-w // multiple) * multiple if each.family.channels % multiple == 0 else w for w in found}
        possible = sorted({max(w, each.least) for w in (*found, *aligned)})
        possible = [w for w in possible if each.least <= w < width and (w % multiple == 0 or w == each.least)]
        index += [number] * len(possible)
        after += possible
    return torch.tensor(index, dtype=torch.int64), torch.tensor(after, dtype=torch.float64)


def _loss(each: Allocatable, width: float) -> Tensor:
    return each.losses[each.family.channels - int(width)]


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
        """The search for the least number of moves that meets the budget by the compiler's own plan."""
        limits = {name: limit for name, limit in budget.limits.items() if name != "attention"}
        path = self.path(limits, curves, exponent)
        moves = [Move(step.family, step.channels, step.loss, step.latency) for step in path.steps]
        return Search(self.analysis, budget, attention, path.removals(), blocked, path.first(limits), moves)
