"""Statistics of batch norms, measured again after channels were zeroed or removed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from l1rr_fx.method.sites.zeroing import evaluation_mode
from l1rr_fx.support.arguments import of_kind
from passes.errors import InputError
from passes.graph.isolation import buffers_restored


@torch.no_grad()
def recalibrate_batch_norm(module: nn.Module, batches: Iterable[Any]) -> int:
    """Replace the running statistics of every batch norm by their mean over `batches`; returns the number of batches.

    A batch is a tensor, or a tuple or list whose first element is a tensor or a tuple of the module's arguments; its
    other elements (targets) are ignored. No parameter changes, and dropout is off. Afterwards modes, momenta and other
    buffers are as before. A batch norm that the module does not call in evaluation mode keeps its statistics. In a
    distributed run call the function on every rank with the same batches.

    InputError without batches, without batch norms that keep statistics, or if the statistics become NaN. After an
    error the module is as before.
    """
    of_kind("module", module, nn.Module)
    of_kind("batches", batches, Iterable, ", of tensors")  # type: ignore[type-abstract]  # isinstance takes it
    norms = {name: m for name, m in module.named_modules() if isinstance(m, _BatchNorm) and m.running_mean is not None}
    if not norms:
        raise InputError(f"{type(module).__name__} has no batch norm that keeps statistics")
    count = 0
    with buffers_restored(module), evaluation_mode(module), _measuring(norms.values()):
        for count, batch in enumerate(batches, start=1):
            module(*_arguments(batch, count - 1))
        called = {name: norm for name, norm in norms.items() if norm.num_batches_tracked}
        found = [(buffer, buffer.clone()) for name, norm in called.items() for buffer in _statistics(name, norm)]
    if not count:
        raise InputError("no batches: the statistics were left as they are")
    for buffer, value in found:
        buffer.copy_(value)
    return count


@contextmanager
def _measuring(norms: Iterable[_BatchNorm]) -> Iterator[None]:
    """Batch norms that reset their statistics and take the mean of all batches, inside the block."""
    momenta = [(norm, norm.momentum) for norm in norms]
    try:
        for norm, _ in momenta:
            norm.reset_running_stats()
            norm.training, norm.momentum = True, None  # None: the mean of all batches
        yield
    finally:
        for norm, momentum in momenta:
            norm.momentum = momentum


def _arguments(batch: Any, number: int) -> tuple[Any, ...]:
    first = batch[0] if isinstance(batch, (tuple, list)) and batch else batch
    if not isinstance(first, (Tensor, tuple)):
        raise InputError(f"batch {number} is a {type(batch).__name__}; expected a tensor or (images, targets)")
    args = first if isinstance(first, tuple) else (first,)
    if any(isinstance(arg, Tensor) and not arg.numel() for arg in args):
        raise InputError(f"batch {number} is empty: there is nothing to measure in it")
    return args


def _statistics(name: str, norm: _BatchNorm) -> tuple[Tensor, ...]:
    """The buffers of a batch norm, checked."""
    if not all(bool(buffer.sum().isfinite()) for buffer in norm.buffers()):
        raise InputError(f"{name}: its statistics became NaN or infinite; the network's values overflow")
    return tuple(norm.buffers())
