"""A scale or a shift for each channel: batch norm, instance norm, PReLU."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import Node

from passes.graph.layout import Layout, collapse
from passes.graph.ranges import Range
from passes.graph.selection import Selection
from passes.rules.base import LayoutRequest, Request, Rule, Site, SiteFacts, compact, own_parameter
from passes.rules.pointwise import Pointwise


class ChannelAffine(Rule):
    """A scale and a shift per channel (axis 1), with statistics of the channel: batch norm, instance norm."""

    family = "channel affine"
    reason = None
    is_affine = True
    makes_channels = False
    ranges_hold_zeros = False

    def keeps_channels(self, site: Site) -> bool:
        return bool(site.inputs)

    def parameters(self, node: Node) -> tuple[Node | None, ...]:
        return tuple(a if isinstance(a, Node) and a.op == "get_attr" else None for a in node.args[1:5])

    def shift(self, site: Site) -> Node | None:
        return own_parameter(site, site.node.args[2] if len(site.node.args) > 2 else None)

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

    def range(self, site: Site, zeros: Sequence[Tensor], ranges: Sequence[Range | None]) -> list[Range | None]:
        """A channel with scale 0 is its shift; a constant one is the shift in training, and in evaluation what the
        running statistics make of it."""
        if not self.owns_parameters(site):
            return [None]
        channels, rank = site.out_shape[1], len(site.out_shape)
        line = [channels if a == 1 else 1 for a in range(rank)]
        weight, shift, mean, variance = (self.slot(site, i) for i in (1, 2, 3, 4))
        scale = torch.ones(channels) if weight is None else weight.cpu()
        shift = torch.zeros(channels) if shift is None else shift.cpu()
        shift, gone = shift.double().view(line), (scale == 0).view(line)
        given = Range.with_zeros(ranges[0], zeros[0])
        if (given is None or not given.has_constants) and not bool((gone & (shift != 0)).any()):
            return [None]  # zeros at most, which `zero` says
        given = (
            Range.unknown(line)
            if given is None
            else given.fitted([n if a == 1 else 1 for a, n in enumerate(given.low.shape)])
        )
        known = given.is_constant.expand(line)
        evaluated = shift
        if mean is not None and variance is not None:
            slope = scale.double() / (variance.cpu().double() + site.argument(7, "eps")).sqrt()
            evaluated = (given.low - mean.cpu().double().view(line)) * slope.view(line) + shift
        trained = evaluated if site.values.inference else shift
        found = [
            torch.where(gone, shift, end.masked_fill(~known, limit))
            for end, limit in (
                (torch.minimum(trained, evaluated), -math.inf),
                (torch.maximum(trained, evaluated), math.inf),
            )
        ]
        return [Range(*found)]

    def firm(self, site: Site, zeros: Sequence[Tensor]) -> Tensor | None:
        """A channel with scale 0, and one that reads zeros."""
        if not self.owns_parameters(site):
            return None
        weight, line = self.slot(site, 1), [n if a == 1 else 1 for a, n in enumerate(site.out_shape)]
        incoming = collapse(zeros[0], [n if a == 1 else 1 for a, n in enumerate(zeros[0].shape)], every=True)
        return incoming.expand(line) if weight is None else incoming | (weight == 0).cpu().view(line)

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

    ranges_hold_zeros = True

    def parameters(self, node: Node) -> tuple[Node | None, ...]:
        weight = node.args[1]
        return (weight,) if isinstance(weight, Node) and weight.op == "get_attr" else ()

    def zero(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor]:
        return [zeros[0]]

    def range(self, site: Site, zeros: Sequence[Tensor], ranges: Sequence[Range | None]) -> list[Range | None]:
        """Where x is a constant that is not negative: itself. Elsewhere a shared weight would miss its gradient."""
        if ranges[0] is None:
            return [None]
        return [Range.constant(ranges[0].low, ranges[0].is_constant & (ranges[0].low >= 0))]

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
