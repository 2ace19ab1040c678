"""Operators that only move elements. One rule for the facts: run the operator on labels and see where each one went.

Along axes that carry no labels the labels are expanded with stride 0, so that views of large tensors cost nothing; what
still has stride 0 (or one value) afterwards carries no labels either.

For the small network there are four ways to go back from the result's layout to the input's:
`Reindex` (slice, flip, roll, index_select, repeat, zero padding of channels) vanishes into a recombination; `Reshape` and
`Permute` are undone; `Join` (cat) and `Split` put pieces side by side.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from passes.layout import Layout, collapse, product
from passes.program import Site, is_tensor
from passes.rules.base import UNREAD, Options, Rule, SiteFacts, Want, Wish, box_of

if TYPE_CHECKING:
    from passes.emit import Emitter

aten = torch.ops.aten

VIEWS = (aten.view.default, aten._unsafe_view.default)

Touched = Callable[[Site], tuple[int, ...]]


def compress(labels: Tensor) -> Tensor:
    """The labels with size 1 along every axis where they do not change."""
    for axis, size in enumerate(labels.shape):
        if size == 1:
            continue
        first = labels.narrow(axis, 0, 1)
        if labels.stride(axis) == 0 or bool((labels == first).all()):
            labels = first
    return labels


class Movement(Rule):
    """Elements go from inputs to results; `touched` names the axes that an operator which copies looks at."""

    family = "movement"
    reason: str | None = "not followed as a movement here"

    def __init__(self, touched: Touched | None = None) -> None:
        self.touched = touched

    # Where did each label go?

    def sources(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor] | None:
        """For each result, the label each element came from (inputs numbered one after the other; -1: filled in).

        None where a labelled axis has merged with one whose length is not known before the input is.
        """
        if "sources" not in site.memo:
            site.memo["sources"] = self._sources(site, zeros)
        found = site.memo["sources"]
        return found if found is None or isinstance(found, list) else None

    def _sources(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor] | None:
        labels = iter(self._numbered(site, zeros))

        def stand_in(node: Node) -> Any:
            return next(labels) if is_tensor(node) else site.program.concrete(node)

        args, kwargs = map_arg(site.node.args, stand_in), map_arg(site.node.kwargs, stand_in)
        result = self.run(site, args, kwargs)
        results = list(result) if isinstance(result, (list, tuple)) else [result]
        found = [compress(r) for r in results]
        for out, source in zip(site.outputs, found, strict=True):
            if out is not None and any(
                n != 1 and not site.program.is_static(out, a) for a, n in enumerate(source.shape)
            ):
                return None
        return found

    def run(self, site: Site, args: Any, kwargs: Any) -> Any:
        """The operator on labels; they may lie anywhere in memory, so a view is a reshape."""
        target = aten.reshape.default if site.node.target in VIEWS else site.node.target
        return target(*args, **kwargs)  # type: ignore[operator]

    def _numbered(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor]:
        """For each input its labels, in the shape that the operator is to see."""
        touched = None if self.touched is None else self.touched(site)
        found, start = [], 0
        for shape in self.labelled(site, zeros):
            found.append(torch.arange(start, start + math.prod(shape)).view(shape))
            start += math.prod(shape)
        seen = []
        for labels, node in zip(found, site.inputs, strict=True):
            full = site.shape(node)
            size = [
                n if touched is None or a in touched else m
                for a, (n, m) in enumerate(zip(full, labels.shape, strict=True))
            ]
            seen.append(labels.expand(size))
        return seen

    def labelled(self, site: Site, zeros: Sequence[Tensor]) -> list[tuple[int, ...]]:
        """The compact shape in which each input is labelled."""
        return [tuple(z.shape) for z in zeros]

    # Facts

    def zero(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor]:
        sources = self.sources(site, zeros)
        if sources is None:
            return super().zero(site, zeros)
        shapes = self.labelled(site, zeros)
        flat = torch.cat(
            [
                *(z.expand(s).reshape(-1) for z, s in zip(zeros, shapes, strict=True)),
                torch.tensor([self.fills_zero(site)]),
            ]
        )
        return [flat[source] for source in sources]

    def fills_zero(self, site: Site) -> bool:
        """Whether what the operator fills in is zero."""
        return True

    def needed(self, site: Site, lives: Sequence[Tensor], zeros: Sequence[Tensor]) -> list[Tensor]:
        sources = self.sources(site, zeros)
        if sources is None:
            return super().needed(site, lives, zeros)
        shapes = self.labelled(site, zeros)
        flat = torch.zeros(sum(math.prod(s) for s in shapes) + 1, dtype=torch.bool)
        for source, live, out in zip(sources, lives, site.outputs, strict=True):
            if out is not None:
                flat[source[live]] = True
        found, start = [], 0
        for shape, zero in zip(shapes, zeros, strict=True):
            part = flat[start : start + math.prod(shape)].view(shape)
            found.append(collapse(part, zero.shape).expand(zero.shape))
            start += math.prod(shape)
        return found

    # Layouts

    def settle(self, site: Site, wanted: Sequence[Layout], facts: SiteFacts) -> list[Layout]:
        return list(wanted)

    def traced(self, site: Site, layout: Layout, facts: SiteFacts, index: int = 0) -> Tensor | None:
        """The input label of every label in a result's layout."""
        sources = self.sources(site, facts.zeros)
        if sources is None or tuple(sources[index].shape) != layout.compact:
            return None
        return layout.of(sources[index])


