"""A training loop for tree detectors, dense or pruned: AdamW, a cosine, a running average."""

from __future__ import annotations

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from l1rr_fx.demo.loss import loss_of
from l1rr_fx.demo.views import Batch
from l1rr_fx.method.training.decay import parameter_groups

CLIP = 10.0
"""The largest norm of all gradients together."""


@dataclass(frozen=True)
class Settings:
    """How a detector is trained: `rate` is the highest learning rate, reached after `warm_up` steps; `decay` that of
    weights; `average` how much of the running average stays in each step."""

    steps: int
    rate: float
    warm_up: int = 200
    decay: float = 0.05
    average: float = 0.99

    def rate_at(self, step: int) -> float:
        """A linear warm-up, then a cosine to a hundredth."""
        warm = min(1.0, (step + 1) / self.warm_up)
        return self.rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / self.steps)))


class Training:
    """A detector, its running average and the optimiser, a step at a time. The model is trained in place.

    `between`, if given, is called between backward and the optimiser's step, when gradients are clipped.
    """

    def __init__(
        self, model: nn.Module, settings: Settings, *, between: Callable[[nn.Module], None] | None = None
    ) -> None:
        self.model, self.settings, self.between = model.train(), settings, between
        self.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # missing in torch's stubs
        self.average = deepcopy(model).eval()
        self.step = 0
        self.optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=settings.decay), lr=settings.rate)

    def advance(self, batch: Batch) -> float:
        """One step on one batch; the loss."""
        rate = self.settings.rate_at(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        with torch.autocast("cpu", torch.bfloat16):
            maps = self.model(batch.images.to(memory_format=torch.channels_last))
        loss = loss_of(maps, batch)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        if self.between is not None:
            self.between(self.model)
        self.optimizer.step()
        self.step += 1
        self._blend(min(self.settings.average, self.step / (self.step + 9)))
        return float(loss.detach())

    @torch.no_grad()
    def _blend(self, keep: float) -> None:
        for mine, new in zip(self.average.state_dict().values(), self.model.state_dict().values(), strict=True):
            mine.copy_(torch.lerp(new, mine, keep) if new.is_floating_point() else new)

    def state(self) -> dict[str, Any]:
        """Everything needed to go on."""
        return {
            "model": self.model.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
        }

    def load_state(self, saved: dict[str, Any]) -> None:
        """Go on from a `state`."""
        self.model.load_state_dict(saved["model"])
        self.average.load_state_dict(saved["average"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.step = saved["step"]
