"""The order of channels inside a tensor, chosen so that the branches of a sum are runs of it.

A sum keeps every channel that one of its operands keeps. An operand whose channels are a run of the sum's is padded on
both sides; a scattered one is gathered; one that has them all needs nothing. All tensors whose channels are the same
channels (`passes.analysis.coupling`) are one family and share one order, in which the operands' sets should be runs:
the consecutive-ones property (`passes.assignment.pq_tree`). Where no order satisfies all sets, those that move most
bytes come first.

The order then flows forward through concatenations, splits and movements, so that readers downstream find it.
Permutations fold into the weights of the layers that make and read the tensors.

Related work: "indexation-addition" (Tessier et al. 2022, arXiv 2206.06247) and NNI's reindexing gather at each sum;
UPSCALE (Wan et al. 2023, arXiv 2307.08771) reorders channels at export, for one producer and its readers.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from torch.fx import Node

from passes.accounts import Family
from passes.analysis.coupling import channel_groups, is_meeting
from passes.analysis.liveness import Facts
from passes.analysis.program import Program
from passes.assignment.pq_tree import consecutive_order
from passes.rules.base import Site


@dataclass(frozen=True, eq=False)
class Arrangement:
    """The orders that were chosen.

    `ranks`: for each tensor that is not in natural order, the position of each label, in the compact shape. `families`:
    for each family of tensors that meet with different channels its record, and the nodes of its sums.
    """

    ranks: Mapping[Node, Tensor]
    families: Sequence[tuple[Family, frozenset[Node]]]


def arrange(program: Program, facts: Facts, held: Mapping[Node, Tensor] = MappingProxyType({})) -> Arrangement:
    """The order of every tensor's channels, from the channels that the operands of calls hold.

    `held`: the dead labels that tensors can hold without more work upstream (`passes.assignment.held`).
    """
    return _Arranger(program, facts, held).run()


class _Arranger:
    def __init__(self, program: Program, facts: Facts, held: Mapping[Node, Tensor]) -> None:
        self.program = program
        self.facts = facts
        self.held = held
        self.ranks: dict[Node, Tensor] = {}
        self.natural: set[Node] = set()  # members of families that keep their natural order

    def run(self) -> Arrangement:
        sums = (site for site in self.program.sites if is_meeting(site) and len(site.out_shape) > 1)  # with channels
        meetings = [site for site in sums if _differ(site, self.facts)]
        fillings = [site for site in self.program.sites if site not in set(meetings) and self._fills(site)]
        families = self._families(meetings, fillings) if meetings or fillings else []
        self._forward()
        return Arrangement(self.ranks, families)

    def _families(self, meetings: Sequence[Site], fillings: Sequence[Site]) -> list[tuple[Family, frozenset[Node]]]:
        import networkx as nx  # late: a large part of the time that importing the package takes

        families = []
        graph = channel_groups(self.program)
        position = {node: index for index, node in enumerate(self.program.tensors)}
        for component in nx.connected_components(graph):
            own = [site for site in meetings if site.node in component]
            filling = [site for site in fillings if site.node in component]
            if not own and not filling:
                continue
            members = sorted(component, key=position.__getitem__)  # a set has no order: reports would differ
            family, rank = self._family(members, own, filling)
            if own:
                families.append((family, frozenset(site.node for site in own)))
            if rank is not None:
                zero = self.facts.zero
                self.ranks.update({node: _shaped(rank, zero[node]) for node in members if node in zero})
        return families

    def _fills(self, site: Site) -> bool:
        """Whether a call that keeps channels reads a tensor without some of those that its result holds."""
        if not site.rule.keeps_channels(site) or site.outputs[0] is None:
            return False
        have = self._channels(site.outputs[0])
        return have is not None and any(
            (own := self._channels(node)) is not None and len(own) == len(have) and bool((have & ~own).any())
            for node in site.inputs
            if node.op == "call_function"
        )

    def _channels(self, node: Node) -> Tensor | None:
        """Bool a channel: what a tensor holds; None if it loses more than channels."""
        live = self.facts.live(node)
        if live.dim() < 2 or live.numel() != live.shape[1]:
            return None
        return (live | self.held[node] if node in self.held else live).view(-1)

    def _family(
        self, members: Sequence[Node], meetings: Sequence[Site], fillings: Sequence[Site]
    ) -> tuple[Family, Tensor | None]:
        """The record of a family, and the position of each of its channels (None: the natural order)."""
        first = (*meetings, *fillings)[0]
        name, channels = first.node.name, first.out_shape[1]
        weights: dict[tuple[int, ...], float] = defaultdict(float)
        for site in meetings:
            for node in site.inputs:
                live = self.facts.live(node)
                kept = live.any(dim=tuple(a for a in range(live.dim()) if a != 1)).expand(channels).nonzero().view(-1)
                weights[tuple(kept.tolist())] += math.prod(self.program.shape(node)) / channels * len(kept)
        fixed = _fixed(self.program, self.facts, members)
        count = len(weights)
        if fixed is not None:
            self.natural.update(members)
            return Family(name, channels, len(meetings), count, sum(map(_is_run, weights)), fixed), None
        self._add_wishes(weights, members, fillings)
        found = consecutive_order(channels, list(weights), list(weights.values()))
        rank = torch.empty(channels, dtype=torch.int64)
        rank[torch.tensor(found.order)] = torch.arange(channels)
        natural = found.order == tuple(range(channels))
        runs = sum(found.satisfied[:count])
        return Family(name, channels, len(meetings), count, runs), None if natural else rank

    def _add_wishes(
        self, weights: dict[tuple[int, ...], float], members: Sequence[Node], fillings: Sequence[Site]
    ) -> None:
        """Further sets that should be runs: what calls that fill in channels read, and the parts of concatenations."""
        for site in fillings:
            have = self._channels(site.node if site.outputs[0] is None else site.outputs[0])
            for node in site.inputs:
                own = self._channels(node) if node.op == "call_function" else None
                if have is not None and own is not None and len(own) == len(have) and bool((have & ~own).any()):
                    self._add(weights, node, own & have)
        for node in members:
            if node in self.facts.zero and (whole := self._channels(node)) is not None:
                for part in self._parts(node):
                    self._add(weights, node, part.view(-1) & whole)

    def _add(self, weights: dict[tuple[int, ...], float], node: Node, channels: Tensor) -> None:
        kept = tuple(channels.nonzero().view(-1).tolist())
        if len(kept) > 1:
            size = math.prod(self.program.shape(node)) / len(channels) * len(kept)
            weights[kept] = weights.get(kept, 0.0) + size

    def _parts(self, node: Node) -> list[Tensor]:
        """The labels of a tensor by the operand of a concatenation from which they come, through movements."""
        site = self.program.at.get(node)
        if site is None or not site.rule.is_movement or len(site.outputs) > 1:
            return []
        nothing = [torch.zeros_like(self.facts.zero[each]) for each in site.inputs]
        found = []
        for index, each in enumerate(site.inputs):
            own = [torch.ones_like(nothing[index])] if site.rule.is_join else self._parts(each)
            for mask in own:
                (part,) = site.rule.carried(site, [*nothing[:index], mask, *nothing[index + 1 :]])
                found += [part] if part is not None and part.numel() == self.facts.zero[node].numel() else []
        return found

    def _forward(self) -> None:
        """The orders of all tensors that follow: each operator derives those of its results from those of its inputs.

        A movement has its input's order, and a call that fills in channels has them last.
        """
        for site in self.program.sites:
            if all(out is None or out in self.ranks for out in site.outputs):
                continue
            zeros = [self.facts.zero[node] for node in site.inputs]
            if not any(node in self.ranks for node in site.inputs) and not _reorders(site, zeros):
                found: list[Tensor | None] = [None for _ in site.outputs]
            else:
                found = site.rule.order(site, zeros, [self.ranks.get(node) for node in site.inputs])
            for out, rank in zip(site.outputs, found, strict=True):
                if out is not None and (rank := self._filled_last(site, out, rank)) is not None:
                    places = rank.reshape(-1).argsort().argsort()  # of a part of a tensor they have gaps
                    self.ranks.setdefault(out, places.view(self.facts.zero[out].shape))

    def _filled_last(self, site: Site, out: Node, rank: Tensor | None) -> Tensor | None:
        """An order with the channels last that the call's first input lacks."""
        zero = self.facts.zero[out]
        rank = rank if rank is not None and rank.numel() == zero.numel() else None
        if not site.rule.keeps_channels(site) or not site.inputs or out in self.natural:
            return rank
        have, own = self._channels(out), self._channels(site.inputs[0])
        if have is None or own is None or len(own) != len(have) or not bool((have & ~own).any()):
            return rank
        base = torch.arange(len(have)) if rank is None else rank.view(-1)
        return torch.where(have & ~own, base + int(base.max()) + 1, base)


