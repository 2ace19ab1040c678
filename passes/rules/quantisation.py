"""Fake quantisation: x rounded to steps of `scale` around a zero point, with one scale for all or one a channel.

An integer zero point between the bounds, which torch insists on, stands for zero: zero stays zero.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import Node

from passes.graph.layout import Layout, collapse
from passes.graph.selection import Selection
from passes.rules.base import LayoutRequest, Request, Rule, Site, SiteFacts, compact
from passes.rules.pointwise import Pointwise


class FakeQuantisation(Pointwise):
    """Element by element. `per_channel`: scale and zero point vary along the axis that the call names."""

    def __init__(self, *, per_channel: bool = False) -> None:
        self.per_channel = per_channel

    def parameters(self, node: Node) -> tuple[Node | None, ...]:
        return tuple(a if isinstance(a, Node) and a.op == "get_attr" else None for a in node.args[1:3])

    def axis(self, site: Site) -> int | None:
        """The axis along which scale and zero point vary; None if they do not."""
        return int(site.argument(3, "axis")) % len(site.out_shape) if self.per_channel else None

    def keeps_zero(self, site: Site) -> bool:
        point = site.argument(2, "zero_point")
        return not isinstance(point, Node) or not point.meta["val"].is_floating_point()

    def zero(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor]:
        return [zeros[0] if self.keeps_zero(site) else torch.zeros_like(zeros[0])]

    def needed(self, site: Site, lives: Sequence[Tensor], zeros: Sequence[Tensor]) -> list[Tensor]:
        return [collapse(lives[0], compact(zeros[0])), *(torch.ones_like(zero) for zero in zeros[1:])]

    def stand_in(self, site: Site, index: int) -> float:
        return 0.0

    def legalise(self, site: Site, requested: Sequence[Layout], facts: SiteFacts) -> list[Layout]:
        axis, layout = self.axis(site), requested[0]
        return [layout if axis is None or layout.kept(axis) is not None else layout.as_product()]

    def requests(self, site: Site, outs: Sequence[Layout], facts: SiteFacts) -> list[Request] | None:
        kept, x = self._kept(site, outs[0]), LayoutRequest(outs[0], outs[0].of(facts.lives[0]))
        shapes = [site.shape(node) for node in site.inputs[1:]]
        whole = [LayoutRequest(Layout.whole(len(shape))) for shape in shapes]
        return [x, *(whole if kept is None else (LayoutRequest(Layout.along(1, 0, s[0], kept)) for s in shapes))]

    def _kept(self, site: Site, out: Layout) -> Tensor | None:
        """The channels that scale and zero point keep; None if they stay whole."""
        axis = self.axis(site)
        return None if axis is None or out.compact[axis] == 1 else out.kept(axis)

    def select(self, site: Site, ins: Sequence[Layout], outs: Sequence[Layout]) -> list[Selection]:
        kept = self._kept(site, outs[0])
        shapes = [site.shape(parameter) for parameter in site.parameters]
        return [Selection.whole(s) if kept is None else Selection(s, (kept,)).simplified() for s in shapes]


RULES: dict[str, Rule] = {
    "fake_quantize_per_tensor_affine": FakeQuantisation(),
    "fake_quantize_per_channel_affine": FakeQuantisation(per_channel=True),
}
