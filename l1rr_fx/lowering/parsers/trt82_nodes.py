"""What the ONNX parser of TensorRT 8.2 refuses or misreads of each operator: all checks by name."""

from __future__ import annotations

from collections.abc import Mapping

from l1rr_fx.lowering.parsers.remarks import Check
from l1rr_fx.lowering.parsers.trt82_layers import LAYERS
from l1rr_fx.lowering.parsers.trt82_products import PRODUCTS
from l1rr_fx.lowering.parsers.trt82_shapes import SHAPES
from l1rr_fx.lowering.parsers.trt82_values import VALUES

CHECKS: Mapping[str, tuple[Check, ...]] = {**LAYERS, **PRODUCTS, **SHAPES, **VALUES}
"""The checks of each operator, by name."""
