"""What it costs to let a tensor carry dead channels, against copying it into the layout that a reader wants.

Dead channels are computed by whoever makes the tensor (rows of a weight that are zero), move through every operator on
the way, and are read by whoever reads it (columns that meet zeros). Up to the next sum of branches, that is: its
operands decide for themselves.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.fx import Node

from passes.analysis.liveness import Facts
from passes.analysis.program import Program
from passes.assignment.cost_model import Target
from passes.graph.layout import Layout
from passes.rules.base import Contraction, Site


def is_run(want: Layout, have: Tensor) -> bool:
    """Whether the labels of `want` in the mask `have` follow one another in it."""
    span = span_of(want, have)
    return span is not None and span.labels.numel() == int(have.sum())


def span_of(want: Layout, have: Tensor) -> Layout | None:
    """The labels of `want` from the first to the last in the mask `have`; None if it varies along several axes."""
    if len(want.axes) > 1 or want.compact != tuple(have.shape) or not bool(have.any()):
        return None
    if not want.axes:
        return want
    place = want.of(have).reshape(-1).nonzero().view(-1)
    (axis,) = want.axes
    return Layout.along(want.rank, axis, want.compact[axis], want.labels.reshape(-1)[place[0] : place[-1] + 1])


def _meets(site: Site) -> bool:
    """Whether tensors are added here, or laid side by side."""
    return site.rule.is_sum or site.rule.is_join


class Prices:
    """The target's cost of copies and of dead channels in the tensors of a program."""

    def __init__(self, program: Program, facts: Facts, target: Target) -> None:
        self.program = program
        self.facts = facts
        self.target = target
        self._limits: dict[Site, Contraction | None] = {}

    def copy(self, node: Node, want: Layout, have: Tensor, reader: Site | None = None) -> float:
        """Reader the labels `have` (a mask) of a tensor and writing it in the layout `want`, for one of its readers.

        What there is of it is a run of `want`, or has to be gathered."""
        size = self._bytes(node, int(have.sum()) + want.labels.numel())
        cost = self.target.meeting(size) if self._is_fused(reader) else self.target.traffic(size)
        return cost if is_run(want, have) else cost + self.target.gather(size) - self.target.traffic(size)

    def _is_fused(self, reader: Site | None) -> bool:
        """Whether the call is a sum that a contraction before it may do by itself, whichever operand is copied."""
        return reader is not None and reader.rule.is_sum and any(map(self._is_convolved, reader.inputs))

    def _is_convolved(self, node: Node) -> bool:
        """Whether a tensor is what a contraction gives, its batch norm included."""
        site = self.program.at.get(node)
        if site is not None and site.rule.is_affine:
            site = self.program.at.get(site.inputs[0])
        return site is not None and site.rule.weight is not None

    def dead(self, node: Node, count: int, readers: Iterable[Site]) -> float:
        """The cost of `count` dead labels in a tensor whose `readers` take it as it comes. It may be negative."""
        cost = sum(self.columns(site, count) for site in readers)
        return cost + self._made(node, count)

    def _made(self, node: Node, count: int, *, behind: bool = False) -> float:
        """The cost for whoever makes a tensor; `behind`: several tensors meet before it, and no more are looked at."""
        cost, site = 0.0, self.program.at.get(node)
        while site is not None and not _meets(site) and site.rule.keeps_channels(site):
            cost += self._through(node, count) + self._made_by(site, count)
            node = site.inputs[0]
            site = self.program.at.get(node)
        if site is None:
            return math.inf
        if _meets(site):
            return math.inf if behind else cost + self._met(site, count)
        if self._limit(site) is not None:
            return cost + self._made_by(site, count)
        return cost + self._through(node, count) if site.rule.is_movement else math.inf

    def _made_by(self, site: Site, count: int) -> float:
        """The rows of a contraction."""
        limit = self._limit(site)
        return 0.0 if limit is None else self._grown(limit, 0, count)

    def _met(self, meeting: Site, count: int) -> float:
        """The cost for tensors that are added, or stand side by side."""
        if meeting.rule.is_sum:
            return self._through(meeting.node, 2 * count) + sum(
                self._asked(each, count) for each in meeting.inputs if self._is_full(meeting, each)
            )
        of = self.facts.zero[meeting.node].numel()
        shares = {each: math.ceil(count * self.facts.zero[each].numel() / of) for each in meeting.inputs}
        return self._through(meeting.node, count) + sum(self._asked(each, n) for each, n in shares.items())

    def _is_full(self, meeting: Site, operand: Node) -> bool:
        """Whether an operand so far needs nothing: one that is recombined anyway pays no more."""
        return torch.equal(self.facts.live(operand), self.facts.live(meeting.node))

    def _asked(self, operand: Node, count: int) -> float:
        """What dead labels of one of them cost: a copy, or whoever makes it."""
        copied = self.target.traffic(self._bytes(operand, 2 * int(self.facts.live(operand).sum()) + count))
        return min(copied, self._made(operand, count, behind=True))

    def _through(self, node: Node, count: int) -> float:
        """An operator that runs anyway moves `count` more labels in, and as many out."""
        base = self._bytes(node, 2 * int(self.facts.live(node).sum()))
        return self.target.traffic(base + self._bytes(node, 2 * count)) - self.target.traffic(base)

    def columns(self, site: Site, count: int) -> float:
        """The cost of `count` dead columns in a contraction."""
        limit = self._limit(site)
        return 0.0 if limit is None else self._grown(limit, count, 0)

    def _grown(self, limit: Contraction, inputs: int, outputs: int) -> float:
        """What a contraction costs more with so many channels more, if the others come in a number that it likes."""
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
