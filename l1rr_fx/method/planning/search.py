"""The search for the number of channels that meets a budget, over the compiler's analysis.

Costs fall smoothly with the number of channels, so that false position finds it in a few questions; outputs that vanish
and limits on attention are found by bisection.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from l1rr_fx.method.attention.loss import AttentionLoss, FeatureAttention
from l1rr_fx.method.planning.budget import Analysis, Budget
from l1rr_fx.method.planning.curves import Unit
from l1rr_fx.method.planning.explain import Move
from l1rr_fx.method.sites.zeroing import Zeroing, zeroed_values
from l1rr_fx.support.uncounted import at_least, uncounted
from passes.errors import InputError, VanishedError

KEPT_CHANNELS, KEPT_SHARE = 4, 0.05
"""A layer keeps at least KEPT_CHANNELS channels, and KEPT_SHARE of them."""

CLOSE = 0.001
"""A number of removals is not refined further if it leaves at most this share of the dense model below the limits."""


@dataclass(frozen=True, eq=False)
class Removal:
    """The removal of one channel: the `rank`-th in the order of its unit, at the loss or score `time`."""

    unit: Unit
    rank: int
    time: float


def sequence(units: Sequence[Unit], times: Mapping[str, Sequence[float]]) -> list[Removal]:
    """All removable channels in the order of their losses or scores; at equal ones, all layers to the same share."""
    removals = [Removal(unit, rank, time) for unit in units for rank, time in enumerate(times[unit.name])]
    return sorted(removals, key=lambda each: (each.time, (each.rank + 1) / each.unit.channels, each.unit.name))


class Search:
    """A prefix of a sequence of removals that meets the limits on cost and is at most CLOSE below them, or the shortest
    that does. If only attention is limited, the longest prefix within that limit.

    `guess`: a number of removals that is close to it. `moves`: the removals, if they are moves of a machine.
    """

    def __init__(
        self,
        analysis: Analysis,
        budget: Budget,
        attention: FeatureAttention | None,
        sequence: Sequence[Removal],
        blocked: Mapping[str, str],
        guess: int | None = None,
        moves: Sequence[Move] = (),
    ) -> None:
        self.guess, self.moves = guess, moves
        self.blocked = blocked
        self.analysis, self.budget, self.attention, self.sequence = analysis, budget, attention, sequence
        self.limits = {name: limit for name, limit in budget.limits.items() if name != "attention"}
        self._shares: dict[int, Mapping[str, float] | None] = {}
        self._losses: dict[int, AttentionLoss] = {}

    def count(self) -> int:
        """The number of removals. InputError if the budget cannot be met."""
        if not self.limits:
            return self._last(lambda count: self._is_kept(count))
        if self.guess is not None:
            count = self._least(self.guess)
        else:
            count = 0 if self._excess(0) <= 0 else self._met(self.refuse_impossible())
        if not self._is_kept(count):
            most = self._last(lambda n: self._is_kept(n), below=count)
            raise InputError(
                f"the budget cannot be met: {shown(self.limits)} needs an attention loss of "
                f"{self.loss(count).total:.4f}, not {self.budget.attention:g}; up to that loss {self._reachable(most)}"
            )
        return count

    def refuse_impossible(self) -> int:
        """The largest number of removals that leaves no output constant. InputError if it does not meet the budget."""
        possible = self._last(lambda count: self.shares(count) is not None)
        if self._excess(possible) > 0:
            raise self._impossible(possible)
        return possible

    def zeroing(self, count: int) -> Zeroing:
        """The masks after `count` removals."""
        taken: dict[str, int] = defaultdict(int)
        units = {}
        for removal in self.sequence[:count]:
            units[removal.unit.name] = removal.unit
            taken[removal.unit.name] = max(taken[removal.unit.name], removal.rank + 1)
        found: dict[str, Tensor] = {}
        for unit in units.values():
            for name, mask in unit.zeroing(taken[unit.name]).items():
                found[name] = found[name] | mask if name in found else mask  # families may share a site
        return found

    def shares(self, count: int) -> Mapping[str, float] | None:
        """The cost after `count` removals, as shares of the dense model; None if an output would be constant."""
        if count not in self._shares:
            try:
                size = self.analysis.size(self.zeroing(count))
                self._shares[count] = size.shares(self.analysis.dense)
            except VanishedError:
                self._shares[count] = None
        return self._shares[count]

    def loss(self, count: int) -> AttentionLoss:
        """The attention loss with the channels of `count` removals zero together."""
        assert self.attention is not None
        if count not in self._losses:
            self._losses[count] = self.loss_of(self.zeroing(count))
        return self._losses[count]

    def loss_of(self, zeroing: Zeroing) -> AttentionLoss:
        """The attention loss with these channels zero."""
        assert self.attention is not None
        values = zeroed_values(self.analysis.sites, self.analysis.values, zeroing)
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

    def _least(self, count: int) -> int:
        """The number of removals next to `count` that meets the limits while one fewer does not."""
        while self._excess(count) > 0:
            if count == len(self.sequence):
                raise self._impossible(count)
            count += 1
        while count and self._excess(count - 1) <= 0:
            count -= 1
        return count

    def _is_kept(self, count: int) -> bool:
        limit = self.budget.attention
        if limit is None:
            return True
        return self.shares(count) is not None and self.loss(count).total <= limit

    def _last(self, holds: Callable[[int], bool], *, below: int | None = None) -> int:
        """The largest count for which `holds` is true, by bisection; it is true at 0, and false from some count on."""
        low, high = 0, len(self.sequence) if below is None else below
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
        floors = self.zeroing(count)
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
