"""An ONNX file as plain data: what the lint reads, whoever wrote the file."""

from __future__ import annotations

import functools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from l1rr_fx.lowering.parsers.inference import check_functions, infer
from l1rr_fx.support.files import read_file
from l1rr_fx.support.packages import required
from passes.errors import InputError, LoadError

STANDARD = ("", "ai.onnx")
LARGEST = 2**31
"""Bytes of a file that are read at most: those that a protobuf may have."""


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
    """An initializer, or the tensor of a Constant node; `folder` is where a model's other files are (None: nowhere)."""

    name: str
    kind: str
    shape: tuple[int, ...]
    proto: Any
    folder: str | None = None

    @property
    def external(self) -> bool:
        """Whether its values are in a file beside the model's."""
        return bool(self.proto.data_location == self.proto.EXTERNAL)

    @property
    def raw(self) -> bool:
        """Whether its values are stored as bytes, not in a field of their type."""
        return self.external or bool(self.proto.HasField("raw_data"))

    def values(self) -> Any:
        """Its values, as a NumPy array. LoadError where its bytes are not those that its type and shape ask for."""
        onnx = required("onnx", extra="onnx")
        if self.external and self.folder is None:
            raise LoadError(f"constant {self.name} is in another file, and where is not known: give the model's path")
        try:
            return onnx.numpy_helper.to_array(self.proto, self.folder or "")
        except (KeyError, OSError, TypeError, ValueError, onnx.checker.ValidationError) as error:
            raise LoadError(f"constant {self.name} ({self.kind} {list(self.shape)}) cannot be read: {error}") from error


@dataclass(frozen=True, eq=False)
class OnnxNode:
    """A node: attributes are Python values, but for tensors and graphs.

    `faults` say what ONNX itself does not allow of its operator. An attribute with a fault is not among `attributes`,
    so that those there have the types that ONNX gives them.
    """

    name: str
    kind: str
    domain: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]
    faults: tuple[str, ...] = ()

    def input(self, i: int) -> str:
        """The name of its i-th input; "" where it has none."""
        return self.inputs[i] if i < len(self.inputs) else ""

    def output(self, i: int) -> str:
        """The name of its i-th output; "" where it has none."""
        return self.outputs[i] if i < len(self.outputs) else ""


@dataclass(frozen=True, eq=False)
class OnnxModel:
    """A model: nodes of nested graphs come after those around them.

    `inputs` are those that the model is given, `constants` those that any of its graphs holds, and `sparse` names those
    that are stored as indices and values. `domains` are those of which the model imports an opset. `failure` says why
    ONNX inferred no types ("": it did, or refused to).
    """

    ir_version: int
    opset: int
    domains: tuple[str, ...]
    functions: tuple[str, ...]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    nodes: tuple[OnnxNode, ...]
    constants: Mapping[str, Constant]
    sparse: tuple[str, ...]
    types: Mapping[str, ValueType]
    failure: str = ""

    def kind_of(self, name: str) -> str | None:
        """The ONNX type of a value, if it is known."""
        found = self.types.get(name)
        return None if found is None else found.kind

    def shape_of(self, name: str) -> tuple[int | None, ...] | None:
        """The sizes of a value, if they are known."""
        found = self.types.get(name)
        return None if found is None else found.shape

    def rank_of(self, name: str) -> int | None:
        """The number of axes of a value, if it is known."""
        found = self.types.get(name)
        return None if found is None else found.rank

    @functools.cached_property
    def producers(self) -> Mapping[str, OnnxNode]:
        """The node that computes each value."""
        return {output: node for node in self.nodes for output in node.outputs if output}


def read_model(model: Any) -> OnnxModel:
    """An ONNX file (its path, its bytes or an `onnx.ModelProto`) as data.

    Raises InputError for anything else, and LoadError for a file that is none or contradicts itself.
    """
    onnx = required("onnx", extra="onnx")
    proto = model if isinstance(model, onnx.ModelProto) else _parsed(onnx, model)
    if not proto.opset_import:
        raise LoadError("is no ONNX model: it names no opset")
    opsets = {entry.domain: int(entry.version) for entry in proto.opset_import}
    opset = max(opsets.get(domain, 0) for domain in STANDARD)
    check_functions(proto)
    graphs = tuple(_graphs(proto.graph))
    if damaged := [name for name in _names(proto, graphs) if not isinstance(name, str)]:
        raise LoadError(f"is damaged: the name {damaged[0]!r} is no text in UTF-8")
    nodes = tuple(_node(onnx, node, n, opset) for graph in graphs for n, node in enumerate(graph.node))
    constants = _constants(onnx, graphs, nodes, _folder(model))
    types, failure = _types(onnx, proto)
    return OnnxModel(
        int(proto.ir_version),
        opset,
        tuple(opsets),
        tuple(function.name for function in proto.functions),
        tuple(port.name for port in proto.graph.input if port.name not in constants),
        tuple(port.name for port in proto.graph.output),
        nodes,
        constants,
        tuple(tensor.values.name for graph in graphs for tensor in graph.sparse_initializer),
        types | {c.name: ValueType(c.kind, c.shape) for c in constants.values()},
        failure,
    )


