"""Plans for ONNX Runtime on this CPU whose latency is measured: one measurement, and one correction of the prediction.

`choose(budget=Budget(latency=0.6), target="onnxruntime")` holds a limit by prediction. `choose_measured` measures the
network that comes out beside the dense one, and chooses again with the limit that the measurement asks for.
"""

from __future__ import annotations

import copy
import logging
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from l1rr_fx.lowering.onnx.timing import measured
from l1rr_fx.machines.onnxruntime import OnnxRuntimeCpu, onnxruntime_cpu
from l1rr_fx.method.planning.choose import choose
from l1rr_fx.method.planning.plan import Plan
from l1rr_fx.method.sites.budget import Budget
from l1rr_fx.pruning.compiler import prune
from passes.errors import InputError

log = logging.getLogger(__name__)

CLOSE = 0.01
"""A prediction that is off by less is not corrected."""


@dataclass(frozen=True)
class MeasuredPlan:
    """A plan, and the time of the network that it leaves over that of the dense one: measured, and predicted.

    `corrected`: whether the limit was corrected by a first measurement.
    """

    plan: Plan
    share: float
    predicted: float
    corrected: bool = False


def choose_measured(
    model: nn.Module,
    args: tuple[Any, ...],
    *,
    budget: Budget,
    machine: OnnxRuntimeCpu | None = None,
    **options: Any,
) -> MeasuredPlan:
    """The plan that meets a budget with a limit on latency by measurement, in ONNX Runtime on this CPU.

    `machine` is the model of this CPU (None: that of `target="onnxruntime"`), `options` are those of `choose` but
    `target`, `latency` and `kwargs`. If the measured share of the dense time differs from the predicted one, the plan
    is chosen once more, for the limit times predicted over measured. Of both, the one that is nearest below the limit
    is returned; a warning is logged if both are above it. Raises InputError as `choose` does, and for a budget without
    a limit on latency.
    """
    if (limit := budget.latency) is None:
        raise InputError("the budget has no limit on latency, so that nothing is to be measured: call choose")
    if refused := sorted({"target", "latency", "kwargs"} & {*options}):
        raise InputError(f"choose_measured takes no {', '.join(refused)}: it predicts and measures ONNX Runtime")
    on = machine or onnxruntime_cpu()

    def tried(allowed: float, corrected: bool) -> MeasuredPlan:
        plan = choose(model, args, budget=replace(budget, latency=allowed), target=on, **options)
        zeroed = copy.deepcopy(model)
        plan.zero_(zeroed)
        dense, small = measured([model, prune(zeroed, args, target=on, verify=False).module], args, on)
        return MeasuredPlan(plan, small.seconds / dense.seconds, small.predicted / dense.predicted, corrected)

    first = tried(limit, False)
    off = first.share / first.predicted
    if abs(off - 1) <= CLOSE:
        return first
    second = tried(min(1.0, limit / off), True)
    best = min((first, second), key=lambda each: (each.share > limit, abs(each.share - limit)))
    if best.share > limit:
        log.warning("measured, %.3f of the dense time is left, not the budget latency=%s", best.share, limit)
    return best
