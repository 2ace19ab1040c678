"""The part of every parameter that the small network stores: the union of what its readers select."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

import torch
from torch.fx import Node

from passes.assignment.plan import LayoutPlan
from passes.graph.selection import Selection
from passes.rules.base import Site


class StoredParameters:
    """The stored part of each parameter of a plan, under the parameter's first name."""

    def __init__(self, plan: LayoutPlan) -> None:
        self.plan = plan
        self.names: dict[tuple[int, torch.Size, str], str] = {}
        self.selections: dict[Site, list[Selection]] = {}
        self.stored: dict[str, Selection] = {}
        readers: dict[str, list[Selection]] = defaultdict(list)
        self.as_values = {
            self.name(node) for node in plan.program.module.graph.nodes if node.op == "get_attr" and node in plan.layout
        }
        for item in plan.sites:
            site = item.site
            found = (
                site.rule.select(site, item.read_layouts, item.gives)
                if item.followed
                else [Selection.whole(site.shape(p)) for p in site.parameters]
            )
            self.selections[site] = found
            for node, selection in zip(site.parameters, found, strict=True):
                readers[self.name(node)].append(selection)
        for name, wanted in readers.items():
            self.stored[name] = self._union(wanted, whole=name in self.as_values)

    def name(self, node: Node) -> str:
        """The name under which a parameter is stored; tied parameters share one."""
        name, tensor = str(node.target), self.plan.program.tensor(node)
        if tensor.numel() == 0:
            return name
        return self.names.setdefault((tensor.data_ptr(), tensor.shape, str(tensor.stride())), name)

    @staticmethod
    def _union(wanted: Sequence[Selection], *, whole: bool) -> Selection:
        first = wanted[0]
        if whole:
            return Selection.whole(first.shape)
        if all(first.same(other) for other in wanted[1:]):
            return first
        if any(s.flat is not None for s in wanted):
            return Selection.whole(first.shape)
        axes = []
        for axis in range(len(first.shape)):
            kept = [s.axes[axis] for s in wanted]
            axes.append(
                None if any(k is None for k in kept) else torch.cat([k for k in kept if k is not None]).unique()
            )
        return Selection(first.shape, tuple(axes)).simplified()
