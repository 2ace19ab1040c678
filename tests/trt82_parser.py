"""`judged`: what the ONNX parser of TensorRT 8.2 refuses or misreads in a model. `network`: the layers that it makes.

The parser does not run here. This states the facts about it (onnx-tensorrt at its 8.2 release, 85e79f6), apart from the
lint and for its judgement: types, shapes and constants go through the importers of `trt82_importers`, `trt82_moves` and
`trt82_windows`, each of which says what it asserts and where its layer is not what ONNX means. The oracle are the
verdicts that the parser itself gave: `test_trt82_parser.py`.

    refused   an assertion fails, or NvInfer.h excludes the layer (the reason says which)
    misread   it becomes another network, without a message
    warning   it is read rightly, but what NvInfer.h says lets the builder refuse it
"""

from __future__ import annotations

from collections.abc import Collection, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from tests import trt82_importers, trt82_moves, trt82_windows
from tests.trt82_importers import Importer
from tests.trt82_node import INT32, KINDS, MAX_DIMS, Layer, Node, RefusedError, Value, Verdict, onnx_kind, weights_of

IMPORTERS: dict[str, Importer] = {**trt82_importers.TABLE, **trt82_moves.TABLE, **trt82_windows.TABLE}
STANDARD = ("", "ai.onnx")


@dataclass(frozen=True)
class Judgement:
    """One thing that the parser refuses or misreads; `node` is "" for the model itself."""

    node: str
    operator: str
    verdict: Verdict
    reason: str

    def __str__(self) -> str:
        return f"{self.verdict}: {self.operator or 'model'} {self.node}: {self.reason}"


def judged(model: Any) -> tuple[Judgement, ...]:
    """What is found about a model (an `onnx.ModelProto` or a file's path), in the order of the parser.

    All nodes are judged, those after a refused one too.
    """
    return tuple(_Parse(_loaded(model)).judgements())


def network(model: Any) -> tuple[Layer, ...]:
    """The layers that the parser makes of a model, with the parameters that it sets."""
    parse = _Parse(_loaded(model))
    for _ in parse.judgements():
        pass
    return tuple(parse.layers)


def verdict_of(model: Any) -> str:
    """The worst verdict about a model: refused, misread, warning or accepted."""
    found = {judgement.verdict for judgement in judged(model)}
    return next((verdict for verdict in ("refused", "misread", "warning") if verdict in found), "accepted")


def assert_accepted(model: Any, but: Collection[str] = ()) -> None:
    """AssertionError where the parser refuses or misreads a node, unless its operator is one of `but`."""
    found = [each for each in judged(model) if each.verdict != "warning" and each.operator not in but]
    assert not found, "TensorRT 8.2 would not build this network:\n  " + "\n  ".join(map(str, found))


def _loaded(model: Any) -> onnx.ModelProto:
    return model if isinstance(model, onnx.ModelProto) else onnx.load(model)


