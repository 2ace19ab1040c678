"""`node_ranges`: the largest numbers that the nodes of an ONNX model read, compute and add up to."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from l1rr_fx.lowering.onnx.half import SIZES, value_types
from l1rr_fx.lowering.onnx.runtime import run_onnx
from l1rr_fx.support.packages import required

SUMS = ("Conv", "ConvTranspose", "Gemm", "MatMul", "Einsum")
"""Operators that add products: all of their inputs are factors, or added at last."""
MEANS = ("ReduceMean", "GlobalAveragePool", "AveragePool")
"""Operators that add, then divide."""
PREFIX = "range/"


@dataclass(frozen=True)
class NodeRange:
    """The largest finite numbers of an ONNX node, by magnitude.

    `module` is the one whose parameters the node reads; if it reads none, `after` says that it is the module before.
    `activation` is the largest of the node's results, `weight` of the constants that it reads, `partial_sum` the
    largest intermediate sum that any order of summation can reach (None: it sums nothing, or reads no constant).
    """

    node: str
    kind: str
    module: str
    after: bool
    activation: float
    weight: float | None
    partial_sum: float | None

    @property
    def largest(self) -> float:
        """The largest of the three."""
        return max(self.activation, self.weight or 0.0, self.partial_sum or 0.0)


def node_ranges(model: Any, inputs: Sequence[Tensor], modules: Collection[str]) -> tuple[NodeRange, ...]:
    """The ranges of the nodes of an `onnx.ModelProto` in FP32 on these inputs, computed by ONNX Runtime.

    Nodes without a result in floating point are left out. `modules` are the names of the modules with parameters.
    """
    onnx = required("onnx", extra="onnx")
    numbers = _measured(onnx, model, inputs, frozenset())
    if holed := {name for name, number in numbers.items() if not math.isfinite(number)}:
        numbers = _measured(onnx, model, inputs, holed)
    weights = {each.name: _largest_constant(onnx, each) for each in _float_constants(onnx, model.graph)}
    return tuple(_ranges(model.graph, numbers, weights, modules))


def largest_ranges(measured: Sequence[Sequence[NodeRange]]) -> tuple[NodeRange, ...]:
    """Of several measurements of one model the largest numbers of each node."""
    return tuple(
        replace(
            nodes[0],
            activation=max(node.activation for node in nodes),
            partial_sum=max((node.partial_sum for node in nodes if node.partial_sum is not None), default=None),
        )
        for nodes in zip(*measured, strict=True)
    )


def _ranges(
    graph: Any, numbers: Mapping[str, float], weights: Mapping[str, float], modules: Collection[str]
) -> Iterator[NodeRange]:
    makers: dict[str, str] = {}
    for node in graph.node:
        own = node.name.rpartition("/")[0]
        before = next((makers[name] for name in node.input if makers.get(name)), "")
        module = own if own in modules else before
        makers.update(dict.fromkeys(node.output, module))
        results = [numbers[name] for name in node.output if name in numbers]
        if results:
            sizes = SIZES.get(node.op_type, ())
            read = [weights[name] for i, name in enumerate(node.input) if name in weights and i not in sizes]
            partial_sum = numbers.get(_sum_name(node))
            yield NodeRange(
                node.name, node.op_type, module, module != own, max(results), max(read, default=None), partial_sum
            )


def _measured(onnx: Any, model: Any, inputs: Sequence[Tensor], holed: Collection[str]) -> dict[str, float]:
    probe, names = _probe(onnx, model, holed)
    return dict(zip(names, (float(each) for each in run_onnx(probe.SerializeToString(), inputs)), strict=True))


def _probe(onnx: Any, model: Any, holed: Collection[str]) -> tuple[Any, list[str]]:
    """A model whose outputs are the largest magnitudes of each value and sum, and their names.

    Those of `holed` values, which hold infinities, are of the finite numbers alone, which costs much more time.
    """
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    graph = probe.graph
    del graph.output[:], graph.value_info[:]
    shapes = _shapes(onnx, model)
    for name, number in (("infinity", math.inf), ("zero", 0.0)) if holed else ():
        graph.initializer.append(onnx.helper.make_tensor(f"{PREFIX}{name}", onnx.TensorProto.FLOAT, [], [number]))
    measured = []
    for node in model.graph.node:
        for name in node.output:
            if math.prod(shapes.get(name, (0,))) > 0:
                graph.node.extend(_largest(onnx, name, name, name in holed))
                measured.append(name)
        if math.prod(shapes.get(node.output[0], (0,))) > 0 and _sums(node, shapes):
            graph.node.extend(_partial_sum(onnx, node, shapes, _sum_name(node) in holed))
            measured.append(_sum_name(node))
    for name in measured:
        graph.output.append(onnx.helper.make_tensor_value_info(f"{PREFIX}{name}/max", onnx.TensorProto.FLOAT, []))
    return probe, measured


def _shapes(onnx: Any, model: Any) -> dict[str, tuple[int, ...]]:
    """The shapes of the values in FLOAT."""
    types = value_types(model)
    graph = onnx.shape_inference.infer_shapes(model).graph
    shapes = {each.name: tuple(each.dims) for each in graph.initializer}
    for each in (*graph.input, *graph.value_info, *graph.output):
        shapes[each.name] = tuple(size.dim_value for size in each.type.tensor_type.shape.dim)
    return {name: shape for name, shape in shapes.items() if types.get(name) == onnx.TensorProto.FLOAT}


def _sums(node: Any, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    return node.op_type in (*SUMS, *MEANS) and all(name in shapes for name in node.input[:2] if name)


def _sum_name(node: Any) -> str:
    return f"{node.output[0]}/sum"


def _largest(onnx: Any, source: str, name: str, holed: bool) -> list[Any]:
    """Nodes that compute the largest magnitude of a value, with `holed` of its finite numbers."""
    make, base, nodes = onnx.helper.make_node, f"{PREFIX}{name}", []
    if holed:
        nodes = [
            make("Abs", [source], [f"{base}/size"]),
            make("Less", [f"{base}/size", f"{PREFIX}infinity"], [f"{base}/finite"]),
            make("Where", [f"{base}/finite", source, f"{PREFIX}zero"], [f"{base}/numbers"]),
        ]
        source = f"{base}/numbers"
    return [
        *nodes,
        make("ReduceMax", [source], [f"{base}/upper"], keepdims=0),
        make("ReduceMin", [source], [f"{base}/lower"], keepdims=0),
        make("Neg", [f"{base}/lower"], [f"{base}/below"]),
        make("Max", [f"{base}/upper", f"{base}/below"], [f"{base}/max"]),
    ]


def _partial_sum(onnx: Any, node: Any, shapes: Mapping[str, tuple[int, ...]], holed: bool) -> list[Any]:
    """Nodes that compute the largest partial sum.

    With the positive terms P and the negative ones N an order of summation reaches any sum from N to P, and no more:
    |sum| = |P - |N||, and the same sum over magnitudes is P + |N|, so the larger is half of the two added.
    """
    make = onnx.helper.make_node
    name = _sum_name(node)
    base = f"{PREFIX}{name}"
    same = onnx.NodeProto()
    same.CopyFrom(node)
    same.name = base
    same.input[:] = [f"{base}/{i}" if each in shapes else each for i, each in enumerate(node.input)]
    same.output[:] = [f"{base}/sizes"]
    for attribute in same.attribute:
        if attribute.name in ("alpha", "beta"):
            attribute.f = abs(attribute.f)
    count = _terms(node, shapes) if node.op_type in MEANS else 1.0
    scale = onnx.helper.make_tensor(f"{base}/count", onnx.TensorProto.FLOAT, [], [0.5 * count])
    return [
        *(make("Abs", [each], [f"{base}/{i}"]) for i, each in enumerate(node.input) if each in shapes),
        same,
        make("Abs", [node.output[0]], [f"{base}/result"]),
        make("Add", [f"{base}/sizes", f"{base}/result"], [f"{base}/twice"]),
        make("Constant", [], [f"{base}/scale"], value=scale),
        make("Mul", [f"{base}/twice", f"{base}/scale"], [f"{base}/value"]),
        *_largest(onnx, f"{base}/value", name, holed),
    ]


def _terms(node: Any, shapes: Mapping[str, tuple[int, ...]]) -> float:
    """How many numbers a mean is one of."""
    kernel = next((list(a.ints) for a in node.attribute if a.name == "kernel_shape"), None)
    return float(math.prod(kernel)) if kernel else math.prod(shapes[node.input[0]]) / math.prod(shapes[node.output[0]])


def _float_constants(onnx: Any, graph: Any) -> Iterator[Any]:
    return (each for each in graph.initializer if each.data_type == onnx.TensorProto.FLOAT)


def _largest_constant(onnx: Any, tensor: Any) -> float:
    numpy = required("numpy", extra="onnx")
    value = numpy.abs(onnx.numpy_helper.to_array(tensor))
    return float(numpy.max(value, initial=0.0, where=numpy.isfinite(value)))
