"""Revival: channels that a plan zeroes and the pruned network computes all the same come back to life.

A target has zeros computed where that is faster than to copy around them, or where groups and heads have to be equally
wide. Zeroing such a channel costs accuracy and saves nothing. So it keeps its values as long as the predicted time does
not rise. Its readers may multiply more, so that a plan at its limit of MACs then zeroes a few more channels elsewhere.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from l1rr_fx.method.planning.plan import RevivedChannels
from l1rr_fx.method.planning.search import Search
from l1rr_fx.method.sites.budget import Analysis, Size
from l1rr_fx.method.sites.producers import Producer, producers
from l1rr_fx.method.sites.zeroing import ChannelSite, Zeroing
from passes.assignment.plan import LayoutPlan

ROUNDING = 1e-9
"""Times of equal networks that differ by less are equal: their kernels are added up in another order."""
QUESTIONS = 32
"""Plans that are predicted at most. Most plans are at the fixed point after three."""

TRIES = 8
"""States that are tried until the revived plan meets its budget."""


@dataclass(frozen=True, eq=False)
class Revival:
    """A zeroing after revival, its cost, and how many channels came back."""

    zeroing: Zeroing
    size: Size
    channels: RevivedChannels


def revived_prefix(search: Search, count: int) -> tuple[int, Revival] | None:
    """The state that meets the budget once channels have come back, `count` or one after it; None if none does.

    `count` meets it without revival.
    """
    first = search.shares(count) or {}
    slopes = {name: max((1 - share) / max(1, count), 1e-9) for name, share in first.items()}
    for attempt in range(TRIES):
        if search.shares(count) is None:
            return None
        found = revival(search.analysis, search.order.zeroing(count))
        shares = found.size.shares(search.analysis.dense)
        above = {name: shares[name] - limit for name, limit in search.limits.items()}
        if all(excess <= 0 for excess in above.values()):
            return count, found
        count += max(1, *(math.ceil(2**attempt * excess / slopes[name]) for name, excess in above.items()))
        if count > len(search.order):
            return None
    return None


def revival(analysis: Analysis, zeroing: Zeroing) -> Revival:
    """The zeroing without the channels that the pruned network computes all the same, to a fixed point.

    Sites of one unit share their channels, which come back together. A channel stays zero if the predicted time rises
    with it alive. With a target that predicts no time all of them come back.
    """
    return _Revival(analysis, zeroing).run()


class _Revival:
    def __init__(self, analysis: Analysis, zeroing: Zeroing) -> None:
        self.analysis = analysis
        self.start = {name: mask.clone() for name, mask in zeroing.items()}
        self.units: dict[str, list[ChannelSite]] = defaultdict(list)
        for site in analysis.sites:
            self.units[site.unit].append(site)
        self.calls: dict[str, list[Producer]] = defaultdict(list)
        for each in producers(analysis.program):
            if each.weight is not None:
                self.calls[each.weight].append(each)
        already = analysis.already_zero()
        self.lost = {
            unit: torch.stack([already.get(s.name, torch.zeros(s.channels, dtype=torch.bool)) for s in sites]).any(0)
            for unit, sites in self.units.items()
        }

    def run(self) -> Revival:
        zeroing, questions = dict(self.start), 1
        plan, size = self.analysis.planned_size(zeroing)
        refused: set[str] = set()
        while found := {unit: mask for unit, mask in self._computed(zeroing, plan).items() if unit not in refused}:
            waiting = [list(found)]
            while waiting and questions < QUESTIONS:
                names = waiting.pop()
                tried = self._without(zeroing, {name: found[name] for name in names})
                questions += 1
                other, cost = self.analysis.planned_size(tried)
                if self._is_free(cost, size):
                    zeroing, plan, size = tried, other, cost
                elif len(names) == 1:
                    refused.update(names)
                else:
                    half = len(names) // 2
                    waiting += [names[half:], names[:half]]
            if questions >= QUESTIONS:
                break
        return Revival(
            {name: mask for name, mask in zeroing.items() if bool(mask.any())},
            size,
            RevivedChannels(
                sum(int((self.start[name] & ~zeroing[name]).sum()) for name in zeroing),
                self._count(zeroing, self._computed(zeroing, plan, self.lost)),
                self._count(zeroing, self._computed(zeroing, plan)),
            ),
        )

    @staticmethod
    def _is_free(cost: Size, before: Size) -> bool:
        """Whether the predicted time is no higher, or nothing predicts it."""
        return cost.latency is None or before.latency is None or cost.latency <= before.latency * (1 + ROUNDING)

    def _computed(
        self, zeroing: Zeroing, plan: LayoutPlan, among: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """The channels of each unit that are zeroed and computed: those with values to come back to, or `among`."""
        calls = {item.site.node.name: item for item in plan.sites}
        found: dict[str, Tensor] = {}
        for unit, sites in self.units.items():
            zero = torch.stack([zeroing[s.name] for s in sites if s.name in zeroing] or [~self._all(sites)]).any(0)
            zero = zero & (~self.lost[unit] if among is None else among[unit])
            if bool(zero.any()):
                computed = torch.zeros_like(zero)
                for producer in (each for site in sites for each in self.calls[site.weight]):
                    if (item := calls.get(producer.site.node.name)) is not None:
                        mask = item.gives[0].refined(_labelled(producer)).mask()
                        other = tuple(a for a in range(mask.dim()) if a != producer.axis)
                        computed |= mask.any(dim=other) if other else mask
                if bool((zero & computed).any()):
                    found[unit] = zero & computed
        return found

    @staticmethod
    def _all(sites: list[ChannelSite]) -> Tensor:
        return torch.ones(sites[0].channels, dtype=torch.bool)

    def _without(self, zeroing: Zeroing, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The zeroing without the channels that are found."""
        names = {site.name: mask for unit, mask in found.items() for site in self.units[unit]}
        return {name: mask & ~names[name] if name in names else mask for name, mask in zeroing.items()}

    def _count(self, zeroing: Zeroing, found: Mapping[str, Tensor]) -> int:
        """The number of channels found, each counted in every site that zeroes it."""
        return sum(
            int((mask & zeroing[site.name]).sum())
            for unit, mask in found.items()
            for site in self.units[unit]
            if site.name in zeroing
        )


def _labelled(producer: Producer) -> tuple[int, ...]:
    """The compact shape of a producer's result with its channels labelled."""
    return tuple(producer.channels if a == producer.axis else 1 for a in range(len(producer.site.out_shape)))
