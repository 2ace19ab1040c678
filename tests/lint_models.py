"""Small ONNX models of one node, for the tests of the lint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from l1rr_fx.lowering import Finding

Shape = tuple[int | str, ...]
FLOAT, FLOAT16, INT64, BOOL = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.BOOL


@dataclass(frozen=True)
class Model:
    """One node with its inputs: `shapes` are those that the network gets, `constants` those that it holds."""

    node: onnx.NodeProto
    shapes: dict[str, Shape] = field(default_factory=lambda: {"x": (1, 4, 8, 8)})
    constants: dict[str, Any] = field(default_factory=dict)
    kinds: dict[str, int] = field(default_factory=dict)
    opset: int = 13
    ir_version: int = 7
    functions: Sequence[onnx.FunctionProto] = ()

    def proto(self) -> onnx.ModelProto:
        inputs = [
            helper.make_tensor_value_info(name, self.kinds.get(name, FLOAT), shape)
            for name, shape in self.shapes.items()
        ]
        outputs = [helper.make_tensor_value_info(name, self.kinds.get(name, FLOAT), None) for name in self.node.output]
        held = [
            value if isinstance(value, TensorProto) else numpy_helper.from_array(np.asarray(value), name)
            for name, value in self.constants.items()
        ]
        graph = helper.make_graph([self.node], "g", inputs, outputs, held)
        opsets = [helper.make_opsetid("", self.opset)]
        return helper.make_model(graph, ir_version=self.ir_version, opset_imports=opsets, functions=self.functions)


def node(kind: str, *inputs: str, outputs: Sequence[str] = ("y",), **attributes: Any) -> onnx.NodeProto:
    return helper.make_node(kind, inputs, outputs, name="n", **attributes)


def f32(*shape: int) -> Any:
    return np.ones(shape, np.float32)


def i64(*values: int) -> Any:
    return np.array(values, np.int64)


def said(findings: tuple[Finding, ...], piece: str, severity: str) -> list[Finding]:
    return [finding for finding in findings if piece in finding.problem and finding.severity == severity]
