"""Statistics of batch norms measured again, after channels were zeroed or removed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from l1rr_fx.zeroing import evaluation_mode
from passes.errors import InputError


@torch.no_grad()
def recalibrate_batch_norm(module: nn.Module, batches: Iterable[Any]) -> int:
    """Replace the running statistics of every batch norm by their mean over `batches`; how many batches there were.

    A batch is a tensor, or a tuple or list whose first element is one or a tuple of the module's arguments; what comes
    after (targets) is left out. Nothing is learned, dropout stays off, and modes and momenta come back. In a
    distributed run call it on every rank with the same batches. InputError without batches, without batch norms that
    keep statistics, or where the statistics become NaN.
    """
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]
    if not norms:
        raise InputError(f"{type(module).__name__} has no batch norm that keeps statistics")
    momenta = [norm.momentum for norm in norms]
    count = 0
    with evaluation_mode(module):
        try:
            for count, batch in enumerate(batches, start=1):
                if count == 1:
                    for norm in norms:
                        norm.reset_running_stats()
                        norm.training, norm.momentum = True, None  # None: the mean of all batches
                module(*_arguments(batch, count - 1))
        finally:
            for norm, momentum in zip(norms, momenta, strict=True):
                norm.momentum = momentum
    if not count:
        raise InputError("no batches: the statistics were left as they are")
    _check(module)
    return count


def _arguments(batch: Any, number: int) -> tuple[Any, ...]:
    first = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(first, (Tensor, tuple)):
        raise InputError(f"batch {number} is a {type(batch).__name__}; a tensor or (images, targets) is wanted")
    return first if isinstance(first, tuple) else (first,)


def _check(module: nn.Module) -> None:
    for name, norm in module.named_modules():
        if isinstance(norm, _BatchNorm) and norm.running_mean is not None and norm.running_var is not None:
            if not bool((norm.running_mean.sum() + norm.running_var.sum()).isfinite()):
                raise InputError(f"{name}: its statistics became NaN or infinite; the network's values overflow")
