"""Weights that mix channels: which of them live, which are constant, and what a call costs.

Convolution, transposed and grouped convolution, and linear layers are one thing here: a weight of shape (groups,
outputs of a group, inputs of a group), the kernel's window left out, over a channel axis that is 1 for convolutions and
the last one for linear layers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import Node

from passes.graph.layout import Layout, along, collapse
from passes.graph.ranges import Range
from passes.rules.base import Contraction, Rule, Site, SiteFacts, WeightForm, own_parameter
from passes.rules.memo import Key
from passes.rules.weights import Columns, Widths, bias_of, by_channel, kept_or_all, weight_of

WIDTHS = Key[Widths]()


class Contracting(Rule):
    """y = W x + b over a channel axis. The first input is x; a weight or bias that is computed is an input too."""

    family = "contraction"
    reason = None
    ranges_hold_zeros = False

    def __init__(self, *, transposed: bool = False, linear: bool = False) -> None:
        self.weight = self.form = WeightForm(linear=linear, transposed=transposed)

    def keeps_channels(self, site: Site) -> bool:
        return not self.form.linear and self.widths(site).is_depthwise

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

    def columns(self, site: Site) -> Columns | None:
        if not self.owns_parameters(site):
            return None
        weight = site.values.tensor(weight_of(site.node))
        return Columns(self.axis(site), self.widths(site), weight, self.form.transposed, self.is_even(site))

    # --- Liveness

    def zero(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor]:
        widths, axis, rank = self.widths(site, zeros), self.axis(site), len(site.out_shape)
        alive = ~by_channel(zeros[0], axis, widths.inputs, every=True)
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
        if not self.owns_parameters(site) or self._reads_live(site, zeros, ranges[0]):
            return [None]
        columns = self.columns(site)
        assert columns is not None
        widths, axis = columns.widths, columns.axis
        known, value = columns.constants(zeros[0], ranges[0])
        moving = ~known if columns.even else ~(known & (value == 0))
        found = ~widths.feed(moving)
        if not bool(found.any()):
            return [None]
        bias = bias_of(site.node)
        result = torch.zeros(widths.outputs, dtype=torch.float64)
        if isinstance(bias, Node):
            result = result + site.values.tensor(bias).cpu().double()
        if bool((known & (value != 0)).any()):
            result = result + columns.response(value.masked_fill(~known, 0.0))
        line = [widths.outputs if a == axis else 1 for a in range(len(site.out_shape))]
        return [Range.constant(result.view(line), found.view(line))]

    def _reads_live(self, site: Site, zeros: Sequence[Tensor], known: Range | None) -> bool:
        """Whether every output is connected to all inputs of its group, of which nothing is known: the usual case."""
        is_open = known is None or not known.has_constants
        return is_open and self.widths(site, zeros).connected is None and not bool(zeros[0].any())

    def firm(self, site: Site, zeros: Sequence[Tensor]) -> Tensor | None:
        """A channel that reads zeros only: its bias."""
        if not self.owns_parameters(site) or self._reads_live(site, zeros, None):
            return None
        widths, axis = self.widths(site, zeros), self.axis(site)
        fed = widths.feed(~by_channel(zeros[0], axis, widths.inputs, every=True))
        return along(~fed, axis, len(site.out_shape))

    def is_even(self, site: Site) -> bool:
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
        needed = widths.reads(by_channel(lives[0], axis, widths.outputs))
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
        rows = by_channel(live, axis, widths.outputs)
        if node is not weight_of(site.node):
            return collapse(rows, zero.shape).expand(zero.shape)
        columns = ~by_channel(zeros[0], axis, widths.inputs, every=True)
        pairs = rows.view(widths.groups, -1, 1) & columns.view(widths.groups, 1, -1)
        pairs = pairs.transpose(1, 2) if self.form.transposed else pairs
        pairs = pairs.reshape(site.shape(node)[:2]).view(*site.shape(node)[:2], *[1] * (zero.dim() - 2))
        return collapse(pairs, zero.shape).expand(zero.shape)

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
        rows = by_channel(facts.lives[0], axis, widths.outputs)
        columns = by_channel(facts.reads(0), axis, widths.inputs)
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
