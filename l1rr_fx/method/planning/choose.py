"""The choice of the channels to zero: the smallest loss of attention, or the smallest scores, for a budget."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from l1rr_fx.latency.prediction import Latency
from l1rr_fx.machines.by_name import machine
from l1rr_fx.machines.own import LatencyPredictor
from l1rr_fx.method.attention.loss import FeatureAttention
from l1rr_fx.method.planning.allocate import Moves
from l1rr_fx.method.planning.curves import Curve, Progress, Unit, measured_curves
from l1rr_fx.method.planning.finish import finished, plan_of, warned
from l1rr_fx.method.planning.group_norm import GROUP_NORM, GroupNorm
from l1rr_fx.method.planning.plan import Plan
from l1rr_fx.method.planning.removable import blocked_sites, least_width, ranked_units
from l1rr_fx.method.planning.scores import BN_SCALE, Score, score_named, scores_of
from l1rr_fx.method.planning.search import Order, Search, sequence
from l1rr_fx.method.planning.weighing import savings, weighings
from l1rr_fx.method.sites.budget import Analysis, Budget
from l1rr_fx.method.sites.zeroing import Shift, unwrapped
from l1rr_fx.support.arguments import all_of_kind, of_kind
from l1rr_fx.support.choices import TargetName
from passes.assignment.cost_model import Target
from passes.choices import Mode
from passes.errors import InputError
from passes.rewriting.sketcher import Machine

POWERS = (0.5, 1.0)
"""How strongly the time that a move of a machine saves is weighed against its loss of attention."""
THRESHOLD, MOVES = "global threshold", "moves of the machine"


def choose(
    model: nn.Module,
    args: tuple[Any, ...],
    *,
    budget: Budget,
    kwargs: Mapping[str, Any] | None = None,
    scores: str | Score | None = None,
    attention: FeatureAttention | None = None,
    target: TargetName | Target | Latency = "none",
    latency: LatencyPredictor | None = None,
    sites: Sequence[str] | None = None,
    mode: Mode = "recombine",
    channel_multiple: int | None = None,
    shift: Shift = "zero",
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
    limited, for each alone and for their sum, and of the threshold on the scales, the one with the smallest attention
    loss is returned.

    With a limit on latency and a target whose kernels are known (a Jetson TX2), channels go in moves that the machine
    understands: families of channels that sums join go together, in steps of its tiles, in the order of their loss for
    the predicted latency that they save. With `attention` the curves are those of the families.

    Layers keep at least max(4, 5 %) of their channels. Channels that are zero already go first, and are part of every
    plan. Blocked sites (`channel_sites`) lose no channels; with `attention` neither do layers on which no feature map
    depends.

    `args`, `kwargs`: one example input.
    `scores`: the order of the channels within a layer: "bn-scale", "weight-norm", "group-norm" (`GroupNorm`), or a
        function such as `Taylor`. By default "bn-scale", and with `attention` "group-norm".
    `target`: the machine that the network is pruned for, as for `prune`. Costs are those of the network that
        `prune(zeroed, target=target)` writes, and latency is what the target predicts for it.
    `latency`: a predictor of your own for a budget that limits latency, in place of the target's.
    `sites`: the names of the only sites to take channels from. All of them are compared, with a batch norm or without.
    `mode`, `channel_multiple`: as for `prune`.
    `shift`: what becomes of shifts and biases, as for `Plan.zero_`. With "keep" costs and losses are those of a model
        that keeps them, which takes longer, and so does the plan.
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
        shift=shift,
    )
    analysis.liveness({})  # an output that is constant already is refused before anything is measured
    if attention is not None:
        _refuse_other_weights(attention, analysis)
    blocked = blocked_sites(analysis, attention, chosen)
    choice = _Choice.of(unwrapped(model), analysis, budget, blocked, _score(scores, analysis, attention))
    if attention is None:
        return choice.by_scores()
    choice.first_search().refuse_impossible()  # before hours of measuring
    found = measured_curves(attention, choice.measured, analysis.own, file=curves, progress=progress)
    return choice.by_attention(attention, found)


def _score(scores: str | Score | None, analysis: Analysis, attention: FeatureAttention | None) -> Score:
    """The score that is meant."""
    if scores is None:
        scores = BN_SCALE if attention is None else GROUP_NORM
    return GroupNorm.of_program(analysis.program, analysis.sites) if scores == GROUP_NORM else score_named(scores)


@dataclass(frozen=True, eq=False)
class _Choice:
    """What is chosen from: units in the order of their scores, `times`, or the moves of the machine, if it has any."""

    analysis: Analysis
    budget: Budget
    blocked: Mapping[str, str]
    units: Sequence[Unit]
    times: Mapping[str, Sequence[float]]
    moves: Moves | None
    plain: Order | None = None
    """The removals in the order of the scales, whatever the scores are."""

    @property
    def measured(self) -> Sequence[Unit]:
        """The units whose losses of attention are to be measured."""
        return self.units if self.moves is None else self.moves.units

    @classmethod
    def of(
        cls, model: nn.Module, analysis: Analysis, budget: Budget, blocked: Mapping[str, str], score: Score
    ) -> _Choice:
        """The choice for a budget; it is one of moves if latency is limited on a machine that has them."""
        moves = _moves(model, analysis, score, blocked) if "latency" in budget.limits else None
        if moves is not None:
            return cls(analysis, budget, blocked, moves.families, {}, moves)
        units, times = _ranked(model, analysis, score, blocked)
        plain = sequence(*_ranked(model, analysis, score_named(BN_SCALE), blocked))
        return cls(analysis, budget, blocked, units, times, None, plain)

    def first_search(self) -> Search:
        """The search by scores alone."""
        if self.moves is not None:
            return self.moves.search(self.budget, None, self.blocked, {})
        return Search(self.analysis, self.budget, None, sequence(self.units, self.times), self.blocked)

    def by_scores(self) -> Plan:
        """The plan of the smallest scores."""
        search = self.first_search()
        method = THRESHOLD if self.moves is None else MOVES
        return warned(finished(search, search.count(), {}, self.blocked, method))

    def by_attention(self, attention: FeatureAttention, curves: Mapping[str, Curve]) -> Plan:
        """The plan with the least loss of attention, of those that the ways to weigh costs find, and the
        threshold on the scales."""
        plans: list[tuple[Plan, Search, int]] = []
        refused: list[InputError] = []
        for method, search in self._searches(attention, curves).items():
            try:
                count = search.count()
                zeroing = search.order.zeroing(count)
                known = {} if method == THRESHOLD else curves  # which are those of another order
                plans.append((plan_of(search, zeroing, count, known, self.blocked, method), search, count))
            except InputError as error:
                refused.append(error)
        if not plans:
            raise refused[0]
        best, search, count = min(plans, key=lambda each: _loss(each[0]) if search.limits else _size(each[0]))
        known = {} if best.method == THRESHOLD else curves
        return warned(finished(search, count, known, self.blocked, best.method))

    def _searches(self, attention: FeatureAttention, curves: Mapping[str, Curve]) -> Mapping[str, Search]:
        """A search for each way to weigh costs, by the name of the method."""
        found: dict[str, Search] = {}
        for method, saved in weighings(savings(self.analysis, self.units, self.budget)).items():
            times = {
                unit.name: [curves[unit.name].at(n + 1) / saved[unit.name] for n in range(len(unit.order))]
                for unit in self.units
            }
            order = sequence(self.units, times)
            found[method] = Search(self.analysis, self.budget, attention, order, self.blocked)
        for exponent in POWERS if self.moves is not None else ():
            assert self.moves is not None
            method = f"{MOVES} by latency ** {exponent:g}"
            found[method] = self.moves.search(self.budget, attention, self.blocked, curves, exponent)
        if self.plain is not None:  # measured as a whole like the others, so that none is worse than the plain way
            found[THRESHOLD] = Search(self.analysis, self.budget, attention, self.plain, self.blocked)
        return found


def _ranked(
    model: nn.Module, analysis: Analysis, score: Score, blocked: Mapping[str, str]
) -> tuple[Sequence[Unit], Mapping[str, Sequence[float]]]:
    """The units in the order of their scores, and the scores."""
    ranked = ranked_units(model, analysis, score, blocked)
    return [each.unit for each in ranked], {each.unit.name: each.scores for each in ranked}


def _loss(plan: Plan) -> float:
    assert plan.attention is not None
    return plan.attention.total


def _size(plan: Plan) -> float:
    return math.fsum(plan.reached.values())


def _refuse_other_weights(attention: FeatureAttention, analysis: Analysis) -> None:
    """InputError if the reference of the attention has other parameters or statistics than the model."""
    module, state = analysis.program.module, analysis.model.state_dict(keep_vars=True)
    for name in dict.fromkeys(str(node.target) for node in module.graph.nodes if node.op == "get_attr"):
        value, known = state.get(name), attention.reference.get(name)
        if value is None:
            continue  # a constant of the code, or one that the compiler has made
        if known is None or not torch.equal(known.to(value.device), value.detach()):
            raise InputError(f"attention was made of other weights: {name} differs; make it again from this model")


def _moves(model: nn.Module, analysis: Analysis, score: Score, blocked: Mapping[str, str]) -> Moves | None:
    """The moves of the target's machine, if it has any."""
    scores = {site.name: scores_of(model, site, score) for site in analysis.sites if site.name not in blocked}
    return Moves.of(analysis, scores, frozenset(blocked), least_width)
