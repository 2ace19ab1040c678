"""Weights that mix channels: convolution, transposed and grouped convolution, linear.

All of them are one thing here: a weight of shape (groups, outputs of a group, inputs of a group), the kernel's window
left out, over a channel axis that is 1 for convolutions and the last one for linear layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import Node

from passes.graph.layout import Layout, along, collapse, grown, product
from passes.graph.ranges import Range
from passes.graph.selection import Selection
from passes.rules.base import (
    ALONE,
    ANY_LAYOUT,
    GROUPS,
    UNREAD,
    Contraction,
    LayoutRequest,
    Request,
    Rule,
    Site,
    SiteFacts,
    WeightForm,
    own_parameter,
    replaced,
)
from passes.rules.emitter import Emitter
from passes.rules.memo import Key
from passes.rules.weights import Widths, bias_of, equal_groups, kept_or_all, weight_of, weight_part

aten = torch.ops.aten


WIDTHS = Key[Widths]()


class Weighted(Rule):
    """y = W x + b over a channel axis. The first input is x; a weight or bias that is computed is an input too."""

    family = "contraction"
    reason = None

    def __init__(self, *, transposed: bool = False, linear: bool = False) -> None:
        self.weight = self.form = WeightForm(linear=linear, transposed=transposed)

    def keeps_channels(self, site: Site) -> bool:
        return not self.form.linear and self.is_depthwise(self.widths(site))

    def takes_any_order(self, site: Site, zeros: Sequence[Tensor], *, cut: bool) -> bool:
        return self.keeps_channels(site) or (self.owns_parameters(site) and self.groups(site) == 1)

    def parameters(self, node: Node) -> tuple[Node | None, ...]:
        return tuple(
            a if isinstance(a, Node) and a.op == "get_attr" else None for a in (weight_of(node), bias_of(node))
        )

    def axis(self, site: Site) -> int:
        """The channel axis of the input and of the result."""
        return len(site.out_shape) - 1 if self.form.linear else 1

    def groups(self, site: Site) -> int:
        if self.form.linear:
            return 1
        return int(site.argument(6, "groups", 1))

    def shift(self, site: Site) -> Node | None:
        return own_parameter(site, bias_of(site.node))

    def shift_axes(self, site: Site) -> tuple[int, ...]:
        return (self.axis(site),)

    def widths(self, site: Site, zeros: Sequence[Tensor] = ()) -> Widths:
        """The channels; of a computed weight the connections are known once the zeros of the inputs are. Until then
        all count as connected."""
        if zeros or self.owns_parameters(site) or WIDTHS in site.memo:
            return site.memo.once(WIDTHS, lambda: self._widths(site, zeros))
        return self._widths(site, ())

    def _widths(self, site: Site, zeros: Sequence[Tensor]) -> Widths:
        groups, shape = self.groups(site), site.shape(site.inputs[0])
        inputs, outputs = shape[self.axis(site)], site.out_shape[self.axis(site)]
        connected = self.nonzero(site, zeros)
        if connected is not None and self.form.transposed:
            connected = connected.reshape(groups, inputs // groups, outputs // groups).transpose(1, 2)
        elif connected is not None:
            connected = connected.reshape(groups, outputs // groups, inputs // groups)
        return Widths(groups, outputs, inputs, connected)

    def nonzero(self, site: Site, zeros: Sequence[Tensor]) -> Tensor | None:
        """Which pairs of the weight's first two axes have an entry that is not zero; None if all have, or may have."""
        weight = weight_of(site.node)
        if weight.op == "get_attr":
            return site.values.connections(weight)
        if not zeros:
            return None
        zero = collapse(
            zeros[site.inputs.index(weight)],
            [*zeros[site.inputs.index(weight)].shape[:2], *[1] * (len(site.shape(weight)) - 2)],
            every=True,
        )
        return ~zero.reshape(zero.shape[:2]).expand(site.shape(weight)[:2])

    def is_followed(self, site: Site) -> bool:
        """Whether the call can be made smaller: its weight is a parameter, or is computed and has no groups."""
        return self.owns_parameters(site) or (self.groups(site) == 1 and site.inputs.count(site.inputs[0]) == 1)

    # --- Liveness

    def zero(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor]:
        widths, axis, rank = self.widths(site, zeros), self.axis(site), len(site.out_shape)
        alive = ~self.channels(zeros[0], axis, widths.inputs, every=True)
        zero = ~widths.feed(alive)
        bias = bias_of(site.node)
        if isinstance(bias, Node):
            zero &= (
                (site.values.tensor(bias) == 0).cpu()
                if bias.op == "get_attr"
                else zeros[site.inputs.index(bias)].view(-1)
            )
        if not self.form.linear:
            return [along(zero, axis, rank)]
        alive_rows = collapse(zeros[0], [1 if a == axis else n for a, n in enumerate(zeros[0].shape)], every=True)
        return [
            along(zero, axis, rank).expand([widths.outputs if a == axis else n for a, n in enumerate(alive_rows.shape)])
        ]

    def range(self, site: Site, zeros: Sequence[Tensor], ranges: Sequence[Range | None]) -> list[Range | None]:
        """A channel all of whose inputs are constant is constant; behind padding only if these are zero."""
        if not self.owns_parameters(site):
            return [None]
        widths, axis = self.widths(site, zeros), self.axis(site)
        known, value = self.channel_constants(site, zeros[0], ranges[0])
        moving = ~known if self.is_uniform(site) else ~(known & (value == 0))
        found = ~widths.feed(moving)
        if not bool(found.any()):
            return [None]
        bias = bias_of(site.node)
        result = torch.zeros(widths.outputs, dtype=torch.float64)
        if isinstance(bias, Node):
            result = result + site.values.tensor(bias).cpu().double()
        if bool((known & (value != 0)).any()):
            result = result + self.response(site, value.masked_fill(~known, 0.0))
        line = [widths.outputs if a == axis else 1 for a in range(len(site.out_shape))]
        return [Range.constant(result.view(line), found.view(line))]

    def firm(self, site: Site, zeros: Sequence[Tensor]) -> Tensor | None:
        """A channel that reads zeros only: its bias."""
        if not self.owns_parameters(site):
            return None
        widths, axis = self.widths(site, zeros), self.axis(site)
        fed = widths.feed(~self.channels(zeros[0], axis, widths.inputs, every=True))
        return along(~fed, axis, len(site.out_shape))

    def channel_constants(self, site: Site, zero: Tensor, known: Range | None) -> tuple[Tensor, Tensor]:
        """Which input channels are constant, and their values (0 for others)."""
        axis, inputs = self.axis(site), site.shape(site.inputs[0])[self.axis(site)]
        each = (Range.unknown(zero.shape).met(zero) if known is None else known.expand(zero.shape)).fitted(
            [n if a == axis else 1 for a, n in enumerate(zero.shape)]
        )
        constant = each.is_constant
        return constant.view(-1).expand(inputs), each.low.masked_fill(~constant, 0.0).view(-1).expand(inputs)

    def response(self, site: Site, values: Tensor) -> Tensor:
        """What constant input channels of these values add to each output channel, away from borders."""
        widths = self.widths(site)
        weight = (
            site.values.tensor(weight_of(site.node)).cpu().double().flatten(2).sum(-1)
            if not self.form.linear
            else site.values.tensor(weight_of(site.node)).cpu().double()
        )
        inside, outside = widths.inputs // widths.groups, widths.outputs // widths.groups
        if self.form.transposed:
            weight = weight.reshape(widths.groups, inside, outside).transpose(1, 2)
        return (weight.reshape(widths.groups, outside, inside) @ values.view(widths.groups, inside, 1)).view(-1)

    def is_uniform(self, site: Site) -> bool:
        """Whether every element of the result is the same function of its surroundings: nothing is padded."""
        if self.form.linear:
            return True
        window = site.shape(weight_of(site.node))[2:]
        if self.form.transposed:
            return (
                all(n == 1 for n in window)
                and _all(site.argument(3, "stride", 1), 1)
                and _all(site.argument(4, "padding", 0), 0)
                and _all(site.argument(5, "output_padding", 0), 0)
            )
        pads = site.argument(4, "padding", 0)
        if isinstance(pads, str):
            return pads == "valid" or all(n == 1 for n in window)
        return _all(pads, 0)

    def needed(self, site: Site, lives: Sequence[Tensor], zeros: Sequence[Tensor]) -> list[Tensor]:
        widths, axis = self.widths(site), self.axis(site)
        needed = widths.reads(self.channels(lives[0], axis, widths.outputs))
        result = along(needed, axis, zeros[0].dim()).expand(
            [needed.numel() if a == axis else n for a, n in enumerate(zeros[0].shape)]
        )
        if zeros[0].shape[axis] == 1:
            result = result.any(axis, keepdim=True)
        if self.form.linear:
            result = result & collapse(lives[0], [1 if a == axis else n for a, n in enumerate(lives[0].shape)])
        needed_x = collapse(result, zeros[0].shape).expand(zeros[0].shape)
        return [needed_x, *(self.needed_of_parameter(site, node, lives[0], zeros) for node in site.inputs[1:])]

    def needed_of_parameter(self, site: Site, node: Node, live: Tensor, zeros: Sequence[Tensor]) -> Tensor:
        """Which labels of a computed weight or bias are needed: live rows, and columns whose input is not zero."""
        widths, axis, zero = self.widths(site), self.axis(site), zeros[site.inputs.index(node)]
        rows = self.channels(live, axis, widths.outputs)
        if node is not weight_of(site.node):
            return collapse(rows, zero.shape).expand(zero.shape)
        columns = ~self.channels(zeros[0], axis, widths.inputs, every=True)
        pairs = rows.view(widths.groups, -1, 1) & columns.view(widths.groups, 1, -1)
        pairs = pairs.transpose(1, 2) if self.form.transposed else pairs
        pairs = pairs.reshape(site.shape(node)[:2]).view(*site.shape(node)[:2], *[1] * (zero.dim() - 2))
        return collapse(pairs, zero.shape).expand(zero.shape)

    @staticmethod
    def channels(mask: Tensor, axis: int, size: int, *, every: bool = False) -> Tensor:
        """A mask reduced to one bool a channel."""
        return (
            collapse(mask, [n if a == axis else 1 for a, n in enumerate(mask.shape)], every=every).view(-1).expand(size)
        )

    # --- Layouts

    def legalise(self, site: Site, requested: Sequence[Layout], facts: SiteFacts) -> list[Layout]:
        widths, axis = self.widths(site), self.axis(site)
        layout = requested[0]
        kept = layout.kept(axis)
        if kept is None or not layout.is_product():
            kept = grown(self.channels(facts.lives[0], axis, widths.outputs), facts.multiple)
            layout = product(
                layout.compact, [kept if a == axis else layout.coordinate(a).unique() for a in range(layout.rank)]
            )
        if widths.groups == 1 or not self.is_followed(site):
            return [layout]
        if self.is_depthwise(widths):
            return [layout]
        live = self.channels(facts.lives[0], axis, widths.outputs).clone()
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
        return ALONE if self.is_depthwise(self.widths(site)) else GROUPS

    @staticmethod
    def is_depthwise(widths: Widths) -> bool:
        """Whether each input channel has one output channel of its own."""
        return widths.groups == widths.inputs == widths.outputs

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
            live = self.channels(facts.reads(0), axis, widths.inputs)
            kept: list[Tensor | None] = [
                grown(live, facts.multiple) if a == axis else outs[0].kept(a) for a in range(len(shape))
            ]
            layout = product(tuple(widths.inputs if a == axis else n for a, n in enumerate(outs[0].compact)), kept)
            return [LayoutRequest(layout, layout.of(self.spread(live, axis, layout)))]
        live = self.channels(facts.reads(0), axis, widths.inputs)
        if self.is_depthwise(widths):
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
        columns = grown(self.channels(facts.reads(0), axis, widths.inputs), 1)
        shape = tuple(widths.inputs if a == axis else n for a, n in enumerate(out.compact))
        others = [out.kept(a) if n != 1 else None for a, n in enumerate(out.compact)]
        layout = product(shape, [columns if a == axis else kept for a, kept in enumerate(others)])
        live_columns = self.channels(facts.reads(0), axis, widths.inputs)
        requests: list[Request] = [LayoutRequest(layout, layout.of(self.spread(live_columns, axis, layout)))]
        live_rows = self.channels(facts.lives[0], axis, widths.outputs)
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
        read = self.channels(facts.reads(0), axis, have.compact[axis])[kept]
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

    # --- Costs

    def cost(self, site: Site, ins: Sequence[Layout], outs: Sequence[Layout]) -> Contraction | None:
        widths, axis = self.widths(site), self.axis(site)
        if not ins[0].rank:
            return Contraction(0, len(kept_or_all(outs[0], axis, widths.outputs)), 0)
        rows = kept_or_all(outs[0], axis, widths.outputs)
        columns = kept_or_all(ins[0], axis, widths.inputs)
        groups = len(widths.present(rows)) if widths.groups > 1 else 1
        positions = math.prod(outs[0].shrunk(site.out_shape)) // max(1, len(rows))
        return Contraction(len(columns), len(rows), self.window(site, positions) * len(rows) * (len(columns) // groups))

    def limit(self, site: Site, facts: SiteFacts) -> Contraction | None:
        widths, axis = self.widths(site), self.axis(site)
        rows = self.channels(facts.lives[0], axis, widths.outputs)
        columns = self.channels(facts.reads(0), axis, widths.inputs)
        pairs = (rows.view(widths.groups, -1).sum(1) * columns.view(widths.groups, -1).sum(1)).sum()
        others = collapse(facts.lives[0], [1 if a == axis else n for a, n in enumerate(facts.lives[0].shape)])
        positions = math.prod(site.out_shape) // widths.outputs // others.numel() * int(others.sum())
        taps = math.prod(site.shape(weight_of(site.node))[2:])
        macs, weights = self.window(site, positions) * int(pairs), taps * int(pairs)
        return Contraction(int(columns.sum()), int(rows.sum()), macs, weights)

    def window(self, site: Site, positions: int) -> int:
        """How often each connection multiplies: positions of the result, times the taps of the kernel."""
        taps = math.prod(site.shape(weight_of(site.node))[2:])
        if self.form.transposed:
            shape = site.shape(site.inputs[0])
            return taps * math.prod(n for a, n in enumerate(shape) if a != 1)
        return taps * positions


def _all(given: int | Sequence[int], number: int) -> bool:
    """Whether an argument for each axis, or one for all of them, is this number."""
    return all(n == number for n in given) if isinstance(given, (list, tuple)) else given == number


LINEAR = Weighted(linear=True)
CONVOLUTION = Weighted()
TRANSPOSED = Weighted(transposed=True)

RULES: dict[str, Rule] = {
    "linear": LINEAR,
    **dict.fromkeys(("conv1d", "conv2d", "conv3d"), CONVOLUTION),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), TRANSPOSED),
}
