"""Small ONNX models with the verdicts that the source of TensorRT 8.2's parser implies (onnx-tensorrt at 85e79f6).

The parser ran on those of `trt82_cases`. These are further assertions and readings of its importers, one row each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tests.trt82_cases import BOOL, FLOAT, FLOAT16, I2, INT64, X2, X4, c, of_nodes, single, z

UINT8, INT32 = TensorProto.UINT8, TensorProto.INT32
HALF2 = X2.astype(np.float16)
ONES = np.ones(4, np.float32)
N32 = I2.astype(np.int32)
BITS = I2 > 2
X3 = z(1, 4, 6)
WEIGHT = c("w", z(6, 4, 3, 3))


def half_in_int32_data() -> onnx.ModelProto:
    """A FP16 constant that is stored number by number."""
    stored = helper.make_tensor("w", FLOAT16, [1], [1.0])
    return single("Mul", {"x": HALF2}, (2, 3), stored, kind=FLOAT16)


def through_uint8() -> onnx.ModelProto:
    """Casts to UINT8 and back."""
    nodes = [helper.make_node("Cast", ["x"], ["q"], to=UINT8), helper.make_node("Cast", ["q"], ["y"], to=FLOAT)]
    return of_nodes(nodes, {"x": X2}, {"y": (FLOAT, (2, 3))})


def one_tensor_twice() -> onnx.ModelProto:
    """Two outputs that are one tensor: an identity Transpose between them."""
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Transpose", ["a"], ["b"], perm=[0, 1])]
    return of_nodes(nodes, {"x": X2}, {"a": (FLOAT, (2, 3)), "b": (FLOAT, (2, 3))})


def renamed_inside() -> onnx.ModelProto:
    """An identity Transpose behind an operator, whose result is no output: nothing is lost."""
    nodes = [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Transpose", ["a"], ["b"], perm=[0, 1])]
    return of_nodes(nodes, {"x": X2}, {"b": (FLOAT, (2, 3))})


def constant_node(**value: Any) -> onnx.ModelProto:
    """A Constant node that is added to the input."""
    nodes = [helper.make_node("Constant", [], ["v"], **value), helper.make_node("Add", ["x", "v"], ["y"])]
    return of_nodes(nodes, {"x": N32.astype(np.int64)}, {"y": (INT64, (2, 3))})


def nine_axes_inside() -> onnx.ModelProto:
    """A Reshape to nine axes and back."""
    nodes = [helper.make_node("Reshape", ["x", "s"], ["a"]), helper.make_node("Reshape", ["a", "t"], ["y"])]
    held = c("s", [1] * 7 + [2, 3]), c("t", [2, 3])
    return of_nodes(nodes, {"x": X2}, {"y": (FLOAT, (2, 3))}, *held)


def computed_bias() -> onnx.ModelProto:
    """A Conv by a constant with a bias that the engine is given."""
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"])
    return of_nodes([node], {"x": X4, "b": z(6)}, {"y": (FLOAT, (1, 6, 4, 4))}, WEIGHT)


def linear_sizes(shape: tuple[int, ...]) -> onnx.ModelProto:
    """A linear Resize to sizes."""
    return single("Resize", {"x": X4}, shape, "", "", c("s", list(shape)), mode="linear")


CASES: Mapping[str, tuple[str, Callable[[], onnx.ModelProto]]] = {
    # types
    "Cast through UINT8": ("refused", through_uint8),
    "And of FLOAT": ("refused", lambda: single("And", {"a": X2, "b": X2}, (2, 3), kind=BOOL)),
    "Where of BOOL": ("refused", lambda: single("Where", {"c": BITS, "a": BITS, "b": BITS}, (2, 3), kind=BOOL)),
    "Gather of BOOL": ("refused", lambda: single("Gather", {"x": BITS}, (1, 3), c("i", [0]), kind=BOOL)),
    "MatMul of INT32": ("refused", lambda: single(
        "MatMul", {"x": N32}, (2, 4), c("w", np.ones((3, 4), "i")), kind=INT32)),
    "Gemm of INT32": ("refused", lambda: single(
        "Gemm", {"x": N32}, (2, 4), c("w", np.ones((3, 4), "i")), c("b", np.ones(4, "i")), kind=INT32)),
    "TopK of INT64": ("refused", lambda: single(
        "TopK", {"x": I2}, {"v": (INT64, (2, 1)), "i": (INT64, (2, 1))}, c("k", [1]))),
    "Resize of INT32": ("refused", lambda: single(
        "Resize", {"x": X4.astype(np.int32)}, (1, 4, 12, 12), "", c("s", np.array([1, 1, 2, 2], "f")), kind=INT32)),
    "Clip of FP16 with FLOAT16 bounds": ("misread", lambda: single(
        "Clip", {"x": HALF2}, (2, 3), c("l", np.float16(0)), c("h", np.float16(1)), kind=FLOAT16)),
    "Clip of FP16 without a lower bound": ("refused", lambda: single(
        "Clip", {"x": HALF2}, (2, 3), "", c("h", np.float16(1)), kind=FLOAT16)),
    "Clip without a lower bound": ("accepted", lambda: single("Clip", {"x": X2}, (2, 3), "", c("h", np.float32(1)))),
    "FP16 in int32_data": ("misread", half_in_int32_data),
    "Expand of BOOL": ("warning", lambda: single("Expand", {"x": BITS}, (4, 2, 3), c("s", [4, 2, 3]), kind=BOOL)),
    "an output of UINT8": ("refused", lambda: single("Cast", {"x": X2}, (2, 3), kind=UINT8, to=UINT8)),
    # operators
    "Mod": ("refused", lambda: single("Mod", {"x": N32}, (2, 3), c("b", np.int32(2)), kind=INT32)),
    "Xor": ("refused", lambda: single("Xor", {"a": BITS, "b": BITS}, (2, 3), kind=BOOL)),
    "Dropout in training mode": ("refused", lambda: single(
        "Dropout", {"x": X2}, (2, 3), c("r", np.float32(0.5)), c("t", np.bool_(True)))),
    "MaxPool with indices": ("refused", lambda: single(
        "MaxPool", {"x": X4}, {"y": (FLOAT, (1, 4, 3, 3)), "i": (INT64, (1, 4, 3, 3))}, kernel_shape=[2, 2],
        strides=[2, 2])),
    "AveragePool with gaps": ("refused", lambda: single(
        "AveragePool", {"x": X4}, (1, 4, 4, 4), kernel_shape=[2, 2], dilations=[2, 2], opset=19)),
    "LpPool 1-D": ("refused", lambda: single("LpPool", {"x": X3}, (1, 4, 3), kernel_shape=[2], strides=[2])),
    "LpPool, ceil_mode": ("misread", lambda: single(
        "LpPool", {"x": X4}, (1, 4, 2, 2), kernel_shape=[4, 4], strides=[4, 4], ceil_mode=1, opset=18)),
    "BatchNormalization in training mode": ("misread", lambda: single(
        "BatchNormalization", {"x": X4}, X4.shape, *(c(name, ONES) for name in "sbmv"), training_mode=1, opset=14)),
    "InstanceNormalization of two axes": ("refused", lambda: single(
        "InstanceNormalization", {"x": z(1, 4)}, (1, 4), c("s", ONES), c("b", ONES))),
    "InstanceNormalization, FLOAT16 scale": ("misread", lambda: single(
        "InstanceNormalization", {"x": X4.astype(np.float16)}, X4.shape, c("s", ONES.astype(np.float16)),
        c("b", ONES.astype(np.float16)), kind=FLOAT16)),
    "NonMaxSuppression": ("warning", lambda: single(
        "NonMaxSuppression", {"b": z(1, 5, 4), "s": z(1, 2, 5)}, (10, 3), c("k", [5]), kind=INT64)),
    "Range of computed FLOAT": ("refused", lambda: of_nodes(
        [helper.make_node("Relu", ["x"], ["a"]), helper.make_node("Range", ["a", "l", "d"], ["y"])],
        {"x": z(1)[0]}, {"y": (FLOAT, (2,))}, c("l", np.float32(3)), c("d", np.float32(1)))),
    "GRU, layout": ("misread", lambda: single(
        "GRU", {"x": z(2, 4, 3)}, {"y": (FLOAT, (2, 4, 1, 5))}, c("W", z(1, 15, 3)), c("R", z(1, 15, 5)),
        hidden_size=5, layout=1, opset=14)),
    "ScatterND, reduction": ("misread", lambda: single(
        "ScatterND", {"x": X2}, (2, 3), c("i", [[0]]), c("u", z(1, 3)), reduction="add", opset=16)),
    "DepthToSpace of five axes": ("refused", lambda: single(
        "DepthToSpace", {"x": z(1, 4, 2, 2, 2)}, (1, 1, 4, 4, 2), blocksize=2)),
    # convolutions
    "Conv, a bias of another size": ("refused", lambda: single(
        "Conv", {"x": X4}, (1, 6, 4, 4), WEIGHT, c("b", ONES))),
    "Conv, a computed bias": ("refused", computed_bias),
    "ConvTranspose 1-D, output_padding": ("misread", lambda: single(
        "ConvTranspose", {"x": X3}, (1, 3, 12), c("w", z(4, 3, 3)), strides=[2], pads=[1, 1], output_padding=[1])),
    "ConvTranspose 3-D, output_padding": ("refused", lambda: single(
        "ConvTranspose", {"x": z(1, 4, 3, 3, 3)}, (1, 2, 6, 6, 6), c("w", z(4, 2, 3, 3, 3)), strides=[2, 2, 2],
        pads=[1] * 6, output_padding=[1] * 3)),
    "ConvTranspose 2-D, output_padding": ("accepted", lambda: single(
        "ConvTranspose", {"x": X4}, (1, 3, 12, 12), c("w", z(4, 3, 3, 3)), strides=[2, 2], pads=[1] * 4,
        output_padding=[1, 1])),
    "ConvTranspose by what is computed": ("refused", lambda: single(
        "ConvTranspose", {"x": X4, "w": z(4, 3, 3, 3)}, (1, 3, 8, 8))),
    "Conv 4-D": ("refused", lambda: single(
        "Conv", {"x": z(1, 2, 3, 3, 3, 3)}, (1, 2, 3, 3, 3, 3), c("w", z(2, 2, 1, 1, 1, 1)))),
    "MaxPool 4-D": ("refused", lambda: single(
        "MaxPool", {"x": z(1, 2, 4, 4, 4, 4)}, (1, 2, 2, 2, 2, 2), kernel_shape=[2] * 4, strides=[2] * 4)),
    "ConvTranspose, output_shape": ("warning", lambda: single(
        "ConvTranspose", {"x": X4}, (1, 3, 12, 12), c("w", z(4, 3, 3, 3)), strides=[2, 2], output_shape=[12, 12])),
    # quantisation
    "DequantizeLinear without a zero point": ("refused", lambda: single(
        "DequantizeLinear", {"x": np.ones((2, 3), np.int8)}, (2, 3), c("s", np.float32(1)))),
    "DequantizeLinear, a zero point": ("refused", lambda: single(
        "DequantizeLinear", {"x": np.ones((2, 3), np.int8)}, (2, 3), c("s", np.float32(1)), c("p", np.int8(1)))),
    "DequantizeLinear": ("accepted", lambda: single(
        "DequantizeLinear", {"x": np.ones((2, 3), np.int8)}, (2, 3), c("s", np.float32(1)), c("p", np.int8(0)))),
    # products
    "Gemm, transA, not square": ("refused", lambda: single(
        "Gemm", {"x": z(3, 2)}, (2, 4), c("w", z(3, 4)), c("b", z(4)), transA=1)),
    "Gemm, all computed, transA": ("accepted", lambda: single(
        "Gemm", {"x": z(3, 2), "w": z(3, 4), "b": z(4)}, (2, 4), transA=1)),
    "Gemm, K=1, a bias of two axes": ("accepted", lambda: single(
        "Gemm", {"x": z(1, 1), "w": z(1, 4)}, (1, 4), c("b", z(1, 4)))),
    "MatMul of a vector by a batch of one batch": ("misread", lambda: single(
        "MatMul", {"a": z(3), "b": z(1, 5, 3, 4)}, (1, 5, 4))),
    "Einsum, a diagonal": ("warning", lambda: single("Einsum", {"x": z(3, 3)}, (3,), equation="ii->i")),
    # reductions and orders
    "ReduceMean, axes as an input": ("misread", lambda: single(
        "ReduceMean", {"x": X2}, (2, 1), c("a", [1]), opset=18)),
    "ReduceMean, all axes as an input": ("accepted", lambda: single(
        "ReduceMean", {"x": X2}, (1, 1), c("a", [0, 1]), opset=18)),
    "ReduceSum of a scalar": ("refused", lambda: single("ReduceSum", {"x": z(1)[0]}, ())),
    "TopK along the first of five axes": ("refused", lambda: single(
        "TopK", {"x": z(3, 1, 1, 1, 2)}, {"v": (FLOAT, (2, 1, 1, 1, 2)), "i": (INT64, (2, 1, 1, 1, 2))}, c("k", [2]),
        axis=0)),
    "TopK, K computed": ("refused", lambda: single(
        "TopK", {"x": X2, "k": np.array([1])}, {"v": (FLOAT, (2, 1)), "i": (INT64, (2, 1))})),
    "CumSum, the axis computed": ("refused", lambda: single("CumSum", {"x": X2, "a": np.array(1)}, (2, 3))),
    # moves
    "Flatten of a vector": ("misread", lambda: single("Flatten", {"x": z(3)}, (1, 3), axis=0)),
    "Expand to the shape of a scalar": ("refused", lambda: single(
        "Expand", {"x": X2}, (2, 3), c("s", np.zeros(0, np.int64)))),
    "Reshape to a scalar": ("accepted", lambda: single("Reshape", {"x": z(1)}, (), c("s", np.zeros(0, np.int64)))),
    "Unsqueeze of no axes": ("refused", lambda: single("Unsqueeze", {"x": X2}, (2, 3), c("a", np.zeros(0, np.int64)))),
    "Slice with steps and without axes": ("refused", lambda: single(
        "Slice", {"x": X2}, (1, 3), c("b", [0, 0]), c("e", [2, 3]), "", c("t", [2, 1]))),
    "Split, num_outputs, uneven": ("misread", lambda: single(
        "Split", {"x": z(5)}, {"a": (FLOAT, (3,)), "b": (FLOAT, (2,))}, opset=18, num_outputs=2)),
    "Pad of BOOL by true": ("misread", lambda: single(
        "Pad", {"x": BITS}, (2, 5), c("p", [0, 1, 0, 1]), c("v", np.bool_(True)), kind=BOOL)),
    "Pad of some axes": ("misread", lambda: single(
        "Pad", {"x": X2}, (2, 5), c("p", [1, 1]), c("v", np.float32(1)), c("a", [1]), opset=18)),
    "Pad, wrapping": ("refused", lambda: single(
        "Pad", {"x": X2}, (2, 5), c("p", [0, 1, 0, 1]), mode="wrap", opset=19)),
    "Pad by nothing": ("accepted", lambda: single("Pad", {"x": X2}, (2, 3), c("p", [0, 0, 0, 0]), mode="edge")),
    "Shape, some sizes": ("misread", lambda: single("Shape", {"x": X2}, (1,), kind=INT64, start=1, opset=15)),
    "Constant, value_ints": ("misread", lambda: constant_node(value_ints=[1, 2, 3])),
    "Constant, sparse": ("refused", lambda: constant_node(sparse_value=helper.make_sparse_tensor(
        c("v", np.array([1])), c("i", np.array([0])), [3]))),
    "nine axes inside": ("refused", nine_axes_inside),
    "two outputs that are one tensor": ("misread", one_tensor_twice),
    "Transpose, identity, inside": ("accepted", renamed_inside),
    "integers beyond 32 bits": ("misread", lambda: single("Add", {"x": I2}, (2, 3), c("b", 2**40), kind=INT64)),
    "bounds beyond 32 bits": ("accepted", lambda: single(
        "Slice", {"x": X2}, (1, 3), c("b", [1]), c("e", [2**62]), c("a", [0]))),
    "DepthToSpace of BOOL": ("refused", lambda: single(
        "DepthToSpace", {"x": X4 > 0}, (1, 1, 12, 12), kind=BOOL, blocksize=2)),
    # interpolation
    "Resize, cubic": ("refused", lambda: single(
        "Resize", {"x": X4}, (1, 4, 12, 12), "", c("s", np.array([1, 1, 2, 2], "f")), mode="cubic")),
    "Resize, cropped": ("refused", lambda: single(
        "Resize", {"x": X4}, (1, 4, 6, 6), c("r", np.array([0, 0, 0, 0, 1, 1, 1, 1], "f")),
        c("s", np.ones(4, "f")), coordinate_transformation_mode="tf_crop_and_resize")),
    "Resize, antialias": ("misread", lambda: single(
        "Resize", {"x": X4}, (1, 4, 3, 3), "", c("s", np.array([1, 1, 0.5, 0.5], "f")), mode="linear", antialias=1,
        opset=18)),
    "Resize, linear, sizes over the batch": ("refused", lambda: linear_sizes((2, 4, 12, 12))),
    "Resize, linear, sizes": ("accepted", lambda: linear_sizes((1, 4, 12, 12))),
}  # fmt: skip
"""By name: the verdict, and the model."""
