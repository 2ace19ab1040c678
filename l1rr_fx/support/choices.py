"""What may be chosen by name. Here, and not where it is used, so that the command line lists it without torch."""

from __future__ import annotations

from typing import Literal

TargetName = Literal["none", "cpu", "onnxruntime", "jetson-tx2"]
"""A machine: see `l1rr_fx.machines.by_name`."""
Shift = Literal["zero", "keep"]
"""What becomes of the shifts of channels that a plan zeroes: see `l1rr_fx.Plan.zero_`."""
Precision = Literal["fp32", "fp16"]
FileTarget = Literal["jetson-tx2", "onnxruntime", "tensorrt-10", "tensorrt-11"]
"""What reads an ONNX file: see `l1rr_fx.lowering.onnx_target`."""
