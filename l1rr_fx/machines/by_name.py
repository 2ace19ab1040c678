"""The cost models of l1rr-fx, by the name of the machine."""

from __future__ import annotations

from l1rr_fx.machines.cpu import this_cpu
from l1rr_fx.machines.jetson_tx2 import jetson_tx2_target
from passes.assignment.cost_model import ByteCount, Target
from passes.errors import InputError

NAMES = ("none", "cpu", "onnxruntime", "jetson-tx2")


def machine(name: str | Target) -> Target:
    """The cost model of a machine, or what was given if it is one already.

    - "none": no machine; copies count by their bytes, and no multiplication is made to spare one;
    - "cpu": the one that this runs on, under torch, measured once and remembered (2 s);
    - "onnxruntime": the same under ONNX Runtime, where a copy between convolutions also costs them their layout;
    - "jetson-tx2": predicted from published measurements, FP16.

    Raises InputError for any other name.
    """
    if not isinstance(name, str):
        if isinstance(name, Target):
            return name
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
        f"target is {name!r}; expected one of {', '.join(NAMES)}, or a cost model (passes.assignment.cost_model)"
    )
