"""Zeros that stay zero while somebody else's training loop runs."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook


class Held:
    """Masked elements of parameters that are zero again after every step of any optimiser, until `release`.

    Their gradients are zero too, so that clipping by the norm sees what it would see in the small network, which then
    trains alike. The optimiser need not be known: the hook is torch's for all of them, and weight decay, momentum from
    before and skipped steps are right. Copies of the model (EMA) that average held weights hold them too. A model that
    is built anew, say from a checkpoint, is another one: hold that.
    """

    def __init__(self, masked: Sequence[tuple[nn.Parameter, Tensor]]) -> None:
        self._masked = tuple(masked)
        self._handles: list[Any] = [register_optimizer_step_post_hook(self._after_step)]
        for parameter, mask in self._masked:
            if parameter.requires_grad:
                self._handles.append(parameter.register_post_accumulate_grad_hook(_without(mask)))
        self.apply()

    @torch.no_grad()
    def apply(self) -> None:
        """Zero what is held, now."""
        for parameter, mask in self._masked:
            parameter.masked_fill_(mask, 0)

    def release(self) -> None:
        """Let the parameters go."""
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> Held:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.apply()


class _without:
    """A hook that zeroes the masked part of a parameter's gradient."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def __call__(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            parameter.grad.masked_fill_(self.mask, 0)
