"""The prices of a layout: what its dead channels cost, and what copies it saves.

A dead channel costs its producer (rows of a weight that are zero), every operator on the way that moves it, and every
reader that takes it (columns of a weight that multiply zeros). Prices follow it up to the next sum of branches, whose
operands choose their own layouts. A copy costs what the target charges for reading and writing it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from functools import cached_property

import torch
from torch import Tensor
from torch.fx import Node

from passes.analysis.liveness import Facts
from passes.analysis.program import Program
from passes.assignment.cost_model import Target
from passes.assignment.held import held_labels
from passes.graph.layout import Layout
from passes.rules.base import Contraction, Site


def is_run(want: Layout, have: Tensor) -> bool:
    """Whether the labels of `want` in the mask `have` are contiguous in `want`."""
    span = span_of(want, have)
    return span is not None and span.labels.numel() == int(have.sum())


def span_of(want: Layout, have: Tensor) -> Layout | None:
    """The labels of `want` from the first to the last one in the mask `have`; None if `want` varies along several
    axes."""
    if len(want.axes) > 1 or want.compact != tuple(have.shape) or not bool(have.any()):
        return None
    if not want.axes:
        return want
    place = want.of(have).reshape(-1).nonzero().view(-1)
    (axis,) = want.axes
    return Layout.along(want.rank, axis, want.compact[axis], want.labels.reshape(-1)[place[0] : place[-1] + 1])


def _meets(site: Site) -> bool:
    """Whether several tensors are added or concatenated here."""
    return site.rule.is_sum or site.rule.is_join


class Prices:
    """What copies and dead channels cost in the tensors of a program, in the unit of the target."""

    def __init__(self, program: Program, facts: Facts, target: Target) -> None:
        self.program = program
        self.facts = facts
        self.target = target
        self._limits: dict[Site, Contraction | None] = {}
        self._position = {node: index for index, node in enumerate(program.tensors)}

    def copy(self, node: Node, want: Layout, have: Tensor, reader: Site | None = None) -> float:
        """The cost of a copy: reading the labels `have` (a mask) of a tensor and writing the layout `want`.

        It is a gather unless the labels that the tensor has are a run of `want`. `reader` is the call it is made for.
        """
        size = self._bytes(node, int(have.sum()) + want.labels.numel())
        cost = self.target.meeting(size) if self._is_fused(reader) else self.target.traffic(size)
        return cost if is_run(want, have) else cost + self.target.gather(size) - self.target.traffic(size)

    def _is_fused(self, reader: Site | None) -> bool:
        """Whether the call is a sum that the kernel of a contraction before it may compute too."""
        return reader is not None and reader.rule.is_sum and any(map(self._is_convolved, reader.inputs))

    def _is_convolved(self, node: Node) -> bool:
        """Whether a tensor is the result of a contraction, or of the batch norm after one."""
        site = self.program.at.get(node)
        if site is not None and site.rule.is_affine:
            site = self.program.at.get(site.inputs[0])
        return site is not None and site.rule.weight is not None

    def dead(self, node: Node, labels: Tensor, readers: Iterable[Site]) -> float:
        """The cost of dead labels (a mask) in a tensor that `readers` take in any layout.

        It is negative where the machine computes the larger number of channels faster.
        """
        count = int(labels.sum())
        return sum(self.columns(site, count) for site in readers) + self._made(node, labels)

    @cached_property
    def held(self) -> Mapping[Node, Tensor]:
        """The dead labels that tensors can hold without more work upstream."""
        return held_labels(self.program, self.facts)

    def _made(self, node: Node, labels: Tensor, *, behind: bool = False) -> float:
        """The cost of dead labels upstream of a tensor, up to what makes them; labels that are held there are moved.

        `behind`: a sum or a concatenation reads the tensor, so that another one upstream ends the search.
        """
        cost, waiting, spine = 0.0, {node: labels}, node
        while waiting:
            node = max(waiting, key=self._position.__getitem__)
            labels, site = waiting.pop(node), self.program.at.get(node)
            if node.op == "get_attr" or not bool(labels.any()):
                continue
            if site is None or _meets(site) or not site.rule.keeps_channels(site):
                cost += self._source(node, site, labels, behind)
                continue
            count = int(labels.sum())
            cost += self._made_by(site, count)
            if node is spine:  # what other operands are computed by runs in the same kernel
                cost, spine = cost + self._through(node, count), site.inputs[0]
            for each, asked in zip(site.inputs, self._asked_of(site, labels), strict=True):
                waiting[each] = waiting[each] | asked if each in waiting else asked
        return cost

    def _source(self, node: Node, site: Site | None, labels: Tensor, behind: bool) -> float:
        """The cost of dead labels where they are made: in a contraction, a movement or operands that meet."""
        if node.op == "placeholder":
            return 0.0
        labels = labels & ~self.held[node] if node in self.held else labels
        if site is None or not (count := int(labels.sum())):
            return 0.0
        if _meets(site):
            return math.inf if behind else self._met(site, labels)
        if self._limit(site) is not None:
            return self._made_by(site, count)
        return self._through(node, count) if site.rule.is_movement else math.inf

    def _asked_of(self, site: Site, labels: Tensor) -> list[Tensor]:
        """The labels of the inputs that give the labels of the first result."""
        zeros = [self.facts.zero[each] for each in site.inputs]
        if all(zero.shape == labels.shape for zero in zeros) and not site.rule.is_join:
            return [labels for _ in zeros]
        lives = [torch.zeros_like(live) for live in self.facts.at(site).lives]
        return site.rule.needed(site, [labels, *lives[1:]], zeros)

    def _made_by(self, site: Site, count: int) -> float:
        """The cost of `count` dead rows in the contraction at a call site; 0 for other operators."""
        limit = self._limit(site)
        return 0.0 if limit is None else self._grown(limit, 0, count)

    def _met(self, meeting: Site, labels: Tensor) -> float:
        """The cost of dead labels in the operands of a sum or a concatenation."""
        asked = dict(zip(meeting.inputs, self._asked_of(meeting, labels), strict=True))
        if meeting.rule.is_sum:
            return self._through(meeting.node, 2 * int(labels.sum())) + sum(
                self._asked(each, asked[each]) for each in asked if self._is_full(meeting, each)
            )
        return self._through(meeting.node, int(labels.sum())) + sum(self._asked(n, each) for n, each in asked.items())

    def _is_full(self, meeting: Site, operand: Node) -> bool:
        """Whether an operand has the live labels of the sum; one that is recombined anyway pays nothing more."""
        return torch.equal(self.facts.live(operand), self.facts.live(meeting.node))

    def _asked(self, operand: Node, labels: Tensor) -> float:
        """The cost of dead labels in one operand: the cheaper of copying it and computing them upstream.

        It is copied if several sums and concatenations read it: each may ask for other labels.
        """
        if not bool(labels.any()):
            return 0.0
        copied = self.target.traffic(self._bytes(operand, 2 * int(self.facts.live(operand).sum()) + int(labels.sum())))
        readers = (self.program.at_call(user) for user in operand.users)
        if sum(site is not None and site.rule.is_join for site in readers) > 1:
            return copied
        return min(copied, self._made(operand, labels, behind=True))

    def _through(self, node: Node, count: int) -> float:
        """The cost of moving `count` more labels through an operator that runs anyway, in and out."""
        base = self._bytes(node, 2 * int(self.facts.live(node).sum()))
        return self.target.traffic(base + self._bytes(node, 2 * count)) - self.target.traffic(base)

    def columns(self, site: Site, count: int) -> float:
        """The cost of `count` dead columns in a contraction."""
        limit = self._limit(site)
        return 0.0 if limit is None else self._grown(limit, count, 0)

    def _grown(self, limit: Contraction, inputs: int, outputs: int) -> float:
        """What a contraction costs more with more input or output channels, the others rounded up to the multiple that
        the target prefers."""
        share = (limit.inputs + inputs) * (limit.outputs + outputs) / max(1, limit.inputs * limit.outputs)
        wide_in = limit.inputs if inputs else self._liked(limit.inputs)
        wide_out = limit.outputs if outputs else self._liked(limit.outputs)
        before = self.target.contraction(limit.macs, wide_in, wide_out)
        return self.target.contraction(limit.macs * share, wide_in + inputs, wide_out + outputs) - before

    def _liked(self, channels: int) -> int:
        return -(-channels // self.target.multiple) * self.target.multiple

    def _limit(self, site: Site) -> Contraction | None:
        if site not in self._limits:
            self._limits[site] = site.rule.limit(site, self.facts.at(site))
        return self._limits[site]

    def _bytes(self, node: Node, labels: int) -> float:
        each = math.prod(self.program.shape(node)) / max(1, self.facts.zero[node].numel())
        return labels * each * float(node.meta["val"].element_size())
