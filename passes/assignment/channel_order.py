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


def arrange(program: Program, facts: Facts) -> Arrangement:
    """The order of every tensor's channels, from the live channels of the operands of sums."""
    meetings = [site for site in program.sites if is_meeting(site) and _differ(site, facts)]
    if not meetings:
        return Arrangement({}, ())
    import networkx as nx  # late: a large part of the time that importing the package takes

    ranks: dict[Node, Tensor] = {}
    families = []
    graph = channel_groups(program)
    position = {node: index for index, node in enumerate(program.tensors)}
    for component in nx.connected_components(graph):
        members = sorted(component, key=position.__getitem__)  # a set has no order: reports would differ between runs
        own = [site for site in meetings if site.node in component]
        if own:
            family, rank = _family(program, facts, members, own)
            families.append((family, frozenset(site.node for site in own)))
            if rank is not None:
                ranks.update({node: _shaped(rank, facts.zero[node]) for node in members if node in facts.zero})
    return Arrangement(_forward(program, facts, ranks), families)


def _differ(site: Site, facts: Facts) -> bool:
    """Whether the operands of a sum are live in different channels."""
    first, *rest = (facts.live(node) for node in site.inputs)
    return any(first.shape != other.shape or not torch.equal(first, other) for other in rest)


def _family(
    program: Program, facts: Facts, members: Sequence[Node], meetings: Sequence[Site]
) -> tuple[Family, Tensor | None]:
    """The record of a family, and the position of each of its channels (None: the natural order)."""
    name, channels = meetings[0].node.name, meetings[0].out_shape[1]
    weights: dict[tuple[int, ...], float] = defaultdict(float)
    for site in meetings:
        for node in site.inputs:
            live = facts.live(node)
            kept = live.any(dim=tuple(a for a in range(live.dim()) if a != 1)).expand(channels).nonzero().view(-1)
            weights[tuple(kept.tolist())] += math.prod(program.shape(node)) / channels * len(kept)
    fixed = _fixed(program, facts, members)
    if fixed is not None:
        return Family(name, channels, len(meetings), len(weights), sum(map(_is_run, weights)), fixed), None
    found = consecutive_order(channels, list(weights), list(weights.values()))
    rank = torch.empty(channels, dtype=torch.int64)
    rank[torch.tensor(found.order)] = torch.arange(channels)
    natural = found.order == tuple(range(channels))
    return Family(name, channels, len(meetings), len(weights), sum(found.satisfied)), None if natural else rank


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


def _forward(program: Program, facts: Facts, ranks: dict[Node, Tensor]) -> dict[Node, Tensor]:
    """The orders of all tensors that follow: each operator derives those of its results from those of its inputs."""
    if not ranks:
        return ranks
    for site in program.sites:
        if not any(node in ranks for node in site.inputs) or all(o is None or o in ranks for o in site.outputs):
            continue
        found = site.rule.order(site, [facts.zero[n] for n in site.inputs], [ranks.get(n) for n in site.inputs])
        for out, rank in zip(site.outputs, found, strict=True):
            if out is not None and rank is not None and rank.numel() == facts.zero[out].numel():
                ranks.setdefault(out, rank.view(facts.zero[out].shape))
    return ranks


def _shaped(rank: Tensor, zero: Tensor) -> Tensor:
    """The positions of channels in the compact shape of a tensor; one that does not vary by channel has one label."""
    return rank.view(zero.shape) if rank.numel() == zero.numel() else torch.zeros(zero.shape, dtype=torch.int64)