class Reindex(Movement):
    """One input, same rank, indices of some axes chosen anew. Along labelled axes the operator vanishes."""

    def __init__(self, touched: Touched) -> None:
        super().__init__(touched)

    def wants(self, site: Site, outs: Sequence[Layout], facts: SiteFacts) -> list[Wish] | None:
        if len(site.inputs) != 1:
            return self.with_constant_index(site, outs, facts)
        traced = self.traced(site, outs[0], facts)
        if traced is None or bool((traced < 0).any()):
            return None
        shape = tuple(facts.zeros[0].shape)
        touched, full = self.moved(site), site.shape(site.inputs[0])
        lengthened = [a for a in touched if full[a] == 1 and outs[0].compact[a] != 1]
        labelled = [a for a in touched if shape[a] != 1 or a in lengthened]
        if labelled and any(full[a] != 1 for a in touched if a not in labelled):
            return None
        if any(traced.shape[a] != 1 for a in lengthened):
            return None
        site.memo["vanishes"] = bool(labelled)
        return [Want(Layout(shape, traced), outs[0].of(facts.lives[0]))]

    def with_constant_index(self, site: Site, outs: Sequence[Layout], facts: SiteFacts) -> list[Wish] | None:
        return None

    def moved(self, site: Site) -> tuple[int, ...]:
        """The axes along which something really moves."""
        assert self.touched is not None
        return self.touched(site)

    def sources(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor] | None:
        return super().sources(site, zeros) if self.moved(site) else None

    def emit(self, site: Site, to: Emitter, ins: Sequence[Layout], outs: Sequence[Layout]) -> list[Node]:
        if site.memo.get("vanishes") and to.native:
            return [to.first_input()]
        return [to.copy()]


class Select(Reindex):
    """index_select by a constant: its index is an input of the call, but not of the movement."""

    def parameters(self, node: Node) -> tuple[Node | None, ...]:
        return ()

    def _numbered(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor]:
        index = site.program.constant(site.inputs[1])
        if index is None:
            return []
        shape = tuple(zeros[0].shape)
        labels = torch.arange(math.prod(shape)).view(shape)
        axis = int(site.node.args[1]) % len(shape)  # type: ignore[arg-type]
        size = [site.shape(site.inputs[0])[a] if a == axis else n for a, n in enumerate(shape)]
        return [labels.expand(size), index.cpu()]

    def sources(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor] | None:
        if len(site.inputs) != 2 or site.program.constant(site.inputs[1]) is None:
            return None
        return super().sources(site, zeros)

    def labelled(self, site: Site, zeros: Sequence[Tensor]) -> list[tuple[int, ...]]:
        return [tuple(zeros[0].shape), (0,)]

    def zero(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor]:
        sources = self.sources(site, zeros)
        return Rule.zero(self, site, zeros) if sources is None else [zeros[0].reshape(-1)[sources[0]]]

    def needed(self, site: Site, lives: Sequence[Tensor], zeros: Sequence[Tensor]) -> list[Tensor]:
        sources = self.sources(site, zeros)
        if sources is None:
            return Rule.needed(self, site, lives, zeros)
        flat = torch.zeros(zeros[0].numel(), dtype=torch.bool)
        flat[sources[0][lives[0]]] = True
        return [flat.view(zeros[0].shape), torch.ones_like(zeros[1])]

    def with_constant_index(self, site: Site, outs: Sequence[Layout], facts: SiteFacts) -> list[Wish] | None:
        traced = self.traced(site, outs[0], facts)
        if traced is None:
            return None
        shape = tuple(facts.zeros[0].shape)
        axis = int(site.node.args[1]) % len(shape)  # type: ignore[arg-type]
        site.memo["vanishes"] = shape[axis] != 1
        return [
            Want(Layout(shape, traced), outs[0].of(facts.lives[0])),
            UNREAD if site.memo["vanishes"] else Want(Layout.whole(1)),
        ]


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

    def fills_zero(self, site: Site) -> bool:
        index = 3 if "constant" not in str(site.node.target) else 2
        return not site.argument(index, "value", 0)


