"""The layout plan of the network as it is: every tensor whole, whatever is zero in it."""

from __future__ import annotations

from dataclasses import replace

import torch

from passes.analysis.liveness import Facts
from passes.analysis.program import Program
from passes.assignment.assign import plan_layouts
from passes.assignment.options import Options
from passes.assignment.plan import LayoutPlan
from passes.graph.ranges import Ranges

WHOLE = "kept: the network as it is runs faster on this target"


def whole_layouts(program: Program, facts: Facts, options: Options | None = None) -> LayoutPlan:
    """The layout plan in which nothing is removed; `facts` say what could be, `options` are those to report.

    It is the plan of a network in which nothing is zero, so that no operator meets a part of a tensor. It is written as
    a copy: other forms of the same movements might take longer.
    """
    zero = {node: torch.zeros_like(mask) for node, mask in facts.zero.items()}
    alive = Facts(
        zero,
        Ranges(zero),
        {node: torch.ones_like(mask) for node, mask in facts.needed.items()},
        {node: tuple(map(torch.ones_like, masks)) for node, masks in facts.asked.items()},
    )
    plan = plan_layouts(program, alive, Options("union"))
    grown = (node for node in plan.layout if node in program.at and not bool(facts.live(node).all()))
    return replace(
        plan,
        facts=facts,
        options=options or plan.options,
        growth=dict.fromkeys(grown, WHOLE),
        sites=[replace(item, facts=facts.at(item.site)) for item in plan.sites],  # the limit is that of the zeros
        as_it_is=True,
    )
