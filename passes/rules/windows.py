"""Overlapping windows: along a new axis, or as columns of an image that have all taps of a channel side by side."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from passes.graph.layout import Layout, along, collapse
from passes.rules.base import LayoutRequest, Request, Rule, Site, SiteFacts
from passes.rules.movement import Movement


class Windows(Movement):
    """Overlapping windows along an axis, each laid out along a new last one (`Tensor.unfold`)."""

    def requests(self, site: Site, outs: Sequence[Layout], facts: SiteFacts) -> list[Request] | None:
        traced, shape = self.traced(site, outs[0], facts), tuple(facts.zeros[0].shape)
        (axis,) = _unfolded(site)
        if traced is None or shape[axis] != 1 or traced.shape[-1] != 1:
            return None
        return [LayoutRequest(Layout(shape, traced[..., 0]), outs[0].of(facts.lives[0])[..., 0])]


def _unfolded(site: Site) -> tuple[int, ...]:
    return (int(site.argument(1, "dimension")) % len(site.shape(site.inputs[0])),)


class Columns(Rule):
    """`im2col` (nn.Unfold): (N, C, H, W) -> (N, C * taps, L); `col2im` (nn.Fold), with `back`, sums them up again.

    Channels go with all their taps.
    """

    family = "windows"
    reason = None
    makes_channels = False

    def __init__(self, *, back: bool = False) -> None:
        self.back = back

    def taps(self, site: Site) -> int:
        """Elements of a window."""
        return math.prod(site.argument(2 if self.back else 1, "kernel_size"))

    def axes(self, site: Site) -> tuple[int, int]:
        """The channel axis of the input and of the result."""
        ranks = len(site.shape(site.inputs[0])), len(site.out_shape)
        return (ranks[0] - 2, ranks[1] - 3) if self.back else (ranks[0] - 3, ranks[1] - 2)

    def by_channel(self, site: Site, mask: Tensor, axis: int, *, wide: bool, every: bool) -> Tensor:
        """A mask as one bool a channel; `wide`: it has all taps along its axis."""
        line = collapse(mask, [n if a == axis else 1 for a, n in enumerate(mask.shape)], every=every).view(-1)
        if wide and len(line) > 1:
            grouped = line.view(-1, self.taps(site))
            line = grouped.all(1) if every else grouped.any(1)
        return line

    def by_tap(self, site: Site, channels: Tensor, axis: int, rank: int, *, wide: bool) -> Tensor:
        """The channels as a mask along an axis that, if it is `wide`, has all their taps."""
        wide = wide and len(channels) > 1
        return along(channels.repeat_interleave(self.taps(site)) if wide else channels, axis, rank)

    def zero(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor]:
        given, found = self.axes(site)
        channels = self.by_channel(site, zeros[0], given, wide=self.back, every=True)
        return [self.by_tap(site, channels, found, len(site.out_shape), wide=not self.back)]

    def needed(self, site: Site, lives: Sequence[Tensor], zeros: Sequence[Tensor]) -> list[Tensor]:
        given, found = self.axes(site)
        channels = self.by_channel(site, lives[0], found, wide=not self.back, every=False)
        mask = self.by_tap(site, channels, given, zeros[0].dim(), wide=self.back)
        return [collapse(mask, zeros[0].shape).expand(zeros[0].shape)]

    def legalise(self, site: Site, requested: Sequence[Layout], facts: SiteFacts) -> list[Layout]:
        """Whole channels, in the order in which the first of their taps is requested."""
        _, axis = self.axes(site)
        layout = requested[0]
        if layout.axes != (axis,):
            return [Layout.whole(layout.rank)]
        if self.back:
            return [layout]
        taps, kept = self.taps(site), layout.coordinate(axis).view(-1)
        channels = torch.tensor(list(dict.fromkeys((kept // taps).tolist())))
        labels = (channels.view(-1, 1) * taps + torch.arange(taps)).view(-1)
        return [Layout.along(layout.rank, axis, layout.compact[axis], labels)]

    def requests(self, site: Site, outs: Sequence[Layout], facts: SiteFacts) -> list[Request] | None:
        given, axis = self.axes(site)
        rank = facts.zeros[0].dim()
        if not outs[0].axes:
            return [LayoutRequest(Layout.whole(rank))]
        taps, kept = self.taps(site), outs[0].coordinate(axis).view(-1)
        if self.back:
            labels, size = (kept.view(-1, 1) * taps + torch.arange(taps)).view(-1), outs[0].compact[axis] * taps
        else:
            labels, size = kept[::taps] // taps, outs[0].compact[axis] // taps
        layout = Layout.along(rank, given, size, labels)
        asked = facts.asked[0].expand([size if a == given else n for a, n in enumerate(facts.asked[0].shape)])
        line = [n if a == given else 1 for a, n in enumerate(asked.shape)]
        return [LayoutRequest(layout, layout.of(collapse(asked, line)))]


RULES: dict[str, Rule] = {"unfold": Windows(_unfolded), "im2col": Columns(), "col2im": Columns(back=True)}
