"""Families: the channels that leave a network together, so that no tensor is copied because its branches differ.

A cell is one channel of one site. Cells are joined where sums of branches, gates and depthwise convolutions join them,
channel by channel, through splits, concatenations and other movements. The classes of joined cells that belong to the
same sites are one family; a class is the least that a plan removes of it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from l1rr_fx.method.planning.curves import Unit
from l1rr_fx.method.sites.producers import Producer, producers
from l1rr_fx.method.sites.zeroing import ChannelSite
from passes.analysis.liveness import channel_facts
from passes.analysis.program import Program
from passes.graph.layout import along
from passes.rules.base import Site
from passes.rules.movement import Movement

FIXED = 0
"""The number of every cell that no plan removes."""


@dataclass(frozen=True, eq=False)
class Family(Unit):
    """Classes of cells that are removed one by one, in the order `order`, shape (removable,).

    `places`: by the name of each site the channels of each class, shape (classes, channels of a class).
    """

    places: Mapping[str, Tensor]

    @property
    def name(self) -> str:
        """The first site, with the range of its channels where it has more than those of the family."""
        first = self.sites[0]
        places = self.places[first.name]
        if places.numel() == first.channels:
            return first.name
        return f"{first.name}[{int(places.min())}-{int(places.max())}]"

    @property
    def channels(self) -> int:
        """The number of classes."""
        return len(self.places[self.sites[0].name])

    def zeroing(self, count: int) -> dict[str, Tensor]:
        """The masks that zero the first `count` classes of the order."""
        found = {}
        for site in self.sites:
            mask = torch.zeros(site.channels, dtype=torch.bool)
            mask[self.places[site.name][self.order[:count]].reshape(-1)] = True
            found[site.name] = mask
        return found


@dataclass(frozen=True, eq=False)
class Ranked:
    """A family whose order is that of `scores`, shape (removable,); `total` is the sum over all of its classes, and
    `by_site` the part of each site in it."""

    family: Family
    scores: Tensor
    total: Tensor
    by_site: Mapping[str, float]

    def share_lost(self) -> Tensor:
        """The loss by the number of channels removed, from scores alone, shape (removable + 1,).

        A channel loses its score over the share of the family's scores that is left with it gone: a small step loses
        what is removed, and the last channels of a family lose more than the same scores elsewhere."""
        return self.lost(torch.cat([torch.zeros(1, dtype=torch.float64), self.scores.clamp(min=0).cumsum(0)]))

    def site_lost(self, name: str) -> Tensor:
        """The loss when the channels of one site go whole and those of the others stay, counted alike."""
        return self.lost(torch.tensor(self.by_site.get(name, 0.0), dtype=torch.float64))

    def lost(self, gone: Tensor) -> Tensor:
        """The loss when scores of this sum are gone."""
        left = 1 - gone / self.total
        return -self.total * left.clamp(min=1e-9).log() if float(self.total) > 0 else torch.zeros_like(left)


@dataclass(frozen=True, eq=False)
class Cells:
    """The cells of a network: `of[t]` has the class of every label of tensor t in its compact shape, FIXED for labels
    that stay. `classes[s]`: the class of each channel of a site, by its name."""

    program: Program
    of: Mapping[Node, Tensor]
    classes: Mapping[str, Tensor]

    def families(self, sites: Sequence[ChannelSite], kept: frozenset[str]) -> tuple[Family, ...]:
        """The families of the sites, in the order of the network and of their channels, without those with a cell in a
        site that is `kept` whole."""
        where: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for site in sites:
            for channel, number in enumerate(self.classes[site.name].tolist()):
                where[number][site.name].append(channel)
        where.pop(FIXED, None)
        named = {site.name: site for site in sites}
        found: dict[tuple[tuple[str, int], ...], list[Mapping[str, list[int]]]] = defaultdict(list)
        for members in where.values():
            if kept.isdisjoint(members):
                found[tuple((name, len(channels)) for name, channels in members.items())].append(members)
        return tuple(
            Family(
                tuple(named[name] for name, _ in key),
                torch.arange(len(classes)),
                {name: torch.tensor([each[name] for each in classes]) for name, _ in key},
            )
            for key, classes in found.items()
        )


def ranked(family: Family, scores: Mapping[str, Tensor], already: Mapping[str, Tensor], kept: int) -> Ranked:
    """The family with its classes in the order of their scores, those that are zero already first; `kept` stay.

    `scores` has one number a channel of each site, by its name, `already` the masks of what is zero now."""
    total = torch.stack([scores[name][places].sum(1) for name, places in family.places.items()]).sum(0)
    masks = {name: already.get(name, torch.zeros_like(scores[name], dtype=torch.bool)) for name in family.places}
    gone = torch.stack([masks[name][places].all(1) for name, places in family.places.items()]).all(0)
    total = torch.where(gone, torch.minimum(total, torch.zeros_like(total)), total)
    order = total.argsort(stable=True)[: max(0, len(total) - kept)]
    by_site = {name: float(scores[name][places].clamp(min=0).sum()) for name, places in family.places.items()}
    return Ranked(Family(family.sites, order, family.places), total[order], total.clamp(min=0).sum(), by_site)


def cells(program: Program, sites: Sequence[ChannelSite]) -> Cells:
    """The cells of a network's sites."""
    return _Joiner(program, sites).run()


