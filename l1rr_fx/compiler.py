"""`prune`: from a model with zeroed channels to a small network that computes the same."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from l1rr_fx.pruned import Pruned
from l1rr_fx.report import Report
from passes.bill import bill
from passes.capture import capture
from passes.compile import remove_zero_channels
from passes.errors import VerifyError
from passes.verify import relative_deviation, run_aside, tolerance

log = logging.getLogger(__name__)


def prune(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    mode: str = "recombine",
    dynamic_shapes: Any = None,
    channel_multiple: int = 1,
    verify: bool = True,
) -> Pruned:
    """The small network that computes what `model`, with the zeros in its weights, computes.

    `args` and `kwargs` are one example input; sizes that may change later are named in `dynamic_shapes`, as for
    `torch.export.export`. `model` is not changed. `mode` says how residual branches meet ("recombine", "union" or
    "exclude"), `channel_multiple` rounds channel counts up where dead channels are left. With `verify` both networks are
    run on the example and compared.

    Raises InputError, CaptureError, VanishedError or VerifyError, each of them an L1RRError.
    """
    clock = Clock()
    with clock("capture"):
        captured = capture(model, args, kwargs, dynamic_shapes=dynamic_shapes)
    result = remove_zero_channels(captured, mode=mode, channel_multiple=channel_multiple, clock=clock)
    deviation = None
    if verify:
        with clock("verify"):
            deviation = check(model, result.module, args, kwargs or {})
    report = Report(bill(result.plan, result.rewritten, clock.seconds), mode, deviation)
    return Pruned(result.module, report, result.rewritten.kept)


def check(model: nn.Module, module: GraphModule, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float:
    """The deviation of the small network on the example; raises VerifyError if rounding does not explain it."""
    zeroed = run_aside(model, args, kwargs)
    pruned = run_aside(module, args, kwargs)
    deviation = relative_deviation(zeroed, pruned)
    allowed = tolerance(zeroed)
    if not deviation <= allowed:
        raise VerifyError(f"the pruned network deviates by {deviation:.3g} from the zeroed one (allowed: {allowed:.0e})")
    return deviation


class Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start
            log.debug("%s: %.3f s", phase, self.seconds[phase])


__all__ = ["Clock", "check", "prune", "torch"]
