"""Layout assignment: from liveness to a layout for every tensor of the small network.

One sweep from the outputs to the inputs. The readers of a tensor request layouts. The tensor takes the layout with the
largest gain, savings minus cost, of those that hold its live labels (`passes.assignment.candidates`). The operator that
computes it legalises that layout and requests layouts of its own inputs. Where a reader requests another layout than
the tensor has, the rewriter recombines: no branch is forced to another's mask.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace

from torch import Tensor
from torch.fx import Node

from passes.analysis.coupling import residual_values
from passes.analysis.liveness import Facts
from passes.analysis.program import Program
from passes.assignment.candidates import MEETING, MULTIPLE, Chooser, Reader
from passes.assignment.channel_order import arrange
from passes.assignment.options import Options
from passes.assignment.plan import LIVE, Candidate, LayoutPlan, SitePlan
from passes.graph.layout import Layout, box_of, identity
from passes.graph.nodes import is_projection, is_tensor, reads_elements
from passes.rules.base import ANY_LAYOUT, ROWS, UNREAD, AnyLayout, LayoutRequest, Request, Site, SiteFacts

LAST = "a tensor keeps at least one channel"
OUTPUT = "output of the network"
EXCLUDED = 'kept whole in mode "exclude": its channels meet in a sum'


def plan_layouts(program: Program, facts: Facts, options: Options | None = None) -> LayoutPlan:
    """The layout plan of a program; `options` says how branches meet and for which machine (default: `Options()`)."""
    return _Planner(program, facts, options or Options()).run()


@dataclass(frozen=True, eq=False)
class _Decided:
    """A call whose results have their layouts, and what it requests of its inputs (None: all of them whole)."""

    site: Site
    facts: SiteFacts
    outs: list[Layout]
    requests: list[Request] | None


class _Planner:
    def __init__(self, program: Program, facts: Facts, options: Options) -> None:
        self.program = program
        self.facts = facts
        self.options = options
        self.chooser = Chooser(program, facts, options)
        self.arrangement = arrange(program, facts, self.chooser.prices.held)
        self.readers: dict[Node, list[Reader]] = defaultdict(list)
        self.growth: dict[Node, str] = {}
        self.layout: dict[Node, Layout] = {}
        self.candidates: dict[Node, list[Candidate]] = {}
        self.lives: dict[Node, Tensor] = {}
        self.kept_whole = residual_values(program) if options.mode == "exclude" else frozenset()
        self.shared = _shared_parameters(program)
        self.sliced = {parameter for site in program.sites for parameter in site.parameters}

    def run(self) -> LayoutPlan:
        for node in self.program.output_tensors:
            self._ask(node, Reader(self._whole(node), OUTPUT))
        decided: list[_Decided] = []
        scalars = {user for user in self.program.output.all_input_nodes if not is_tensor(user)}
        for node in reversed(self.program.module.graph.nodes):
            site = self.program.at_call(node)
            if site is not None:
                if any(out in self.readers for out in site.outputs if out is not None):
                    decided.append(self._decide(site))
                    scalars.update(n for n in node.all_input_nodes if not is_tensor(n))
            elif is_tensor(node) and node.op in ("placeholder", "get_attr"):
                self._decide_source(node)
            elif node in scalars and not is_projection(node):
                self._read_scalar(node, scalars)
        sites = [self._resolved(each) for each in reversed(decided)]
        return LayoutPlan(
            self.program,
            self.facts,
            self.options,
            self.layout,
            self.growth,
            sites,
            self.arrangement,
            self.candidates,
        )

    def _whole(self, node: Node) -> LayoutRequest:
        return LayoutRequest(Layout.whole(len(self.program.shape(node))))

    def _read_scalar(self, node: Node, scalars: set[Node]) -> None:
        """Record what a scalar node reads: elements of a tensor, its size, or other scalars."""
        for argument in node.all_input_nodes:
            if is_tensor(argument):
                request = self._whole(argument) if reads_elements(node) else ANY_LAYOUT
                self.readers[argument].append(Reader(request, OUTPUT))
            else:
                scalars.add(argument)

    def _ask(self, node: Node, reader: Reader) -> None:
        """Pass a request on to a tensor."""
        if reader.request is UNREAD:
            return
        if self._is_dead(node):
            self.layout.setdefault(node, box_of(self.live(node)))  # its readers get zeros; no call computes it
        else:
            self.readers[node].append(reader)

    def _is_dead(self, node: Node) -> bool:
        """Whether a computed tensor has no live label, and its shape is known without computing it."""
        if node.op != "call_function" or bool(self.live(node).any()):
            return False
        return self.program.size_sources(node) is not None

    def live(self, node: Node) -> Tensor:
        if node not in self.lives:
            self.lives[node] = self.facts.live(node)
        return self.lives[node]

    def _decide(self, site: Site) -> _Decided:
        """Choose and legalise the layouts of a call's results, and pass on what it requests of its inputs."""
        preferred = [
            self._choose(out) if out is not None else Layout.whole(len(site.out_shape)) for out in site.outputs
        ]
        site = replace(site, outputs=tuple(out if out in self.readers else None for out in site.outputs))
        ranks = tuple(self.arrangement.ranks.get(out) if out is not None else None for out in site.outputs)
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
            request = self._whole(node) if requests is None else requests[index]
            self._ask(node, Reader(request, reason or ROWS, site))
        return _Decided(site, facts, outs, requests)

    def _default_growth(self, layout: Layout) -> str:
        if self.options.mode != "recombine":
            return MEETING
        if self.options.multiple > 1:
            return MULTIPLE
        return LAST if layout.labels.numel() == 1 else ROWS

    def _choose(self, node: Node) -> Layout:
        """The layout with the largest gain: copies that its readers need not make, minus what its dead labels cost."""
        live = self.live(node)
        if node in self.kept_whole:
            compact = tuple(live.shape)
            self.candidates[node] = [Candidate(Layout(compact, identity(compact)), 0.0, 0.0, EXCLUDED)]
            return self.candidates[node][0].layout
        rank, readers = self.arrangement.ranks.get(node), self.readers[node] if node in self.readers else ()
        best, *_ = self.candidates[node] = self.chooser.choose(node, live, readers, rank)
        if best.reason != LIVE and best.layout.labels.numel() > int(live.sum()):
            self.growth[node] = best.reason
        return best.layout

    def _decide_source(self, node: Node) -> None:
        """An input keeps its layout; a parameter read as a value takes the layout that all its readers request."""
        if node not in self.readers:
            return
        rank = len(self.program.shape(node))
        requests = [reader.request for reader in self.readers[node]]
        wanted = [request.layout for request in requests if isinstance(request, LayoutRequest)]
        alike = wanted and all(wanted[0].same(layout) for layout in wanted[1:])
        flexible = any(isinstance(request, AnyLayout) for request in requests)
        if node.op == "placeholder" or not alike or flexible or node in self.sliced or str(node.target) in self.shared:
            compact = tuple(self.facts.zero[node].shape) if node in self.facts.zero else (1,) * rank
            self.layout[node] = Layout(compact, identity(compact))
        else:
            self.layout[node] = wanted[0]

    def _resolved(self, decided: _Decided) -> SitePlan:
        """The plan of a call, now that the inputs which it takes in any layout have theirs."""
        site, facts, outs = decided.site, decided.facts, tuple(decided.outs)
        if decided.requests is None:
            whole = tuple(Layout.whole(len(self.program.shape(n))) for n in site.inputs)
            gives = tuple(Layout.whole(out.rank) for out in outs)
            return SitePlan(site, facts, whole, outs, gives, followed=False)
        ins: list[Layout | None] = []
        for index, (node, request) in enumerate(zip(site.inputs, decided.requests, strict=True)):
            if isinstance(request, LayoutRequest):
                ins.append(request.layout)
            elif isinstance(request, AnyLayout):
                have = box_of(self.live(node)) if node.op == "placeholder" else self.layout[node]
                ins.append(self._narrowed(site, facts, node, site.rule.accept(site, index, have)))
            else:
                ins.append(None)
        return SitePlan(site, facts, tuple(ins), outs, tuple(site.rule.gives(site, outs)), followed=True)

    def _narrowed(self, site: Site, facts: SiteFacts, node: Node, have: Layout) -> Layout:
        """What a call reads of a tensor that it takes in any layout.

        Columns of its weight that are zero are left out where a copy of the tensor without them is cheaper.
        """
        part = site.rule.narrowed(site, have, facts) if self.options.mode == "recombine" else None
        if part is None:
            return have
        prices = self.chooser.prices
        spared = prices.columns(site, have.labels.numel() - part.labels.numel())
        return part if prices.copy(node, have, part.mask()) < spared else have


def _shared_parameters(program: Program) -> frozenset[str]:
    """The names of tensors that several names or several nodes read: they must stay one tensor."""
    owners: dict[int, list[str]] = defaultdict(list)
    for node in program.module.graph.nodes:
        if node.op == "get_attr" and is_tensor(node) and node.users:
            owners[program.tensor(node).data_ptr()].append(str(node.target))
    return frozenset(name for names in owners.values() if len(names) > 1 for name in names)
