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
from torch.fx import Node

from l1rr_fx.method.attention.loss import FeatureAttention
from l1rr_fx.method.planning.budget import Analysis, Budget, LatencyPredictor
from l1rr_fx.method.planning.curves import Curve, Progress, Unit, measured_curves
from l1rr_fx.method.planning.plan import Plan, planned
from l1rr_fx.method.planning.scores import Score, score_named, scores_of
from l1rr_fx.method.planning.search import KEPT_CHANNELS, KEPT_SHARE, Search, sequence, shown
from l1rr_fx.method.sites.zeroing import ChannelSite, Zeroing, unwrapped
from l1rr_fx.support.arguments import all_of_kind, of_kind
from passes.analysis.coupling import residual_values
from passes.errors import InputError
from passes.graph.nodes import attribute

log = logging.getLogger(__name__)

WITHIN = 0.005
"""How near a budget is to be reached, as a share of the dense model."""
EXPONENTS = (0.0, 0.25, 0.5, 0.75)
"""How much it counts what a channel saves. 0 is cheap layers cut as deeply as dear ones; at 1 losses add up, which they
do not: a few dear layers would be emptied."""
UNSEEN = "no feature map depends on it"
NOT_GIVEN = "not among the sites given"
NO_SCALE = "no batch norm: only with attention, or named in sites="
SMALL = "no more channels than a layer keeps"
WHOLE = "the mode leaves sums of branches whole"


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
    threshold on the scores of all layers is sought (Network Slimming), among the batch norms where there are any: norms
    of rows are no scales.
    Either is the largest for which the limits of the budget on cost are just met, within half a per cent of the dense
    model; costs are those of the pruned network by the compiler's analysis. Layers keep max(4, 5 %) of their channels;
    channels that are zero already go first and are part of every plan, and layers that the compiler could not shrink
    are left alone, as are, with `attention`, those that no feature map depends on.

    What a channel saves is weighed too: tau of a layer is tau * saved ** e, with `saved` what one of its channels takes
    off the limited costs, over the mean of all layers. Of the plans for each e of EXPONENTS, and with several limited
    costs for what is saved of each alone and of their sum, that with the least loss altogether is returned.

    `args` and `kwargs` are one example input; `sites` names the only sites to take channels from, whose scores are
    compared whether they have a batch norm or not; `mode` and
    `channel_multiple` are those of `prune`; `latency` predicts where the budget limits it. Curves are measured in
    parallel under torchrun, and with a file `curves` taken up where they were interrupted; `progress` is told.

    InputError for a budget that cannot be met, with what can be, and what stays; VanishedError, as `prune`, for a
    network with an output that is constant already.
    """
    of_kind("budget", budget, Budget, ", such as Budget(macs=0.35)")
    for name, value, kind in (("attention", attention, FeatureAttention), ("latency", latency, LatencyPredictor)):
        if value is not None:
            of_kind(name, value, kind)
    chosen = None if sites is None else all_of_kind("sites", sites, str)
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
    analysis.plan({})  # an output that is constant already is refused before anything is measured
    if attention is not None:
        _refuse_other_weights(attention, analysis)
    blocked = _blocked(analysis, attention, chosen)
    ranked = _units(unwrapped(model), analysis, score_named(scores), blocked)
    units = [each.unit for each in ranked]
    if attention is None:
        removals = sequence(units, {each.unit.name: each.scores for each in ranked})
        search = Search(analysis, budget, None, removals, blocked)
        return _told(_plan(search, search.count(), {}, blocked, "global threshold"))
    found = measured_curves(attention, units, analysis.values, file=curves, progress=progress)
    plans: list[Plan] = []
    refused: list[InputError] = []
    for method, saved in _weighings(savings(analysis, units, budget)).items():
        times = {u.name: [found[u.name].at(n + 1) / saved[u.name] for n in range(len(u.order))] for u in units}
        search = Search(analysis, budget, attention, sequence(units, times), blocked)
        try:
            plans.append(_plan(search, search.count(), found, blocked, method))
        except InputError as error:
            refused.append(error)
    if not plans:
        raise refused[0]
    return _told(min(plans, key=_loss if search.limits else _size))


@dataclass(frozen=True, eq=False)
class _Ranked:
    """A unit with the scores of the channels of its order."""

    unit: Unit
    scores: list[float]


def _loss(plan: Plan) -> float:
    assert plan.attention is not None
    return plan.attention.total


def _size(plan: Plan) -> float:
    return math.fsum(plan.reached.values())


def savings(analysis: Analysis, units: Sequence[Unit], budget: Budget) -> Mapping[str, Mapping[str, float]]:
    """What one channel of each unit takes off each cost that the budget limits, over the mean of all units; where there
    are two, also off their sum. By the name of the cost.

    Asked of the compiler with half of what may go zeroed in all other units, so that both what makes a channel and what
    reads it count. Units that save nothing count as a thousandth."""
    limited = [name for name in ("params", "macs") if name in budget.limits] or ["macs"]
    halves = {unit.name: (len(unit.order) + 1) // 2 for unit in units}

    def left(without: str | None) -> Mapping[str, float]:
        zeroing = {n: m for u in units if u.name != without for n, m in u.zeroing(halves[u.name]).items()}
        return analysis.size(zeroing).shares(analysis.dense)

    least, others = left(None), {unit.name: left(unit.name) for unit in units}
    found: dict[str, Mapping[str, float]] = {}
    for costs in dict.fromkeys([(*limited,), *((cost,) for cost in limited)]):
        saved = {
            name: math.fsum(shares[cost] - least[cost] for cost in costs) / halves[name]
            for name, shares in others.items()
        }
        mean = math.fsum(saved.values()) / len(saved)
        found[" + ".join(costs)] = {n: max(each / mean, 1e-3) if mean > 0 else 1.0 for n, each in saved.items()}
    return found


def _weighings(savings: Mapping[str, Mapping[str, float]]) -> Mapping[str, Mapping[str, float]]:
    """What the loss of each unit is divided by, by the name of the method."""
    found: dict[str, Mapping[str, float]] = {}
    for costs, saved in savings.items():
        for exponent in EXPONENTS:
            name = f"attention by {costs} ** {exponent:g}" if exponent else "attention"
            found[name] = {unit: each**exponent for unit, each in saved.items()}
    return found


def _refuse_other_weights(attention: FeatureAttention, analysis: Analysis) -> None:
    """InputError if the attention refers to other parameters or statistics than the model has."""
    module = analysis.program.module
    for name in dict.fromkeys(str(node.target) for node in module.graph.nodes if node.op == "get_attr"):
        value, known = attribute(module, name), attention.reference.get(name)
        if known is None and not isinstance(value, nn.Parameter):
            continue  # a constant of the code
        if known is None or not torch.equal(known.to(value.device), value.detach()):
            raise InputError(f"attention was made of other weights: {name} differs; make it again from this model")


def _blocked(analysis: Analysis, attention: FeatureAttention | None, chosen: Sequence[str] | None) -> Mapping[str, str]:
    """Why nothing may be taken from a site, by its name."""
    names = {site.name for site in analysis.sites}
    if unknown := sorted({*(chosen or ())} - names):
        raise InputError(f"sites: {unknown[0]!r} is none; there are {', '.join(sorted(names))}")
    whole = _kept_whole(analysis)
    scales = any(site.kind == "scale" and site.blocked is None for site in analysis.sites)

    def reason(site: ChannelSite) -> str | None:
        if site.blocked is not None:
            return site.blocked
        if chosen is not None and site.name not in chosen:
            return NOT_GIVEN
        if site.weight in whole:
            return WHOLE
        if attention is not None and not attention.reaches([site.weight, site.bias or site.weight]):
            return UNSEEN
        if attention is None and chosen is None and scales and site.kind != "scale":
            return NO_SCALE
        return SMALL if site.channels <= _floor(site.channels) else None

    found = {site.name: why for site in analysis.sites if (why := reason(site)) is not None}
    first = {site.unit: site.name for site in reversed(analysis.sites) if site.name in found}
    shared = {s.name: f"one with {first[s.unit]}: {found[first[s.unit]]}" for s in analysis.sites if s.unit in first}
    return {**shared, **found}


def _kept_whole(analysis: Analysis) -> frozenset[str]:
    """The parameters that scale or make channels of sums of branches, which the mode "exclude" leaves alone."""
    if analysis.options.mode != "exclude":
        return frozenset()
    read = (argument for node in residual_values(analysis.program) for argument in node.args)
    return frozenset(str(node.target) for node in read if isinstance(node, Node) and node.op == "get_attr")


def _units(model: nn.Module, analysis: Analysis, score: Score, blocked: Mapping[str, str]) -> list[_Ranked]:
    """The units with channels that may go, the smallest scores first, those that are zero already before all."""
    members: dict[str, list[ChannelSite]] = defaultdict(list)
    for site in analysis.sites:
        members[site.unit].append(site)
    already = analysis.already_zero()
    found = []
    for sites in members.values():
        if any(site.name in blocked for site in sites):
            continue
        total = torch.stack([scores_of(model, site, score) for site in sites]).sum(0)
        gone = torch.stack([already.get(s.name, torch.zeros(s.channels, dtype=torch.bool)) for s in sites]).all(0)
        total = torch.where(gone, torch.minimum(total, torch.zeros_like(total)), total)
        order = total.argsort(stable=True)[: len(total) - _floor(len(total))]
        found.append(_Ranked(Unit(tuple(sites), order), total[order].tolist()))
    if not found:
        raise InputError(f"no layer has channels that may go: {_reasons(blocked)}")
    return found


def _floor(channels: int) -> int:
    return max(KEPT_CHANNELS, math.ceil(KEPT_SHARE * channels))


def _plan(search: Search, count: int, curves: Mapping[str, Curve], blocked: Mapping[str, str], method: str) -> Plan:
    analysis = search.analysis
    zeroing = search.zeroing(count)
    shares = search.shares(count) or {}
    zero = analysis.already_zero()  # part of the plan wherever it lies, lest a fine-tune bring it back to life
    sites = tuple(
        planned(site, _either(zeroing, zero, site.name), _alone(curves, site, zeroing), blocked.get(site.name))
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


def _told(plan: Plan) -> Plan:
    """The plan, with a warning if less is left than was allowed; of several limits one is enough to be met."""
    limits = {name: limit for name, limit in plan.budget.limits.items() if name != "attention"}
    if limits and min(limit - plan.reached[name] for name, limit in limits.items()) > WITHIN:
        left = shown({name: plan.reached[name] for name in limits})
        log.warning(
            "%s is left, not the budget %s: the last channel, or zeros that were there, saved more", left, shown(limits)
        )
    return plan


def _either(zeroing: Zeroing, zero: Zeroing, name: str) -> Tensor | None:
    """What is chosen of a site, and what is zero already."""
    masks = [masks[name] for masks in (zeroing, zero) if name in masks]
    return torch.stack(masks).any(0) if masks else None


def _alone(curves: Mapping[str, Curve], site: ChannelSite, zeroing: Mapping[str, Tensor]) -> float | None:
    """The loss that the curve of the site's unit gives for its part of the plan."""
    if site.unit not in curves:
        return None
    return curves[site.unit].at(int(zeroing[site.name].sum())) if site.name in zeroing else 0.0


def _reasons(blocked: Mapping[str, str]) -> str:
    """Of some sites, those first that were to be taken from."""
    reasons = sorted(blocked.items(), key=lambda each: each[1] == NOT_GIVEN)
    return "; ".join(f"{name}: {reason}" for name, reason in reasons[:8])