def _reorders(site: Site, zeros: Sequence[Tensor]) -> bool:
    """Whether the call is a movement that puts channels into another order."""
    if not site.rule.is_movement or site.rule.is_join:
        return False
    natural = site.rule.order(site, zeros, [None for _ in zeros])
    return any(rank is not None and bool((rank.view(-1).diff() < 0).any()) for rank in natural)


def _differ(site: Site, facts: Facts) -> bool:
    """Whether the operands of a sum are live in different channels."""
    first, *rest = (facts.live(node) for node in site.inputs)
    return any(first.shape != other.shape or not torch.equal(first, other) for other in rest)


def _is_run(members: tuple[int, ...]) -> bool:
    return not members or members[-1] - members[0] == len(members) - 1


def _fixed(program: Program, facts: Facts, members: Sequence[Node]) -> str | None:
    """The reason why the channels of a family must keep their natural order; None if they need not."""
    for node in members:
        if node.op == "placeholder" or node in program.output_tensors:
            return "an input or output of the network"
        if node not in facts.zero:
            continue
        if math.prod(facts.zero[node].shape) != facts.zero[node].shape[1]:
            return f"{node.name} loses more than channels"
        made, read = program.at.get(node), [program.at_call(user) for user in node.users]
        for site in (made, *read):
            if site is None:
                continue
            zeros = [facts.zero[n] for n in site.inputs]
            if not site.rule.takes_any_order(site, zeros, cut=site is not made):
                return f"{site.node.name} ({site.node.target}) has an order of its own"
    return None


def _shaped(rank: Tensor, zero: Tensor) -> Tensor:
    """The positions of channels in the compact shape of a tensor; one that does not vary by channel has one label."""
    return rank.view(zero.shape) if rank.numel() == zero.numel() else torch.zeros(zero.shape, dtype=torch.int64)