class Repeat(Reindex):
    """x repeated along axes that it has."""

    def sources(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor] | None:
        return super().sources(site, zeros) if len(site.shape(site.inputs[0])) == len(site.out_shape) else None


class Expand(Movement):
    """One element seen many times along axes of size 1 or new ones."""

    def wants(self, site: Site, outs: Sequence[Layout], facts: SiteFacts) -> list[Wish] | None:
        traced = self.traced(site, outs[0], facts)
        if traced is None or len(site.inputs) != 1:
            return None
        offset = len(site.out_shape) - facts.zeros[0].dim()
        if any(n != 1 for n in outs[0].compact[:offset]):
            return None
        traced = traced.reshape(traced.shape[offset:])
        return [Want(Layout(tuple(facts.zeros[0].shape), traced), outs[0].of(facts.lives[0]).reshape(traced.shape))]

    def emit(self, site: Site, to: Emitter, ins: Sequence[Layout], outs: Sequence[Layout]) -> list[Node]:
        if not to.native:
            return [to.copy()]
        sizes = [outs[0].size(a, n) if outs[0].compact[a] != 1 else n for a, n in enumerate(to.args[1])]
        return [to.call(aten.expand.default, (to.first_input(), sizes))]


class Permute(Movement):
    """Axes in another order."""

    def wants(self, site: Site, outs: Sequence[Layout], facts: SiteFacts) -> list[Wish] | None:
        traced = self.traced(site, outs[0], facts)
        if traced is None:
            return None
        rank = len(site.out_shape)
        order = torch.empty(tuple(range(2, 2 + rank)), device="meta")
        args = map_arg(site.node.args, lambda n: order)
        moved = [n - 2 for n in site.node.target(*args, **site.node.kwargs).shape]  # type: ignore[operator]
        back = [moved.index(a) for a in range(rank)]
        used = outs[0].of(facts.lives[0])
        return [Want(Layout(tuple(facts.zeros[0].shape), traced.permute(back)), used.permute(back))]


