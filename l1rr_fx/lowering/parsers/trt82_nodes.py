"""What the ONNX parser of TensorRT 8.2 refuses or misreads of each operator: all checks by name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from l1rr_fx.lowering.parsers.onnx_file import OnnxModel, OnnxNode
from l1rr_fx.lowering.parsers.remarks import Check, Remark, constant
from l1rr_fx.lowering.parsers.trt82_layers import LAYERS
from l1rr_fx.lowering.parsers.trt82_products import PRODUCTS
from l1rr_fx.lowering.parsers.trt82_shapes import SHAPES
from l1rr_fx.lowering.parsers.trt82_values import VALUES

MOVES = (
    "Reshape", "Transpose", "Slice", "Expand", "Squeeze", "Unsqueeze", "Flatten", "Split", "Tile", "Concat", "Pad",
)  # fmt: skip
"""Operators that only move elements, BOOL too."""


def _moved(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    data = node.inputs if node.kind == "Concat" else node.inputs[:1]
    if any(model.kind_of(name) == "BOOL" and not constant(model, name) for name in data):
        yield Remark("it moves BOOL, which the builder was reported to refuse", "move it as INT32", "warning")


KNOWN: Mapping[str, tuple[Check, ...]] = {**LAYERS, **PRODUCTS, **SHAPES, **VALUES}
MOVED = Check("BOOL is moved as INT32 (warning)", _moved, "onnx-tensorrt issue 832", "reported")
CHECKS: Mapping[str, tuple[Check, ...]] = {
    **KNOWN,
    **{kind: (*KNOWN.get(kind, ()), MOVED) for kind in MOVES},
}
"""The checks of each operator, by name."""