class _Parse:
    """`ModelImporter::importModel` of one model."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.layers: list[Layer] = []
        self.values: dict[str, Value] = {}
        self.types = _types(model)
        held = {tensor.name for tensor in model.graph.initializer}
        self.given = [port.name for port in model.graph.input if port.name not in held]

    def judgements(self) -> Iterator[Judgement]:
        opset = yield from self._opset()
        yield from self._inputs()
        yield from self._constants()
        for proto in self.model.graph.node:
            yield from self._node(proto, opset)
        yield from self._outputs()

    def _opset(self) -> Generator[Judgement, None, int]:
        """`getOpsetVersion`: the only entry whatever its domain, or that of the domain ""."""
        entries = {entry.domain: int(entry.version) for entry in reversed(self.model.opset_import)}
        if len(entries) > 1 and "" not in entries:
            yield Judgement("", "", "refused", f"getOpsetVersion: no entry of the domain '' among {sorted(entries)}")
        return entries.get("", next(iter(entries.values()), 1))

    def _inputs(self) -> Iterator[Judgement]:
        for port in (port for port in self.model.graph.input if port.name in self.given):
            kind = onnx_kind(port.type.tensor_type.elem_type)
            value = self._typed(port.name)
            self.values[port.name] = value
            if not port.type.HasField("tensor_type") or kind not in KINDS:
                yield Judgement("", "", "refused", f"importInput: input {port.name} is {kind}")
            if value.rank is not None and value.rank > MAX_DIMS:
                yield Judgement("", "", "misread", f"convertOnnxDims: input {port.name} has {value.rank} axes, over 8")
            if value.shape is None or None in value.shape:
                reason = f"the sizes of input {port.name} are not fixed: it needs a profile (by NvInfer.h)"
                yield Judgement("", "", "refused", reason)

    def _constants(self) -> Iterator[Judgement]:
        for tensor in self.model.graph.initializer:
            yield from self._held(tensor, tensor.name)
        for sparse in self.model.graph.sparse_initializer:
            yield Judgement("", "", "refused", f"constant {sparse.values.name} is sparse, which is not read")

    def _held(self, tensor: onnx.TensorProto, name: str) -> Iterator[Judgement]:
        kind = onnx_kind(tensor.data_type)
        try:
            value = weights_of(tensor, name)
        except RefusedError as error:
            yield Judgement("", "", "refused", str(error))
            return
        self.values[name] = value
        if kind == "FLOAT16" and len(tensor.int32_data):
            yield Judgement("", "", "misread", f"constant {name} keeps FLOAT16 in int32_data, half of which is read")
        if kind == "INT64" and not value.empty and value.read is not None:
            numbers = value.read()
            if (numbers.max() > INT32.max or numbers.min() < INT32.min) and not self._only_bounds(name):
                yield Judgement("", "", "misread", f"convertINT64: constant {name} is clamped to 32 bits")

    def _only_bounds(self, name: str) -> bool:
        """Whether a constant is nothing but bounds of slices, which are clamped to the sizes anyway."""
        readers = [node for node in self.model.graph.node if name in node.input]
        return all(node.op_type == "Slice" and node.input[0] != name for node in readers)

    def _typed(self, name: str, by: onnx.NodeProto | None = None, given: tuple[Value | None, ...] = ()) -> Value:
        kind, shape = self.types.get(name, ("", None))
        return Value(KINDS.get(kind, kind), shape, name, made_by=by, made_from=given)

    def _node(self, proto: onnx.NodeProto, opset: int) -> Iterator[Judgement]:
        given = tuple(self.values.get(name, self._typed(name)) if name else None for name in proto.input)
        node = Node(proto, opset, given, tuple(self._typed(name, proto, given) for name in proto.output))
        try:
            self._imported(node)
        except RefusedError as error:
            node.findings.append(("refused", str(error)))
        if proto.op_type == "Constant" and len(proto.output) == 1:
            yield from self._constant(node)
        for verdict, reason in node.findings:
            yield Judgement(proto.name or f"of {proto.output[0]}", proto.op_type, verdict, reason)
        self.layers += node.layers
        for name, value in zip(proto.output, node.results):
            if name and name not in self.values:
                self.values[name] = value

    def _imported(self, node: Node) -> None:
        kind = node.proto.op_type
        node.check(kind in IMPORTERS, f"no importer is registered for {kind}, nor a plugin")
        IMPORTERS[kind](node)
        if node.proto.domain not in STANDARD and onnx.defs.has(kind):
            node.misread(f"the domain {node.proto.domain!r} is not looked at: the standard {kind} is built")
        count = len(node.proto.output)
        node.check(count <= node.returned, f"import{kind} returns {node.returned} of {count} outputs")
        axes = [max((value.rank or 0 for value in values if value), default=0) for values in (node.meant, node.inputs)]
        node.builder(axes[0] <= max(MAX_DIMS, axes[1]), f"a result of {axes[0]} axes, over {MAX_DIMS}")
        result = node.results[0]
        if result.read is None and result.tensor in self.given:  # registerTensor names what an importer returns
            node.misread(f"import{kind} returns input {result.tensor}, which gets another name by that")

    def _constant(self, node: Node) -> Iterator[Judgement]:
        name, value = node.proto.output[0], node.get("value")
        if value is not None:
            yield from self._held(value, name)
            return
        given = [node.get(key) for key in ("value_float", "value_floats", "value_int", "value_ints")]
        numbers = np.array(next((value for value in given if value is not None), 0))
        self.values[name] = Value(
            "FLOAT" if numbers.dtype.kind == "f" else "INT32", numbers.shape, name, lambda: numbers
        )

    def _outputs(self) -> Iterator[Judgement]:
        """What `importModel` asserts of outputs, and does to one that is an input."""
        named: dict[str, str] = {}
        for port in self.model.graph.output:
            kind, value = onnx_kind(port.type.tensor_type.elem_type), self.values.get(port.name)
            if value is not None and value.read is None:
                first = named.setdefault(value.tensor, port.name)
                if first != port.name:
                    yield Judgement("", "", "misread", f"importModel: outputs {first} and {port.name} are one tensor")
                if port.name in self.given:
                    yield Judgement("", "", "misread", f"importModel: output {port.name} is an input, which is renamed")
            if kind not in KINDS:
                yield Judgement("", "", "refused", f"importModel: output {port.name} is {kind}")
            elif value is not None and value.kind == "INT32" and KINDS[kind] != "INT32":
                yield Judgement("", "", "refused", f"importModel: output {port.name} is {kind}, its tensor INT32")


def _types(model: onnx.ModelProto) -> dict[str, tuple[str, tuple[int | None, ...] | None]]:
    """The type and shape of every value, as ONNX infers them."""
    graph = model.graph
    known = {port.name for port in (*graph.value_info, *graph.output)}
    if any(name not in known for node in graph.node for name in node.output):
        try:
            graph = onnx.shape_inference.infer_shapes(_light(model), data_prop=True).graph
        except (onnx.shape_inference.InferenceError, ValueError):  # the second: over 2 GiB
            pass
    found = {}
    for port in (*graph.input, *graph.value_info, *graph.output):
        tensor = port.type.tensor_type
        shape = None
        if tensor.HasField("shape"):
            shape = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
        found[port.name] = (onnx_kind(tensor.elem_type), shape)
    return found


def _light(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its large constants as inputs: inference copies a model twice, and reads the small ones alone."""
    made = onnx.ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    graph = model.graph
    made.graph.MergeFrom(onnx.GraphProto(name=graph.name, node=graph.node, input=graph.input, output=graph.output))
    made.graph.value_info.extend(graph.value_info)
    given = {port.name for port in graph.input}
    for tensor in graph.initializer:
        if len(tensor.raw_data) <= 1024 and tensor.data_location != tensor.EXTERNAL:
            made.graph.initializer.append(tensor)
        elif tensor.name not in given:
            shape = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            made.graph.input.append(shape)
    return made
