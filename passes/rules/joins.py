"""Pieces side by side: concatenation and split."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import reduce
from operator import or_

import torch
from torch import Tensor
from torch.fx import Node

from passes.graph.layout import Layout, box_of, collapse
from passes.graph.ranges import Range
from passes.rules.base import UNREAD, LayoutRequest, Request, Rule, Site, SiteFacts
from passes.rules.emitter import Emitter
from passes.rules.movement import Movement

aten = torch.ops.aten

MOST_CUTS = 16
"""A concatenation cuts its inputs at most so many times; beyond that its result is put into order by one gather."""


class Join(Movement):
    """cat: the inputs side by side. An input that keeps no channel is left out."""

    is_join = True

    def takes_any_order(self, site: Site, zeros: Sequence[Tensor], *, cut: bool) -> bool:
        return True

    def labelled(self, site: Site, zeros: Sequence[Tensor]) -> list[tuple[int, ...]]:
        axis = self.axis(site)
        if self.is_blind(site, zeros):
            shape = torch.broadcast_shapes(*(tuple(z.shape) for z in zeros))
            return [tuple(shape) for _ in zeros]
        others = torch.broadcast_shapes(*([1 if a == axis else n for a, n in enumerate(z.shape)] for z in zeros))
        return [tuple(site.shape(n)[axis] if a == axis else m for a, m in enumerate(others)) for n in site.inputs]

    def moves_channels(self, site: Site) -> bool:
        return self.axis(site) == 1

    @staticmethod
    def axis(site: Site) -> int:
        return int(site.argument(1, "dim", 0)) % len(site.out_shape)

    def is_blind(self, site: Site, zeros: Sequence[Tensor]) -> bool:
        """Whether the inputs are joined along an axis without labels, so that each of them stands for the result.

        Inputs of a single entry each (stacked branches) are the exception: there the axis has a label for each entry.
        """
        axis = self.axis(site)
        return all(z.shape[axis] == 1 for z in zeros) and any(site.shape(n)[axis] > 1 for n in site.inputs)

    def _sources(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor] | None:
        axis, shapes = self.axis(site), self.labelled(site, zeros)
        if any(not site.values.is_static(n, axis) for n in site.inputs) and any(s[axis] != 1 for s in shapes):
            return None
        found, start = [], 0
        for shape in shapes:
            found.append(torch.arange(start, start + math.prod(shape)).view(shape))
            start += math.prod(shape)
        if self.is_blind(site, zeros):
            return [found[0]]
        return [torch.cat(found, axis)]

    def zero(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor]:
        sources = self.sources(site, zeros)
        if sources is None or not self.is_blind(site, zeros):
            return super().zero(site, zeros)
        result = zeros[0]
        for zero in zeros[1:]:
            result = result & zero
        return [result.expand(sources[0].shape)]

    def range(self, site: Site, zeros: Sequence[Tensor], ranges: Sequence[Range | None]) -> list[Range | None]:
        sources = self.sources(site, zeros)
        if sources is None or not self.is_blind(site, zeros):
            return super().range(site, zeros, ranges)
        if any(each is None for each in ranges):
            return [None]
        hull = reduce(Range.joined, (each for each in ranges if each is not None))
        return [hull.expand(sources[0].shape)]

    def carried(self, site: Site, masks: Sequence[Tensor]) -> list[Tensor | None]:
        sources = self.sources(site, masks)
        if sources is None or not self.is_blind(site, masks):
            return super().carried(site, masks)
        return [reduce(or_, masks).expand(sources[0].shape)]

    def needed(self, site: Site, lives: Sequence[Tensor], zeros: Sequence[Tensor]) -> list[Tensor]:
        if self.sources(site, zeros) is None or not self.is_blind(site, zeros):
            return super().needed(site, lives, zeros)
        return [collapse(lives[0], z.shape).expand(z.shape) for z in zeros]

    def legalise(self, site: Site, requested: Sequence[Layout], facts: SiteFacts) -> list[Layout]:
        """Where several inputs hold more than the result needs (other calls read them too), join all that they hold and
        select once, afterwards: that is cheaper."""
        sources = self.sources(site, facts.zeros)
        if sources is None or self.is_blind(site, facts.zeros):
            return list(requested)
        held, wanted = self.held(site, facts, sources[0]), requested[0]
        live, rank = facts.lives[0], facts.ranks[0] if facts.ranks else None
        more = held & ~(wanted.mask() if wanted.compact == tuple(live.shape) else live)
        if int((self.owners(site, more.nonzero()[:, self.axis(site)].contiguous()).bincount() > 0).sum()) > 1:
            return [box_of(held, facts.multiple, rank)]
        if self.pieces(site, wanted, sources[0]) is not None:
            return [wanted]
        return [box_of(live, facts.multiple, rank)] if wanted.is_product() else [wanted.as_product()]

    def held(self, site: Site, facts: SiteFacts, source: Tensor) -> Tensor:
        """What the inputs hold for all their readers, as a mask of the result."""
        shapes = self.labelled(site, facts.zeros)
        flat = torch.cat([live.expand(s).reshape(-1) for live, s in zip(facts.inputs_live, shapes, strict=True)])
        return flat[source]

    def owners(self, site: Site, place: Tensor) -> Tensor:
        """The input that each index along the axis comes from."""
        ends = torch.tensor([site.shape(n)[self.axis(site)] for n in site.inputs]).cumsum(0)
        return torch.searchsorted(ends, place, right=True)

    def pieces(self, site: Site, layout: Layout, source: Tensor) -> list[tuple[int, int]] | None:
        """The runs along the axis of a layout that come from one input, as (input, length); None if they are too many
        to lay them side by side."""
        if tuple(source.shape) != layout.compact:
            return None
        place = layout.kept(self.axis(site))
        return None if place is None else self.runs(site, place)

    def runs(self, site: Site, place: Tensor) -> list[tuple[int, int]] | None:
        """Indices along the axis as runs from one input each: (input, length)."""
        inputs, lengths = self.owners(site, place.contiguous()).unique_consecutive(return_counts=True)
        if len(inputs) > len(site.inputs) + MOST_CUTS:
            return None
        return list(zip(inputs.tolist(), lengths.tolist(), strict=True))

    def requests(self, site: Site, outs: Sequence[Layout], facts: SiteFacts) -> list[Request] | None:
        sources = self.sources(site, facts.zeros)
        if sources is None:
            return None
        live = outs[0].of(facts.lives[0]) if tuple(facts.lives[0].shape) == outs[0].compact else None
        if live is None:
            return None
        if self.is_blind(site, facts.zeros):
            return [LayoutRequest(outs[0], live) for _ in site.inputs]
        axis, traced, requests = self.axis(site), outs[0].of(sources[0]), list[Request]()
        if self.pieces(site, outs[0], sources[0]) is None:
            return None
        if all(site.shape(n)[axis] == 1 for n in site.inputs):
            live = live.any(axis, keepdim=True).expand(live.shape)  # stacked branches: each keeps its own channels
        place, start = outs[0].kept(axis), 0
        assert place is not None
        owner = self.owners(site, place.contiguous())
        for index, shape in enumerate(self.labelled(site, facts.zeros)):
            own = (owner == index).nonzero().view(-1)
            if len(own):
                part = Layout(shape, traced.index_select(axis, own) - start)
                requests.append(LayoutRequest(part, live.index_select(axis, own)))
            else:
                requests.append(UNREAD)
            start += math.prod(shape)
        return requests

    def emit(self, site: Site, to: Emitter, ins: Sequence[Layout], outs: Sequence[Layout]) -> list[Node]:
        axis = self.axis(site)
        place = outs[0].kept(axis) if to.followed and outs[0].compact[axis] != 1 else None
        runs = None if place is None else self.runs(site, place)
        if runs is not None and len(runs) > len({index for index, _ in runs}):
            return [to.call(aten.cat.default, (self.cut(to, axis, runs), axis))]
        if runs is not None and [index for index, _ in runs] != sorted(index for index, _ in runs):
            return [to.call(aten.cat.default, ([to.inputs[index] for index, _ in runs], axis))]
        present = [node for node in to.inputs if node is not None]
        if len(present) == len(to.inputs):
            return [to.copy()]
        return present if len(present) == 1 else [to.call(aten.cat.default, (present, axis))]

    @staticmethod
    def cut(to: Emitter, axis: int, runs: Sequence[tuple[int, int]]) -> list[Node]:
        """The inputs cut into the given runs, which of each input come in order."""
        whole = {index for index, _ in runs if sum(index == other for other, _ in runs) == 1}
        starts = dict.fromkeys((index for index, _ in runs), 0)
        parts = []
        for index, length in runs:
            node, start = to.inputs[index], starts[index]
            assert node is not None
            starts[index] += length
            parts.append(node if index in whole else to.call(aten.slice.Tensor, (node, axis, start, start + length)))
        return parts


class Split(Movement):
    """One tensor cut along an axis; results without readers are not cut out."""

    def takes_any_order(self, site: Site, zeros: Sequence[Tensor], *, cut: bool) -> bool:
        if cut and sum(out is not None for out in site.outputs) > 1:
            return False  # its parts come one after the other
        return super().takes_any_order(site, zeros, cut=cut)

    def requests(self, site: Site, outs: Sequence[Layout], facts: SiteFacts) -> list[Request] | None:
        axis, sources = self.axis(site), self.sources(site, facts.zeros)
        if sources is None:
            return None
        shape = tuple(facts.zeros[0].shape)
        if shape[axis] == 1 and site.shape(site.inputs[0])[axis] != 1:
            return self.requests_unlabelled(site, outs, facts)
        parts, flags = [], []
        for index, out in enumerate(site.outputs):
            if out is None:
                continue
            traced = self.traced(site, outs[index], facts, index)
            if traced is None:
                return None
            parts.append(traced)
            flags.append(outs[index].of(facts.lives[index]))
        rest = {tuple(n for a, n in enumerate(p.shape) if a != axis) for p in parts}
        if len(rest) != 1:
            return None
        return [LayoutRequest(Layout(shape, torch.cat(parts, axis)), torch.cat(flags, axis))]

    def requests_unlabelled(self, site: Site, outs: Sequence[Layout], facts: SiteFacts) -> list[Request] | None:
        """Cut along an axis without labels: every part and the whole keep the same."""
        kept = [(o, live) for o, live, out in zip(outs, facts.lives, site.outputs, strict=True) if out is not None]
        first = kept[0][0]
        if not all(first.same(o) for o, _ in kept):
            return None
        used = kept[0][0].of(kept[0][1])
        for o, live in kept[1:]:
            used = used | o.of(live)
        return [LayoutRequest(first, used)]

    def legalise(self, site: Site, requested: Sequence[Layout], facts: SiteFacts) -> list[Layout]:
        """The parts agree on the other axes: rows that one part keeps, all keep."""
        axis = self.axis(site)
        used = [i for i, out in enumerate(site.outputs) if out is not None]
        if len(used) < 2:
            return list(requested)
        rest = {tuple(n for a, n in enumerate(requested[i].labels.shape) if a != axis) for i in used}
        uneven = len(rest) > 1
        blind = all(requested[i].compact[axis] == 1 for i in used) and site.out_shape[axis] != 1
        if not uneven and not (blind and not all(requested[used[0]].same(requested[i]) for i in used)):
            return list(requested)
        if len({requested[i].compact for i in used}) > 1:
            return list(requested)
        union = facts.lives[used[0]]
        for i in used[1:]:
            union = union | facts.lives[i]
        shared = box_of(union, facts.multiple)
        return [shared if i in used else w for i, w in enumerate(requested)]

    def moves_channels(self, site: Site) -> bool:
        return self.axis(site) == 1

    @staticmethod
    def axis(site: Site) -> int:
        return int(site.argument(2, "dim", 0)) % len(site.out_shape)

    def emit(self, site: Site, to: Emitter, ins: Sequence[Layout], outs: Sequence[Layout]) -> list[Node]:
        axis = self.axis(site)
        if not to.followed or ins[0].compact[axis] == 1:
            return to.projected(to.copy())
        used = {i: site.shape(out)[axis] for i, out in enumerate(site.outputs) if out is not None}
        if len(used) == 1:
            return [to.first_input()] * len(site.outputs)
        sizes = [outs[i].size(axis, full) for i, full in used.items()]
        parts = to.projected(to.call(aten.split_with_sizes.default, (to.first_input(), sizes, axis)), len(used))
        found = iter(parts)
        return [next(found) if i in used else parts[0] for i in range(len(site.outputs))]


JOIN = Join()

RULES: dict[str, Rule] = {"cat": JOIN, "concat": JOIN, "split_with_sizes": Split()}
