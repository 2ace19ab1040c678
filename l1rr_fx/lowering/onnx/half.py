"""`rounded_to_half`: an ONNX model that computes in FP32 what hardware with FP16 tensors computes.

ONNX Runtime has no FP16 kernels on the CPU: it computes in FP32 and removes the casts between its nodes, so that an
FP16 file never rounds or overflows there. In a rounded model each value that FP16 would store is rounded to it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from l1rr_fx.support.packages import required

LARGEST = 65504.0
"""The largest number of FP16."""
SIZES: Mapping[str, tuple[int, ...]] = {"Resize": (1, 2)}
"""Inputs in floating point that are sizes, not values: they stay as they are in any precision."""


def is_half(model: Any) -> bool:
    """Whether an `onnx.ModelProto` holds FP16 tensors."""
    half = required("onnx", extra="onnx").TensorProto.FLOAT16
    graph = model.graph
    return (
        any(each.data_type == half for each in graph.initializer)
        or any(port.type.tensor_type.elem_type == half for port in (*graph.input, *graph.output))
        or any(_cast_type(node) == half for node in graph.node)
    )


def rounded_to_half(model: Any) -> Any:
    """A copy of an `onnx.ModelProto` in FP32, in which FP16 tensors are rounded to FP16 after each node.

    In a model without FP16 tensors every FLOAT is taken for one, as TensorRT's flag --fp16 does. Numbers beyond 65504
    saturate; infinities and NaN stay. Sums inside of a node are in FP32.
    """
    onnx = required("onnx", extra="onnx")
    tensor = onnx.TensorProto
    kind = tensor.FLOAT16 if is_half(model) else tensor.FLOAT
    types = value_types(model)
    found = onnx.ModelProto()
    found.CopyFrom(model)
    graph = found.graph
    del graph.node[:], graph.value_info[:]
    for port in (*graph.input, *graph.output):
        if port.type.tensor_type.elem_type == tensor.FLOAT16:
            port.type.tensor_type.elem_type = tensor.FLOAT
    _round_constants(onnx, graph, kind, _read_as_sizes(model.graph))
    graph.initializer.extend(_limits(onnx))
    fed = {port.name for port in model.graph.input if types.get(port.name) == kind}
    renamed = {name: f"{name}{IN_HALF}" for name in fed}
    for name in sorted(fed):
        graph.node.extend(_rounding(onnx, name, renamed[name]))
    for node in model.graph.node:
        graph.node.extend(_rounded_node(onnx, node, renamed, {name for name in node.output if types.get(name) == kind}))
    return found


def value_types(model: Any) -> dict[str, int]:
    """The ONNX type of each value of a model, as far as ONNX infers it."""
    onnx = required("onnx", extra="onnx")
    graph = onnx.shape_inference.infer_shapes(model).graph
    known = {each.name: each.type.tensor_type.elem_type for each in (*graph.input, *graph.value_info, *graph.output)}
    return {**known, **{each.name: each.data_type for each in graph.initializer}}


IN_HALF, EXACT, PREFIX = "/in half", "/exact", "half/"


def _cast_type(node: Any) -> int | None:
    return next((a.i for a in node.attribute if a.name == "to"), None) if node.op_type == "Cast" else None


def _rounded_node(onnx: Any, node: Any, renamed: Mapping[str, str], rounded: set[str]) -> Iterator[Any]:
    """A node on rounded inputs, then the rounding of its results in `rounded`."""
    same = onnx.NodeProto()
    same.CopyFrom(node)
    same.input[:] = [renamed.get(name, name) for name in node.input]
    same.output[:] = [f"{name}{EXACT}" if name in rounded else name for name in node.output]
    tensor = onnx.TensorProto
    for attribute in same.attribute:
        if attribute.name == "to" and attribute.i == tensor.FLOAT16:
            attribute.i = tensor.FLOAT
        if attribute.type == onnx.AttributeProto.TENSOR and attribute.t.data_type == tensor.FLOAT16:
            attribute.t.CopyFrom(_as_half(onnx, attribute.t))
    yield same
    for name in node.output:
        if name in rounded:
            yield from _rounding(onnx, f"{name}{EXACT}", name)


def _rounding(onnx: Any, source: str, name: str) -> list[Any]:
    """Nodes that round a FLOAT to FP16. Clip alone would turn infinities, which a mask may hold, into numbers."""
    make, tensor = onnx.helper.make_node, onnx.TensorProto
    size, finite, clipped, half, back = (f"{PREFIX}{name}/{part}" for part in ("size", "finite", "clip", "16", "32"))
    return [
        make("Abs", [source], [size]),
        make("Less", [size, f"{PREFIX}infinity"], [finite]),
        make("Clip", [source, f"{PREFIX}least", f"{PREFIX}most"], [clipped]),
        make("Cast", [clipped], [half], to=tensor.FLOAT16),
        make("Cast", [half], [back], to=tensor.FLOAT),
        make("Where", [finite, back, source], [name]),
    ]


def _limits(onnx: Any) -> list[Any]:
    numbers = {"infinity": float("inf"), "least": -LARGEST, "most": LARGEST}
    return [onnx.helper.make_tensor(f"{PREFIX}{name}", onnx.TensorProto.FLOAT, [], [n]) for name, n in numbers.items()]


def _read_as_sizes(graph: Any) -> set[str]:
    """The constants that some node reads as sizes."""
    return {
        node.input[i] for node in graph.node for i in SIZES.get(node.op_type, ()) if i < len(node.input)
    }  # fmt: skip


def _round_constants(onnx: Any, graph: Any, kind: int, sizes: set[str]) -> None:
    for each in graph.initializer:
        if each.data_type == kind and each.name not in sizes:
            each.CopyFrom(_as_half(onnx, each))


def _as_half(onnx: Any, tensor: Any) -> Any:
    """A constant tensor in FLOAT, with its numbers rounded to FP16 and saturated."""
    numpy = required("numpy", extra="onnx")
    value = onnx.numpy_helper.to_array(tensor).astype(numpy.float32)
    clipped = numpy.where(numpy.isfinite(value), numpy.clip(value, -LARGEST, LARGEST), value)
    return onnx.numpy_helper.from_array(clipped.astype(numpy.float16).astype(numpy.float32), tensor.name)
