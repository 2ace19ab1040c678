"""The search for the number of channels that meets a budget, over the compiler's analysis.

Costs fall smoothly with the number of channels, so that false position finds it in a few questions; outputs that vanish
and limits on attention are found by bisection.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

from torch import Tensor

from l1rr_fx.method.attention.loss import AttentionLoss, FeatureAttention
from l1rr_fx.method.planning.curves import Unit
from l1rr_fx.method.sites.budget import Analysis, Budget
from l1rr_fx.method.sites.zeroing import Zeroing, zeroed_values
from l1rr_fx.support.uncounted import at_least, uncounted
from passes.errors import InputError, VanishedError

KEPT_CHANNELS, KEPT_SHARE = 4, 0.05
"""A layer keeps at least KEPT_CHANNELS channels, and KEPT_SHARE of them."""

WITHIN = 0.005
"""The distance from a limit, as a share of the dense model, above which a plan says why it is not nearer."""

CLOSE = 0.001
"""A number of removals is not refined further if it leaves at most this share of the dense model below the limits."""


@dataclass(frozen=True)
class LastStep:
    """What a plan did last: `channels` of the unit or family named went, and `back` of others came back.

    `without`: the shares of the dense model's costs without it, as they are predicted."""

    name: str
    channels: int
    back: int = 0
    without: Mapping[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        back = f", and {self.back:,} of others are back" if self.back else ""
        gone = f"{self.channels:,} channels of {self.name} gone{back}"
        return (
            f"the last step is larger than what is left: {gone}; without it {shown(self.without) or 'nothing is known'}"
        )


class Order(Protocol):
    """States of a network, numbered from 0, the network as it is; each has more channels zero than those before it,
    or at least a smaller cost."""

    def __len__(self) -> int:
        """The number of the last state."""
        ...

    def zeroing(self, count: int) -> Zeroing:
        """The masks of a state."""
        ...

    def time(self, count: int) -> float:
        """The loss or score up to which channels are zero in a state."""
        ...

    def step(self, count: int) -> LastStep:
        """What leads from the state before to a state other than the first; costs without it only where they are
        predicted."""
        ...


@dataclass(frozen=True, eq=False)
class Removal:
    """The removal of one channel: the `rank`-th in the order of its unit, at the loss or score `time`."""

    unit: Unit
    rank: int
    time: float


@dataclass(frozen=True, eq=False)
class Removals:
    """States that differ by the removal of one channel."""

    removals: Sequence[Removal]

    def __len__(self) -> int:
        """The number of removals."""
        return len(self.removals)

    def time(self, count: int) -> float:
        """The loss or score of the last of so many removals."""
        return self.removals[count - 1].time if count else 0.0

    def step(self, count: int) -> LastStep:
        """The removal of one channel."""
        return LastStep(self.removals[count - 1].unit.name, 1)

    def zeroing(self, count: int) -> Zeroing:
        """The masks after `count` removals."""
        taken: dict[str, int] = defaultdict(int)
        units = {}
        for removal in self.removals[:count]:
            units[removal.unit.name] = removal.unit
            taken[removal.unit.name] = max(taken[removal.unit.name], removal.rank + 1)
        found: dict[str, Tensor] = {}
        for unit in units.values():
            for name, mask in unit.zeroing(taken[unit.name]).items():
                found[name] = found[name] | mask if name in found else mask  # families may share a site
        return found


def sequence(units: Sequence[Unit], times: Mapping[str, Sequence[float]]) -> Removals:
    """All removable channels in the order of their losses or scores; at equal ones, all layers to the same share."""
    removals = [Removal(unit, rank, time) for unit in units for rank, time in enumerate(times[unit.name])]
    return Removals(
        sorted(removals, key=lambda each: (each.time, (each.rank + 1) / each.unit.channels, each.unit.name))
    )


class Search:
    """The state of an order that meets the limits on cost and is at most CLOSE below them, or the first that does. If
    only attention is limited, the last within that limit."""

    def __init__(
        self,
        analysis: Analysis,
        budget: Budget,
        attention: FeatureAttention | None,
        order: Order,
        blocked: Mapping[str, str],
    ) -> None:
        self.blocked, self.order = blocked, order
        self.analysis, self.budget, self.attention = analysis, budget, attention
        self.limits = {name: limit for name, limit in budget.limits.items() if name != "attention"}
        self._shares: dict[int, Mapping[str, float] | None] = {}
        self._losses: dict[int, AttentionLoss] = {}

    def count(self) -> int:
        """The number of the state. InputError if the budget cannot be met."""
        if not self.limits:
            return self._last(lambda count: self._is_kept(count))
        return self._within_attention(0 if self._excess(0) <= 0 else self._met(self.refuse_impossible()))

    def _within_attention(self, count: int) -> int:
        """`count` itself. InputError if its attention loss is above the limit."""
        if not self._is_kept(count):
            most = self._last(lambda n: self._is_kept(n), below=count)
            raise InputError(
                f"the budget cannot be met: {shown(self.limits)} needs an attention loss of "
                f"{self.loss(count).total:.4f}, not {self.budget.attention:g}; up to that loss {self._reachable(most)}"
            )
        return count

    def refuse_impossible(self) -> int:
        """The largest number of removals that leaves no output constant. InputError if it does not meet the budget."""
        possible = self._last(lambda count: self.analysis.is_possible(self.order.zeroing(count)))
        if self._excess(possible) > 0:
            raise self._impossible(possible)
        return possible

    def shares(self, count: int) -> Mapping[str, float] | None:
        """The cost after `count` removals, as shares of the dense model; None if an output would be constant."""
        if count not in self._shares:
            try:
                size = self.analysis.size(self.order.zeroing(count))
                self._shares[count] = size.shares(self.analysis.dense)
            except VanishedError:
                self._shares[count] = None
        return self._shares[count]

    def last_step(self, count: int) -> LastStep | None:
        """The step to a state that is more than WITHIN below all limits on cost; None for others."""
        shares = self.shares(count) or {}
        if not count or min((limit - shares[name] for name, limit in self.limits.items()), default=0.0) <= WITHIN:
            return None
        before = self.shares(count - 1) or {}
        return replace(self.order.step(count), without={name: before[name] for name in self.limits if name in before})

    def loss(self, count: int) -> AttentionLoss:
        """The attention loss with the channels of `count` removals zero together."""
        assert self.attention is not None
        if count not in self._losses:
            self._losses[count] = self.loss_of(self.order.zeroing(count))
        return self._losses[count]

    def loss_of(self, zeroing: Zeroing) -> AttentionLoss:
        """The attention loss with these channels zero."""
        assert self.attention is not None
        values = zeroed_values(self.analysis.sites, self.analysis.own, zeroing)
        return self.attention.losses([values], per_class=True)[0]

    def _excess(self, count: int) -> float:
        """How far the cost after `count` removals is above the limits, as a share of the dense model; at most 0 if they
        are met."""
        shares = self.shares(count)
        return math.inf if shares is None else max((shares[n] - limit for n, limit in self.limits.items()), default=0.0)

    def _met(self, high: int) -> int:
        """A number of removals that meets the limits, as `high` does, by false position between 0 and `high`.

        Each second time that the same end stays its excess counts half, so that neither end stays for long.
        """
        low, above, below = 0, self._excess(0), self._excess(high)
        met, side = below, 0
        while high - low > 1 and met < -CLOSE:
            part = (above + CLOSE / 2) / (above - below) if math.isfinite(above) else 0.5
            middle = min(max(low + round(part * (high - low)), low + 1), high - 1)
            excess = self._excess(middle)
            if excess > 0:
                low, above, below, side = middle, excess, below / 2 if side > 0 else below, 1
            else:
                high, below, above, met, side = middle, excess, above / 2 if side < 0 else above, excess, -1
        return high

    def _is_kept(self, count: int) -> bool:
        limit = self.budget.attention
        if limit is None:
            return True
        return self.shares(count) is not None and self.loss(count).total <= limit

    def _last(self, holds: Callable[[int], bool], *, below: int | None = None) -> int:
        """The largest count for which `holds` is true, by bisection; it is true at 0, and false from some count on."""
        low, high = 0, len(self.order) if below is None else below
        if holds(high):
            return high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if holds(middle) else (low, middle)
        return low

    def _reachable(self, count: int) -> str:
        shares = self.shares(count)
        if shares is None:
            return "nothing is reachable"
        left_out = self.analysis.not_counted
        reason = f" ({uncounted(left_out)})" if left_out else ""
        return f"{at_least(shown(shares), left_out)} is reachable{reason}"

    def _impossible(self, count: int) -> InputError:
        floors = self.order.zeroing(count)
        whole = [f"{name} ({reason})" for name, reason in self.blocked.items() if name not in floors]
        names = ", ".join(sorted(whole)[:8])
        return InputError(
            f"the budget {shown(self.limits)} cannot be met; {self._reachable(count)}, with {len(floors)} layers at "
            f"their least, max({KEPT_CHANNELS}, {KEPT_SHARE:.0%}) of their channels"
            + (f", and these whole: {names}" if names else "")
            + (f". {self.analysis.latency_of()}" if "latency" in self.limits else "")
        )


def shown(shares: Mapping[str, float]) -> str:
    """Shares as text: "macs=0.35, params=0.2"."""
    return ", ".join(f"{name}={share:.4g}" for name, share in shares.items())
