"""A scale or a shift for each channel: batch norm, instance norm, PReLU."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import Node

from passes.graph.layout import Layout, collapse
from passes.graph.selection import Selection
from passes.rules.base import LayoutRequest, Request, Rule, Site, SiteFacts, compact
from passes.rules.pointwise import Pointwise


class ChannelAffine(Rule):
    """A scale and a shift per channel (axis 1), with statistics of the channel: batch norm, instance norm."""

    family = "channel affine"
    reason = None
    is_affine = True
    makes_channels = False

    def keeps_channels(self, site: Site) -> bool:
        return bool(site.inputs)

    def parameters(self, node: Node) -> tuple[Node | None, ...]:
        return tuple(a if isinstance(a, Node) and a.op == "get_attr" else None for a in node.args[1:5])

    def slot(self, site: Site, index: int) -> Tensor | None:
        """The value of the parameter at an argument's index, if there is one."""
        argument = site.node.args[index] if len(site.node.args) > index else None
        return site.values.tensor(argument) if isinstance(argument, Node) else None

    def zero(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor]:
        channels = site.out_shape[1]
        line = tuple(channels if a == 1 else 1 for a in range(zeros[0].dim()))
        if not self.owns_parameters(site):
            return [torch.zeros(line, dtype=torch.bool)]
        own, through = self.channel_zero(site, channels)
        incoming = collapse(zeros[0], [n if a == 1 else 1 for a, n in enumerate(zeros[0].shape)], every=True)
        return [own.view(line) | (incoming & through.view(line))]

    def channel_zero(self, site: Site, channels: int) -> tuple[Tensor, Tensor]:
        """Per channel: zero whatever comes in; and zero if what comes in is zero, in training and in evaluation."""
        weight, bias, mean = (self.slot(site, i) for i in (1, 2, 3))
        no, yes = torch.zeros(channels, dtype=torch.bool), torch.ones(channels, dtype=torch.bool)
        scaled_away = no if weight is None else (weight == 0).cpu()
        unshifted = yes if bias is None else (bias == 0).cpu()
        centred = yes if mean is None else (mean == 0).cpu()
        return scaled_away & unshifted, unshifted & (centred | scaled_away)

    def ceiling(self, site: Site, zeros: Sequence[Tensor]) -> Tensor | None:
        shift = self.slot(site, 2) if self.owns_parameters(site) else None
        if shift is None:
            return None
        weight, mean, variance = (self.slot(site, i) for i in (1, 3, 4))
        evaluated = shift
        if mean is not None and variance is not None:
            moved = mean / (variance + site.argument(7, "eps")).sqrt()
            evaluated = shift - (moved if weight is None else weight * moved)
        line = tuple(len(shift) if a == 1 else 1 for a in range(zeros[0].dim()))
        incoming = collapse(zeros[0], [n if a == 1 else 1 for a, n in enumerate(zeros[0].shape)], every=True)
        result = torch.maximum(shift, evaluated).cpu().view(line).masked_fill(~incoming, math.inf)
        if weight is not None:
            result = torch.where((weight == 0).cpu().view(line), shift.cpu().view(line), result)
        return result

    def needed(self, site: Site, lives: Sequence[Tensor], zeros: Sequence[Tensor]) -> list[Tensor]:
        if not self.owns_parameters(site):
            return super().needed(site, lives, zeros)
        live, weight = lives[0], self.slot(site, 1)
        if weight is not None:
            live = live & (weight != 0).cpu().view(live.shape)
        return [(live.any() if zeros[0].shape[1] == 1 else live).expand(zeros[0].shape)]

    def requests(self, site: Site, outs: Sequence[Layout], facts: SiteFacts) -> list[Request] | None:
        return [LayoutRequest(outs[0], outs[0].of(facts.lives[0]))] if self.owns_parameters(site) else None

    def select(self, site: Site, ins: Sequence[Layout], outs: Sequence[Layout]) -> list[Selection]:
        kept = outs[0].kept(1) if outs[0].compact[1] != 1 else None
        return [Selection(site.shape(p), (kept,)).simplified() for p in site.parameters]


class PReLU(Pointwise):
    """max(0, x) + weight * min(0, x), with one weight a channel or one for all: zero where x is."""

    def parameters(self, node: Node) -> tuple[Node | None, ...]:
        weight = node.args[1]
        return (weight,) if isinstance(weight, Node) and weight.op == "get_attr" else ()

    def zero(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor]:
        return [zeros[0]]

    def needed(self, site: Site, lives: Sequence[Tensor], zeros: Sequence[Tensor]) -> list[Tensor]:
        return [collapse(lives[0], compact(zeros[0])), *(torch.ones_like(z) for z in zeros[1:])]

    def legalise(self, site: Site, requested: Sequence[Layout], facts: SiteFacts) -> list[Layout]:
        return [requested[0] if requested[0].kept(1) is not None else requested[0].as_product()]

    def requests(self, site: Site, outs: Sequence[Layout], facts: SiteFacts) -> list[Request] | None:
        return [LayoutRequest(outs[0], outs[0].of(facts.lives[0]))] if len(site.inputs) == 1 else None

    def select(self, site: Site, ins: Sequence[Layout], outs: Sequence[Layout]) -> list[Selection]:
        kept = outs[0].kept(1) if outs[0].compact[1] != 1 else None
        return [
            Selection(s, (kept if s[0] == site.out_shape[1] else None,)).simplified()
            for s in map(site.shape, site.parameters)
        ]


RULES: dict[str, Rule] = {
    **dict.fromkeys(("batch_norm", "instance_norm"), ChannelAffine()),
    "prelu": PReLU(),
}
