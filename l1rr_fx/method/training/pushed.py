"""The channels that sparse training pushes to zero for a budget: a part of those that the budget will take."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from l1rr_fx.method.sites.budget import Analysis, Budget
from l1rr_fx.method.sites.zeroing import ChannelSite, Zeroing
from l1rr_fx.method.training.channel_vector import ChannelVector
from l1rr_fx.method.training.schedules import WARM_UP
from l1rr_fx.support.arguments import of_kind
from passes.assignment.cost_model import Target
from passes.errors import InputError, VanishedError
from passes.rewriting.sketcher import Machine

PART = 0.5
"""The part of the channels that a budget takes which training pushes to zero. The rest is left to the plan, which
measures the loss of the trained network: zeros cannot be chosen any more."""
SELECTIONS, LAST = 10, 0.5
"""Channels are selected so many times in a training, the last time after this part of it: those that are pushed late
would not reach zero, and the others would have no time to take over."""
KEPT_CHANNELS, KEPT_SHARE = 4, 0.05
"""A layer keeps at least KEPT_CHANNELS channels, and KEPT_SHARE of them."""
LEAST_SAVING = 1e-3
"""A channel counts as saving at least this part of what the mean channel saves."""


class Pushed:
    """Chooses the channels to push, from what each is worth and what it saves.

    Channels are taken in the order of their worth, over the mean of their site, for the root of what they save of the
    limited costs, until the budget is met by the compiler's analysis of the network without them; PART of these are
    pushed. `nested`: channels that sums of branches join count as one, so that the branches of a sum lose the same.
    InputError for a budget without a limit on cost.
    """

    def __init__(self, channels: ChannelVector, analysis: Analysis, budget: Budget, *, nested: bool) -> None:
        self.limits = {name: limit for name, limit in budget.limits.items() if name != "attention"}
        if not self.limits:
            raise InputError(f"the budget {budget} limits no cost: training needs one of params, macs, latency")
        self.analysis = analysis
        self._channels = channels
        known = {site.weight: site for site in analysis.sites}
        self._sites = [known.get(site.weight) for site in channels.sites]
        self._joined = self._classes(nested)
        self._saved: Tensor | None = None
        self.now = torch.zeros(len(channels), dtype=torch.bool)
        self.selections = 0

    @classmethod
    def made(
        cls,
        channels: ChannelVector,
        model: nn.Module,
        args: tuple[Any, ...] | None,
        budget: Budget,
        target: Target,
        *,
        nested: bool,
        spared: float | None,
    ) -> Pushed:
        """The selection for the options of a penalty. InputError for options that exclude a budget, or that lack."""
        of_kind("budget", budget, Budget, ", such as Budget(macs=0.35)")
        if args is None:
            raise InputError("a budget needs an example input, by which costs are known: give args=(image,)")
        if spared is not None:
            raise InputError(f"the budget says what is spared: leave spared={spared} out")
        if "latency" in budget.limits and not isinstance(target, Machine):
            raise InputError(f"the budget limits latency, which target {target.name!r} does not predict")
        return cls(channels, Analysis(model, args, target=target), budget, nested=nested)

    def select(self, t: float, worth: Tensor, magnitudes: Tensor, alive: Tensor) -> None:
        """Select again the channels that are pushed `now`, where it is time; t in [0, 1] is the part of training done.

        `worth`: what each channel is worth; `alive`: those that were not zero at the start. None is pushed until the
        scales had time to show what they are worth. Channels that are zero now come first."""
        number = int(t * SELECTIONS) if t >= WARM_UP else 0
        if number > self.selections and (t <= LAST or not self.selections):
            self.now, self.selections = self._mask(worth, magnitudes, alive), number

    def saved(self) -> Tensor:
        """What a channel of each site saves of the limited costs, over the mean of all channels; one number a channel.

        Measured with half of the removable channels of the other sites zero, so that readers count too."""
        if self._saved is None:
            halves = [None if s is None else _half(s) for s in self._sites]
            masks = {s.name: half for s, half in zip(self._sites, halves, strict=True) if s and half is not None}
            least = self._cost(masks)
            found = []
            for site in self._sites:
                if site is None or site.name not in masks:
                    found.append(0.0)
                    continue
                others = {name: mask for name, mask in masks.items() if name != site.name}
                found.append((self._cost(others) - least) / max(1, int(masks[site.name].sum())))
            each = self._channels.spread(torch.tensor(found, dtype=torch.float64))
            mean = each[each > 0].mean() if bool((each > 0).any()) else torch.ones(())
            self._saved = (each / mean).clamp(min=LEAST_SAVING)
        return self._saved

    def state(self) -> tuple[Tensor, int, Tensor]:
        """What a selection needs to go on."""
        return self.now.clone(), self.selections, self.saved().clone()

    def load(self, state: tuple[Tensor, int, Tensor]) -> None:
        """Go on from a `state`."""
        self.now, self.selections, self._saved = state[0].clone(), int(state[1]), state[2].clone()

    def _mask(self, worth: Tensor, magnitudes: Tensor, alive: Tensor) -> Tensor:
        """The channels to push, a bool tensor."""
        worth, alive = worth.detach().double().cpu(), alive.cpu()
        order, gone = self._order(worth, alive, magnitudes.cpu() == 0), int((~alive).sum())
        count = self._least(order)
        chosen = torch.zeros(len(worth), dtype=torch.bool)
        chosen[order[: gone + math.ceil(PART * max(0, count - gone))]] = True
        return chosen & alive

    def _order(self, worth: Tensor, alive: Tensor, zero: Tensor) -> Tensor:
        """The channels that may go in the order in which they go: those that were zero first, then those that are."""
        parts = []
        for part, live in zip(self._channels.parts(worth), self._channels.parts(alive), strict=True):
            mean = part[live].mean() if bool(live.any()) else torch.ones(())
            parts.append(part / mean.clamp(min=1e-30))
        size = int(self._joined.max()) + 1
        sums = torch.zeros(size, dtype=torch.float64).index_add_(0, self._joined, torch.cat(parts))
        counts = torch.bincount(self._joined, minlength=size).clamp(min=1)
        joint = (sums / counts)[self._joined]
        price = joint / self.saved().sqrt()
        price = price.masked_fill(zero, -1.0).masked_fill(~alive, -2.0)
        for site, part, mine in zip(self._sites, self._channels.parts(price), self._channels.parts(joint), strict=True):
            if site is None or site.blocked is not None:
                part.fill_(math.inf)
            else:
                part[mine.topk(_kept(site.channels)).indices] = math.inf
        order = price.argsort(stable=True)
        return order[: int(price.isfinite().sum())]

    def _least(self, order: Tensor) -> int:
        """The least number of channels that meets the limits; all of them if none does."""
        low, high = 0, len(order)
        while low < high:
            middle = (low + high) // 2
            low, high = (low, middle) if self._is_met(order[:middle]) else (middle + 1, high)
        return min(low, len(order))

    def _is_met(self, gone: Tensor) -> bool:
        """Whether the network without these channels meets the limits; one that lost an output counts as one that
        does, so that fewer channels are tried."""
        try:
            shares = self.analysis.size(self._zeroing(gone)).shares(self.analysis.dense)
        except VanishedError:
            return True
        return all(shares[name] <= limit for name, limit in self.limits.items())

    def _cost(self, zeroing: Zeroing) -> float:
        """The sum of the limited costs, as shares of the dense network."""
        try:
            shares = self.analysis.size(zeroing).shares(self.analysis.dense)
        except VanishedError:
            return 0.0
        return math.fsum(shares[name] for name in self.limits)

    def _zeroing(self, gone: Tensor) -> Zeroing:
        mask = torch.zeros(len(self._channels), dtype=torch.bool)
        mask[gone] = True
        parts = zip(self._sites, self._channels.parts(mask), strict=True)
        return {site.name: part for site, part in parts if site is not None and bool(part.any())}

    def _classes(self, nested: bool) -> Tensor:
        """The class of each channel: channels of one unit are one, and with `nested` those of one group of sums."""
        numbers: dict[object, int] = defaultdict(lambda: len(numbers))
        parts = []
        for place, site in enumerate(self._sites):
            if site is None:
                key: object = place
            else:
                key = (site.group, site.channels) if nested else (site.unit, site.channels)
            parts.append(torch.tensor([numbers[key, channel] for channel in range(self._channels.sizes[place])]))
        return torch.cat(parts)


def _kept(channels: int) -> int:
    return min(channels, max(KEPT_CHANNELS, math.ceil(KEPT_SHARE * channels)))


def _half(site: ChannelSite) -> Tensor | None:
    """Half of the channels that may go; None where none may."""
    count = (site.channels - _kept(site.channels) + 1) // 2
    return None if site.blocked is not None or not count else torch.arange(site.channels) < count
