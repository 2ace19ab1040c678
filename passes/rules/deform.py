"""Deformable convolution (`torchvision.ops.deform_conv2d`): a convolution of values that are read at computed places.

Each result reads every input channel at the places that its offsets give, and scales them by its mask. So channels are
those of a convolution; offsets and mask are needed whole. Followed without groups of the weight; with several groups of
offsets the input stays whole, because each group of channels has offsets of its own.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.fx import Node

from passes.graph.layout import Layout, along, collapse, grown
from passes.graph.selection import Selection
from passes.rules.base import ANY_LAYOUT, Contraction, LayoutRequest, Request, Rule, Site, SiteFacts
from passes.rules.weights import Widths, kept_or_all


class DeformableConvolution(Rule):
    """y = W x(places) + b over axis 1; the arguments are x, W, offsets, mask, b, ..., groups, groups of offsets."""

    family = "contraction"
    reason = None

    def takes_any_order(self, site: Site, zeros: Sequence[Tensor], *, cut: bool) -> bool:
        return self.is_followed(site) and not (cut and self.offset_groups(site) > 1)

    def parameters(self, node: Node) -> tuple[Node | None, ...]:
        """Weight and bias. A bias that is computed, such as torchvision's zeros for none, is an input."""
        weight, bias = node.args[1], node.args[4]
        if not isinstance(weight, Node) or weight.op != "get_attr" or weight is bias:
            return ()
        return (weight, bias) if isinstance(bias, Node) and bias.op == "get_attr" else (weight,)

    def is_followed(self, site: Site) -> bool:
        """Whether the call can be made smaller: its weight is a parameter and has no groups."""
        return bool(site.parameters) and self.groups(site) == 1

    def groups(self, site: Site) -> int:
        return int(site.argument(11, "groups", 1))

    def offset_groups(self, site: Site) -> int:
        """The number of groups of channels that have offsets of their own."""
        return int(site.argument(12, "offset_groups", 1))

    def widths(self, site: Site) -> Widths:
        """The channels, and which of them the weight connects."""
        connected = site.values.connections(site.parameters[0])
        outputs, inputs = site.shape(site.parameters[0])[:2]
        return Widths(1, outputs, inputs, None if connected is None else connected.unsqueeze(0))

    # --- Liveness

    def zero(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor]:
        if not self.is_followed(site):
            return super().zero(site, zeros)
        widths = self.widths(site)
        zero = ~widths.feed(~_line(zeros[0], widths.inputs, every=True))
        if len(site.parameters) > 1:
            zero = zero & (site.values.tensor(site.parameters[1]) == 0).cpu()
        else:
            zero = zero & zeros[-1].expand(widths.outputs)
        return [along(zero, 1, 4)]

    def needed(self, site: Site, lives: Sequence[Tensor], zeros: Sequence[Tensor]) -> list[Tensor]:
        if not self.is_followed(site):
            return super().needed(site, lives, zeros)
        widths = self.widths(site)
        rows = _line(lives[0], widths.outputs)
        places = super().needed(site, lives, zeros)[1:]
        if len(site.parameters) == 1:
            places[-1] = collapse(rows, zeros[-1].shape).expand(zeros[-1].shape)
        return [collapse(along(widths.reads(rows), 1, 4), zeros[0].shape).expand(zeros[0].shape), *places]

    # --- Layouts

    def legalise(self, site: Site, requested: Sequence[Layout], facts: SiteFacts) -> list[Layout]:
        layout = requested[0]
        return [layout if not self.is_followed(site) or layout.axes == (1,) else Layout.whole(4)]

    def requests(self, site: Site, outs: Sequence[Layout], facts: SiteFacts) -> list[Request] | None:
        if not self.is_followed(site):
            return None
        found: list[Request] = [LayoutRequest(Layout.whole(len(site.shape(node)))) for node in site.inputs]
        if self.offset_groups(site) == 1:
            found[0] = ANY_LAYOUT
        if len(site.parameters) == 1:
            outputs = self.widths(site).outputs
            found[-1] = LayoutRequest(Layout.along(1, 0, outputs, kept_or_all(outs[0], 1, outputs)))
        return found

    def accept(self, site: Site, index: int, have: Layout) -> Layout:
        """The layout as it is where only channels were removed."""
        if set(have.axes) <= {1}:
            return have
        size = site.shape(site.inputs[index])[1]
        return Layout.along(4, 1, size, have.coordinate(1).unique()) if have.compact[1] != 1 else Layout.whole(4)

    def narrowed(self, site: Site, have: Layout, facts: SiteFacts) -> Layout | None:
        """The layout without the channels that no weight reads: they exist for other readers."""
        if have.axes != (1,):
            return None
        kept = have.coordinate(1).view(-1)
        columns = grown(_line(facts.reads(0), have.compact[1])[kept], facts.multiple)
        return None if len(columns) == len(kept) else Layout.along(4, 1, have.compact[1], kept[columns])

    def select(self, site: Site, ins: Sequence[Layout], outs: Sequence[Layout]) -> list[Selection]:
        widths = self.widths(site)
        rows, columns = kept_or_all(outs[0], 1, widths.outputs), kept_or_all(ins[0], 1, widths.inputs)
        kept: list[tuple[Any, ...]] = [(rows, columns, None, None), (rows,)]
        return [Selection(site.shape(p), k).simplified() for p, k in zip(site.parameters, kept, strict=False)]

    # --- Costs

    def cost(self, site: Site, ins: Sequence[Layout], outs: Sequence[Layout]) -> Contraction | None:
        weight, channels = self._weight_shape(site), site.shape(site.inputs[0])[1]
        inputs, outputs = _width(ins[0], channels), _width(outs[0], weight[0])
        return self._cost(site, inputs, outputs)

    def limit(self, site: Site, facts: SiteFacts) -> Contraction | None:
        weight, channels = self._weight_shape(site), site.shape(site.inputs[0])[1]
        if not self.is_followed(site):
            return self._cost(site, channels, weight[0])
        inputs, outputs = _line(facts.reads(0), channels), _line(facts.lives[0], weight[0])
        return self._cost(site, int(inputs.sum()), int(outputs.sum()))

    def _cost(self, site: Site, inputs: int, outputs: int) -> Contraction:
        weights = inputs // self.groups(site) * outputs * math.prod(self._weight_shape(site)[2:])
        batch, _, height, width = site.out_shape
        return Contraction(inputs, outputs, batch * height * width * weights, weights)

    @staticmethod
    def _weight_shape(site: Site) -> tuple[int, ...]:
        weight = site.node.args[1]
        assert isinstance(weight, Node)
        return site.shape(weight)


def _line(mask: Tensor, size: int, *, every: bool = False) -> Tensor:
    """A mask of images reduced to the channels."""
    return collapse(mask, (1, mask.shape[1], 1, 1), every=every).view(-1).expand(size)


def _width(layout: Layout, size: int) -> int:
    """How many of `size` channels a layout keeps."""
    return layout.size(1, size) if layout.rank else size


OPERATORS: dict[str, Rule] = {"torchvision::deform_conv2d": DeformableConvolution()}
"""By qualified name."""
