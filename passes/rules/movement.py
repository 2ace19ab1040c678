"""Operators that only move elements. Their liveness needs one rule: run the operator on labels and see where each goes.

Along axes without labels the labels are expanded with stride 0, so that views of large tensors cost nothing; an axis
that still has stride 0 (or one value) afterwards has no labels either. The families built on this one derive the layout
of the input from that of the result: `reindex`, `reshape` and `joins`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from passes.graph.layout import Layout, collapse, identity
from passes.graph.nodes import is_tensor
from passes.graph.ranges import Range
from passes.rules.base import Rule, Site, SiteFacts
from passes.rules.memo import Key

aten = torch.ops.aten

VIEWS = (aten.view.default, aten._unsafe_view.default)

SOURCES = Key[list[Tensor] | None]()

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
    is_movement = True
    makes_channels = False
    reason: str | None = "not followed as a movement here"

    def __init__(self, touched: Touched | None = None) -> None:
        self.touched = touched

    # Where did each label go?

    def sources(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor] | None:
        """For each result, the label each element came from (inputs numbered one after the other; -1: filled in).

        None where a labelled axis has merged with one whose length is not known before the input is.
        """
        return site.memo.once(SOURCES, lambda: self._sources(site, zeros))

    def _sources(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor] | None:
        labels = iter(self._numbered(site, zeros))

        def stand_in(node: Node) -> Any:
            return next(labels) if is_tensor(node) else site.values.concrete(node)

        args, kwargs = map_arg(site.node.args, stand_in), map_arg(site.node.kwargs, stand_in)
        result = self.run(site, args, kwargs)
        results = list(result) if isinstance(result, (list, tuple)) else [result]
        if any(r.numel() == 0 for r in results):
            return None
        found = [compress(r) for r in results]
        for out, source in zip(site.outputs, found, strict=True):
            if out is not None and any(
                n != 1 and not site.values.is_static(out, a) for a, n in enumerate(source.shape)
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

    # Orders

    def single_axis_sources(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor] | None:
        """The sources; None if a result has labels along several axes."""
        sources = self.sources(site, zeros)
        if sources is None or any(sum(n > 1 for n in source.shape) > 1 for source in sources):
            return None
        return sources

    def takes_any_order(self, site: Site, zeros: Sequence[Tensor], *, cut: bool) -> bool:
        return self.single_axis_sources(site, zeros) is not None

    def order(self, site: Site, zeros: Sequence[Tensor], ranks: Sequence[Tensor | None]) -> list[Tensor | None]:
        """The positions of the labels that each result takes."""
        sources = self.single_axis_sources(site, zeros)
        if sources is None:
            return [None for _ in site.outputs]
        flat, start = [], 0
        for rank, zero, shape in zip(ranks, zeros, self.labelled(site, zeros), strict=True):
            own = identity(tuple(zero.shape)) if rank is None else rank
            flat.append(own.expand(shape).reshape(-1) + start)
            start += math.prod(shape)
        taken = torch.cat(flat)
        return [taken[source] if int(source.min()) >= 0 else None for source in sources]

    def carried(self, site: Site, masks: Sequence[Tensor]) -> list[Tensor | None]:
        sources = self.sources(site, masks)
        if sources is None:
            return [None for _ in site.outputs]
        parts = zip(masks, self.labelled(site, masks), strict=True)
        flat = torch.cat([*(mask.expand(shape).reshape(-1) for mask, shape in parts), torch.tensor([False])])
        return [flat[source] for source in sources]

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

    def range(self, site: Site, zeros: Sequence[Tensor], ranges: Sequence[Range | None]) -> list[Range | None]:
        """Each label has the bounds of the label that it came from."""
        if all(each is None for each in ranges):
            return [None for _ in site.outputs]
        sources = self.sources(site, zeros)
        if sources is None:
            return [None for _ in site.outputs]
        ends: list[list[Tensor]] = [[], []]
        for each, shape in zip(ranges, self.labelled(site, zeros), strict=True):
            known = Range.unknown(shape) if each is None else each
            for end, value in zip(ends, (known.low, known.high), strict=True):
                end.append(value.expand(shape).reshape(-1))
        filled = torch.tensor([self.fill(site)], dtype=torch.float64)
        low, high = (torch.cat([*end, filled]) for end in ends)
        return [Range(low[source], high[source]) for source in sources]

    def fills_zero(self, site: Site) -> bool:
        """Whether what the operator fills in is zero."""
        return self.fill(site) == 0

    def fill(self, site: Site) -> float:
        """The number that the operator fills in."""
        return 0.0

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

    def legalise(self, site: Site, requested: Sequence[Layout], facts: SiteFacts) -> list[Layout]:
        return list(requested)

    def traced(self, site: Site, layout: Layout, facts: SiteFacts, index: int = 0) -> Tensor | None:
        """The input label of every label in a result's layout."""
        sources = self.sources(site, facts.zeros)
        if sources is None or tuple(sources[index].shape) != layout.compact:
            return None
        return layout.of(sources[index])
