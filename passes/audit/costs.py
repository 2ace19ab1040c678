"""What calls and layout plans cost, in multiply-accumulates and parameters."""

from __future__ import annotations

import math

from torch import nn

from passes.accounts import NotCounted
from passes.analysis.program import Program
from passes.assignment.plan import LayoutPlan, SitePlan
from passes.audit.flops import formula_macs
from passes.graph.layout import Layout
from passes.graph.nodes import ADDED, attribute, operator_label
from passes.rewriting.stored_parameters import StoredParameters
from passes.rules import UNKNOWN
from passes.rules.base import Contraction, Site, SiteFacts


def dense_cost(site: Site) -> Contraction | None:
    """What a call costs in the original network; None for operators without multiplications that count.

    An operator without a rule is counted by torch's formulas, if there are any (`is_counted`). A contraction that the
    compiler added costs nothing there.
    """
    cost = whole_cost(site)
    return Contraction(0, 0, 0) if cost is not None and site.node.meta.get(ADDED) else cost


def whole_cost(site: Site) -> Contraction | None:
    """What a call costs if nothing is removed from it; None for operators without multiplications that count."""
    if site.rule is UNKNOWN:
        macs = formula_macs(site)
        return None if not macs else Contraction(0, 0, macs)
    ins = [Layout.whole(len(site.shape(node))) for node in site.inputs]
    outs = [Layout.whole(0 if out is None else len(site.shape(out))) for out in site.outputs]
    return site.rule.cost(site, ins, outs)


def is_counted(site: Site) -> bool:
    """Whether the cost of a call is known: its operator has a rule, or torch has formulas for all of its parts."""
    return site.rule is not UNKNOWN or formula_macs(site) is not None


def planned_cost(item: SitePlan) -> Contraction | None:
    """What a call costs in the small network; None for operators without multiplications that count."""
    if not item.followed:
        return whole_cost(item.site)
    return item.site.rule.cost(item.site, item.read_layouts, item.gives)


def limit_cost(site: Site, facts: SiteFacts) -> Contraction | None:
    """What a call costs if only live inputs and live outputs exist; the whole where no rule says what is live."""
    return whole_cost(site) if site.rule is UNKNOWN else site.rule.limit(site, facts)


def not_counted(program: Program) -> tuple[NotCounted, ...]:
    """The calls whose cost is in no figure, in the order of the network."""
    return tuple(
        NotCounted(site.node.name, operator_label(site.node)) for site in program.sites if not is_counted(site)
    )


def dense_macs(program: Program) -> int:
    """MACs of the original network, whatever is zero in it."""
    return sum(cost.macs for site in program.sites if (cost := dense_cost(site)) is not None)


def dense_parameters(program: Program) -> int:
    """Parameters of the original network."""
    nodes = program.module.graph.nodes
    added = {str(node.target) for node in nodes if node.op == "get_attr" and node.meta.get(ADDED)}
    return sum(p.numel() for name, p in program.module.named_parameters() if name not in added)


def plan_macs(plan: LayoutPlan) -> int:
    """MACs of the small network."""
    return sum(cost.macs for item in plan.sites if (cost := planned_cost(item)) is not None)


def plan_parameters(plan: LayoutPlan) -> int:
    """Parameters that the small network stores."""
    stored = StoredParameters(plan)
    module = plan.program.module
    counts = {name: math.prod(selection.new_shape) for name, selection in stored.stored.items()}
    for node in module.graph.nodes:
        if node.op == "get_attr" and node in plan.layout:
            shrunk = plan.layout[node].shrunk(plan.program.shape(node))
            counts.setdefault(stored.name(node), math.prod(shrunk))
    return sum(n for name, n in counts.items() if isinstance(attribute(module, name), nn.Parameter))
