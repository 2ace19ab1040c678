"""Limits of a capture: it is given up where it would be refused in the end, or would not end.

torch.export computes with the sizes that may change as expressions, which code such as "same" padding makes several
times as long in each layer; sympy then takes minutes, and soon does not return. A size that depends on the values of a
tensor (NMS) is refused after the capture, but slows it down before.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols
from torch.overrides import TorchFunctionMode

from passes.errors import CaptureError

MOST_TERMS = 100
"""Terms in the expression of one size: strides and levels need few, "same" padding doubles them in each layer."""

MOST_UNBACKED = 8
"""Results whose size depends on values: a few may be unused, and are gone from the graph in the end."""


class LimitError(CaptureError):
    """A capture was given up."""


class Limits(TorchFunctionMode):
    """Raises LimitError during a capture, out of the line of the model at which a limit is exceeded.

    `seconds` limits the time of the processor (None: it is not limited); it is looked at between operators.
    """

    def __init__(self, seconds: float | None = None) -> None:
        super().__init__()
        self.seconds = seconds
        self.started = time.thread_time()
        self.unbacked = 0
        self.known: set[Any] = set()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(each, Tensor) and func is not Tensor.size:
                self._look_at(each)
        if self.seconds is not None and time.thread_time() - self.started > self.seconds:
            raise LimitError(f"it takes more than {self.seconds:.0f} s with sizes that may change")
        return result

    def _look_at(self, tensor: Tensor) -> None:
        depends = False
        for expression in _expressions(tensor):
            if expression in self.known:
                continue
            depends |= bool(free_unbacked_symbols(expression))
            if _terms(expression, MOST_TERMS + 1) > MOST_TERMS:
                raise LimitError(f"the sizes that may change become expressions of more than {MOST_TERMS} terms")
            if not depends:
                self.known.add(expression)
        self.unbacked += depends
        if self.unbacked > MOST_UNBACKED:
            raise LimitError("sizes depend on the values of tensors")


def _expressions(tensor: Tensor) -> Iterator[Any]:
    """The expressions of the sizes that are not numbers."""
    with torch._C.DisableTorchFunction():  # the shape of a tensor is a torch function, too
        sizes: tuple[Any, ...] = tuple(tensor.shape)
    for size in sizes:
        if isinstance(size, torch.SymInt):
            yield size.node.expr


def _terms(expression: Any, most: int) -> int:
    """How many nodes an expression of sympy has, counted up to `most`."""
    count, waiting = 0, [expression]
    while waiting and count < most:
        count += 1
        waiting.extend(waiting.pop().args)
    return count
