"""Accounting: what each contraction costs before, after and at the limit, and what explains the difference.

The limit of a contraction counts its live inputs and its live outputs only.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

from passes.accounts import Accounts, Constant, Cost, Family, Kept, Layer, Opaque
from passes.analysis.liveness import Facts
from passes.assignment.plan import LayoutPlan, SitePlan
from passes.audit.costs import dense_cost, dense_macs, dense_parameters, limit_cost, not_counted, planned_cost
from passes.graph.labels import labels
from passes.graph.nodes import operator_label
from passes.rewriting.rewriter import Rewritten
from passes.rules import UNKNOWN
from passes.rules.base import COLUMNS, ROWS, Contraction


def accounts_of(
    plan: LayoutPlan, rewritten: Rewritten, seconds: Mapping[str, float], constants: tuple[Constant, ...] = ()
) -> Accounts:
    """The accounts of a layout plan and of the network rewritten by it; `seconds` is handed on, by phase."""
    layers: list[Layer] = []
    kept: list[Kept] = []
    limit_channels = after_channels = before_channels = 0
    for item in plan.sites:
        dense = dense_cost(item.site)
        if dense is None or item.site.rule is UNKNOWN:
            kept += _copied(plan, item)
        if dense is None:
            continue
        after, limit = planned_cost(item), limit_cost(item.site, item.facts)
        assert after is not None and limit is not None
        layers.append(_layer(item, dense, after, limit))
        before_channels += dense.outputs
        after_channels += after.outputs
        limit_channels += limit.outputs
        if after.macs > limit.macs or after.outputs > limit.outputs:
            kept.append(
                Kept(item.site.node.name, _reason(plan, item), after.outputs - limit.outputs, after.macs - limit.macs)
            )
    before_bytes, after_bytes, limit_bytes = _activations(plan)
    new_parameters = sum(p.numel() for p in rewritten.module.parameters())
    accounts = Accounts(
        before=Cost(
            dense_parameters(plan.program),
            dense_macs(plan.program),
            before_channels + sum(cost.outputs for cost in _missing(plan)),
            before_bytes,
        ),
        after=Cost(new_parameters, sum(x.macs[1] for x in layers), after_channels, after_bytes),
        limit=Cost(_limit_parameters(plan, rewritten), sum(x.macs[2] for x in layers), limit_channels, limit_bytes),
        layers=tuple(layers),
        recombinations=rewritten.recombinations,
        kept=tuple(kept),
        families=_families(plan),
        not_counted=not_counted(plan.program),
        constants=constants,
        opaque=_opaque(plan),
        seconds=dict(seconds),
    )
    return labelled(accounts, labels(plan.program.module.graph))


def labelled(accounts: Accounts, names: Mapping[str, str]) -> Accounts:
    """The accounts with nodes called as `names` says."""

    def called(name: str) -> str:
        return names.get(name, name)

    return replace(
        accounts,
        layers=tuple(replace(each, node=called(each.node)) for each in accounts.layers),
        recombinations=tuple(
            replace(each, value=called(each.value), reader=called(each.reader)) for each in accounts.recombinations
        ),
        kept=tuple(replace(each, node=called(each.node)) for each in accounts.kept),
        families=tuple(replace(each, name=called(each.name)) for each in accounts.families),
        not_counted=tuple(replace(each, node=called(each.node)) for each in accounts.not_counted),
        constants=tuple(
            replace(each, tensor=called(each.tensor), reader=called(each.reader)) for each in accounts.constants
        ),
    )


def limited(plan: LayoutPlan, rewritten: Rewritten, accounts: Accounts, facts: Facts, reason: str) -> Accounts:
    """The accounts of a plan at the limit that other facts give, with `reason` for what the plan does not reach of it.

    The facts are of the same program, and hold together with those of the plan.
    """
    both = _both(plan.facts, facts)
    sites = tuple(replace(item, facts=both.at(item.site, item.facts.multiple)) for item in plan.sites)
    least = accounts_of(replace(plan, facts=both, sites=sites), rewritten, {}, accounts.constants)
    crossing = tuple(
        Kept(own.node, reason, 0, own.macs[2] - other.macs[2])
        for own, other in zip(accounts.layers, least.layers, strict=True)
        if own.macs[2] > other.macs[2]
    )
    return replace(accounts, limit=least.limit, layers=least.layers, kept=(*accounts.kept, *crossing))


def _both(one: Facts, other: Facts) -> Facts:
    """What follows from two sets of facts that both hold."""
    return Facts(
        {node: mask | other.zero[node] for node, mask in one.zero.items()},
        one.ranges,
        {node: mask & other.needed[node] for node, mask in one.needed.items()},
        {
            node: tuple(a & b for a, b in zip(masks, other.asked[node], strict=True))
            for node, masks in one.asked.items()
        },
        one.merged,
    )


def _opaque(plan: LayoutPlan) -> tuple[Opaque, ...]:
    """The calls without a rule that read what is computed from the inputs."""
    fed = plan.program.fed
    return tuple(
        Opaque(item.site.node.name, operator_label(item.site.node))
        for item in plan.sites
        if item.site.rule is UNKNOWN and not fed.isdisjoint(item.site.inputs)
    )


def _families(plan: LayoutPlan) -> tuple[Family, ...]:
    """The families of coupled tensors of a plan, with the number of operands in place, as zeros and copied."""
    by_call = {item.site.node: item for item in plan.sites}
    found = []
    for family, sums in plan.arrangement.families:
        in_place = as_zeros = copied = 0
        for item in (by_call[node] for node in sums if node in by_call):
            for node, requested in zip(item.site.inputs, item.ins, strict=True):
                if requested is None or not plan.layout[node].same(requested):
                    copied += requested is not None
                elif requested.labels.numel() > int(plan.facts.live(node).sum()):
                    as_zeros += 1
                else:
                    in_place += 1
        found.append(replace(family, in_place=in_place, as_zeros=as_zeros, copied=copied))
    return tuple(found)


def _layer(item: SitePlan, dense: Contraction, after: Contraction, limit: Contraction) -> Layer:
    return Layer(
        item.site.node.name,
        operator_label(item.site.node),
        (dense.inputs, after.inputs),
        (dense.outputs, after.outputs),
        (dense.macs, after.macs, limit.macs),
    )


def _missing(plan: LayoutPlan) -> list[Contraction]:
    """The costs of the contractions that the small network does not have."""
    planned = {item.site.node for item in plan.sites}
    costs = [dense_cost(site) for site in plan.program.sites if site.node not in planned]
    return [cost for cost in costs if cost is not None]


def _reason(plan: LayoutPlan, item: SitePlan) -> str:
    """Why a contraction is larger than its limit."""
    if not item.followed:
        return f"{item.site.rule.family}: its weight or its form is not followed"
    for node in (*item.site.outputs, *item.site.inputs):
        if node is not None and node in plan.growth:
            return plan.growth[node]
    if item.ins[0] is not None and item.site.rule.narrowed(item.site, item.ins[0], item.facts) is not None:
        return COLUMNS
    return item.site.rule.growth(item.site) or ROWS


def _copied(plan: LayoutPlan, item: SitePlan) -> list[Kept]:
    """The dead channels that a call which is not followed reads, because it reads its inputs whole."""
    if item.followed:
        return []
    lives = [plan.facts.live(node) for node in item.site.inputs]
    dead = sum(live.numel() - int(live.sum()) for live in lives)
    if not dead:
        return []
    return [
        Kept(
            item.site.node.name,
            f"{item.site.rule.reason or item.site.rule.family}: {item.site.node.target} reads everything",
            dead,
            0,
        )
    ]


def _activations(plan: LayoutPlan) -> tuple[int, int, int]:
    """Bytes of all results that are written: before, after and at the limit."""
    before = after = limit = 0
    for site in plan.program.sites:
        if site.rule.is_movement or all(n.op == "get_attr" for n in site.inputs):
            continue
        for out in site.outputs:
            if out is None:
                continue
            shape, size = plan.program.shape(out), out.meta["val"].element_size()
            before += math.prod(shape) * size
            if out not in plan.layout:
                continue
            after += math.prod(plan.layout[out].shrunk(shape)) * size
            live = plan.facts.live(out)
            limit += math.prod(shape) // max(1, live.numel()) * int(live.sum()) * size
    return before, after, limit


def _limit_parameters(plan: LayoutPlan, rewritten: Rewritten) -> int:
    """Parameters of the small network if every weight had its live rows and live columns only."""
    least: dict[str, int] = defaultdict(int)
    for item in plan.sites:
        limit = item.site.rule.limit(item.site, item.facts)
        if limit is None or not limit.weights or not item.site.parameters:
            continue
        name = str(item.site.parameters[0].target)
        if name in rewritten.kept:
            least[name] = max(least[name], limit.weights)
    total = sum(p.numel() for p in rewritten.module.parameters())
    return total - sum(max(0, math.prod(rewritten.kept[name].new_shape) - best) for name, best in least.items())
