"""What the parser of TensorRT 8.2 holds while it reads a file: values, layers, and a node with what was found about it.

Facts of onnx-tensorrt at 85e79f6: TensorOrWeights.hpp, ShapedWeights.cpp, OnnxAttrs.cpp, `convertDtype` and
`convertOnnxWeights` (onnx2trt_utils.cpp).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx
from onnx import helper, numpy_helper

Shape = tuple[int | None, ...]
Verdict = Literal["refused", "misread", "warning"]
KINDS = {
    "FLOAT": "FLOAT", "DOUBLE": "FLOAT", "FLOAT16": "HALF", "INT8": "INT8", "INT32": "INT32", "INT64": "INT32",
    "BOOL": "BOOL",
}  # fmt: skip
"""`convertDtype`: the type of TensorRT for one of ONNX; others are refused."""
MAX_DIMS = 8
INT32 = np.iinfo(np.int32)


class RefusedError(Exception):
    """The parser ends with an error at this node."""


@dataclass(frozen=True, eq=False)
class Value:
    """A tensor, or weights: a constant that importers can read.

    `tensor` names the tensor that it is: an importer that returns its own input gives one tensor a second name.
    `made_by` and `made_from` are the node that computes it and that node's inputs.
    """

    kind: str
    shape: Shape | None
    tensor: str
    read: Callable[[], Any] | None = None
    empty: bool = False
    made_by: onnx.NodeProto | None = None
    made_from: tuple[Value | None, ...] = ()

    @property
    def rank(self) -> int | None:
        """The number of axes, if it is known."""
        return None if self.shape is None else len(self.shape)

    @property
    def is_weights(self) -> bool:
        """Whether importers can read its values."""
        return self.read is not None


@dataclass(frozen=True)
class Layer:
    """A layer that the parser adds, with the parameters that decide what it computes."""

    node: str
    kind: str
    parameters: Mapping[str, Any]


def onnx_kind(number: int) -> str:
    """ONNX's name of a type."""
    kinds = onnx.TensorProto.DataType
    return str(kinds.Name(number)) if number in kinds.values() else f"type {number}"


def is_empty(proto: onnx.TensorProto) -> bool:
    """`isOnnxTensorEmpty`: no field holds a value, whatever the shape."""
    fields = ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "string_data")
    external = proto.data_location == proto.EXTERNAL
    return not external and not proto.raw_data and not any(len(getattr(proto, field)) for field in fields)


def weights_of(proto: onnx.TensorProto, name: str) -> Value:
    """`convertOnnxWeights`; RefusedError for a type that it does not import. What is empty becomes FLOAT of rank 0."""
    if is_empty(proto):
        return Value("FLOAT", (), name, lambda: np.zeros(0, np.float32), empty=True)
    kind = onnx_kind(proto.data_type)
    if kind not in KINDS and kind != "UINT8":
        raise RefusedError(f"convertOnnxWeights: constant {name} is {kind}, which is not imported")
    return Value(KINDS.get(kind, "INT32"), tuple(proto.dims), name, lambda: numpy_helper.to_array(proto))


