"""Which rule is wrong, where a small network differs from its zeroed one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from l1rr_fx.testing.claims import false_unneeded, false_zero, node_values, partial_values
from passes.assignment.options import Options
from passes.audit.verify import Difference, first_difference, source_line
from passes.compile import Removed, remove_zero_channels
from passes.frontend.capture import capture
from passes.rules.base import Site


@dataclass(frozen=True)
class Fault:
    """The first node that goes wrong, the rule that is to blame (class and module), and what is wrong about it."""

    node: str
    operator: str
    rule: str
    problem: str
    source: str | None = None

    def __str__(self) -> str:
        where = f", {self.source}" if self.source else ""
        return f"at {self.node} ({self.operator}){where}\nrule at fault: {self.rule}: {self.problem}"


def find_fault(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    options: Options | None = None,
) -> Fault | None:
    """The rule to blame for a model that is pruned wrongly, on inputs that show it; None if every node agrees.

    A rule that calls elements zero which are not is found first: what it drops is missed only further down.
    """
    removed = remove_zero_channels(capture(model, args, kwargs), options)
    values = node_values(removed.plan.program.module, (args, dict(kwargs or {})))
    facts = removed.plan.facts
    for site in removed.plan.program.sites:
        if problem := false_zero(site, facts, values):
            return _fault(site, problem)
    try:
        difference = first_difference(removed.plan, removed.rewritten, args, kwargs)
    except (RuntimeError, IndexError) as error:
        return _stopped(removed, (args, dict(kwargs or {})), error)
    return None if difference is None else _blamed(removed, difference, values)


def _stopped(removed: Removed, inputs: Any, error: Exception) -> Fault:
    """The fault of a small network that does not run: the first call of the original that has no value in it."""
    values = partial_values(removed.rewritten.module, inputs)
    reached = {removed.rewritten.values[old] for old in removed.rewritten.values} & {node.name for node in values}
    for site in removed.plan.program.sites:
        new = removed.rewritten.values.get(site.node.name)
        if new is not None and new not in reached:
            return _fault(site, f"its call in the small network does not run: {error}")
    return Fault("output", "output", "none", f"the small network does not run: {error}")


def _blamed(removed: Removed, difference: Difference, values: Mapping[Any, Any]) -> Fault:
    """The fault behind a node that differs although everything before it agrees and all zeros are zero."""
    program = removed.plan.program
    node = next(node for node in program.module.graph.nodes if node.name == difference.node)
    site = program.at.get(node) or program.at_call(node)
    if site is None:
        problem = f"it deviates by {difference.deviation:.3g}, and no rule made it"
        return Fault(difference.node, difference.operator, "none", problem, difference.source)
    problem = false_unneeded(site, removed.plan.facts, values) or (
        f"its result deviates by {difference.deviation:.3g} although what it says of zeros and needs is right: "
        "its layouts or its emission are wrong (legalise, requests, select or emit)"
    )
    return _fault(site, problem)


def _fault(site: Site, problem: str) -> Fault:
    rule = type(site.rule)
    return Fault(
        site.node.name, str(site.node.target), f"{rule.__module__}.{rule.__name__}", problem, source_line(site.node)
    )
