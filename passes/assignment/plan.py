"""A layout plan: what every tensor of the small network holds, and how every call reads and writes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch.fx import Node

from passes.analysis.liveness import Facts
from passes.analysis.program import Program
from passes.assignment.channel_order import Arrangement
from passes.assignment.options import Options
from passes.graph.layout import Layout
from passes.rules.base import Site, SiteFacts


@dataclass(frozen=True, eq=False)
class SitePlan:
    """One call of the small network. `ins`: the layout of each input, None where it is not read. `followed`: whether the
    rule follows the call; otherwise it gets its inputs whole and gives its results whole."""

    site: Site
    facts: SiteFacts
    ins: tuple[Layout | None, ...]
    outs: tuple[Layout, ...]
    gives: tuple[Layout, ...]
    followed: bool

    @property
    def read_layouts(self) -> list[Layout]:
        """The layout of each input, an empty one where it is not read."""
        return [Layout.whole(0) if layout is None else layout for layout in self.ins]


@dataclass(frozen=True, eq=False)
class LayoutPlan:
    """The layouts of the small network; `growth` says why a tensor keeps channels that are dead."""

    program: Program
    facts: Facts
    options: Options
    layout: Mapping[Node, Layout]
    growth: Mapping[Node, str]
    sites: Sequence[SitePlan]
    arrangement: Arrangement
