"""Movements along an axis: slices, flips, rolls, selections, padding, repetition, expansion.

Along labelled axes a `Reindex` disappears: it requests its input in the order of its result, so that the movement
becomes part of a recombination, or of a weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from passes.graph.layout import Layout, Shape
from passes.graph.ranges import Range
from passes.rules.base import UNREAD, LayoutRequest, Request, Rule, Site, SiteFacts, call_key
from passes.rules.emitter import Emitter
from passes.rules.movement import Movement, Touched
from passes.rules.sampling import PICKED

aten = torch.ops.aten


class Reindex(Movement):
    """One input, same rank, other indices along some axes. Along labelled axes the operator disappears."""

    def __init__(self, touched: Touched) -> None:
        super().__init__(touched)

    def requests(self, site: Site, outs: Sequence[Layout], facts: SiteFacts) -> list[Request] | None:
        if len(site.inputs) != 1:
            return self.with_constant_index(site, outs, facts)
        traced = self.traced(site, outs[0], facts)
        if traced is None or bool((traced < 0).any()):
            return None
        shape, full = tuple(facts.zeros[0].shape), site.shape(site.inputs[0])
        followed = self.followed(site, shape, outs[0].compact)
        if followed and any(full[a] != 1 for a in self.moved(site) if a not in followed):
            return None
        if any(traced.shape[a] != 1 for a in followed if shape[a] == 1):
            return None
        return [LayoutRequest(Layout(shape, traced), outs[0].of(facts.lives[0]))]

    def with_constant_index(self, site: Site, outs: Sequence[Layout], facts: SiteFacts) -> list[Request] | None:
        return None

    def moved(self, site: Site) -> tuple[int, ...]:
        """The axes along which something really moves."""
        assert self.touched is not None
        return self.touched(site)

    def spreads(self, site: Site) -> str | None:
        alone = len(site.inputs) == 1 and len(site.out_shape) == len(site.shape(site.inputs[0]))
        moved = self.moved(site)
        return call_key(site) if alone and moved and min(moved) > 1 else None

    def moves_channels(self, site: Site) -> bool:
        return self.moved(site) == (1,)

    def followed(self, site: Site, before: Shape, after: Shape) -> list[int]:
        """The axes along which labels move from an input to a result of these compact shapes.

        The layout requested of the input has the labels moved already.
        """
        full = site.shape(site.inputs[0])
        return [a for a in self.moved(site) if before[a] != 1 or (full[a] == 1 and after[a] != 1)]

    def sources(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor] | None:
        return super().sources(site, zeros) if self.moved(site) else None

    def emit(self, site: Site, to: Emitter, ins: Sequence[Layout], outs: Sequence[Layout]) -> list[Node]:
        if to.followed and self.followed(site, ins[0].compact, outs[0].compact):
            return [to.first_input()]
        return [to.copy()]


class Select(Reindex):
    """index_select by a constant: its index is an input of the call, but not of the movement. By a computed index it is
    a sampling."""

    def parameters(self, node: Node) -> tuple[Node | None, ...]:
        return ()

    def _numbered(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor]:
        index = site.values.constant(site.inputs[1])
        if index is None:
            return []
        shape = tuple(zeros[0].shape)
        labels = torch.arange(math.prod(shape)).view(shape)
        axis = int(site.node.args[1]) % len(shape)  # type: ignore[arg-type]
        size = [site.shape(site.inputs[0])[a] if a == axis else n for a, n in enumerate(shape)]
        return [labels.expand(size), index.cpu()]

    def sources(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor] | None:
        if len(site.inputs) != 2 or site.values.constant(site.inputs[1]) is None:
            return None
        return super().sources(site, zeros)

    def labelled(self, site: Site, zeros: Sequence[Tensor]) -> list[tuple[int, ...]]:
        return [tuple(zeros[0].shape), (0,)]

    def zero(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor]:
        sources = self.sources(site, zeros)
        return PICKED.zero(site, zeros) if sources is None else [zeros[0].reshape(-1)[sources[0]]]

    def range(self, site: Site, zeros: Sequence[Tensor], ranges: Sequence[Range | None]) -> list[Range | None]:
        sources = self.sources(site, zeros)
        if sources is None:
            return PICKED.range(site, zeros, ranges)
        if ranges[0] is None:
            return [None]
        known = ranges[0].expand(zeros[0].shape)
        return [Range(known.low.reshape(-1)[sources[0]], known.high.reshape(-1)[sources[0]])]

    def needed(self, site: Site, lives: Sequence[Tensor], zeros: Sequence[Tensor]) -> list[Tensor]:
        sources = self.sources(site, zeros)
        if sources is None:
            return PICKED.needed(site, lives, zeros)
        flat = torch.zeros(zeros[0].numel(), dtype=torch.bool)
        flat[sources[0][lives[0]]] = True
        return [flat.view(zeros[0].shape), torch.ones_like(zeros[1])]

    def with_constant_index(self, site: Site, outs: Sequence[Layout], facts: SiteFacts) -> list[Request] | None:
        if self.sources(site, facts.zeros) is None:
            return PICKED.requests(site, outs, facts)
        traced = self.traced(site, outs[0], facts)
        if traced is None:
            return None
        shape = tuple(facts.zeros[0].shape)
        index = UNREAD if self.followed(site, shape, outs[0].compact) else LayoutRequest(Layout.whole(1))
        return [LayoutRequest(Layout(shape, traced), outs[0].of(facts.lives[0])), index]

    def followed(self, site: Site, before: Shape, after: Shape) -> list[int]:
        return [a for a in self.moved(site) if before[a] != 1]


class Pad(Reindex):
    """Padding with a constant. New channels of zeros are not needed; other padding stays."""

    def __init__(self) -> None:
        super().__init__(_padded_axes)

    def run(self, site: Site, args: Any, kwargs: Any) -> Any:
        touched, labels = set(self.moved(site)), args[0]
        pads = list(site.argument(1, "pad"))
        for i in range(0, len(pads), 2):
            axis = labels.dim() - 1 - i // 2
            if axis in touched and labels.stride(axis) == 0:
                pads[i] = pads[i + 1] = 0  # along an axis without labels the old elements stand for all
        return aten.constant_pad_nd.default(labels, pads, -1)

    def sources(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor] | None:
        mode = site.argument(2, "mode", "constant")
        if mode != "constant" and not isinstance(mode, (int, float)):
            return None
        shape, full = zeros[0].shape, site.shape(site.inputs[0])
        unlabelled = any(shape[a] == 1 and full[a] != 1 for a in self.moved(site))
        if unlabelled and not self.fills_zero(site):
            return None
        return super().sources(site, zeros)

    def range(self, site: Site, zeros: Sequence[Tensor], ranges: Sequence[Range | None]) -> list[Range | None]:
        """Along an axis without labels the old elements and the border are both in every label."""
        found = super().range(site, zeros, ranges)
        full, (known,) = site.shape(site.inputs[0]), found
        if known is None or not any(zeros[0].shape[a] == 1 and full[a] != 1 for a in self.moved(site)):
            return found
        return [known.joined(Range.between(known.low.shape, self.fill(site), self.fill(site)))]

    def spreads(self, site: Site) -> str | None:
        constant = site.argument(2, "mode", "constant") == "constant" or "constant" in str(site.node.target)
        return super().spreads(site) if constant and self.fills_zero(site) else None

    def moves_channels(self, site: Site) -> bool:
        return False  # what it fills in is no channel of the input

    def fill(self, site: Site) -> float:
        index = 3 if "constant" not in str(site.node.target) else 2
        return float(site.argument(index, "value", 0) or 0)


class Repeat(Reindex):
    """x repeated along axes that it has."""

    def sources(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor] | None:
        return super().sources(site, zeros) if len(site.shape(site.inputs[0])) == len(site.out_shape) else None


class Expand(Movement):
    """One element seen many times along axes of size 1 or new ones."""

    moves_nothing = True

    def requests(self, site: Site, outs: Sequence[Layout], facts: SiteFacts) -> list[Request] | None:
        traced = self.traced(site, outs[0], facts)
        if traced is None or len(site.inputs) != 1:
            return None
        offset = len(site.out_shape) - facts.zeros[0].dim()
        if any(n != 1 for n in outs[0].compact[:offset]):
            return None
        traced = traced.reshape(traced.shape[offset:])
        return [
            LayoutRequest(Layout(tuple(facts.zeros[0].shape), traced), outs[0].of(facts.lives[0]).reshape(traced.shape))
        ]

    def emit(self, site: Site, to: Emitter, ins: Sequence[Layout], outs: Sequence[Layout]) -> list[Node]:
        if not to.followed:
            return [to.copy()]
        sizes = [outs[0].size(a, n) if outs[0].compact[a] != 1 else n for a, n in enumerate(to.args[1])]
        return [to.call(aten.expand.default, (to.first_input(), sizes))]


def _argument_axes(index: int, default: Any = 0) -> Touched:
    def axes(site: Site) -> tuple[int, ...]:
        rank, given = (
            len(site.shape(site.inputs[0])),
            site.argument(index, "dims", site.argument(index, "dim", default)),
        )
        return tuple(int(a) % rank for a in (given if isinstance(given, (list, tuple)) else [given]))

    return axes


def _padded_axes(site: Site) -> tuple[int, ...]:
    rank, pads = len(site.shape(site.inputs[0])), site.argument(1, "pad")
    return tuple(rank - 1 - i // 2 for i in range(0, len(pads), 2) if pads[i] or pads[i + 1])


def _repeated_axes(site: Site) -> tuple[int, ...]:
    times = site.argument(1, "repeats")
    offset = len(times) - len(site.shape(site.inputs[0]))
    return tuple(a - offset for a, n in enumerate(times) if n != 1 and a >= offset)


def _channel(site: Site) -> tuple[int, ...]:
    return (1,)


RULES: dict[str, Rule] = {
    "expand": Expand(),
    "slice": Reindex(_argument_axes(1)),
    "flip": Reindex(_argument_axes(1)),
    "roll": Reindex(_argument_axes(2, ())),
    "index_select": Select(_argument_axes(1)),
    "repeat": Repeat(_repeated_axes),
    **dict.fromkeys(("channel_shuffle", "native_channel_shuffle"), Reindex(_channel)),
    **dict.fromkeys(("pad", "constant_pad_nd"), Pad()),
}
