"""The choice of the channels to zero: the smallest loss of attention, or the smallest scores, for a budget."""

from __future__ import annotations

import logging
import math
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from l1rr_fx.latency.prediction import Latency
from l1rr_fx.machines.by_name import machine
from l1rr_fx.machines.own import LatencyPredictor
from l1rr_fx.method.attention.loss import FeatureAttention
from l1rr_fx.method.planning.allocate import Moves
from l1rr_fx.method.planning.budget import Analysis, Budget
from l1rr_fx.method.planning.curves import Progress, Unit, measured_curves
from l1rr_fx.method.planning.finish import finished, plan_of, warned
from l1rr_fx.method.planning.plan import Plan
from l1rr_fx.method.planning.scores import Score, score_named, scores_of
from l1rr_fx.method.planning.search import KEPT_CHANNELS, KEPT_SHARE, Search, sequence
from l1rr_fx.method.sites.zeroing import ChannelSite, blocked_units, check_names, unwrapped
from l1rr_fx.support.arguments import all_of_kind, of_kind
from passes.analysis.coupling import residual_values
from passes.assignment.cost_model import Target
from passes.errors import InputError
from passes.graph.nodes import attribute
from passes.rewriting.sketcher import Machine

log = logging.getLogger(__name__)

EXPONENTS = (0.0, 0.25, 0.5, 0.75)
"""How strongly the cost that a channel saves is weighed against its loss. 0 ignores the cost. 1 would be right if
losses added up; they do not, and a few expensive layers would be emptied."""
POWERS = (0.5, 1.0)
"""The same for the moves of a machine."""
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
    target: str | Target | Latency = "none",
    latency: LatencyPredictor | None = None,
    sites: Sequence[str] | None = None,
    mode: str = "recombine",
    channel_multiple: int | None = None,
    curves: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Plan:
    """The plan that meets the budget at the smallest loss. The model is not changed.

    Without `attention`, all channels whose score is below one threshold are zeroed (Network Slimming). Scores are
    compared among batch norms if the model has any, because norms of rows are not scales. With `attention`, f_l(n) is
    the feature attention loss when the n channels of layer l with the smallest scores are zeroed alone, and each layer
    loses as many channels as f_l <= tau allows, for one tau. The threshold or tau is the smallest that meets the limits
    on cost; costs are those of the pruned network by the compiler's analysis. A warning is logged if the cost ends more
    than half a per cent of the dense model below its limit. A budget on attention alone takes the largest tau that
    stays within it.

    tau is also weighed by cost: for a layer it is tau * saved ** e, where `saved` is what one of its channels saves of
    the limited costs, over the mean of all layers. Of the plans for each e of EXPONENTS, and if several costs are
    limited, for each alone and for their sum, the one with the smallest attention loss is returned.

    With a limit on latency and a target whose kernels are known (a Jetson TX2), channels go in moves that the machine
    understands: families of channels that sums join go together, in steps of its tiles, in the order of their loss for
    the predicted latency that they save. With `attention` the curves are those of the families.

    Layers keep at least max(4, 5 %) of their channels. Channels that are zero already go first, and are part of every
    plan. Blocked sites (`channel_sites`) lose no channels; with `attention` neither do layers on which no feature map
    depends.

    `args`, `kwargs`: one example input.
    `scores`: the order of the channels within a layer: "bn-scale", "weight-norm", or a function such as `Taylor`.
    `target`: the machine that the network is pruned for, as for `prune`. Costs are those of the network that
        `prune(zeroed, target=target)` writes, and latency is what the target predicts for it.
    `latency`: a predictor of your own for a budget that limits latency, in place of the target's.
    `sites`: the names of the only sites to take channels from. All of them are compared, with a batch norm or without.
    `mode`, `channel_multiple`: as for `prune`.
    `curves`: a file for the measured losses, from which an interrupted call goes on. Under torchrun the processes
        share the measurements.
    `progress`: called with the number of layers measured and the number of all.

    InputError for a budget that cannot be met, with what can be reached and which layers stay whole. VanishedError, as
    from `prune`, for a network with an output that is constant already.
    """
    of_kind("budget", budget, Budget, ", such as Budget(macs=0.35)")
    for name, value, kind in (("attention", attention, FeatureAttention), ("latency", latency, LatencyPredictor)):
        if value is not None:
            of_kind(name, value, kind)
    chosen = None if sites is None else all_of_kind("sites", sites, str)
    on = machine(target, args)
    if "latency" in budget.limits and latency is None and not isinstance(on, Machine):
        raise InputError(
            f"the budget limits latency, which target {on.name!r} does not predict: name a target that does, such as "
            '"jetson-tx2", or give a predictor as latency='
        )
    if "attention" in budget.limits and attention is None:
        raise InputError("the budget limits the attention loss: give a FeatureAttention as attention=")
    analysis = Analysis(
        model,
        args,
        kwargs,
        mode=mode,
        channel_multiple=channel_multiple,
        target=on,
        latency=latency if "latency" in budget.limits else None,
    )
    analysis.liveness({})  # an output that is constant already is refused before anything is measured
    if attention is not None:
        _refuse_other_weights(attention, analysis)
    blocked = _blocked(analysis, attention, chosen)
    moves = _moves(unwrapped(model), analysis, score_named(scores), blocked) if "latency" in budget.limits else None
    if attention is None and moves is not None:
        search = moves.search(budget, None, blocked, {})
        return warned(finished(search, search.count(), {}, blocked, "moves of the machine"))
    ranked = _units(unwrapped(model), analysis, score_named(scores), blocked)
    units: list[Unit] = [each.unit for each in ranked]
    search = Search(analysis, budget, None, sequence(units, {e.unit.name: e.scores for e in ranked}), blocked)
    if attention is None:
        return warned(finished(search, search.count(), {}, blocked, "global threshold"))
    search.refuse_impossible()  # before hours of measuring
    if moves is not None:
        units = list(moves.families)
    found = measured_curves(attention, units, analysis.values, file=curves, progress=progress)
    plans: list[tuple[Plan, Search, int]] = []
    refused: list[InputError] = []
    searches: dict[str, Search] = {}
    for method, saved in _weighings(savings(analysis, units, budget)).items():
        times = {u.name: [found[u.name].at(n + 1) / saved[u.name] for n in range(len(u.order))] for u in units}
        searches[method] = Search(analysis, budget, attention, sequence(units, times), blocked)
    if moves is not None:
        for exponent in POWERS:
            method = f"moves of the machine by latency ** {exponent:g}"
            searches[method] = moves.search(budget, attention, blocked, found, exponent)
    for method, search in searches.items():
        try:
            count = search.count()
            plans.append((plan_of(search, search.zeroing(count), count, found, blocked, method), search, count))
        except InputError as error:
            refused.append(error)
    if not plans:
        raise refused[0]
    best, search, count = min(plans, key=lambda each: _loss(each[0]) if search.limits else _size(each[0]))
    return warned(finished(search, count, found, blocked, best.method))


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
    """What one channel of each unit saves of each cost that the budget limits, over the mean of all units; by the name
    of the cost. If there are several costs, also of their sum. Latency counts where the target predicts it: a predictor
    of the user's would be asked once for each unit.

    The compiler computes it with half of the removable channels of all other units zero, so that the layer that makes a
    channel and those that read it both count. A unit that saves nothing counts as a thousandth."""
    known = ("params", "macs", *(["latency"] if analysis.as_it_is is not None else []))
    limited = [name for name in known if name in budget.limits] or ["macs"]
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
    """The divisors of the losses of each unit, by the name of the method."""
    found: dict[str, Mapping[str, float]] = {}
    for costs, saved in savings.items():
        for exponent in EXPONENTS:
            name = f"attention by {costs} ** {exponent:g}" if exponent else "attention"
            found[name] = {unit: each**exponent for unit, each in saved.items()}
    return found


