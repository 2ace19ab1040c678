"""A layout plan: which layout every tensor of the small network has, how every call reads and writes it, and why.

`str(plan)` prints a row for each tensor, `plan.explain(node)` the layouts that were considered for one of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch.fx import Node

from passes.analysis.liveness import Facts
from passes.analysis.program import Program
from passes.assignment.channel_order import Arrangement
from passes.assignment.cost_model import PROHIBITIVE
from passes.assignment.options import Options
from passes.errors import InputError
from passes.graph.labels import labels
from passes.graph.layout import Layout
from passes.rules.base import Site, SiteFacts

LIVE = "what is live"
SOURCE = "as it is given"
AS_ZEROS = "dead channels computed as zeros instead of a copy"


@dataclass(frozen=True, eq=False)
class Candidate:
    """A layout that was considered for a tensor.

    `cost` is what its dead labels cost, `saved` what its readers save because they need not copy the tensor; both in
    the unit of the target. `reason` is the reason to report if the layout keeps dead labels.
    """

    layout: Layout
    cost: float
    saved: float
    reason: str

    @property
    def gain(self) -> float:
        return self.saved - self.cost


@dataclass(frozen=True, eq=False)
class SitePlan:
    """One call of the small network.

    `ins`: the layout of each input, None where it is not read. `outs`: the layouts that its results are given in.
    `gives`: the layouts that the call itself produces. `followed`: whether the rule follows the call; otherwise the
    call reads its inputs whole and gives its results whole.
    """

    site: Site
    facts: SiteFacts
    ins: tuple[Layout | None, ...]
    outs: tuple[Layout, ...]
    gives: tuple[Layout, ...]
    followed: bool

    def same(self, other: SitePlan) -> bool:
        """Whether the same call is written."""
        one, two = ((each.site.node, each.site.outputs, each.followed) for each in (self, other))
        pairs = zip((*self.ins, *self.outs, *self.gives), (*other.ins, *other.outs, *other.gives), strict=False)
        return one == two and all(a is b or (a is not None and b is not None and a.same(b)) for a, b in pairs)

    @property
    def read_layouts(self) -> list[Layout]:
        """The layout of each input, an empty one where it is not read."""
        return [Layout.whole(0) if layout is None else layout for layout in self.ins]


@dataclass(frozen=True, eq=False)
class LayoutPlan:
    """The layouts of the small network.

    `layout` has one for each tensor that the small network holds, `growth` the reason for each tensor that keeps dead
    channels, `candidates` what was considered for each tensor that a call computes. With `as_it_is` the network is to
    be copied, operator by operator.
    """

    program: Program
    facts: Facts
    options: Options
    layout: Mapping[Node, Layout]
    growth: Mapping[Node, str]
    sites: Sequence[SitePlan]
    arrangement: Arrangement
    candidates: Mapping[Node, Sequence[Candidate]]
    as_it_is: bool = False

    def same(self, other: LayoutPlan) -> bool:
        """Whether the same network is written from another plan of the same program."""
        layouts, others = self.layout, other.layout
        return (
            self.as_it_is == other.as_it_is
            and layouts.keys() == others.keys()
            and all(layout.same(others[node]) for node, layout in layouts.items())
            and len(self.sites) == len(other.sites)
            and all(mine.same(yours) for mine, yours in zip(self.sites, other.sites, strict=True))
        )

    def __str__(self) -> str:
        rows = [("value", "layout", "reason")]
        rows += [
            (node.name, str(self.layout[node]), self._reason(node))
            for node in self.program.tensors
            if node in self.layout
        ]
        return table(rows)

    def _reason(self, node: Node) -> str:
        if node in self.growth:
            return self.growth[node]
        return LIVE if node.op == "call_function" else SOURCE

    def explain(self, node: Node | str) -> str:
        """A table of the layouts that were considered for a tensor: what each costs and saves, and which was chosen.

        `node` is a node of the original graph, its name, or what reports call it ("stem.0"). Costs are in the unit of
        the target (bytes for "none"); "never" is a cost that no saving outweighs, "always" a saving that outweighs
        every cost.
        Raises InputError for a node that is no tensor of the small network.
        """
        if not isinstance(node, (str, Node)):
            raise InputError(f"node is a {type(node).__name__}; expected a node of the graph or its name")
        name = node if isinstance(node, str) else node.name
        called = labels(self.program.module.graph)
        found = next((each for each in self.layout if each is node or node in (each.name, called[each.name])), None)
        if found is None:
            raise InputError(f"{name!r} is no tensor of the small network; str(plan) lists them")
        chosen = self.layout[found]
        live = self.facts.live(found) if found in self.facts.zero else torch.ones(chosen.compact, dtype=torch.bool)
        considered = self.candidates.get(found, ())
        rows: list[tuple[str, ...]] = [("", "layout", "dead", "cost", "saves", "reason")]
        rows += [self._row(found, each, int(live.sum())) for each in considered]
        if not any(each.layout.same(chosen) for each in considered):
            dead = max(0, chosen.labels.numel() - int(live.sum())) if chosen.compact == tuple(live.shape) else 0
            rows.append(("*", str(chosen), str(dead), "", "", self._reason(found)))
        return f"{name}, target {self.options.target.name}; * is chosen\n{table(rows)}"

    def _row(self, node: Node, each: Candidate, live: int) -> tuple[str, ...]:
        """One candidate as a row; of those that were not chosen the reason says what they would have been."""
        is_chosen, dead = each.layout.same(self.layout[node]), each.layout.labels.numel() - live
        reason = LIVE if not dead else self._reason(node) if is_chosen else AS_ZEROS
        cost = "never" if each.cost >= PROHIBITIVE else f"{each.cost:.4g}"
        saved = "always" if each.saved >= PROHIBITIVE else f"{each.saved:.4g}"
        return ("*" if is_chosen else "", str(each.layout), str(dead), cost, saved, reason)


Plan = LayoutPlan
"""The name of `LayoutPlan` before 0.2."""


def table(rows: Sequence[Sequence[str]]) -> str:
    """Rows of text as aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
