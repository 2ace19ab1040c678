"""From facts to layouts: what every tensor of the small network holds, and where channels must be recombined.

One sweep from the outputs to the inputs. The readers of a tensor say in which layout they want it; the tensor takes
a layout that they agree on if this keeps nothing alive but fillers, else the smallest one that holds what is live.
Where a reader still wants another layout, the rewrite recombines: no branch is forced to another's mask.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.fx import Node

from passes.analysis.coupling import residual_values
from passes.analysis.liveness import Facts
from passes.analysis.program import Program
from passes.assignment.channel_order import arrange
from passes.assignment.options import Options
from passes.assignment.plan import LayoutPlan, SitePlan
from passes.assignment.prices import Prices, span_of
from passes.graph.layout import Layout, identity
from passes.graph.nodes import is_projection, is_tensor, reads_elements
from passes.rules.base import ANY_LAYOUT, ROWS, UNREAD, AnyLayout, LayoutRequest, Request, Site, SiteFacts, box_of

LIVE_PER_FILLER = 4
"""To make rows equally long a tensor may take on one dead channel for each four live ones; beyond that it is
recombined. With another mode than "recombine", or with a channel multiple, it may take on any number."""

MEETING = "kept because another branch of a sum keeps it"
MULTIPLE = "grown to the channel multiple"
CHEAPER = "computed as zeros: on this target cheaper than a copy"
ZERO_ROW = "one channel of zeros, gathered wherever a sum has none"
LAST = "a tensor keeps at least one channel"
OUTPUT = "output of the network"


@dataclass(frozen=True, eq=False)
class Reader:
    """A reader's request, the family of the reader, why it may want dead channels, and its call (None: an output)."""

    request: Request
    reason: str
    site: Site | None = None


@dataclass(eq=False)
class Candidate:
    """A layout that a tensor may take: what its dead channels cost, if anything, and what its readers save."""

    layout: Layout
    cost: float
    saved: float
    reason: str

    @property
    def gain(self) -> float:
        return self.saved - self.cost


def plan_layouts(program: Program, facts: Facts, options: Options | None = None) -> LayoutPlan:
    """The plan of a program."""
    return _Planner(program, facts, options or Options()).run()