class Reshape(Movement):
    """The same elements in the same order under other axes: view, reshape, flatten, unflatten, squeeze, unsqueeze."""

    def settle(self, site: Site, wanted: Sequence[Layout], facts: SiteFacts) -> list[Layout]:
        sources = site.memo.get("sources")
        if sources is None:
            return list(wanted)
        shape = site.memo.get("input")
        if shape is None or self.inverse(site, wanted[0], sources[0], shape, None) is not None:
            return list(wanted)
        flat = torch.zeros(math.prod(shape), dtype=torch.bool)
        flat[sources[0][facts.lives[0]]] = True
        box = box_of(flat.view(shape), facts.options)
        return [self.forward(site, box, sources[0]) or wanted[0]]

    def _sources(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor] | None:
        site.memo["input"] = tuple(zeros[0].shape)
        return super()._sources(site, zeros)

    def wants(self, site: Site, outs: Sequence[Layout], facts: SiteFacts) -> list[Wish] | None:
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
    ) -> Want | None:
        """The input's layout that gives the result `out`, if there is one."""
        if tuple(source.shape) != out.compact:
            return None
        full_in, full_out = site.shape(site.inputs[0]), site.out_shape
        small = out.shrunk(full_out)
        sizes = self.sizes(full_out, full_in, small, tuple(n != 1 for n in shape))
        if sizes is None:
            guess = self.merged_sizes(site, out, source, shape)
            if guess is None:
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
        return Want(Layout(shape, box), flags) if self.confirmed(site, Layout(shape, box), out) else None

    def confirmed(self, site: Site, given: Layout, out: Layout) -> bool:
        """Whether the call really gives `out` from `given`.

        One input label may stand for several elements of a labelled axis (windows that became rows); then labels alone
        do not tell whether these are in order, and the elements are numbered one by one.
        """
        if math.prod(given.compact) == math.prod(out.compact):
            return True
        full_in, full_out = site.shape(site.inputs[0]), site.out_shape
        numbers = self.replay(site, torch.arange(math.prod(full_in)).view(full_in), full_out)
        wanted = out.refined(full_out).of(numbers)
        return torch.equal(self.replay(site, given.refined(full_in).labels, out.shrunk(full_out)), wanted)

    def replay(self, site: Site, elements: Tensor, shape: Sequence[int]) -> Tensor:
        """The movement on numbered elements."""
        return elements.reshape(tuple(shape))

    @staticmethod
    def merged_sizes(site: Site, out: Layout, source: Tensor, shape: tuple[int, ...]) -> list[int] | None:
        """Input sizes where several labelled axes became one: those of the box that the kept labels fill."""
        mask = torch.zeros(math.prod(shape), dtype=torch.bool)
        mask[out.of(source).reshape(-1)] = True
        box = box_of(mask.view(shape), Options())
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
        name = site.node.target._schema.name.split("::")[1]  # type: ignore[union-attr]
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


class PixelShuffle(Reshape):
    """Channels to space and back; undone by its opposite."""

    def __init__(self, opposite: Any) -> None:
        super().__init__()
        self.opposite = opposite

    def inverse(
        self, site: Site, out: Layout, source: Tensor, shape: tuple[int, ...], used: Tensor | None
    ) -> Want | None:
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
        return Want(Layout(shape, box), flags) if self.confirmed(site, Layout(shape, box), out) else None

    def replay(self, site: Site, elements: Tensor, shape: Sequence[int]) -> Tensor:
        return site.node.target(elements, site.node.args[1])  # type: ignore[operator, no-any-return]

    def settle(self, site: Site, wanted: Sequence[Layout], facts: SiteFacts) -> list[Layout]:
        layout = wanted[0]
        kept = [layout.coordinate(a).unique() if a == layout.rank - 3 else None for a in range(layout.rank)]
        return [product(layout.compact, kept)] if self.opposite is aten.pixel_unshuffle.default else [layout]

    def emit(self, site: Site, to: Emitter, ins: Sequence[Layout], outs: Sequence[Layout]) -> list[Node]:
        return [to.copy()]


