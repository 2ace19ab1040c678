"""An ONNX file as plain data: what the lint reads, whoever wrote the file."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l1rr_fx.packages import required
from passes.errors import LoadError

STANDARD = ("", "ai.onnx")


@dataclass(frozen=True)
class ValueType:
    """The ONNX type of a value ("FLOAT", ...), and its sizes (None: not fixed; no tuple: not known)."""

    kind: str
    shape: tuple[int | None, ...] | None

    @property
    def rank(self) -> int | None:
        """The number of axes, if it is known."""
        return None if self.shape is None else len(self.shape)


@dataclass(frozen=True, eq=False)
class Constant:
    """An initializer, or the tensor of a Constant node."""

    name: str
    kind: str
    shape: tuple[int, ...]
    raw: bool
    proto: Any

    def values(self) -> Any:
        """Its values, as a NumPy array."""
        return required("onnx", extra="onnx").numpy_helper.to_array(self.proto)


@dataclass(frozen=True, eq=False)
class OnnxNode:
    """A node: attributes are Python values, but for tensors and graphs."""

    name: str
    kind: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    def input(self, i: int) -> str:
        """The name of its i-th input; "" where it has none."""
        return self.inputs[i] if i < len(self.inputs) else ""


@dataclass(frozen=True, eq=False)
class OnnxModel:
    """A model: nodes of nested graphs come after the node that holds them."""

    ir_version: int
    opset: int
    functions: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[OnnxNode, ...]
    constants: Mapping[str, Constant]
    types: Mapping[str, ValueType]

    def kind_of(self, name: str) -> str | None:
        """The ONNX type of a value, if it is known."""
        found = self.types.get(name)
        return None if found is None else found.kind

    def shape_of(self, name: str) -> tuple[int | None, ...] | None:
        """The sizes of a value, if they are known."""
        found = self.types.get(name)
        return None if found is None else found.shape


def read_model(model: Any) -> OnnxModel:
    """An ONNX file (its path, its bytes or an `onnx.ModelProto`) as data. Raises LoadError if it is none."""
    onnx = required("onnx", extra="onnx")
    proto = model if isinstance(model, onnx.ModelProto) else _parsed(onnx, model)
    if not proto.graph.node or not proto.opset_import:
        raise LoadError("this is no ONNX model: it has no nodes, or names no opset")
    opsets = {entry.domain: int(entry.version) for entry in proto.opset_import}
    nodes = tuple(_nodes(onnx, proto.graph))
    constants = {c.name: c for c in (*_initializers(onnx, proto.graph), *_constant_nodes(onnx, nodes))}
    return OnnxModel(
        int(proto.ir_version),
        max(opsets.get(domain, 0) for domain in STANDARD),
        tuple(function.name for function in proto.functions),
        tuple(port.name for port in proto.graph.input if port.name not in constants),
        tuple(port.name for port in proto.graph.output),
        nodes,
        constants,
        _types(onnx, proto) | {c.name: ValueType(c.kind, c.shape) for c in constants.values()},
    )


def _parsed(onnx: Any, model: bytes | str | os.PathLike[str]) -> Any:
    try:
        content = model if isinstance(model, bytes) else Path(model).read_bytes()
    except OSError as error:
        raise LoadError(f"{model!s}: cannot be read: {error.strerror or error}") from error
    where = "this" if isinstance(model, bytes) else str(model)
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(content)
    except required("protobuf", extra="onnx", module="google.protobuf.message").DecodeError as error:
        raise LoadError(f"{where}: is no ONNX file: {error}") from error
    return proto


def _nodes(onnx: Any, graph: Any) -> Iterator[OnnxNode]:
    for number, node in enumerate(graph.node):
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        name = node.name or f"{node.op_type}_{number}"
        yield OnnxNode(name, node.op_type, node.domain, tuple(node.input), tuple(node.output), attributes)
        for value in attributes.values():
            if isinstance(value, onnx.GraphProto):
                yield from _nodes(onnx, value)


def _initializers(onnx: Any, graph: Any) -> Iterator[Constant]:
    for tensor in graph.initializer:
        yield _constant(onnx, tensor.name, tensor)


def _constant_nodes(onnx: Any, nodes: tuple[OnnxNode, ...]) -> Iterator[Constant]:
    for node in nodes:
        if node.kind == "Constant" and "value" in node.attributes:
            yield _constant(onnx, node.outputs[0], node.attributes["value"])


def _constant(onnx: Any, name: str, tensor: Any) -> Constant:
    kind = onnx.TensorProto.DataType.Name(tensor.data_type)
    return Constant(name, kind, tuple(int(n) for n in tensor.dims), tensor.HasField("raw_data"), tensor)


def _types(onnx: Any, proto: Any) -> dict[str, ValueType]:
    """The types of all values, as ONNX infers them; of those that the file states where it cannot."""
    try:
        inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    except (onnx.shape_inference.InferenceError, ValueError):  # the second: over 2 GiB
        inferred = proto
    graph = inferred.graph
    return {port.name: _type(onnx, port.type.tensor_type) for port in (*graph.input, *graph.value_info, *graph.output)}


def _type(onnx: Any, tensor: Any) -> ValueType:
    kind = onnx.TensorProto.DataType.Name(tensor.elem_type)
    if not tensor.HasField("shape"):
        return ValueType(kind, None)
    return ValueType(kind, tuple(int(d.dim_value) if d.HasField("dim_value") else None for d in tensor.shape.dim))
