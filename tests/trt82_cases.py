"""Small ONNX models with the verdicts that the parser of TensorRT 8.2 gave when it ran (onnx-tensorrt at 85e79f6).

It read each of these files, and the network that it recorded was executed and compared with ONNX Runtime. A verdict is
"refused", "misread", "accepted", or "warning": read rightly, although NvInfer.h does not allow the layer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

FLOAT, FLOAT16, INT64, BOOL = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT64, TensorProto.BOOL
Outputs = Mapping[str, tuple[int, tuple[int, ...]]]


def constant(name: str, values: Any) -> TensorProto:
    """An initializer."""
    return numpy_helper.from_array(np.asarray(values), name)


def normal(*shape: int) -> Any:
    """The same random numbers each time."""
    return np.random.RandomState(0).randn(*shape).astype(np.float32)


def single(
    operator: str,
    inputs: Mapping[str, Any],
    shape: tuple[int, ...] | Outputs,
    *constants: TensorProto | str,
    kind: int = FLOAT,
    opset: int = 13,
    **attributes: Any,
) -> onnx.ModelProto:
    """A model of one node: its inputs, then its constants ("": an input left out). Its output is y, unless more are
    named."""
    names = [*inputs, *(each if isinstance(each, str) else each.name for each in constants)]
    outputs = shape if isinstance(shape, Mapping) else {"y": (kind, shape)}
    given = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in inputs.items()
    ]
    held = [each for each in constants if not isinstance(each, str)]
    node = helper.make_node(operator, names, list(outputs), "n", **attributes)
    made = [helper.make_tensor_value_info(name, *of) for name, of in outputs.items()]
    graph = helper.make_graph([node], "g", given, made, held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=7)


def of_nodes(
    nodes: list[onnx.NodeProto], inputs: Mapping[str, Any], outputs: Outputs, *constants: TensorProto
) -> onnx.ModelProto:
    """A model of several nodes."""
    given = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
        for name, array in inputs.items()
    ]
    made = [helper.make_tensor_value_info(name, *of) for name, of in outputs.items()]
    graph = helper.make_graph(nodes, "g", given, made, list(constants))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)


c, z = constant, normal
X4, X2, I2 = z(1, 4, 6, 6), z(2, 3), np.arange(6).reshape(2, 3)
NINE = z(*[1] * 8, 2)


def resized(shape: tuple[int, ...], scales: list[float], **attributes: Any) -> onnx.ModelProto:
    """A Resize of the image by scales."""
    return single("Resize", {"x": X4}, shape, "", c("s", np.array(scales, np.float32)), **attributes)


def turned_constant() -> onnx.ModelProto:
    """A Transpose of a constant of integers."""
    nodes = [helper.make_node("Transpose", ["w"], ["t"]), helper.make_node("Concat", ["t", "x"], ["y"], axis=0)]
    return of_nodes(nodes, {"x": np.zeros((1, 2), np.int64)}, {"y": (INT64, (4, 2))}, c("w", I2))


def turned_weight() -> onnx.ModelProto:
    """A Conv whose weight is the Transpose of a constant, which the parser computes itself."""
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0, 2, 3]),
        helper.make_node("Conv", ["x", "t"], ["y"], kernel_shape=[3, 3]),
    ]
    return of_nodes(nodes, {"x": X4}, {"y": (FLOAT, (1, 6, 4, 4))}, c("w", z(4, 6, 3, 3)))


def vector_by_batch() -> onnx.ModelProto:
    """A vector by a batch of matrices, with the vector as a matrix of one row."""
    nodes = [
        helper.make_node("Unsqueeze", ["x", "first"], ["row"]),
        helper.make_node("MatMul", ["row", "w"], ["rows"]),
        helper.make_node("Squeeze", ["rows", "last"], ["y"]),
    ]
    held = c("first", [0]), c("last", [1]), c("w", z(5, 3, 4))
    return of_nodes(nodes, {"x": z(3)}, {"y": (FLOAT, (5, 4))}, *held)


def quantised() -> onnx.ModelProto:
    """To UINT8 and back."""
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "p"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "p"], ["y"]),
    ]
    return of_nodes(nodes, {"x": X2}, {"y": (FLOAT, (2, 3))}, c("s", np.float32(0.1)), c("p", np.uint8(0)))


def beside_another_domain(spelled: str) -> onnx.ModelProto:
    """A model of two domains, ONNX's own spelled out or not."""
    model = single("Relu", {"x": X2}, (2, 3))
    del model.opset_import[:]
    model.opset_import.extend([helper.make_opsetid(spelled, 13), helper.make_opsetid("TRT", 1)])
    return model


