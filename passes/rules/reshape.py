"""The same elements under other axes: reshapes, permutations, pixel shuffles. Layouts go backward on labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from passes.graph.layout import Layout, box_of, product
from passes.graph.nodes import operator_name
from passes.rules.base import LayoutRequest, Request, Rule, Site, SiteFacts
from passes.rules.emitter import Emitter
from passes.rules.movement import Movement, compress
from passes.rules.views import PERMUTATIONS, RESHAPES

aten = torch.ops.aten


class Permute(Movement):
    """Axes in another order."""

    def requests(self, site: Site, outs: Sequence[Layout], facts: SiteFacts) -> list[Request] | None:
        traced = self.traced(site, outs[0], facts)
        if traced is None:
            return None
        rank = len(site.out_shape)
        order = torch.empty(tuple(range(2, 2 + rank)), device="meta")
        args = map_arg(site.node.args, lambda n: order)
        moved = [n - 2 for n in site.node.target(*args, **site.node.kwargs).shape]  # type: ignore[operator]
        back = [moved.index(a) for a in range(rank)]
        used = outs[0].of(facts.lives[0])
        return [LayoutRequest(Layout(tuple(facts.zeros[0].shape), traced.permute(back)), used.permute(back))]


class Reshape(Movement):
    """The same elements in the same order under other axes: view, reshape, flatten, unflatten, squeeze, unsqueeze."""

    moves_nothing = True

    def legalise(self, site: Site, requested: Sequence[Layout], facts: SiteFacts) -> list[Layout]:
        sources = self.sources(site, facts.zeros)
        if sources is None:
            return list(requested)
        shape = tuple(facts.zeros[0].shape)
        if self.inverse(site, requested[0], sources[0], shape, None) is not None:
            return list(requested)
        flat = torch.zeros(math.prod(shape), dtype=torch.bool)
        flat[sources[0][facts.lives[0]]] = True
        box = box_of(flat.view(shape), facts.multiple)
        return [self.forward(site, box, sources[0]) or requested[0]]

    def requests(self, site: Site, outs: Sequence[Layout], facts: SiteFacts) -> list[Request] | None:
        sources = self.sources(site, facts.zeros)
        if sources is None:
            return None
        shape = tuple(facts.zeros[0].shape)
        found = self.inverse(site, outs[0], sources[0], shape, outs[0].of(facts.lives[0]))
        return None if found is None else [found]

    def forward(self, site: Site, box: Layout, source: Tensor) -> Layout | None:
        """The result's layout if the input has the layout `box`."""
        full_in, full_out = site.shape(site.inputs[0]), site.out_shape
        sizes = self.sizes(full_in, full_out, box.shrunk(full_in), tuple(n != 1 for n in source.shape))
        if sizes is None:
            return None
        back = torch.full((math.prod(box.compact),), -1)
        labels = torch.arange(source.numel()).view(source.shape)
        back[source.reshape(-1)] = labels.reshape(-1)
        if source.numel() != math.prod(box.compact):
            return None
        moved = compress(box.labels.expand(box.shrunk(full_in)).reshape(sizes))
        if any(n != 1 and m == 1 for n, m in zip(moved.shape, source.shape, strict=True)):
            return None
        moved = moved.expand([n if m == 1 else s for n, m, s in zip(moved.shape, source.shape, sizes, strict=True)])
        return Layout(tuple(source.shape), back[moved])

    def inverse(
        self, site: Site, out: Layout, source: Tensor, shape: tuple[int, ...], used: Tensor | None
    ) -> LayoutRequest | None:
        """The input's layout that gives the result `out`, if there is one."""
        if tuple(source.shape) != out.compact:
            return None
        full_in, full_out = site.shape(site.inputs[0]), site.out_shape
        small = out.shrunk(full_out)
        sizes = self.sizes(full_out, full_in, small, tuple(n != 1 for n in shape))
        if sizes is None:
            guess = self.merged_sizes(site, out, source, shape)
            if guess is None or math.prod(guess) != math.prod(small):
                return None
            sizes = guess
        labels = out.of(source).expand(small).reshape(sizes)
        flags = None if used is None else used.expand(small).reshape(sizes)
        box = labels
        for axis, n in enumerate(shape):
            if n == 1 and box.shape[axis] != 1:
                first = box.narrow(axis, 0, 1)
                if not bool((box == first).all()):
                    return None
                box = first
                flags = None if flags is None else flags.any(axis, keepdim=True)
        return LayoutRequest(Layout(shape, box), flags) if self.confirmed(site, Layout(shape, box), out) else None

    def confirmed(self, site: Site, given: Layout, out: Layout) -> bool:
        """Whether the call really gives `out` from `given`.

        One input label may stand for several elements of a labelled axis (windows that became rows); then labels alone
        do not show whether these are in order, and the elements are numbered one by one.
        """
        if math.prod(given.compact) == math.prod(out.compact):
            return True
        full_in, full_out = site.shape(site.inputs[0]), site.out_shape
        numbers = self.replay(site, torch.arange(math.prod(full_in)).view(full_in), full_out)
        requested = out.refined(full_out).of(numbers)
        return torch.equal(self.replay(site, given.refined(full_in).labels, out.shrunk(full_out)), requested)

    def replay(self, site: Site, elements: Tensor, shape: Sequence[int]) -> Tensor:
        """The movement on numbered elements."""
        return elements.reshape(tuple(shape))

    @staticmethod
    def merged_sizes(site: Site, out: Layout, source: Tensor, shape: tuple[int, ...]) -> list[int] | None:
        """Input sizes where several labelled axes became one: those of the box that the kept labels fill."""
        mask = torch.zeros(math.prod(shape), dtype=torch.bool)
        mask[out.of(source).reshape(-1)] = True
        box = box_of(mask.view(shape))
        if box.labels.numel() != int(mask.sum()) or not torch.equal(box.labels.reshape(-1), out.of(source).reshape(-1)):
            return None
        return list(box.shrunk(site.shape(site.inputs[0])))

    @staticmethod
    def sizes(
        full_from: Sequence[int], full_to: Sequence[int], small_from: Sequence[int], labelled_to: Sequence[bool]
    ) -> list[int] | None:
        """The small shape after a reshape from `full_from` to `full_to`, given the small shape before it.

        Axes are taken in the smallest groups whose products agree; in each, one labelled axis may have lost elements.
        """
        result: list[int] = []
        for before, after in matching_groups(full_from, full_to):
            small = math.prod(small_from[a] for a in before)
            free = [a for a in after if labelled_to[a]]
            fixed = math.prod(full_to[a] for a in after if not labelled_to[a])
            if len(free) > 1 and small != math.prod(full_to[a] for a in after):
                return None
            if not free and small != fixed:
                return None
            result += [small // fixed if free == [a] else full_to[a] for a in after]
        return result if math.prod(result) == math.prod(small_from) else None

    def emit(self, site: Site, to: Emitter, ins: Sequence[Layout], outs: Sequence[Layout]) -> list[Node]:
        name = operator_name(site.node)
        if name == "squeeze" and len(to.args) == 1:
            ones = [a for a, n in enumerate(site.shape(site.inputs[0])) if n == 1]
            return [to.call(aten.squeeze.dims, (to.first_input(), ones))]
        if name in ("flatten", "unsqueeze", "squeeze"):
            return [to.copy()]
        if name == "unflatten":
            start = int(to.args[1]) % len(site.shape(site.inputs[0]))
            sizes = [outs[0].size(start + i, n) for i, n in enumerate(to.args[2])]
            return [to.call(aten.unflatten.int, (to.first_input(), start, sizes))]
        return [
            to.call(aten.reshape.default, (to.first_input(), [outs[0].size(a, n) for a, n in enumerate(to.args[1])]))
        ]


class PixelShuffle(Reshape):
    """Channels to space and back; undone by its opposite."""

    moves_nothing = False

    def __init__(self, opposite: Any) -> None:
        super().__init__()
        self.opposite = opposite

    def inverse(
        self, site: Site, out: Layout, source: Tensor, shape: tuple[int, ...], used: Tensor | None
    ) -> LayoutRequest | None:
        if tuple(source.shape) != out.compact:
            return None
        factor = site.node.args[1]
        small = out.shrunk(site.out_shape)
        if small[-2] % factor or small[-1] % factor and self.opposite is aten.pixel_unshuffle.default:  # type: ignore[operator]
            return None
        if self.opposite is aten.pixel_shuffle.default and small[-3] % (factor * factor):  # type: ignore[operator]
            return None
        box = self.opposite(out.of(source).expand(small), factor)
        flags = None if used is None else self.opposite(used.expand(small), factor)
        for axis, n in enumerate(shape):
            if n == 1 and box.shape[axis] != 1:
                first = box.narrow(axis, 0, 1)
                if not bool((box == first).all()):
                    return None
                box, flags = first, None if flags is None else flags.any(axis, keepdim=True)
        return LayoutRequest(Layout(shape, box), flags) if self.confirmed(site, Layout(shape, box), out) else None

    def replay(self, site: Site, elements: Tensor, shape: Sequence[int]) -> Tensor:
        return site.node.target(elements, site.node.args[1])  # type: ignore[operator, no-any-return]

    def legalise(self, site: Site, requested: Sequence[Layout], facts: SiteFacts) -> list[Layout]:
        layout = requested[0]
        kept = [layout.coordinate(a).unique() if a == layout.rank - 3 else None for a in range(layout.rank)]
        return [product(layout.compact, kept)] if self.opposite is aten.pixel_unshuffle.default else [layout]

    def emit(self, site: Site, to: Emitter, ins: Sequence[Layout], outs: Sequence[Layout]) -> list[Node]:
        return [to.copy()]


def matching_groups(full_from: Sequence[int], full_to: Sequence[int]) -> list[tuple[range, range]]:
    """The smallest runs of axes on both sides of a reshape that hold the same elements."""
    groups: list[tuple[range, range]] = []
    i = j = 0
    while i < len(full_from) and j < len(full_to):
        start_i, start_j = i, j
        have, want = full_from[i], full_to[j]
        i, j = i + 1, j + 1
        while have != want:
            if have < want:
                have *= full_from[i]
                i += 1
            else:
                want *= full_to[j]
                j += 1
        groups.append((range(start_i, i), range(start_j, j)))
    groups.append((range(i, len(full_from)), range(j, len(full_to))))
    return groups


RESHAPE, PERMUTE = Reshape(), Permute()

RULES: dict[str, Rule] = {
    **dict.fromkeys(RESHAPES, RESHAPE),
    **dict.fromkeys(PERMUTATIONS, PERMUTE),
    "pixel_shuffle": PixelShuffle(aten.pixel_unshuffle.default),
    "pixel_unshuffle": PixelShuffle(aten.pixel_shuffle.default),
}