class _Planner:
    def __init__(self, program: Program, facts: Facts, options: Options) -> None:
        self.program = program
        self.facts = facts
        self.options = options
        self.arrangement = arrange(program, facts)
        self.ranks = self.arrangement.ranks
        self.prices = Prices(program, facts, options.target)
        self.requests: dict[Node, list[Reader]] = defaultdict(list)
        self.growth: dict[Node, str] = {}
        self.layout: dict[Node, Layout] = {}
        self.lives: dict[Node, Tensor] = {}
        self.kept_whole = residual_values(program) if options.mode == "exclude" else frozenset()
        self.shared = _shared_parameters(program)
        self.sliced = {parameter for site in program.sites for parameter in site.parameters}

    def run(self) -> LayoutPlan:
        for node in self.program.output_tensors:
            self._ask(node, Reader(LayoutRequest(Layout.whole(len(self.program.shape(node)))), OUTPUT))
        pending: list[tuple[Site, SiteFacts, list[Layout], list[Request] | None]] = []
        scalars = {user for user in self.program.output.all_input_nodes if not is_tensor(user)}
        for node in reversed(self.program.module.graph.nodes):
            site = self.program.at_call(node)
            if site is not None:
                if any(out in self.requests for out in site.outputs if out is not None):
                    pending.append(self._decide(site))
                    scalars.update(n for n in node.all_input_nodes if not is_tensor(n))
            elif is_tensor(node) and node.op in ("placeholder", "get_attr"):
                self._source_layout(node)
            elif node in scalars and not is_projection(node):
                for argument in node.all_input_nodes:
                    if is_tensor(argument):
                        whole = LayoutRequest(Layout.whole(len(self.program.shape(argument))))
                        request = whole if reads_elements(node) else ANY_LAYOUT
                        self.requests[argument].append(Reader(request, OUTPUT))
                    else:
                        scalars.add(argument)
        plans = [self._resolve(*item) for item in reversed(pending)]
        return LayoutPlan(self.program, self.facts, self.options, self.layout, self.growth, plans, self.arrangement)

    def _ask(self, node: Node, reader: Reader) -> None:
        if reader.request is UNREAD:
            return
        if self._is_dead(node):
            self.layout.setdefault(node, box_of(self.live(node)))  # read as zeros, computed by nobody
        else:
            self.requests[node].append(reader)

    def _is_dead(self, node: Node) -> bool:
        """Whether nothing of a computed tensor, whose shape can be had without computing it, is live."""
        if node.op != "call_function" or bool(self.live(node).any()):
            return False
        return self.program.size_sources(node) is not None

    def live(self, node: Node) -> Tensor:
        if node not in self.lives:
            self.lives[node] = self.facts.live(node)
        return self.lives[node]

    def _decide(self, site: Site) -> tuple[Site, SiteFacts, list[Layout], list[Request] | None]:
        preferred = [
            self._choose(out) if out is not None else Layout.whole(len(site.out_shape)) for out in site.outputs
        ]
        site = replace(site, outputs=tuple(out if out in self.requests else None for out in site.outputs))
        ranks = tuple(self.ranks.get(out) if out is not None else None for out in site.outputs)
        facts = replace(self.facts.at(site, self.options.multiple), ranks=ranks)
        outs = site.rule.legalise(site, preferred, facts)
        reason = site.rule.growth(site)
        for out, layout, live in zip(site.outputs, outs, facts.lives, strict=True):
            if out is None:
                continue
            self.layout[out] = layout
            if layout.labels.numel() > int(live.sum()):
                self.growth.setdefault(out, reason or self._default_growth(layout))
                reason = reason or self.growth[out]
        requests = site.rule.requests(site, outs, facts)
        for index, node in enumerate(site.inputs):
            request = (
                LayoutRequest(Layout.whole(len(self.program.shape(node)))) if requests is None else requests[index]
            )
            self._ask(node, Reader(request, reason or ROWS, site))
        return site, facts, outs, requests

    def _default_growth(self, layout: Layout) -> str:
        if self.options.mode != "recombine":
            return MEETING
        if self.options.multiple > 1:
            return MULTIPLE
        return LAST if layout.labels.numel() == 1 else ROWS

    def _choose(self, node: Node) -> Layout:
        """The layout that saves most: copies for the readers who want it, less what its dead channels cost."""
        live = self.live(node)
        if node in self.kept_whole:
            return Layout(tuple(live.shape), identity(tuple(live.shape)))
        candidates = self._candidates(node, live)
        best = max(candidates, key=lambda each: each.gain, default=None)
        if best is None or best.gain <= 0:
            return self._own(node, live)
        if best.layout.labels.numel() > int(live.sum()):
            self.growth[node] = best.reason
        return best.layout

    def _candidates(self, node: Node, live: Tensor) -> list[Candidate]:
        """The layouts that readers want and the tensor may take."""
        candidates: list[Candidate] = []
        for reader in self.requests[node] if node in self.requests else ():
            request = _labelled(reader.request, live)
            if request is None or not _holds(request.layout, live):
                continue
            saved = self.prices.copy(node, request.layout, live, reader.site)
            same = next((each for each in candidates if each.layout.same(request.layout)), None)
            if same is not None:
                same.saved += saved
                continue
            meets = request.used is None or bool((request.used & ~request.layout.of(live)).any())
            reason = MEETING if meets else reader.reason
            if self._is_free(request, live, reader.site):
                candidates.append(Candidate(request.layout, 0.0, saved, reason))
            elif self.options.mode == "recombine":
                reason = CHEAPER if meets else reason
                candidates.append(Candidate(request.layout, self._filled(node, request.layout, live), saved, reason))
                if (span := self._span(node, request.layout, live, reader.site)) is not None:
                    candidates.append(span)
        return candidates

    def _span(self, node: Node, want: Layout, live: Tensor, reader: Site | None) -> Candidate | None:
        """What is live and what a reader wants in between, so that it need not be gathered but only padded."""
        span = span_of(want, live)
        if span is None or span.labels.numel() in (want.labels.numel(), int(live.sum())):
            return None
        saved = self.prices.copy(node, want, live, reader) - self.prices.copy(node, want, span.mask(), reader)
        return Candidate(span, self._filled(node, span, live), saved, CHEAPER)

    def _filled(self, node: Node, layout: Layout, live: Tensor) -> float:
        """The cost of the dead channels of a layout."""
        return self._dead(node, layout.labels.numel() - int(live.sum()))

    def _dead(self, node: Node, count: int) -> float:
        """The cost of dead channels in a tensor, for who makes it and for who reads it as it comes."""
        readers = [r.site for r in self.requests[node] if isinstance(r.request, AnyLayout) and r.site is not None]
        return self.prices.dead(node, count, readers)

    def _is_free(self, request: LayoutRequest, live: Tensor, reader: Site | None) -> bool:
        """Whether a layout may be had without asking what its dead channels cost."""
        alive = request.layout.of(live)
        boxes = sum(size > 1 for size in request.layout.labels.shape) > 1
        if self.options.smallest and int((~alive).sum()) * LIVE_PER_FILLER > int(live.sum()) * boxes:
            return False
        if self.options.mode != "recombine" and reader is not None and reader.rule.is_pointwise:
            return True
        return bool(alive.all()) if request.used is None else not bool((request.used & ~alive).any())

    def _own(self, node: Node, live: Tensor) -> Layout:
        """The smallest layout that holds what is live, or one that the target likes better."""
        rank = self.ranks.get(node)
        smallest = box_of(live, self.options.multiple, rank)
        if node not in self.requests or len(smallest.axes) != 1 or self.options.multiple > 1:
            return smallest
        preferred = self.options.preferred_multiple
        count, total = smallest.labels.numel(), live.numel()
        rounded = -(-count // preferred) * preferred
        parts = self.program.at[node].rule.is_join  # which are grown by themselves
        if count < rounded <= total and not parts and self._dead(node, rounded - count) < 0:
            self.growth[node] = MULTIPLE
            return box_of(self._with_dead(node, live, rounded - count), rank=rank)
        if (gathered := self._gathered(node, smallest)) is not None:
            if self._dead(node, 1) < self.prices.copy(node, smallest, live):
                self.growth[node] = ZERO_ROW
                return box_of(live | gathered.mask(), rank=rank)
        return smallest

    def _with_dead(self, node: Node, live: Tensor, count: int) -> Tensor:
        """What is live and `count` dead labels: such as some reader asks for, then any."""
        asked = torch.zeros_like(live)
        for reader in self.requests[node]:
            if isinstance(reader.request, LayoutRequest) and reader.request.layout.compact == tuple(live.shape):
                asked |= reader.request.layout.mask()
        dead = torch.cat([(asked & ~live).flatten().nonzero(), (~asked & ~live).flatten().nonzero()]).view(-1)
        grown = live.flatten().clone()
        grown[dead[:count]] = True
        return grown.view(live.shape)

    def _gathered(self, node: Node, own: Layout) -> Layout | None:
        """One label that a reader finds missing, if it must gather: what is there is no run of what it wants."""
        for reader in self.requests[node]:
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

    def _source_layout(self, node: Node) -> None:
        """Inputs come as they are; a constant takes the layout that its readers want, if it is one."""
        if node not in self.requests:
            return
        rank = len(self.program.shape(node))
        wanted = [r.request.layout for r in self.requests[node] if isinstance(r.request, LayoutRequest)]
        alike = wanted and all(wanted[0].same(layout) for layout in wanted[1:])
        flexible = any(isinstance(r.request, AnyLayout) for r in self.requests[node])
        if node.op == "placeholder" or not alike or flexible or node in self.sliced or str(node.target) in self.shared:
            compact = tuple(self.facts.zero[node].shape) if node in self.facts.zero else (1,) * rank
            self.layout[node] = Layout(compact, identity(compact))
        else:
            self.layout[node] = wanted[0]

    def _resolve(self, site: Site, facts: SiteFacts, outs: list[Layout], requests: list[Request] | None) -> SitePlan:
        """Fill in the layouts of inputs that are taken as they come."""
        if requests is None:
            whole = tuple(Layout.whole(len(self.program.shape(n))) for n in site.inputs)
            gives = tuple(Layout.whole(out.rank) for out in outs)
            return SitePlan(site, facts, whole, tuple(outs), gives, followed=False)
        ins: list[Layout | None] = []
        for index, (node, request) in enumerate(zip(site.inputs, requests, strict=True)):
            if isinstance(request, LayoutRequest):
                ins.append(request.layout)
            elif isinstance(request, AnyLayout):
                have = box_of(self.live(node)) if node.op == "placeholder" else self.layout[node]
                ins.append(self._trimmed(site, facts, node, site.rule.accept(site, index, have)))
            else:
                ins.append(None)
        return SitePlan(site, facts, tuple(ins), tuple(outs), tuple(site.rule.gives(site, outs)), followed=True)

    def _trimmed(self, site: Site, facts: SiteFacts, node: Node, have: Layout) -> Layout:
        """What a call takes of a tensor: no zeros of its weight, where a copy without them is cheaper."""
        part = site.rule.narrowed(site, have, facts) if self.options.mode == "recombine" else None
        if part is None:
            return have
        spared = self.prices.columns(site, have.labels.numel() - part.labels.numel())
        return part if self.prices.copy(node, have, part.mask()) < spared else have


def _labelled(request: Request, live: Tensor) -> LayoutRequest | None:
    """The request for a layout, with each axis labelled that has labels in `live` (a reader may want an axis whole)."""
    if not isinstance(request, LayoutRequest) or request.layout.rank != live.dim():
        return None
    return replace(request, layout=request.layout.refined(tuple(live.shape)))


def _holds(layout: Layout, live: Tensor) -> bool:
    """Whether a layout has each label once, and everything live."""
    if layout.compact != tuple(live.shape):
        return False
    kept = layout.mask()
    return int(kept.sum()) == layout.labels.numel() and not bool((live & ~kept).any())


def _shared_parameters(program: Program) -> frozenset[str]:
    """The names of tensors that are read under several names or by several nodes: they must stay one tensor."""
    owners: dict[int, list[str]] = defaultdict(list)
    for node in program.module.graph.nodes:
        if node.op == "get_attr" and is_tensor(node) and node.users:
            owners[program.tensor(node).data_ptr()].append(str(node.target))
    return frozenset(name for names in owners.values() if len(names) > 1 for name in names)