def _refuse_other_weights(attention: FeatureAttention, analysis: Analysis) -> None:
    """InputError if the reference of the attention has other parameters or statistics than the model."""
    module = analysis.program.module
    for name in dict.fromkeys(str(node.target) for node in module.graph.nodes if node.op == "get_attr"):
        value, known = attribute(module, name), attention.reference.get(name)
        if known is None and not isinstance(value, nn.Parameter):
            continue  # a constant of the code
        if known is None or not torch.equal(known.to(value.device), value.detach()):
            raise InputError(f"attention was made of other weights: {name} differs; make it again from this model")


def _blocked(analysis: Analysis, attention: FeatureAttention | None, chosen: Sequence[str] | None) -> Mapping[str, str]:
    """Why a site loses no channels, by its name."""
    check_names(analysis.sites, chosen)
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
    return blocked_units(analysis.sites, found)


def _kept_whole(analysis: Analysis) -> frozenset[str]:
    """The parameters that scale or make the channels of sums of branches, if the mode is "exclude"."""
    if analysis.options.mode != "exclude":
        return frozenset()
    read = (argument for node in residual_values(analysis.program) for argument in node.args)
    return frozenset(str(node.target) for node in read if isinstance(node, Node) and node.op == "get_attr")


def _units(model: nn.Module, analysis: Analysis, score: Score, blocked: Mapping[str, str]) -> list[_Ranked]:
    """The units with removable channels, in the order of their scores; channels that are zero already come first."""
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


def _moves(model: nn.Module, analysis: Analysis, score: Score, blocked: Mapping[str, str]) -> Moves | None:
    """The moves of the target's machine, if it has any."""
    scores = {site.name: scores_of(model, site, score) for site in analysis.sites if site.name not in blocked}
    return Moves.of(analysis, scores, frozenset(blocked), _floor)


def _floor(channels: int) -> int:
    return max(KEPT_CHANNELS, math.ceil(KEPT_SHARE * channels))


def _reasons(blocked: Mapping[str, str]) -> str:
    """The first sites with their reasons; sites that were not given come last."""
    reasons = sorted(blocked.items(), key=lambda each: each[1] == NOT_GIVEN)
    return "; ".join(f"{name}: {reason}" for name, reason in reasons[:8])
