"""Weights that mix channels: convolution, transposed and grouped convolution, linear.

A call without groups takes its input in any layout, because it can select the columns of its weight.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import Node

from passes.graph.layout import Layout, along, grown, product
from passes.graph.selection import Selection
from passes.rules.base import (
    ALONE,
    ANY_LAYOUT,
    GROUPS,
    UNREAD,
    LayoutRequest,
    Request,
    Rule,
    Site,
    SiteFacts,
    replaced,
)
from passes.rules.contraction import Contracting
from passes.rules.emitter import Emitter
from passes.rules.weights import by_channel, equal_groups, kept_or_all, weight_of, weight_part

aten = torch.ops.aten


class Weighted(Contracting):
    """y = W x + b over a channel axis. The first input is x; a weight or bias that is computed is an input too."""

    # --- Layouts

    def legalise(self, site: Site, requested: Sequence[Layout], facts: SiteFacts) -> list[Layout]:
        widths, axis = self.widths(site), self.axis(site)
        layout = requested[0]
        kept = layout.kept(axis)
        if kept is None or not layout.is_product():
            kept = grown(by_channel(facts.lives[0], axis, widths.outputs), facts.multiple)
            layout = product(
                layout.compact, [kept if a == axis else layout.coordinate(a).unique() for a in range(layout.rank)]
            )
        if widths.groups == 1 or not self.is_followed(site):
            return [layout]
        if widths.is_depthwise:
            return [layout]
        live = by_channel(facts.lives[0], axis, widths.outputs).clone()
        live[kept] = True
        return [
            Layout.along(
                layout.rank,
                axis,
                widths.outputs,
                equal_groups(live, widths.groups, live.view(widths.groups, -1).any(1)),
            )
        ]

    def growth(self, site: Site) -> str | None:
        if self.groups(site) == 1:
            return None
        return ALONE if self.widths(site).is_depthwise else GROUPS

    def requests(self, site: Site, outs: Sequence[Layout], facts: SiteFacts) -> list[Request] | None:
        if not self.is_followed(site):
            return None
        if not self.owns_parameters(site):
            return self.requests_computed(site, outs[0], facts)
        if not bool(facts.reads(0).any()) and site.values.size_sources(site.node) is not None:
            return [UNREAD]
        widths, axis = self.widths(site), self.axis(site)
        shape = site.shape(site.inputs[0])
        rows = outs[0].kept(axis)
        assert rows is not None
        if widths.groups == 1:
            if not self.form.linear or set(outs[0].axes) <= {axis}:
                return [ANY_LAYOUT]
            live = by_channel(facts.reads(0), axis, widths.inputs)
            kept: list[Tensor | None] = [
                grown(live, facts.multiple) if a == axis else outs[0].kept(a) for a in range(len(shape))
            ]
            layout = product(tuple(widths.inputs if a == axis else n for a, n in enumerate(outs[0].compact)), kept)
            return [LayoutRequest(layout, layout.of(self.spread(live, axis, layout)))]
        live = by_channel(facts.reads(0), axis, widths.inputs)
        if widths.is_depthwise:
            columns = rows
        else:
            present = torch.zeros(widths.groups, dtype=torch.bool)
            present[widths.groups_of(rows, outputs=True)] = True
            columns = equal_groups(live, widths.groups, present)
        layout = Layout.along(len(shape), axis, widths.inputs, columns)
        return [LayoutRequest(layout, layout.of(self.spread(live, axis, layout)))]

    def requests_computed(self, site: Site, out: Layout, facts: SiteFacts) -> list[Request] | None:
        """The inputs of a call whose weight or bias is computed: live columns of x, and rows times columns of it."""
        widths, axis = self.widths(site), self.axis(site)
        rows = kept_or_all(out, axis, widths.outputs)
        columns = grown(by_channel(facts.reads(0), axis, widths.inputs), 1)
        shape = tuple(widths.inputs if a == axis else n for a, n in enumerate(out.compact))
        others = [out.kept(a) if n != 1 else None for a, n in enumerate(out.compact)]
        layout = product(shape, [columns if a == axis else kept for a, kept in enumerate(others)])
        live_columns = by_channel(facts.reads(0), axis, widths.inputs)
        requests: list[Request] = [LayoutRequest(layout, layout.of(self.spread(live_columns, axis, layout)))]
        live_rows = by_channel(facts.lives[0], axis, widths.outputs)
        for node in site.inputs[1:]:
            size = site.shape(node)
            if node is not weight_of(site.node):
                requests.append(LayoutRequest(Layout.along(1, 0, widths.outputs, rows), live_rows[rows]))
                continue
            kept = (columns, rows) if self.form.transposed else (rows, columns)
            first, second = (live_columns, live_rows) if self.form.transposed else (live_rows, live_columns)
            box = product((*size[:2], *[1] * (len(size) - 2)), [*kept, *[None] * (len(size) - 2)])
            used = first.view(-1, 1) & second.view(1, -1)
            requests.append(LayoutRequest(box, box.of(used.view(box.compact))))
        return requests

    @staticmethod
    def spread(live: Tensor, axis: int, layout: Layout) -> Tensor:
        return along(live, axis, layout.rank).expand(layout.compact)

    def accept(self, site: Site, index: int, have: Layout) -> Layout:
        """The layout as it is where only the channel axis lost labels (of a linear layer: any product of axes)."""
        axis, widths = self.axis(site), self.widths(site)
        if have.axes == (axis,) or not have.axes:
            return have
        if self.form.linear and have.is_product():
            return have
        kept = have.coordinate(axis).unique() if have.compact[axis] != 1 else torch.arange(widths.inputs)
        return Layout.along(have.rank, axis, widths.inputs, kept)

    def narrowed(self, site: Site, have: Layout, facts: SiteFacts) -> Layout | None:
        """The layout without the columns that are zero in the weight: those channels exist for other readers."""
        axis = self.axis(site)
        if have.axes != (axis,) or self.groups(site) != 1:
            return None
        kept = have.coordinate(axis).view(-1)
        read = by_channel(facts.reads(0), axis, have.compact[axis])[kept]
        columns = grown(read, facts.multiple)
        if len(columns) == len(kept):
            return None
        return Layout.along(have.rank, axis, have.compact[axis], kept[columns])

    def select(self, site: Site, ins: Sequence[Layout], outs: Sequence[Layout]) -> list[Selection]:
        widths, axis = self.widths(site), self.axis(site)
        rows = kept_or_all(outs[0], axis, widths.outputs)
        columns = kept_or_all(ins[0], axis, widths.inputs) if ins[0].rank else torch.zeros(0, dtype=torch.int64)
        weight = weight_of(site.node)
        return [
            weight_part(site.shape(weight), widths, rows, columns, transposed=self.form.transposed)
            if p is weight
            else Selection((widths.outputs,), (rows,)).simplified()
            for p in site.parameters
        ]

    def emit(self, site: Site, to: Emitter, ins: Sequence[Layout], outs: Sequence[Layout]) -> list[Node]:
        widths, axis = self.widths(site), self.axis(site)
        if to.inputs[0] is None:
            return [self.constant(site, to, outs[0])]
        if widths.groups == 1:
            return [to.copy()]
        groups = len(widths.present(kept_or_all(outs[0], axis, widths.outputs)))
        if "groups" in to.kwargs:
            return [to.call(site.node.target, to.args, {**to.kwargs, "groups": groups})]
        return [to.call(site.node.target, replaced(to.args, 6, groups), to.kwargs)]

    def constant(self, site: Site, to: Emitter, out: Layout) -> Node:
        """The result where nothing comes in: the bias everywhere."""
        zeros = to.zeros(site.node, out)
        bias = to.args[2] if len(to.args) > 2 else to.kwargs.get("bias")
        if bias is None:
            return zeros
        axis = self.axis(site)
        shaped = to.call(aten.reshape.default, (bias, [-1 if a == axis else 1 for a in range(out.rank)]))
        return to.call(aten.add.Tensor, (zeros, shaped))


LINEAR = Weighted(linear=True)
CONVOLUTION = Weighted()
TRANSPOSED = Weighted(transposed=True)

RULES: dict[str, Rule] = {
    "linear": LINEAR,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), CONVOLUTION),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), TRANSPOSED),
}