class Join(Movement):
    """cat: the inputs side by side. Inputs of which nothing is kept are left out."""

    def labelled(self, site: Site, zeros: Sequence[Tensor]) -> list[tuple[int, ...]]:
        axis = self.axis(site)
        if all(z.shape[axis] == 1 for z in zeros) and all(site.shape(n)[axis] > 1 for n in site.inputs):
            shape = torch.broadcast_shapes(*(tuple(z.shape) for z in zeros))
            return [tuple(shape) for _ in zeros]
        others = torch.broadcast_shapes(*([1 if a == axis else n for a, n in enumerate(z.shape)] for z in zeros))
        return [tuple(site.shape(n)[axis] if a == axis else m for a, m in enumerate(others)) for n in site.inputs]

    @staticmethod
    def axis(site: Site) -> int:
        return int(site.argument(1, "dim", 0)) % len(site.out_shape)

    def _sources(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor] | None:
        axis, shapes = self.axis(site), self.labelled(site, zeros)
        if any(not site.program.is_static(n, axis) for n in site.inputs) and any(s[axis] != 1 for s in shapes):
            return None
        found, start = [], 0
        for shape in shapes:
            found.append(torch.arange(start, start + math.prod(shape)).view(shape))
            start += math.prod(shape)
        if all(s[axis] == 1 for s in shapes) and all(site.shape(n)[axis] > 1 for n in site.inputs):
            site.memo["blind"] = True  # joined along an axis without labels: every input stands for the result
            return [found[0]]
        return [torch.cat(found, axis)]

    def zero(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor]:
        sources = self.sources(site, zeros)
        if sources is None or not site.memo.get("blind"):
            return super().zero(site, zeros)
        result = zeros[0]
        for zero in zeros[1:]:
            result = result & zero
        return [result.expand(sources[0].shape)]

    def needed(self, site: Site, lives: Sequence[Tensor], zeros: Sequence[Tensor]) -> list[Tensor]:
        if self.sources(site, zeros) is None or not site.memo.get("blind"):
            return super().needed(site, lives, zeros)
        return [collapse(lives[0], z.shape).expand(z.shape) for z in zeros]

    def settle(self, site: Site, wanted: Sequence[Layout], facts: SiteFacts) -> list[Layout]:
        """Where several inputs hold more than the result wants (others read them too), it is cheaper to join what they
        hold and to select once, afterwards."""
        sources = self.sources(site, facts.zeros)
        if sources is None or site.memo.get("blind"):
            return list(wanted)
        held = self.held(site, facts, sources[0])
        live = facts.lives[0]
        if int((self.owners(site, (held & ~live).nonzero()[:, self.axis(site)].contiguous()).bincount() > 0).sum()) > 1:
            return [box_of(held, facts.options)]
        if self.pieces(site, wanted[0], sources[0]) is not None:
            return list(wanted)
        return [box_of(live, facts.options)] if wanted[0].is_product() else [product_sorted(wanted[0])]

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
        """Where along the axis each input's part begins and how long it is; None if the parts are interleaved."""
        if tuple(source.shape) != layout.compact:
            return None
        axis = self.axis(site)
        place = layout.kept(axis)
        if place is None:
            return None
        place = place.contiguous()
        owner = self.owners(site, place)
        if bool((owner.diff() < 0).any()):
            return None
        counts = torch.bincount(owner, minlength=len(site.inputs)).tolist()
        starts = [sum(counts[:i]) for i in range(len(counts))]
        return list(zip(starts, counts, strict=True))

    def wants(self, site: Site, outs: Sequence[Layout], facts: SiteFacts) -> list[Wish] | None:
        sources = self.sources(site, facts.zeros)
        if sources is None:
            return None
        live = outs[0].of(facts.lives[0]) if tuple(facts.lives[0].shape) == outs[0].compact else None
        if live is None:
            return None
        if site.memo.get("blind"):
            return [Want(outs[0], live) for _ in site.inputs]
        pieces = self.pieces(site, outs[0], sources[0])
        if pieces is None:
            return None
        axis, traced, wishes = self.axis(site), outs[0].of(sources[0]), list[Wish]()
        if all(site.shape(n)[axis] == 1 for n in site.inputs):
            live = live.any(axis, keepdim=True).expand(live.shape)  # stacked branches: each keeps its own channels
        start = 0
        for (first, count), shape in zip(pieces, self.labelled(site, facts.zeros), strict=True):
            if count:
                part = traced.narrow(axis, first, count) - start
                wishes.append(Want(Layout(shape, part), live.narrow(axis, first, count)))
            else:
                wishes.append(UNREAD)
            start += math.prod(shape)
        return wishes

    def emit(self, site: Site, to: Emitter, ins: Sequence[Layout], outs: Sequence[Layout]) -> list[Node]:
        present = [node for node in to.inputs if node is not None]
        if len(present) == len(to.inputs):
            return [to.copy()]
        return present if len(present) == 1 else [to.call(aten.cat.default, (present, self.axis(site)))]


