"""How many channels of each layer, and which: the smallest loss of attention, or the smallest scores, for a budget."""

from __future__ import annotations

import logging
import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from l1rr_fx.attention import AttentionLoss, FeatureAttention
from l1rr_fx.budget import Analysis, Budget, LatencyPredictor
from l1rr_fx.curves import Curve, Progress, Unit, measured_curves
from l1rr_fx.plan import Plan, planned
from l1rr_fx.scores import Score, score_named, scores_of
from l1rr_fx.zeroing import ChannelSite, Zeroing, unwrapped, zeroed_values
from passes.errors import InputError, VanishedError

log = logging.getLogger(__name__)

LEAST, SHARE = 4, 0.05
"""A layer keeps at least LEAST channels, and SHARE of them."""
WITHIN = 0.005
"""How near a budget is to be reached, as a share of the dense model."""
UNSEEN = "no feature map depends on it"


def choose(
    model: nn.Module,
    args: tuple[Any, ...],
    *,
    budget: Budget,
    kwargs: Mapping[str, Any] | None = None,
    scores: str | Score = "bn-scale",
    attention: FeatureAttention | None = None,
    latency: LatencyPredictor | None = None,
    sites: Sequence[str] | None = None,
    mode: str = "recombine",
    channel_multiple: int | None = None,
    curves: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Plan:
    """The plan that meets the budget at the least loss; the model is not changed.

    `scores` orders the channels within a layer. With `attention`, f_l(rho) is the feature attention loss with the rho
    smallest channels of layer l alone zeroed, and every layer goes as far as f_l <= tau for one tau. Without, one
    threshold on the scores of all layers is sought (Network Slimming), among the batch norms where there are any.
    Either is the largest for which the limits of the budget on cost are just met, within half a per cent of the dense
    model; costs are those of the pruned network by the compiler's analysis. Layers keep max(4, 5 %) of their channels;
    channels that are zero already go first, and layers that the compiler could not shrink are left alone, as are, with
    `attention`, those that no feature map depends on.

    `args` and `kwargs` are one example input; `sites` names the only sites to take channels from; `mode` and
    `channel_multiple` are those of `prune`; `latency` predicts where the budget limits it. Curves are measured in
    parallel under torchrun, and with a file `curves` taken up where they were interrupted; `progress` is told.

    InputError for a budget that cannot be met, with what can be, and what stays.
    """
    if "latency" in budget.limits and latency is None:
        raise InputError("the budget limits latency: give a predictor as latency=")
    if "attention" in budget.limits and attention is None:
        raise InputError("the budget limits the attention loss: give a FeatureAttention as attention=")
    analysis = Analysis(
        model,
        args,
        kwargs,
        mode=mode,
        channel_multiple=channel_multiple,
        latency=latency if "latency" in budget.limits else None,
    )
    if attention is not None:
        _refuse_other_weights(attention, analysis)
    blocked = _blocked(analysis, attention, sites)
    units = _units(unwrapped(model), analysis, score_named(scores), blocked, kinds=_kinds(analysis, attention))
    if attention is not None:
        found = measured_curves(attention, [u.unit for u in units], analysis.values, file=curves, progress=progress)
        times = {name: [curve.at(n + 1) for n in range(len(_of(units, name).order))] for name, curve in found.items()}
    else:
        found, times = {}, {ranked.unit.name: ranked.scores for ranked in units}
    search = _Search(analysis, budget, attention, _sequence([u.unit for u in units], times))
    count = search.count()
    return _plan(search, count, found, blocked, "attention" if attention is not None else "global threshold")


@dataclass(frozen=True, eq=False)
class _Ranked:
    """A unit with the scores of the channels of its order."""

    unit: Unit
    scores: list[float]


@dataclass(frozen=True, eq=False)
class _Removal:
    """One channel of a unit, the `rank`-th of its order, and the loss or score at which it goes."""

    unit: Unit
    rank: int
    time: float


def _refuse_other_weights(attention: FeatureAttention, analysis: Analysis) -> None:
    """InputError if the attention refers to other weights than the model has."""
    for name, value in analysis.values.items():
        if name not in attention.reference or not torch.equal(attention.reference[name], value.detach()):
            raise InputError(f"attention was made of other weights: {name} differs; make it again from this model")


def _of(units: Sequence[_Ranked], name: str) -> Unit:
    return next(ranked.unit for ranked in units if ranked.unit.name == name)


def _blocked(analysis: Analysis, attention: FeatureAttention | None, chosen: Sequence[str] | None) -> Mapping[str, str]:
    """Why nothing may be taken from a site, by its name."""
    names = {site.name for site in analysis.sites}
    if unknown := sorted({*(chosen or ())} - names):
        raise InputError(f"sites: {unknown[0]!r} is none; there are {', '.join(sorted(names))}")
    found: dict[str, str] = {}
    for site in analysis.sites:
        if site.blocked is not None:
            found[site.name] = site.blocked
        elif chosen is not None and site.name not in chosen:
            found[site.name] = "not among the sites given"
        elif attention is not None and not attention.reaches([site.weight, site.bias or site.weight]):
            found[site.name] = UNSEEN
    return found


def _kinds(analysis: Analysis, attention: FeatureAttention | None) -> tuple[str, ...]:
    """The kinds of sites whose scores may be compared: norms of rows are no scales."""
    scales = any(site.kind == "scale" and site.blocked is None for site in analysis.sites)
    return ("scale",) if attention is None and scales else ("scale", "rows")


def _units(
    model: nn.Module, analysis: Analysis, score: Score, blocked: Mapping[str, str], *, kinds: Sequence[str]
) -> list[_Ranked]:
    """The units with channels that may go, the smallest scores first, those that are zero already before all."""
    members: dict[str, list[ChannelSite]] = defaultdict(list)
    for site in analysis.sites:
        members[site.unit].append(site)
    already = analysis.already_zero()
    found = []
    for sites in members.values():
        if any(site.name in blocked or site.kind not in kinds for site in sites):
            continue
        total = torch.stack([scores_of(model, site, score) for site in sites]).sum(0)
        gone = torch.stack([already.get(s.name, torch.zeros(s.channels, dtype=torch.bool)) for s in sites]).all(0)
        total = torch.where(gone, torch.minimum(total, torch.zeros_like(total)), total)
        order = total.argsort(stable=True)[: max(0, len(total) - _floor(len(total)))]
        if len(order):
            found.append(_Ranked(Unit(tuple(sites), order), total[order].tolist()))
    if not found:
        raise InputError(f"no layer has channels that may go: {_reasons(blocked)}")
    return found


def _floor(channels: int) -> int:
    return max(LEAST, math.ceil(SHARE * channels))


def _sequence(units: Sequence[Unit], times: Mapping[str, Sequence[float]]) -> list[_Removal]:
    """All channels that may go in the order in which they do; among equals, the layers in step."""
    removals = [_Removal(unit, rank, time) for unit in units for rank, time in enumerate(times[unit.name])]
    return sorted(removals, key=lambda each: (each.time, (each.rank + 1) / each.unit.channels, each.unit.name))


class _Search:
    """The shortest start of the sequence that meets the limits on cost, or the longest within that on attention."""

    def __init__(
        self, analysis: Analysis, budget: Budget, attention: FeatureAttention | None, sequence: Sequence[_Removal]
    ) -> None:
        self.analysis, self.budget, self.attention, self.sequence = analysis, budget, attention, sequence
        self.limits = {name: limit for name, limit in budget.limits.items() if name != "attention"}
        self._shares: dict[int, Mapping[str, float] | None] = {}
        self._losses: dict[int, AttentionLoss] = {}

    def count(self) -> int:
        """How many channels go. InputError if the budget cannot be met."""
        if not self.limits:
            return self._last(lambda count: self._is_kept(count))
        possible = self._last(lambda count: self.shares(count) is not None)
        if not self._is_met(possible):
            raise self._impossible(possible)
        count = self._last(lambda count: not self._is_met(count), below=possible) + 1 if not self._is_met(0) else 0
        if not self._is_kept(count):
            most = self._last(lambda n: self._is_kept(n), below=count)
            raise InputError(
                f"the budget cannot be met: {_shown(self.limits)} needs an attention loss of "
                f"{self.loss(count).total:.4f}, not {self.budget.attention:g}; up to that loss {self._reachable(most)}"
            )
        return count

    def zeroing(self, count: int) -> Zeroing:
        """The masks after `count` removals."""
        taken: dict[str, int] = defaultdict(int)
        units = {}
        for removal in self.sequence[:count]:
            units[removal.unit.name] = removal.unit
            taken[removal.unit.name] = max(taken[removal.unit.name], removal.rank + 1)
        return {name: mask for unit in units.values() for name, mask in unit.zeroing(taken[unit.name]).items()}

    def shares(self, count: int) -> Mapping[str, float] | None:
        """What is left after `count` removals, as shares of the dense model; None if an output would be constant."""
        if count not in self._shares:
            try:
                size = self.analysis.size(self.zeroing(count))
                self._shares[count] = size.shares(self.analysis.dense)
            except VanishedError:
                self._shares[count] = None
        return self._shares[count]

    def loss(self, count: int) -> AttentionLoss:
        """The attention loss after `count` removals, together."""
        assert self.attention is not None
        if count not in self._losses:
            values = zeroed_values(self.analysis.sites, self.analysis.values, self.zeroing(count))
            self._losses[count] = self.attention.losses([values], per_class=True)[0]
        return self._losses[count]

    def _is_met(self, count: int) -> bool:
        shares = self.shares(count)
        return shares is not None and all(shares[name] <= limit for name, limit in self.limits.items())

    def _is_kept(self, count: int) -> bool:
        limit = self.budget.attention
        if limit is None:
            return True
        return self.shares(count) is not None and self.loss(count).total <= limit

    def _last(self, holds: Any, *, below: int | None = None) -> int:
        """The largest count for which `holds`, which holds at 0 and from some count on does not; by bisection."""
        low, high = 0, len(self.sequence) if below is None else below
        if holds(high):
            return high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if holds(middle) else (low, middle)
        return low

    def _reachable(self, count: int) -> str:
        shares = self.shares(count)
        return f"{_shown(shares)} is reachable" if shares is not None else "nothing is reachable"

    def _impossible(self, count: int) -> InputError:
        masks = self.zeroing(count)
        floors = [s for s in self.analysis.sites if s.name in masks]
        left = [s for s in self.analysis.sites if s.name not in masks]
        names = ", ".join(sorted({f"{s.name} ({s.blocked or 'not taken from'})" for s in left})[:8])
        return InputError(
            f"the budget {_shown(self.limits)} cannot be met; {self._reachable(count)}, with {len(floors)} layers at "
            f"their least, max({LEAST}, {SHARE:.0%}) of their channels"
            + (f", and these whole: {names}" if names else "")
        )


def _plan(search: _Search, count: int, curves: Mapping[str, Curve], blocked: Mapping[str, str], method: str) -> Plan:
    analysis = search.analysis
    zeroing = search.zeroing(count)
    shares = search.shares(count) or {}
    for name, limit in search.limits.items():
        if limit - shares[name] > WITHIN and count:
            log.warning("%s is %.4f, below its budget %g: no fewer channels meet it", name, shares[name], limit)
    sites = tuple(
        planned(site, zeroing.get(site.name), _alone(curves, site, zeroing), blocked.get(site.name))
        for site in analysis.sites
    )
    return Plan(
        type(analysis.model).__name__,
        {name: tuple(p.shape) for name, p in analysis.model.named_parameters(remove_duplicate=False)},
        sites,
        search.budget,
        shares,
        analysis.options.mode,
        method,
        search.sequence[count - 1].time if count else 0.0,
        search.loss(count) if search.attention is not None else None,
    )


def _alone(curves: Mapping[str, Curve], site: ChannelSite, zeroing: Mapping[str, Tensor]) -> float | None:
    """The loss that the curve of the site's unit gives for its part of the plan."""
    if site.unit not in curves:
        return None
    return curves[site.unit].at(int(zeroing[site.name].sum())) if site.name in zeroing else 0.0


def _shown(shares: Mapping[str, float]) -> str:
    return ", ".join(f"{name}={share:.4g}" for name, share in shares.items())


def _reasons(blocked: Mapping[str, str]) -> str:
    return "; ".join(f"{name}: {reason}" for name, reason in list(blocked.items())[:8]) or "all are at their least"