def on_integers(operator: str, *constants: TensorProto, opset: int = 14, **attributes: Any) -> onnx.ModelProto:
    """An operator on INT32."""
    shape = (2, 1) if operator.startswith(("Reduce", "Arg")) else (2, 3)
    kind = INT64 if operator == "ArgMin" else TensorProto.INT32
    return single(operator, {"x": I2.astype(np.int32)}, shape, *constants, kind=kind, opset=opset, **attributes)


CASES: Mapping[str, tuple[str, Callable[[], onnx.ModelProto]]] = {
    # The parser builds another network.
    "TopK, largest=0": ("misread", lambda: single(
        "TopK", {"x": z(3, 7)}, {"v": (FLOAT, (3, 3)), "i": (INT64, (3, 3))}, c("k", [3]), largest=0)),
    "Celu": ("misread", lambda: single("Celu", {"x": X2}, (2, 3))),
    "Pad of INT64 by 5": ("misread", lambda: single(
        "Pad", {"x": I2}, (2, 5), c("p", [0, 1, 0, 1]), c("v", np.int64(5)), kind=INT64)),
    "Pad of FP16 by 1": ("misread", lambda: single(
        "Pad", {"x": X2.astype(np.float16)}, (2, 5), c("p", [0, 1, 0, 1]), c("v", np.float16(1)), kind=FLOAT16)),
    "Flatten of rank 2, axis 0": ("misread", lambda: single("Flatten", {"x": X2}, (1, 6), axis=0)),
    "ReduceSum, noop_with_empty_axes": ("misread", lambda: single(
        "ReduceSum", {"x": X2}, (2, 3), noop_with_empty_axes=1)),
    "Gemm, transA, square, bias": ("misread", lambda: single(
        "Gemm", {"x": z(3, 3)}, (3, 4), c("w", z(3, 4)), c("b", z(4)), transA=1)),
    "Gemm 1x1 by 1x4, both computed": ("misread", lambda: single("Gemm", {"x": z(1, 1), "w": z(1, 4)}, (1, 4))),
    "Resize, linear, tf_half_pixel_for_nn": ("misread", lambda: single(
        "Resize", {"x": X4}, (1, 4, 9, 4), "", "", c("s", [1, 4, 9, 4]), mode="linear",
        coordinate_transformation_mode="tf_half_pixel_for_nn")),
    "GlobalLpPool, p=1": ("misread", lambda: single("GlobalLpPool", {"x": X4}, (1, 4, 1, 1), p=1)),
    "LogSoftmax of [0, 200]": ("misread", lambda: single("LogSoftmax", {"x": np.array([[0, 200]], "f")}, (1, 2))),
    "ReduceLogSumExp of [0, 200]": ("misread", lambda: single(
        "ReduceLogSumExp", {"x": np.array([[0, 200]], "f")}, (1, 1), axes=[1])),
    "Transpose, identity": ("misread", lambda: single("Transpose", {"x": X2}, (2, 3), perm=[0, 1])),
    "Flatten of an input": ("misread", lambda: single("Flatten", {"x": X2}, (2, 3))),
    "nine axes: Relu": ("misread", lambda: single("Relu", {"x": NINE}, NINE.shape)),
    # The parser refuses.
    "Gemm without C": ("refused", lambda: single("Gemm", {"x": X2}, (2, 4), c("w", z(3, 4)))),
    "Gemm, C of one element": ("refused", lambda: single("Gemm", {"x": X2}, (2, 4), c("w", z(3, 4)), c("b", z(1)))),
    "Gemm, alpha=2, K=1": ("refused", lambda: single(
        "Gemm", {"x": z(2, 1)}, (2, 4), c("w", z(1, 4)), c("b", z(4)), alpha=2.0)),
    "Sign of INT64": ("refused", lambda: single("Sign", {"x": I2}, (2, 3), kind=INT64)),
    "Pow of FLOAT by INT64": ("refused", lambda: single("Pow", {"x": X2}, (2, 3), c("e", np.int64(2)))),
    "Pad by a negative number": ("refused", lambda: single("Pad", {"x": X2}, (2, 1), c("p", [0, -1, 0, -1]))),
    "Einsum, capitals": ("refused", lambda: single("Einsum", {"a": X2, "b": z(3, 4)}, (2, 4), equation="IJ,JK->IK")),
    "MatMul of a vector by a batch": ("refused", lambda: single("MatMul", {"a": z(3), "b": z(5, 3, 4)}, (5, 4))),
    "Transpose of an INT64 constant": ("refused", turned_constant),
    "AveragePool, pads 1,1,0,0, counted": ("refused", lambda: single(
        "AveragePool", {"x": X4}, (1, 4, 5, 5), kernel_shape=[3, 3], pads=[1, 1, 0, 0], count_include_pad=1)),
    "LpPool, p=3": ("refused", lambda: single(
        "LpPool", {"x": X4}, (1, 4, 3, 3), kernel_shape=[2, 2], strides=[2, 2], p=3)),
    "ReduceSum, axes computed": ("refused", lambda: single("ReduceSum", {"x": X2, "a": np.array([1])}, (2, 1))),
    "Resize, tf_half_pixel_for_nn, floor": ("refused", lambda: single(
        "Resize", {"x": X4}, (1, 4, 9, 4), "", "", c("s", [1, 4, 9, 4]), nearest_mode="floor",
        coordinate_transformation_mode="tf_half_pixel_for_nn")),
    "Resize, linear over the batch": ("refused", lambda: resized((2, 4, 12, 12), [2, 1, 2, 2], mode="linear")),
    "LSTM, input_forget": ("refused", lambda: single(
        "LSTM", {"x": z(4, 2, 3)}, {"y": (FLOAT, (4, 1, 2, 5))}, c("W", z(1, 20, 3)), c("R", z(1, 20, 5)),
        hidden_size=5, input_forget=1)),
    "nine axes: Transpose": ("refused", lambda: single("Transpose", {"x": NINE}, NINE.shape[::-1])),
    "opset 14, Reshape without allowzero": ("refused", lambda: single(
        "Reshape", {"x": X2}, (6,), c("s", [-1]), opset=14)),
    "ReduceSum, axes an empty constant": ("refused", lambda: single(
        "ReduceSum", {"x": X2}, (1, 1), c("a", np.zeros(0, np.int64)))),
    "Concat with an empty constant": ("refused", lambda: single(
        "Concat", {"x": z(3)}, (3,), c("e", np.zeros(0, "f")), axis=0)),
    "ArgMax of INT64": ("refused", lambda: single("ArgMax", {"x": I2}, (2, 1), kind=INT64, axis=1)),
    "Equal of BOOL": ("refused", lambda: single("Equal", {"a": I2 > 2, "b": I2 > 3}, (2, 3), kind=BOOL)),
    "Pow of INT64": ("refused", lambda: single("Pow", {"x": I2}, (2, 3), c("e", np.int64(2)), kind=INT64)),
    "TopK, K=4000": ("refused", lambda: single(
        "TopK", {"x": z(2, 5000)}, {"v": (FLOAT, (2, 4000)), "i": (INT64, (2, 4000))}, c("k", [4000]))),
    # The parser reads it rightly, NvInfer.h does not allow it.
    "Einsum of three": ("warning", lambda: single(
        "Einsum", {"a": X2, "b": z(3, 4), "d": z(4, 2)}, (2, 2), equation="ij,jk,kl->il")),
    "Cast of FLOAT to BOOL": ("warning", lambda: single("Cast", {"x": X2}, (2, 3), kind=BOOL, to=BOOL)),
    # The parser reads it rightly.
    "Conv 1-D": ("accepted", lambda: single("Conv", {"x": z(1, 4, 9)}, (1, 6, 7), c("w", z(6, 4, 3)), c("b", z(6)))),
    "ConvTranspose 1-D": ("accepted", lambda: single(
        "ConvTranspose", {"x": z(1, 4, 9)}, (1, 3, 18), c("w", z(4, 3, 4)), c("b", z(3)), strides=[2], pads=[1, 1])),
    "MaxPool 1-D": ("accepted", lambda: single("MaxPool", {"x": z(1, 4, 9)}, (1, 4, 4), kernel_shape=[2], strides=[2])),
    "AveragePool, pads 0,0,1,1, not counted": ("accepted", lambda: single(
        "AveragePool", {"x": X4}, (1, 4, 5, 5), kernel_shape=[3, 3], pads=[0, 0, 1, 1])),
    "Split, num_outputs, even": ("accepted", lambda: single(
        "Split", {"x": X4}, {"a": (FLOAT, (1, 2, 6, 6)), "b": (FLOAT, (1, 2, 6, 6))}, opset=18, axis=1,
        num_outputs=2)),
    "ReduceLogSum, axes as an input (opset 18)": ("accepted", lambda: single(
        "ReduceLogSum", {"x": abs(X4) + 0.5}, (1, 4, 1, 1), c("a", [2, 3]), opset=18)),
    # Said of the parser in prose.
    **{f"{name} of INT32": ("refused", partial(on_integers, name)) for name in ("Sqrt", "Relu", "ArgMin")},
    **{f"{name} of INT32": ("refused", partial(on_integers, name, axes=[1])) for name in (
        "ReduceL2", "ReduceLogSum", "ReduceLogSumExp")},
    "PRelu of INT32": ("refused", partial(on_integers, "PRelu", c("s", np.int32(2)))),
    **{f"{name} of INT32": ("accepted", partial(on_integers, name, axes=[1])) for name in (
        "ReduceMax", "ReduceMin", "ReduceMean", "ReduceProd", "ReduceL1", "ReduceSumSquare")},
    "ReduceSum of INT32": ("accepted", partial(on_integers, "ReduceSum", c("a", [1]))),
    "Clip of INT32": ("accepted", partial(on_integers, "Clip", c("l", np.int32(1)), c("h", np.int32(3)))),
    "Conv by a turned constant": ("accepted", turned_weight),
    "Conv by what is computed": ("refused", lambda: single("Conv", {"x": X4, "w": z(6, 4, 3, 3)}, (1, 6, 4, 4))),
    "Conv, its bias left out by name": ("refused", lambda: single(
        "Conv", {"x": X4}, (1, 6, 4, 4), c("w", z(6, 4, 3, 3)), "")),
    "ConvTranspose 3-D, uneven pads": ("refused", lambda: single(
        "ConvTranspose", {"x": z(1, 4, 3, 3, 3)}, (1, 2, 4, 4, 4), c("w", z(4, 2, 3, 3, 3)), pads=[0, 0, 0, 1, 1, 1])),
    "MatMul by a constant": ("accepted", lambda: single("MatMul", {"x": X2}, (2, 4), c("w", z(3, 4)))),
    "MatMul of a row by a batch": ("accepted", vector_by_batch),
    "QuantizeLinear to UINT8": ("misread", quantised),
    "ai.onnx beside another domain": ("refused", partial(beside_another_domain, "ai.onnx")),
    "a plain domain beside another": ("accepted", partial(beside_another_domain, "")),
    "Reshape to sizes that are given": ("refused", lambda: single(
        "Reshape", {"x": X2, "s": np.array([3, 2])}, (3, 2))),
    "Transpose of a constant of five axes": ("refused", lambda: of_nodes(
        [helper.make_node("Transpose", ["w"], ["t"]), helper.make_node("Add", ["t", "x"], ["y"])],
        {"x": z(1)}, {"y": (FLOAT, (2, 1, 1, 1, 1))}, c("w", z(1, 1, 1, 1, 2)))),
    "LogSoftmax written out": ("accepted", lambda: of_nodes(
        [helper.make_node("ReduceMax", ["x"], ["m"], axes=[1]), helper.make_node("Sub", ["x", "m"], ["d"]),
         helper.make_node("ReduceLogSumExp", ["d"], ["l"], axes=[1]), helper.make_node("Sub", ["d", "l"], ["y"])],
        {"x": X2}, {"y": (FLOAT, (2, 3))})),
}  # fmt: skip
"""By name: the parser's verdict, and the model."""
