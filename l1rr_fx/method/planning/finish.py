"""The finished plan: what the target computes anyway is alive in it, and it says where the predicted time goes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from l1rr_fx.machines.jetson_tx2 import JetsonTX2
from l1rr_fx.machines.settings import settings_of
from l1rr_fx.method.planning.curves import Curve
from l1rr_fx.method.planning.explain import explanation
from l1rr_fx.method.planning.paths import Path
from l1rr_fx.method.planning.plan import Plan, planned
from l1rr_fx.method.planning.revive import Revival, revived_prefix
from l1rr_fx.method.planning.search import WITHIN, Search, shown
from l1rr_fx.method.sites.zeroing import ChannelSite, Zeroing, stored_shapes
from passes.assignment.cost_model import ByteCount

log = logging.getLogger(__name__)


def finished(search: Search, count: int, curves: Mapping[str, Curve], blocked: Mapping[str, str], method: str) -> Plan:
    """The plan of the state `count`, without the channels that the target computes anyway."""
    zeroing = search.order.zeroing(count)
    target = search.analysis.options.target
    if target.name == ByteCount().name:  # computes no zeros in the place of copies
        return plan_of(search, zeroing, count, curves, blocked, method)
    found, limit = revived_prefix(search, count), search.budget.attention
    if found is None or (limit is not None and search.loss_of(found[1].zeroing).total > limit):
        made = plan_of(search, zeroing, count, curves, blocked, method)
    else:
        count, revived = found
        zeroing = revived.zeroing
        made = plan_of(search, zeroing, count, curves, blocked, method, revived)
    if not isinstance(search.order, Path) or not isinstance(target, JetsonTX2):
        return made
    analysis = search.analysis
    explained = explanation(target, analysis.whole(), analysis.plan(zeroing), search.order.moves, count)
    return replace(made, explained=explained)


def plan_of(
    search: Search,
    zeroing: Zeroing,
    count: int,
    curves: Mapping[str, Curve],
    blocked: Mapping[str, str],
    method: str,
    revived: Revival | None = None,
) -> Plan:
    """The plan that zeroes these channels, those of the state `count` before channels came back."""
    analysis = search.analysis
    shares = (search.shares(count) or {}) if revived is None else revived.size.shares(analysis.dense)
    zero = analysis.already_zero()  # in every plan, so that fine-tuning does not bring it back
    sites = tuple(
        planned(site, _either(zeroing, zero, site.name), _alone(curves, site, zeroing), blocked.get(site.name))
        for site in analysis.sites
    )
    return Plan(
        type(analysis.model).__name__,
        stored_shapes(analysis.model, [name for site in sites for name in (site.weight, site.bias)]),
        sites,
        search.budget,
        shares,
        analysis.options.mode,
        method,
        search.order.time(count),
        None if search.attention is None else search.loss(count) if revived is None else search.loss_of(zeroing),
        analysis.not_counted,
        settings_of(analysis.options.target),
        tuple(tuple(x.shape) for x in pytree.tree_leaves((analysis.args, analysis.kwargs)) if isinstance(x, Tensor)),
        None if revived is None else revived.channels,
        last=search.last_step(count),
        shift=analysis.shift,
        pieces=analysis.pieces,
    )


def warned(plan: Plan) -> Plan:
    """The plan; logs a warning if it is far below every limit on cost."""
    limits = {name: limit for name, limit in plan.limits.items() if name != "attention"}
    if limits and min(limit - plan.reached[name] for name, limit in limits.items()) > WITHIN:
        left = shown({name: plan.reached[name] for name in limits})
        why = "zeros that were there saved more" if plan.last is None else str(plan.last)
        log.warning("%s is left, not the budget %s: %s", left, shown(limits), why)
    return plan


def _either(zeroing: Zeroing, zero: Zeroing, name: str) -> Tensor | None:
    """The channels of a site that are chosen or zero already."""
    masks = [masks[name] for masks in (zeroing, zero) if name in masks]
    return torch.stack(masks).any(0) if masks else None


def _alone(curves: Mapping[str, Curve], site: ChannelSite, zeroing: Mapping[str, Tensor]) -> float | None:
    """The loss on the curve of the site's unit at the number of channels that the plan zeroes."""
    if site.unit not in curves:
        return None
    return curves[site.unit].at(int(zeroing[site.name].sum())) if site.name in zeroing else 0.0
