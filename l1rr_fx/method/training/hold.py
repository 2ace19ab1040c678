"""Zeros that stay zero in any training loop, by hooks on parameters and optimisers."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook


class Held:
    """Elements of parameters that are set to zero after every step of every optimiser, until `release`.

    Their gradients are set to zero too: clipping by the norm then acts as in the small network, which trains alike. The
    hook is torch's hook for all optimisers, so that no optimiser is named; weight decay, momentum from earlier steps
    and skipped steps do no harm. Copies of the model that average its weights (EMA) hold the zeros too. A model that is
    made from a checkpoint has other parameters: hold those.
    """

    def __init__(self, masked: Sequence[tuple[Tensor, Tensor]]) -> None:
        self._masked = tuple(masked)
        self._handles: list[Any] = [register_optimizer_step_post_hook(self._after_step)]
        for parameter, mask in self._masked:
            if parameter.requires_grad:
                self._handles.append(parameter.register_post_accumulate_grad_hook(_without(mask)))
        self.apply()

    @torch.no_grad()
    def apply(self) -> None:
        """Set the held elements to zero now."""
        for parameter, mask in self._masked:
            parameter.masked_fill_(mask, 0)

    def release(self) -> None:
        """Remove the hooks: the parameters train freely again."""
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
    """A hook that sets the masked part of a parameter's gradient to zero."""

    def __init__(self, mask: Tensor) -> None:
        self.mask = mask

    def __call__(self, parameter: Tensor) -> None:
        if parameter.grad is not None:
            parameter.grad.masked_fill_(self.mask, 0)
