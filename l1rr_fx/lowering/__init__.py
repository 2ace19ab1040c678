"""Lowering: in goes a network and example inputs, out comes what a device runs.

onnx_target   the opset that a target reads, and what its reader lacks
onnx/         an ONNX file for a target (`to_onnx`), forms for operators of your own (`register_form`), and networks
              timed in ONNX Runtime (`measured`)
parsers/      what a target's parser refuses or misreads in an ONNX file (`lint`)
bundle/       a folder that measures itself on a device (`lower`, `measure`), and its results compared (`compare`)
tensorrt      an engine, where TensorRT is installed (`to_tensorrt`, `build_engine`)

Predicted latencies (`Latency`) and measured ones (`read_results`) come from `l1rr_fx.latency`.
"""

from __future__ import annotations

from l1rr_fx.latency.prediction import Latency, Prediction
from l1rr_fx.latency.results import Results, read_results
from l1rr_fx.lowering.bundle.comparison import Comparison, compare
from l1rr_fx.lowering.bundle.remote import measure
from l1rr_fx.lowering.bundle.writing import Bundle, lower
from l1rr_fx.lowering.onnx.emission import Emitted, to_onnx
from l1rr_fx.lowering.onnx.metadata import yolo_metadata
from l1rr_fx.lowering.onnx.nms import Nms
from l1rr_fx.lowering.onnx.operators import register_form, unregister_form
from l1rr_fx.lowering.onnx.timing import Measured, measured
from l1rr_fx.lowering.onnx.writer import Symbol, Writer
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
    "Measured",
    "Nms",
    "Prediction",
    "Results",
    "Symbol",
    "Writer",
    "build_engine",
    "compare",
    "jetson_tx2_target",
    "lint",
    "lower",
    "measure",
    "measured",
    "read_results",
    "register_form",
    "to_onnx",
    "to_tensorrt",
    "unregister_form",
    "yolo_metadata",
]