class Split(Movement):
    """One tensor cut along an axis; results that nobody reads are not cut out."""

    def wants(self, site: Site, outs: Sequence[Layout], facts: SiteFacts) -> list[Wish] | None:
        axis, sources = self.axis(site), self.sources(site, facts.zeros)
        if sources is None:
            return None
        shape = tuple(facts.zeros[0].shape)
        if shape[axis] == 1 and site.shape(site.inputs[0])[axis] != 1:
            return self.unlabelled_wants(site, outs, facts)
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
        return [Want(Layout(shape, torch.cat(parts, axis)), torch.cat(flags, axis))]

    def unlabelled_wants(self, site: Site, outs: Sequence[Layout], facts: SiteFacts) -> list[Wish] | None:
        """Cut along an axis without labels: every part and the whole keep the same."""
        kept = [(o, live) for o, live, out in zip(outs, facts.lives, site.outputs, strict=True) if out is not None]
        first = kept[0][0]
        if not all(first.same(o) for o, _ in kept):
            return None
        used = kept[0][0].of(kept[0][1])
        for o, live in kept[1:]:
            used = used | o.of(live)
        return [Want(first, used)]

    def settle(self, site: Site, wanted: Sequence[Layout], facts: SiteFacts) -> list[Layout]:
        """The parts agree on the other axes: rows that one part keeps, all keep."""
        axis = self.axis(site)
        used = [i for i, out in enumerate(site.outputs) if out is not None]
        if len(used) < 2:
            return list(wanted)
        rest = {tuple(n for a, n in enumerate(wanted[i].labels.shape) if a != axis) for i in used}
        uneven = len(rest) > 1
        blind = all(wanted[i].compact[axis] == 1 for i in used) and site.out_shape[axis] != 1
        if not uneven and not (blind and not all(wanted[used[0]].same(wanted[i]) for i in used)):
            return list(wanted)
        if len({wanted[i].compact for i in used}) > 1:
            return list(wanted)
        union = facts.lives[used[0]]
        for i in used[1:]:
            union = union | facts.lives[i]
        shared = box_of(union, facts.options)
        return [shared if i in used else w for i, w in enumerate(wanted)]

    @staticmethod
    def axis(site: Site) -> int:
        return int(site.argument(2, "dim", 0)) % len(site.out_shape)

    def emit(self, site: Site, to: Emitter, ins: Sequence[Layout], outs: Sequence[Layout]) -> list[Node]:
        axis = self.axis(site)
        used = [i for i, out in enumerate(site.outputs) if out is not None]
        if not to.native or ins[0].compact[axis] == 1:
            return to.projected(to.copy())
        sizes = [
            outs[i].labels.shape[axis] if outs[i].compact[axis] != 1 else site.shape(site.outputs[i])[axis]
            for i in used
        ]  # type: ignore[arg-type]
        if len(used) == 1:
            return [to.first_input() if i in used else to.first_input() for i in range(len(site.outputs))]
        parts = to.projected(to.call(aten.split_with_sizes.default, (to.first_input(), sizes, axis)), len(used))
        found = iter(parts)
        return [next(found) if i in used else parts[0] for i in range(len(site.outputs))]


def product_sorted(layout: Layout) -> Layout:
    """The product of what each axis keeps, in the original order."""
    return product(layout.compact, [layout.coordinate(a).unique() for a in range(layout.rank)])


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


def _all(site: Site) -> tuple[int, ...]:
    return tuple(range(len(site.out_shape)))


def _channel(site: Site) -> tuple[int, ...]:
    return (1,)


RESHAPE, PERMUTE = Reshape(), Permute()

RULES: dict[str, Rule] = {
    **dict.fromkeys(("view", "reshape", "_unsafe_view", "flatten", "unflatten", "squeeze", "unsqueeze"), RESHAPE),
    **dict.fromkeys(("permute", "transpose", "t", "movedim", "swapaxes", "numpy_T", "mT"), PERMUTE),
    "expand": Expand(),
    "cat": Join(),
    "concat": Join(),
    "split_with_sizes": Split(),
    "slice": Reindex(_argument_axes(1)),
    "flip": Reindex(_argument_axes(1)),
    "roll": Reindex(_argument_axes(2, ())),
    "index_select": Select(_argument_axes(1)),
    "repeat": Repeat(_repeated_axes),
    **dict.fromkeys(("channel_shuffle", "native_channel_shuffle"), Reindex(_channel)),
    **dict.fromkeys(("pad", "constant_pad_nd"), Pad()),
    "pixel_shuffle": PixelShuffle(aten.pixel_unshuffle.default),
    "pixel_unshuffle": PixelShuffle(aten.pixel_shuffle.default),
}