def _parsed(onnx: Any, model: Any) -> Any:
    if not isinstance(model, (bytes, str, os.PathLike)):
        raise InputError(
            f"model is a {type(model).__name__}; expected the path of an ONNX file, its bytes or an onnx.ModelProto"
        )
    try:
        content = model if isinstance(model, bytes) else read_file(Path(os.fspath(model)), LARGEST)
    except OSError as error:
        raise LoadError(f"cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # a path with a zero byte
        raise LoadError(f"cannot be read: {error}") from error
    proto = onnx.ModelProto()
    try:
        proto.ParseFromString(content)
    except required("protobuf", extra="onnx", module="google.protobuf.message").DecodeError as error:
        raise LoadError(f"is no ONNX file: {error}") from error
    return proto


def _folder(model: Any) -> str | None:
    return str(Path(os.fspath(model)).parent) if isinstance(model, (str, os.PathLike)) else None


def _graphs(graph: Any) -> Iterator[Any]:
    """A graph and those that its nodes hold, such as the branches of an If."""
    yield graph
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        for inner in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
            yield from _graphs(inner)


def _names(proto: Any, graphs: tuple[Any, ...]) -> Iterator[Any]:
    """Every name that is read here."""
    yield from (function.name for function in proto.functions)
    for graph in graphs:
        yield from (tensor.values.name for tensor in graph.sparse_initializer)
        yield from (each.name for each in (*graph.initializer, *graph.input, *graph.value_info, *graph.output))
        for node in graph.node:
            yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
            yield from (attribute.name for attribute in node.attribute)


def _node(onnx: Any, node: Any, number: int, opset: int) -> OnnxNode:
    schemas = _schemas(onnx, node.op_type, opset)
    types = {name: spec.type for schema in schemas.values() for name, spec in schema.attributes.items()}
    checked = [(attribute, _fault(onnx, attribute, types.get(attribute.name))) for attribute in node.attribute]
    return OnnxNode(
        node.name or f"{node.op_type}_{number}",
        node.op_type,
        node.domain,
        tuple(node.input),
        tuple(node.output),
        {attribute.name: _value(onnx, attribute) for attribute, fault in checked if not fault},
        (*(fault for _, fault in checked if fault), *(_missing(node, schemas[opset]) if opset in schemas else ())),
    )


def _schemas(onnx: Any, kind: str, opset: int) -> dict[int, Any]:
    """What ONNX says of an operator as of the newest opset that it knows, and as of this one."""
    newest = int(onnx.defs.onnx_opset_version())
    known = [version for version in (newest, opset) if 0 < version <= newest and onnx.defs.has(kind, version, "")]
    return {version: onnx.defs.get_schema(kind, version, "") for version in known}


def _fault(onnx: Any, attribute: Any, wanted: Any) -> str:
    """What is wrong with an attribute, which ONNX wants to be of a type (None: it does not know it); "" if nothing."""
    kinds = onnx.AttributeProto.AttributeType
    if attribute.ref_attr_name:
        return f"its {attribute.name} is that of a function, and the node is in none"
    if wanted is not None and attribute.type != int(wanted):
        return f"its {attribute.name} is of type {kinds.Name(attribute.type)}; expected {kinds.Name(int(wanted))}"
    try:
        _value(onnx, attribute)
    except UnicodeDecodeError:
        return f"its {attribute.name} is no text in UTF-8"
    return ""


def _value(onnx: Any, attribute: Any) -> Any:
    value = onnx.helper.get_attribute_value(attribute)
    return value.decode() if isinstance(value, bytes) else value


def _missing(node: Any, schema: Any) -> Iterator[str]:
    """What a node has too few of, or too many."""
    sides = (
        ("inputs", len(node.input), schema.min_input, schema.max_input),
        ("outputs", len(node.output), schema.min_output, schema.max_output),
    )
    for what, count, least, most in sides:
        if not least <= count <= most:
            yield f"it has {count} {what}; expected at {f'least {least}' if count < least else f'most {most}'}"
    given = {attribute.name for attribute in node.attribute}
    for name, spec in schema.attributes.items():
        if spec.required and name not in given:
            yield f"its {name} is missing"


def _constants(
    onnx: Any, graphs: tuple[Any, ...], nodes: tuple[OnnxNode, ...], folder: str | None
) -> dict[str, Constant]:
    tensors = [(tensor.name, tensor) for graph in graphs for tensor in graph.initializer]
    tensors += [
        (node.output(0), node.attributes["value"])
        for node in nodes
        if node.kind == "Constant" and "value" in node.attributes
    ]
    return {
        name: Constant(name, _kind(onnx, tensor.data_type), tuple(int(n) for n in tensor.dims), tensor, folder)
        for name, tensor in tensors
        if name
    }


def _kind(onnx: Any, number: int) -> str:
    kinds = onnx.TensorProto.DataType
    return str(kinds.Name(number)) if number in kinds.values() else f"of the unknown type {number}"


def _types(onnx: Any, proto: Any) -> tuple[dict[str, ValueType], str]:
    """The types of all values, as ONNX infers them; of those that the file states where it cannot, and why."""
    try:
        content, failure = infer(proto.SerializeToString())
    except ValueError:  # over 2 GiB
        content, failure = b"", ""
    inferred = onnx.ModelProto.FromString(content) if content else proto
    graph = inferred.graph
    ports = (*graph.input, *graph.value_info, *graph.output)
    return {port.name: _type(onnx, port.type) for port in ports}, failure


def _type(onnx: Any, value: Any) -> ValueType:
    if value.HasField("sequence_type") or value.HasField("optional_type"):
        return ValueType("SEQUENCE" if value.HasField("sequence_type") else "OPTIONAL", ())
    tensor = value.tensor_type
    kind = _kind(onnx, tensor.elem_type)
    if not tensor.HasField("shape"):
        return ValueType(kind, None)
    return ValueType(kind, tuple(_size(dimension) for dimension in tensor.shape.dim))


def _size(dimension: Any) -> int | None:
    """A size; None where it is not fixed, which many tools write as -1."""
    return int(dimension.dim_value) if dimension.HasField("dim_value") and dimension.dim_value >= 0 else None
