"""The layouts that one tensor may take, and which of them has the largest gain.

A tensor's readers request layouts. Every requested layout that holds the live labels is a candidate. Its gain is what
the readers save because they need not copy, minus the price of its dead labels (`passes.assignment.prices`); some
fillers are free. The largest positive gain wins. The candidates, and what the tensor holds without a gain:

- a requested layout;
- what is held upstream: the live labels, and the dead ones that are computed anyway (`passes.assignment.held`);
- a span: the live labels, and the requested ones between the first and the last of them;
- the live labels alone;
- the live labels, rounded up to the multiple that the target prefers;
- the live labels and one channel of zeros, from which a gather takes its zeros.

In other modes than "recombine" nothing is paid for a request: it is a candidate only if all its dead labels are free.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.fx import Node

from passes.analysis.liveness import Facts
from passes.analysis.program import Program
from passes.assignment.options import Options
from passes.assignment.plan import LIVE, Candidate
from passes.assignment.prices import Prices, span_of
from passes.graph.layout import Layout, box_of
from passes.rules.base import AnyLayout, LayoutRequest, Request, Site

LIVE_PER_FILLER = 4
"""A layout whose labels lie along several axes may hold one dead label for each four live ones at no price, so that
rows are equally long. Beyond that its dead labels have a price, as they always have along a single axis. In another
mode than "recombine", or with a channel multiple, any number of fillers is free."""

MEETING = "kept because another branch of a sum keeps it"
MULTIPLE = "grown to the channel multiple"
HELD = "held upstream anyway: on this target cheaper than a copy of the live channels"
CHEAPER = "computed as zeros: on this target cheaper than a copy"
ZERO_ROW = "one channel of zeros, gathered wherever a sum has none"


@dataclass(frozen=True, eq=False)
class Reader:
    """A layout request: what is requested, the reason to report if it keeps dead channels, and the call that requests
    it (None: an output of the network)."""

    request: Request
    reason: str
    site: Site | None = None


class Chooser:
    """Chooses the layout of one tensor after the other."""

    def __init__(self, program: Program, facts: Facts, options: Options) -> None:
        self.program = program
        self.options = options
        self.prices = Prices(program, facts, options.target)

    def choose(self, node: Node, live: Tensor, readers: Sequence[Reader], rank: Tensor | None) -> list[Candidate]:
        """The candidates for a tensor, the chosen one first.

        `live` masks its live labels, `rank` is the order of its labels (None: the natural order).
        """
        candidates = self._candidates(node, live, readers)
        if (held := self._held(node, live, readers, rank)) is not None:
            candidates.append(held)
        own = self._own(node, live, readers, rank)
        best = max(candidates, key=lambda each: each.gain, default=own)
        if best.gain <= 0:
            best = own
        rest = [each for each in (*candidates, own) if each is not best and not each.layout.same(best.layout)]
        return [best, *rest]

    def _candidates(self, node: Node, live: Tensor, readers: Sequence[Reader]) -> list[Candidate]:
        """The requested layouts that the tensor may take."""
        candidates: list[Candidate] = []
        for reader in readers:
            request = _labelled(reader.request, live)
            if request is None or not _holds(request.layout, live):
                continue
            saved = self.prices.copy(node, request.layout, live, reader.site)
            index = next((i for i, each in enumerate(candidates) if each.layout.same(request.layout)), None)
            if index is not None:
                candidates[index] = replace(candidates[index], saved=candidates[index].saved + saved)
                continue
            meets = request.used is None or bool((request.used & ~request.layout.of(live)).any())
            reason = MEETING if meets else reader.reason
            if self._is_free(request, live, reader.site):
                candidates.append(Candidate(request.layout, 0.0, saved, reason))
            elif self.options.mode == "recombine":
                cost = self._filled(node, request.layout, live, readers)
                candidates.append(Candidate(request.layout, cost, saved, CHEAPER if meets else reason))
                if (span := self._span(node, request.layout, live, reader.site, readers)) is not None:
                    candidates.append(span)
        return candidates

    def _span(
        self, node: Node, want: Layout, live: Tensor, reader: Site | None, readers: Sequence[Reader]
    ) -> Candidate | None:
        """The live labels and the requested ones in between: a reader pads this span, and gathers the live labels."""
        span = span_of(want, live)
        if span is None or span.labels.numel() in (want.labels.numel(), int(live.sum())):
            return None
        saved = self.prices.copy(node, want, live, reader) - self.prices.copy(node, want, span.mask(), reader)
        return Candidate(span, self._filled(node, span, live, readers), saved, CHEAPER)

    def _held(self, node: Node, live: Tensor, readers: Sequence[Reader], rank: Tensor | None) -> Candidate | None:
        """All labels that are computed upstream anyway, if every reader takes them: without the dead ones the live ones
        are copied out of them."""
        dead = self.prices.held.get(node)
        if dead is None or not readers or sum(n > 1 for n in live.shape) != 1:
            return None
        layout = box_of(live | dead, self.options.multiple, rank)
        requests = [_labelled(reader.request, live) for reader in readers]
        if any(request is not None and not request.layout.same(layout) for request in requests):
            return None
        cost = self._filled(node, layout, live, readers)
        return Candidate(layout, cost, self.prices.copy(node, layout, live), HELD)

    def _filled(self, node: Node, layout: Layout, live: Tensor, readers: Sequence[Reader]) -> float:
        """The cost of the dead labels of a layout."""
        return self._dead(node, layout.mask() & ~live, readers)

    def _dead(self, node: Node, labels: Tensor, readers: Sequence[Reader]) -> float:
        """The cost of dead labels in a tensor, for its producer and for the readers that take it in any layout."""
        sites = [r.site for r in readers if isinstance(r.request, AnyLayout) and r.site is not None]
        return self.prices.dead(node, labels, sites)

    def _is_free(self, request: LayoutRequest, live: Tensor, reader: Site | None) -> bool:
        """Whether the dead labels of a requested layout have no price."""
        alive = request.layout.of(live)
        boxes = sum(size > 1 for size in request.layout.labels.shape) > 1
        if self.options.smallest and int((~alive).sum()) * LIVE_PER_FILLER > int(live.sum()) * boxes:
            return False
        if self.options.mode != "recombine" and reader is not None and reader.rule.is_pointwise:
            return True
        return bool(alive.all()) if request.used is None else not bool((request.used & ~alive).any())

    def _own(self, node: Node, live: Tensor, readers: Sequence[Reader], rank: Tensor | None) -> Candidate:
        """The smallest layout that holds what is live, or a slightly larger one that the target computes faster."""
        smallest = box_of(live, self.options.multiple, rank)
        own = Candidate(smallest, 0.0, 0.0, LIVE)
        if not readers or len(smallest.axes) != 1 or self.options.multiple > 1:
            return own
        preferred = self.options.preferred_multiple
        count, total = smallest.labels.numel(), live.numel()
        rounded = -(-count // preferred) * preferred
        parts = self.program.at[node].rule.is_join  # which are grown one by one
        if count < rounded <= total and not parts:
            grown = _with_dead(live, rounded - count, readers, self.prices.held.get(node))
            if (cost := self._dead(node, grown & ~live, readers)) < 0:
                return Candidate(box_of(grown, rank=rank), cost, 0.0, MULTIPLE)
        if (gathered := _gathered(smallest, readers)) is not None:
            dead = gathered.mask() & ~live
            cost, saved = self._dead(node, dead, readers), self.prices.copy(node, smallest, live)
            if cost < saved:
                return Candidate(box_of(live | gathered.mask(), rank=rank), cost, saved, ZERO_ROW)
        return own


def _with_dead(live: Tensor, count: int, readers: Sequence[Reader], held: Tensor | None) -> Tensor:
    """What is live and `count` dead labels: first those that some reader requests, then those held upstream."""
    asked = torch.zeros_like(live)
    for reader in readers:
        if isinstance(reader.request, LayoutRequest) and reader.request.layout.compact == tuple(live.shape):
            asked |= reader.request.layout.mask()
    order = 2 * asked.int() + (held.int() if held is not None else 0) - 9 * live.int()
    grown = live.flatten().clone()
    grown[order.flatten().argsort(descending=True, stable=True)[:count]] = True
    return grown.view(live.shape)


def _gathered(own: Layout, readers: Sequence[Reader]) -> Layout | None:
    """A missing requested label, if those present are not contiguous in the request, so that the reader must gather.

    With this label in the tensor the gather takes its zeros from there; without it zeros are added in a copy before.
    """
    for reader in readers:
        request = reader.request
        if not isinstance(request, LayoutRequest) or request.layout.compact != own.compact:
            continue
        wanted = request.layout.labels.reshape(-1)
        there = own.mask().reshape(-1)[wanted]
        missing = wanted[~there & request.used.reshape(-1)] if request.used is not None else wanted[~there]
        if not len(missing) or not bool(there.any()):
            continue
        if int((there[1:] & ~there[:-1]).sum()) + int(there[0]) > 1:
            axis = own.axes[0]
            return Layout.along(own.rank, axis, own.compact[axis], missing[:1])
    return None


def _labelled(request: Request, live: Tensor) -> LayoutRequest | None:
    """The request for a layout, with each axis labelled that has labels in `live` (a reader may want an axis whole)."""
    if not isinstance(request, LayoutRequest) or request.layout.rank != live.dim():
        return None
    return replace(request, layout=request.layout.refined(tuple(live.shape)))


def _holds(layout: Layout, live: Tensor) -> bool:
    """Whether a layout has each label at most once, and every live one."""
    if layout.compact != tuple(live.shape):
        return False
    kept = layout.mask()
    return int(kept.sum()) == layout.labels.numel() and not bool((live & ~kept).any())
