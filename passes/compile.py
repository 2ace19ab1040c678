"""The compiler in one call: normalise a captured graph, analyse it, assign layouts and rewrite it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from torch.fx import GraphModule

from passes.analysis.liveness import Facts, channel_facts
from passes.analysis.program import Program
from passes.assignment.assign import plan_layouts
from passes.assignment.options import Options
from passes.assignment.plan import LayoutPlan
from passes.canonical.normalise import normalise_graph
from passes.errors import VanishedError
from passes.rewriting.rewriter import Rewritten, rewrite
from passes.rules import rule_for

Phase = Callable[[str], AbstractContextManager[Any]]
"""Makes the context in which the phase of that name runs; a clock measures it."""


@dataclass(frozen=True, eq=False)
class Removed:
    """The small network, the layout plan that it was made from, and the record of the rewrite."""

    module: GraphModule
    plan: LayoutPlan
    rewritten: Rewritten


def remove_zero_channels(
    captured: GraphModule, options: Options | None = None, *, clock: Phase | None = None
) -> Removed:
    """The network without its zeroed channels.

    `captured` (from `passes.capture`) is normalised in place. `clock` is called with "analysis" and "rewrite". Raises
    VanishedError if an output would be zero for every input.
    """
    phase = clock or (lambda name: nullcontext())
    with phase("analysis"):
        normalise_graph(captured.graph)
        program = Program(captured, rule_for)
        facts = channel_facts(program)
        refuse_vanished(program, facts)
        plan = plan_layouts(program, facts, options)
    with phase("rewrite"):
        rewritten = rewrite(plan)
    return Removed(rewritten.module, plan, rewritten)


def refuse_vanished(program: Program, facts: Facts) -> None:
    """Raise VanishedError if an output would be zero for every input."""
    for index, node in enumerate(program.output_tensors):
        if node not in facts.zero or node.op in ("placeholder", "get_attr"):
            continue
        site = program.at.get(node)
        if bool(facts.zero[node].all()) and site is not None and site.inputs:
            raise VanishedError(
                f"output {index} ({node.name}, shape {program.shape(node)}) is zero for every input: "
                "all channels that lead to it are zeroed. Zero fewer of them."
            )
