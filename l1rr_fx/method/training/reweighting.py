"""The weight of each channel in the penalty: small channels are pushed harder, those that matter most not at all."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from l1rr_fx.method.training.channel_vector import ChannelVector
from l1rr_fx.method.training.penalised import importance

EPS_FLOOR, EPS_SHARE = 1e-3, 0.1
"""eps of a site: EPS_SHARE of its mean magnitude at the start, at least EPS_FLOOR."""
LEAST_WEIGHT, MOST_WEIGHT = 0.1, 10.0
"""The bounds of a channel's weight. Before they are applied, the mean over all channels is 1."""

LEAST_PRICE, MOST_PRICE = 0.5, 2.0
"""The bounds of what a channel's saving multiplies its weight by."""


class Reweighting:
    """The factors a_l * w_lc of all channels, from their magnitudes.

    w = 1 / (|gamma| + eps), scaled to a mean of 1 and bounded (Candes, Wakin and Boyd 2008). `alive` marks the channels
    that are not zero at the start: the others count in no mean and no share. `scale` is the mean magnitude at the
    start.
    """

    def __init__(self, channels: ChannelVector, *, cost_aware: bool) -> None:
        self._channels = channels
        self._importance = importance(channels.sites, cost_aware=cost_aware)
        magnitudes = channels.magnitudes()
        self.alive = magnitudes > 0
        means = torch.stack([_mean(part, part > 0) for part in channels.parts(magnitudes)])
        self.eps = channels.spread((EPS_SHARE * means).clamp(min=EPS_FLOOR))
        self.scale = float(_mean(magnitudes, self.alive))

    def of_pushed(self, magnitudes: Tensor, pushed: Tensor, saved: Tensor, *, adaptive: bool) -> Tensor:
        """The factors where these channels alone are pushed: w among them, times the root of what each one saves."""
        pushed = pushed.to(magnitudes.device)
        weights = torch.ones_like(magnitudes)
        if adaptive:
            weights = 1 / (magnitudes + self.eps.to(magnitudes))
            weights = (weights / _mean(weights, pushed & (magnitudes > 0))).clamp(LEAST_WEIGHT, MOST_WEIGHT)
        price = saved.to(magnitudes).sqrt().clamp(LEAST_PRICE, MOST_PRICE)
        return weights * price * pushed * self._importance.to(weights)

    def factors(self, magnitudes: Tensor, changes: Tensor | None, *, adaptive: bool, spared: float) -> Tensor:
        """The factors for the magnitudes as they are now.

        `adaptive`: False leaves all weights at 1. `spared`: the share of each site's channels whose factor is 0: those
        with the largest `changes` of the loss if they were zero, or where no changes are known, the largest channels.
        """
        weights = torch.ones_like(magnitudes)
        if adaptive:
            weights = 1 / (magnitudes + self.eps.to(magnitudes))
            mean = _mean(weights, self.alive.to(weights.device))
            weights = (weights / mean).clamp(LEAST_WEIGHT, MOST_WEIGHT)
        changes = torch.zeros_like(magnitudes) if changes is None else changes
        columns = map(self._channels.parts, (self.alive, weights, changes, magnitudes))
        for alive, weight, change, magnitude in zip(*columns, strict=True):
            worth = change if bool(change.any()) else magnitude
            weight[worth.topk(math.ceil(spared * int(alive.sum()))).indices] = 0
        return weights * self._importance.to(weights)


def _mean(values: Tensor, where: Tensor) -> Tensor:
    """The mean of the values that count; 0 if none does."""
    return values[where].sum() / where.sum().clamp(min=1)
