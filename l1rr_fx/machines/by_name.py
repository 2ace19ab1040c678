"""The cost models of l1rr-fx, by the name of the machine."""

from __future__ import annotations

from typing import Any, get_args

from l1rr_fx.latency.prediction import Latency
from l1rr_fx.machines.cpu import this_cpu
from l1rr_fx.machines.jetson_tx2 import jetson_tx2_target, target_of
from l1rr_fx.machines.own import predicting
from l1rr_fx.support.choices import TargetName
from passes.assignment.cost_model import ByteCount, Target
from passes.errors import InputError
from passes.rewriting.sketcher import Machine

NAMES: tuple[TargetName, ...] = get_args(TargetName)


def machine(name: TargetName | Target | Latency, args: tuple[Any, ...] | None = None) -> Target:
    """The machine of that name as a target, or the target that was given.

    - "none": no machine; copies count by their bytes, and no multiplication is made to spare one;
    - "cpu": the one that this runs on, under torch, measured once and remembered (2 s);
    - "onnxruntime": the same under ONNX Runtime (15 s), where a copy between convolutions also costs them their
      layout; it predicts whole networks;
    - "jetson-tx2": predicted from published measurements, FP16;
    - a `Latency`, such as `Latency.from_results(...)`: the same with other coefficients, clock or precision;
    - a cost model of your own (`passes.Target`); if it is a `LatencyPredictor` too, it predicts networks that are
      called with `args`, so that the compiler chooses among several.

    Raises InputError for anything else.
    """
    if isinstance(name, Latency):
        return target_of(name)
    if not isinstance(name, str):
        if isinstance(name, Target):
            return name if args is None or isinstance(name, Machine) else predicting(name, args)
    elif name == "none":
        return ByteCount()
    elif name == "cpu":
        return this_cpu()
    elif name == "onnxruntime":
        from l1rr_fx.machines.onnxruntime import onnxruntime_cpu  # needs an extra

        return onnxruntime_cpu()
    elif name == "jetson-tx2":
        return jetson_tx2_target("fp16")
    raise InputError(
        f"target is {name!r}; expected one of {', '.join(NAMES)}, a Latency, or a cost model (passes.Target)"
    )
