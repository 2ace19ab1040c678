"""From a pruned network to what runs it: an ONNX file that TensorRT 8.2 reads rightly, or an engine."""

from __future__ import annotations

from l1rr_fx.latency.prediction import Latency, Prediction
from l1rr_fx.latency.results import Results, read_results
from l1rr_fx.lowering.bundle.comparison import Comparison, compare
from l1rr_fx.lowering.bundle.remote import measure
from l1rr_fx.lowering.bundle.writing import Bundle, lower
from l1rr_fx.lowering.onnx.emission import Emitted, to_onnx
from l1rr_fx.lowering.onnx.metadata import yolo_metadata
from l1rr_fx.lowering.onnx.nms import Nms
from l1rr_fx.lowering.parsers.lint import Finding, lint
from l1rr_fx.lowering.tensorrt import Engine, build_engine, to_tensorrt
from l1rr_fx.machines.jetson_tx2 import jetson_tx2_target
from passes.errors import LoweringError

__all__ = [
    "Bundle",
    "Comparison",
    "Emitted",
    "Engine",
    "Finding",
    "Latency",
    "LoweringError",
    "Nms",
    "Prediction",
    "Results",
    "build_engine",
    "compare",
    "jetson_tx2_target",
    "lint",
    "lower",
    "measure",
    "read_results",
    "to_onnx",
    "to_tensorrt",
    "yolo_metadata",
]