class _Joiner:
    def __init__(self, program: Program, sites: Sequence[ChannelSite]) -> None:
        self.program, self.zero = program, channel_facts(program).zero
        self.own: dict[str, Tensor] = {}
        start = FIXED + 1
        for site in sites:
            self.own[site.weight] = torch.arange(start, start + site.channels)
            start += site.channels
        self.parent = list(range(start))
        self.sites = sites
        self.made: dict[Node, Producer] = {}
        for each in producers(program):
            if each.weight is not None:
                self.made[each.site.node] = each
                if each.maker is not None and not each.maker.rule.keeps_channels(each.maker):
                    self.made[each.maker.node] = each

    def run(self) -> Cells:
        of: dict[Node, Tensor] = {node: torch.full(mask.shape, FIXED) for node, mask in self.zero.items()}
        for site in self.program.sites:
            for out, found in zip(site.outputs, self._results(site, of), strict=True):
                if out is not None:
                    of[out] = found
        for node in self.program.output_tensors:
            if node in of and not any(self.program.at_call(user) for user in node.users):
                self._fix(of[node])
        roots = torch.tensor([self._root(n) for n in range(len(self.parent))])
        return Cells(
            self.program,
            {node: roots[found] for node, found in of.items()},
            {site.name: roots[self.own[site.weight]] for site in self.sites},
        )

    def _results(self, site: Site, of: Mapping[Node, Tensor]) -> list[Tensor]:
        shapes = [torch.Size(()) if out is None else self.zero[out].shape for out in site.outputs]
        given = [of[node] for node in site.inputs]
        rule, zeros = site.rule, [self.zero[node] for node in site.inputs]
        self._tie_groups(site, given)
        if isinstance(rule, Movement) and (sources := rule.sources(site, zeros)) is not None:
            labelled = rule.labelled(site, zeros)
            flat = [each.expand(shape).reshape(-1) for each, shape in zip(given, labelled, strict=True)]
            taken = torch.cat([*flat, torch.tensor([FIXED])])
            return [taken[source] for source in sources]
        own = self._own(site, shapes[0])
        if rule.keeps_channels(site):
            computed = [each for node, each in zip(site.inputs, given) if node.op != "get_attr" or rule.is_sum]
            alike = [each for each in (*computed, *(() if own is None else (own,))) if each.shape == shapes[0]]
            for other in alike[1:]:
                self._join(alike[0], other)
            for each in computed:
                if each.shape != shapes[0]:  # a result without labels, such as that of a softmax over channels
                    self._fix(each)
            return [alike[0] if alike else torch.full(shape, FIXED) for shape in shapes]
        if rule.weight is None:  # what mixes channels without a weight of its own reads them as they are
            for each in given:
                self._fix(each)
        return [own if own is not None and index == 0 else torch.full(s, FIXED) for index, s in enumerate(shapes)]

    def _own(self, site: Site, shape: Sequence[int]) -> Tensor | None:
        """The cells that the call makes, in the shape of its result's labels."""
        producer = self.made.get(site.node)
        if producer is None or producer.weight not in self.own:
            return None
        found = along(self.own[producer.weight], producer.axis, len(shape))
        return found if found.shape == tuple(shape) else None

    def _tie_groups(self, site: Site, given: Sequence[Tensor]) -> None:
        """Join the channels in the same place of each group of a convolution: its groups stay equally wide."""
        groups = site.rule.groups(site)
        if groups == 1 or site.rule.keeps_channels(site):
            return
        read = [given[0].reshape(-1)]
        if (producer := self.made.get(site.node)) is not None and producer.weight in self.own:
            read.append(self.own[producer.weight])
        for each in read:
            if len(each) % groups == 0:
                rows = each.view(groups, -1)
                for row in rows[1:]:
                    self._join(rows[0], row)

    def _join(self, some: Tensor, others: Tensor) -> None:
        for a, b in zip(some.reshape(-1).tolist(), others.reshape(-1).tolist(), strict=True):
            self._union(a, b)

    def _fix(self, found: Tensor) -> None:
        for number in found.reshape(-1).unique().tolist():
            self._union(FIXED, number)

    def _union(self, a: int, b: int) -> None:
        a, b = sorted((self._root(a), self._root(b)))  # the smaller number is the root, so that FIXED stays itself
        self.parent[b] = a

    def _root(self, number: int) -> int:
        while self.parent[number] != number:
            self.parent[number] = self.parent[self.parent[number]]
            number = self.parent[number]
        return number