class Node:
    """A node of the file, the values that it reads, and what is found about it."""

    def __init__(
        self, proto: onnx.NodeProto, opset: int, inputs: tuple[Value | None, ...], outputs: tuple[Value, ...]
    ) -> None:
        self.proto, self.opset, self.inputs = proto, opset, inputs
        self.meant = outputs
        self.results = list(outputs)
        self.returned = 1
        self.layers: list[Layer] = []
        self.findings: list[tuple[Verdict, str]] = []
        self._attributes = {attribute.name: attribute for attribute in proto.attribute}

    def get(self, name: str, default: Any = None) -> Any:
        """An attribute, or the default where the node has none of that name."""
        if name not in self._attributes:
            return default
        value = helper.get_attribute_value(self._attributes[name])
        return value.decode(errors="replace") if isinstance(value, bytes) else value

    def input(self, i: int) -> Value | None:
        """Its i-th input: None where it is left out."""
        return self.inputs[i] if i < len(self.inputs) else None

    def tensor(self, i: int) -> Value:
        """`convertToTensor` of its i-th input."""
        value = self.input(i)
        self.check(value is not None, f"input {i} is left out, and the importer does not expect that")
        assert value is not None
        self.check(not value.empty, f"input {i} is a constant without values: a constant layer needs some")
        return value

    def weights(self, i: int, what: str) -> Any:
        """The values of its i-th input, which has to be a constant."""
        value = self.input(i)
        self.check(value is not None and value.is_weights, f"{what} has to be an initializer")
        assert value is not None and value.read is not None
        return value.read()

    def sizes(self, i: int) -> list[int] | None:
        """`ShapeTensor` of its i-th input: None where it is computed. Sizes that the engine is given need a profile."""
        value = self.input(i)
        self.check(value is not None, f"input {i} is left out, and the importer does not expect that")
        assert value is not None
        if value.read is not None:
            return [int(number) for number in np.atleast_1d(value.read())]
        self.builder(value.made_by is not None, f"input {i}, by which sizes are set, is an input of the engine")
        return None

    def axis(self, name: str, default: int, rank: int | None) -> int:
        """`convertAxis` of an attribute."""
        axis = int(self.get(name, default))
        return self.converted(axis, rank)

    def converted(self, axis: int, rank: int | None) -> int:
        """An axis counted from the front; the parser allows one beyond the last."""
        if rank is None:
            return axis
        axis += rank if axis < 0 else 0
        self.check(0 <= axis <= rank, f"convertAxis: axis {axis} is not in [0, {rank}]")
        return axis

    def check(self, holds: bool, why: str) -> None:
        """RefusedError unless an assertion of the importer holds."""
        if not holds:
            raise RefusedError(why)

    def builder(self, holds: bool, why: str) -> None:
        """RefusedError unless what NvInfer.h says of a layer holds."""
        self.check(holds, f"{why} (by NvInfer.h)")

    def misread(self, why: str) -> None:
        """Note that another network is built."""
        self.findings.append(("misread", why))

    def warn(self, why: str) -> None:
        """Note what the builder may refuse."""
        self.findings.append(("warning", why))

    def layer(self, kind: str, **parameters: Any) -> None:
        """Note a layer. A parameter that is a pair is what the parser sets and what ONNX means: a misreading if not
        the same."""
        read = {name: value[0] if isinstance(value, tuple) else value for name, value in parameters.items()}
        self.layers.append(Layer(self.proto.name, kind, read))
        for name, value in parameters.items():
            if isinstance(value, tuple) and value[0] != value[1]:
                self.misread(f"{kind} gets {name} {value[0]!r}; {value[1]!r} is meant")

    def gives(self, shape: Shape | None, i: int = 0) -> None:
        """Note the shape that an importer gives to its i-th output."""
        meant = self.meant[i].shape
        if shape is not None and meant is not None and not _alike(shape, meant):
            self.misread(f"output {i} gets the shape {list(shape)}; {list(meant)} is meant")

    def returns_input(self) -> None:
        """The importer returns its input itself: one tensor has two names from here on, or weights stay weights."""
        value = self.tensor(0)
        self.results[0] = value


def _alike(first: Shape, second: Shape) -> bool:
    return len(first) == len(second) and all(a is None or b is None or a == b for a, b in zip(first, second))


def moves_bool(n: Node, value: Value, layer: str) -> None:
    """Warn of a layer that moves BOOL."""
    if value.kind == "BOOL":
        n.warn(f"a {layer} of BOOL was reported to fail in the builder of 8.2 (onnx-tensorrt issue 832)")


def positive(axes: Any, rank: int | None) -> list[int]:
    """Axes counted from the front."""
    return [int(axis) + (rank or 0) * (axis < 0) for axis in axes]
