"""Each rule of the lint, with a small model that breaks it and one beside it that does not."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from l1rr_fx.lowering import lint
from tests.lint_models import BOOL, FLOAT, FLOAT16, INT64, Model, Shape, f32, i64, node, said


def half_in_int32_data(name: str) -> TensorProto:
    return helper.make_tensor(name, FLOAT16, [1], [1.0])


def of_unknown_type(name: str) -> TensorProto:
    tensor = helper.make_tensor(name, FLOAT, [1], [1.0])
    tensor.data_type = 999
    return tensor


def referring(made: onnx.NodeProto) -> onnx.NodeProto:
    """A node of a function's body: its attribute is the function's."""
    made.attribute.add(name="alpha", type=onnx.AttributeProto.FLOAT, ref_attr_name="slope")
    return made


WEIGHT, ONE_AXIS = f32(4, 4, 3, 3), f32(4, 4, 3)
IMAGE: dict[str, Shape] = {"x": (1, 4, 8, 8)}
ROW: dict[str, Shape] = {"x": (1, 4, 8)}
FOUR_AXES: dict[str, Shape] = {"x": (1, 4, 2, 2, 2, 2)}
VECTORS = {name: f32(4) for name in ("s", "b", "m", "v")}


def computed(name: str, *shape: int) -> dict[str, Shape]:
    """The usual image, and a second input in place of a constant."""
    return {"x": (1, 4, 8, 8), name: shape}


LOOP = helper.make_function(
    "own", "F", ["x"], ["y"], [helper.make_node("Relu", ["x"], ["y"])], [helper.make_opsetid("", 13)]
)

MOVED: dict[str, tuple[onnx.NodeProto, dict[str, Any]]] = {
    "Reshape": (node("Reshape", "x", "c"), {"c": i64(4, 64)}),
    "Expand": (node("Expand", "x", "c"), {"c": i64(2, 4, 8, 8)}),
    "Tile": (node("Tile", "x", "c"), {"c": i64(2, 1, 1, 1)}),
    "Pad": (node("Pad", "x", "c"), {"c": i64(0, 0, 1, 1, 0, 0, 1, 1)}),
    "Slice": (node("Slice", "x", "s", "e", "a"), {"s": i64(1), "e": i64(3), "a": i64(1)}),
    "Squeeze": (node("Squeeze", "x", "c"), {"c": i64(0)}),
    "Unsqueeze": (node("Unsqueeze", "x", "c"), {"c": i64(0)}),
    "Transpose": (node("Transpose", "x", perm=[1, 0, 2, 3]), {}),
    "Flatten": (node("Flatten", "x", axis=2), {}),
    "Split": (node("Split", "x", outputs=("y", "z"), axis=1), {}),
    "Concat": (node("Concat", "x", "x", axis=1), {}),
}

# Each row: its name, a model that is found fault with, a piece of what is said, its severity, and a model that passes.
ROWS: tuple[tuple[str, Model, str, str, Model], ...] = (
    ("unknown operator", Model(node("Nonsense", "x")), "no importer", "error", Model(node("Relu", "x"))),
    ("absent operator", Model(node("HardSwish", "x"), opset=14), "no importer", "error",
     Model(node("HardSigmoid", "x"))),
    ("experimental operator",
     Model(node("NonMaxSuppression", "b", "s"), {"b": (1, 5, 4), "s": (1, 2, 5)}, kinds={"y": INT64}), "experimental",
     "warning", Model(node("Sigmoid", "x"))),
    ("plugin", Model(node("EfficientNMS_TRT", "x")), "plugin", "note", Model(node("Tanh", "x"))),
    ("domain", Model(node("Gelu", "x", domain="com.microsoft")), "no importer", "error", Model(node("Relu", "x"))),
    ("domain of a known name", Model(node("Relu", "x", domain="own")), "domain 'own' is ignored", "error",
     Model(node("Relu", "x", domain="ai.onnx"))),
    ("types", Model(node("Not", "x"), kinds={"y": BOOL}), "input 0 is FLOAT; expected BOOL", "error",
     Model(node("Not", "x"), kinds={"x": BOOL, "y": BOOL})),
    *((f"{kind} of truth values", Model(made, constants=held, kinds={"x": BOOL, **dict.fromkeys(made.output, BOOL)}),
       "moves BOOL", "warning", Model(made, constants=held)) for kind, (made, held) in MOVED.items()),
    ("newer opset", Model(node("Relu", "x"), opset=18), "declares opset 18", "warning", Model(node("Relu", "x"))),
    ("ancient opset", Model(node("Relu", "x"), opset=6), "broadcasts in another way", "error",
     Model(node("Relu", "x"), opset=7)),
    ("newer IR", Model(node("Relu", "x"), ir_version=10), "IR version 10", "warning", Model(node("Relu", "x"))),
    ("functions", Model(node("Relu", "x"), ir_version=8, functions=[LOOP]), "functions (F) are ignored", "error",
     Model(node("Relu", "x"), ir_version=8)),
    ("dynamic sizes", Model(node("Relu", "x"), {"x": ("batch", 4, 8, 8)}), "sizes of input x", "error",
     Model(node("Relu", "x"))),
    ("unreadable input", Model(node("Identity", "x"), kinds={"x": TensorProto.UINT8, "y": TensorProto.UINT8}),
     "input x is UINT8", "error", Model(node("Identity", "x"))),
    *((f"input of {name}", Model(node("Cast", "x", to=FLOAT), kinds={"x": kind}), f"input x is {name}", "error",
       Model(node("Cast", "x", to=FLOAT), kinds={"x": TensorProto.INT8}))
      for name, kind in (("FLOAT8E4M3FN", TensorProto.FLOAT8E4M3FN), ("UINT4", TensorProto.UINT4),
                         ("INT4", TensorProto.INT4), ("of the unknown type 999", 999))),
    ("sizes of -1", Model(node("Relu", "x"), {"x": (-1, 4, 8, 8)}), "sizes of input x", "error",
     Model(node("Relu", "x"), {"x": (0, 4, 8, 8)})),
    ("constant of an unknown type", Model(node("Cast", "c", to=FLOAT), constants={"c": of_unknown_type("c")}),
     "constant c is of the unknown type 999", "error", Model(node("Cast", "c", to=FLOAT), constants={"c": i64(1)})),
    ("numbers for a list", Model(node("MaxPool", "x", kernel_shape=[2, 2], dilations=2)),
     "its dilations is of type INT; expected INTS", "error",
     Model(node("MaxPool", "x", kernel_shape=[2, 2], dilations=[1, 1]))),
    ("pads that are a number", Model(node("AveragePool", "x", kernel_shape=[2, 2], pads=2)), "its pads is of type INT",
     "error", Model(node("AveragePool", "x", kernel_shape=[2, 2], pads=[0, 0, 0, 0]))),
    ("an attribute that its opset has not", Model(node("LpPool", "x", kernel_shape=[2, 2], dilations=2)),
     "its dilations is of type INT", "error", Model(node("LpPool", "x", kernel_shape=[2, 2]))),
    ("an equation that is a number", Model(node("Einsum", "x", equation=5)), "its equation is of type INT", "error",
     Model(node("Einsum", "x", equation="abcd->abc"))),
    ("an equation that is no text", Model(node("Einsum", "x", equation=b"\xff\xfe")), "its equation is no text",
     "error", Model(node("Einsum", "x", equation="abcd->abc"))),
    ("a mode that is no text", Model(node("Resize", "x", "", "s", mode=b"\xff"), constants={"s": f32(4)}),
     "its mode is no text", "error", Model(node("Resize", "x", "", "s", mode="linear"), constants={"s": f32(4)})),
    ("a value that is no tensor", Model(node("Constant", value=5), {}), "its value is of type INT; expected TENSOR",
     "error", Model(node("Constant", value_float=3.0), {})),
    ("an attribute of a function", Model(referring(node("LeakyRelu", "x"))), "its alpha is that of a function", "error",
     Model(node("LeakyRelu", "x", alpha=0.5))),
    ("no inputs", Model(node("Cast", to=FLOAT)), "it has 0 inputs; expected at least 1", "error",
     Model(node("Cast", "x", to=FLOAT))),
    ("no outputs", Model(node("Cast", "x", outputs=(), to=FLOAT)), "it has 0 outputs; expected at least 1", "error",
     Model(node("Cast", "x", to=FLOAT))),
    ("a constant without an output", Model(node("Constant", outputs=(), value=numpy_helper.from_array(i64(3)))),
     "it has 0 outputs", "error", Model(node("Relu", "x"))),
    ("too many inputs", Model(node("Relu", "x", "x")), "it has 2 inputs; expected at most 1", "error",
     Model(node("Relu", "x"))),
    ("no equation", Model(node("Einsum", "x")), "its equation is missing", "error",
     Model(node("Einsum", "x", equation="abcd->abc"))),
    ("half precision in int32_data", Model(node("Add", "x", "c"), constants={"c": half_in_int32_data("c")}, kinds={
        "x": FLOAT16, "y": FLOAT16}), "int32_data", "error", Model(node("Add", "x", "c"), constants={"c": f32(1)})),
    ("half precision", Model(node("Add", "x", "c"), constants={"c": np.ones(1, np.float16)}, kinds={
        "x": FLOAT16, "y": FLOAT16}), "natively only since 8.4", "warning",
     Model(node("Add", "x", "c"), constants={"c": f32(1)})),
    ("bytes", Model(node("Cast", "c", to=FLOAT), constants={"c": np.ones(1, np.uint8)}), "becomes INT32", "warning",
     Model(node("Cast", "c", to=FLOAT), constants={"c": i64(1)})),
    ("unreadable constant", Model(node("Cast", "c", to=FLOAT), constants={"c": np.ones(1, np.uint16)}),
     "constant c is UINT16", "error", Model(node("Cast", "c", to=FLOAT), constants={"c": i64(1)})),
    ("double precision", Model(node("Cast", "c", to=FLOAT), constants={"c": np.ones(1, np.float64)}),
     "becomes FLOAT", "warning", Model(node("Cast", "c", to=FLOAT), constants={"c": i64(1)})),
    ("beyond 32 bits", Model(node("Add", "x", "c"), constants={"c": i64(2**40)}, kinds={"x": INT64, "y": INT64}),
     "clamped", "error",
     Model(node("Slice", "x", "s", "e", "a"), constants={"s": i64(0), "e": i64(2**62), "a": i64(1)})),
    ("convolution of rank 6", Model(node("Conv", "x", "w"), FOUR_AXES, {"w": f32(4, 4, 1, 1, 1, 1)}), "6 axes", "error",
     Model(node("Conv", "x", "w"), ROW, {"w": ONE_AXIS})),
    ("computed weight", Model(node("Conv", "x", "w"), computed("w", 4, 4, 3, 3)), "computes its weight", "error",
     Model(node("Conv", "x", "w"), IMAGE, {"w": WEIGHT})),
    ("computed bias", Model(node("Conv", "x", "w", "b"), computed("b", 4), {"w": WEIGHT}), "computes its bias", "error",
     Model(node("Conv", "x", "w", "b"), IMAGE, {"w": WEIGHT, "b": f32(4)})),
    ("transposed with a computed weight", Model(node("ConvTranspose", "x", "w"), computed("w", 4, 4, 3, 3)),
     "computes its weight", "error", Model(node("ConvTranspose", "x", "w"), IMAGE, {"w": WEIGHT})),
    ("pool of rank 6", Model(node("MaxPool", "x", kernel_shape=[2] * 4), FOUR_AXES), "6 axes", "error",
     Model(node("MaxPool", "x", kernel_shape=[2]), ROW)),
    ("LpPool of rank 3", Model(node("LpPool", "x", kernel_shape=[2]), ROW), "3 axes", "error",
     Model(node("LpPool", "x", kernel_shape=[2, 2]))),
    ("dilated pool", Model(node("MaxPool", "x", kernel_shape=[2, 2], dilations=[2, 2])), "dilated", "error",
     Model(node("MaxPool", "x", kernel_shape=[2, 2], dilations=[1, 1]))),
    ("places of maxima", Model(node("MaxPool", "x", outputs=("y", "i"), kernel_shape=[2, 2]), kinds={"i": INT64}),
     "no second output", "error", Model(node("MaxPool", "x", kernel_shape=[2, 2]))),
    ("dilated LpPool", Model(node("LpPool", "x", kernel_shape=[2, 2], dilations=[2, 2]), opset=18), "dilations",
     "error", Model(node("LpPool", "x", kernel_shape=[2, 2]))),
    ("computed batch norm", Model(node("BatchNormalization", "x", "s", "b", "m", "v"), computed("s", 4),
     {k: v for k, v in VECTORS.items() if k != "s"}), "computes its parameters", "warning",
     Model(node("BatchNormalization", "x", "s", "b", "m", "v"), IMAGE, VECTORS)),
    ("batch norm in training", Model(node(
        "BatchNormalization", "x", "s", "b", "m", "v", outputs=("y", "a", "c"), training_mode=1), IMAGE, VECTORS,
        opset=14), "training_mode", "error",
     Model(node("BatchNormalization", "x", "s", "b", "m", "v"), IMAGE, VECTORS)),
    ("half instance norm", Model(node("InstanceNormalization", "x", "s", "b"), IMAGE, {
        "s": np.ones(4, np.float16), "b": np.ones(4, np.float16)}, {"x": FLOAT16, "y": FLOAT16}), "read as FLOAT",
     "error", Model(node("InstanceNormalization", "x", "s", "b"), IMAGE, {"s": f32(4), "b": f32(4)})),
    ("instance norm of rank 2", Model(node("InstanceNormalization", "x", "s", "b"), {"x": (1, 4)}, {
        "s": f32(4), "b": f32(4)}), "2 axes", "error",
     Model(node("InstanceNormalization", "x", "s", "b"), IMAGE, {"s": f32(4), "b": f32(4)})),
    ("half bounds", Model(node("Clip", "x", "l"), constants={"l": np.float16(0)}, kinds={"x": FLOAT16, "y": FLOAT16}),
     "bounds are read as FLOAT", "error", Model(node("Clip", "x", "l"), constants={"l": np.float32(0)})),
    ("cubic", Model(node("Resize", "x", "", "s", mode="cubic"), constants={"s": f32(4)}), "mode is 'cubic'", "error",
     Model(node("Resize", "x", "", "s", mode="linear"), constants={"s": f32(4)})),
    ("crop and resize", Model(node("Resize", "x", "r", "s", coordinate_transformation_mode="tf_crop_and_resize"),
     constants={"s": f32(4), "r": f32(8)}), "tf_crop_and_resize", "error",
     Model(node("Resize", "x", "", "s", coordinate_transformation_mode="asymmetric"), constants={"s": f32(4)})),
    ("computed scales", Model(node("Resize", "x", "", "s"), computed("s", 4)), "computes its scales", "error",
     Model(node("Resize", "x", "", "s"), constants={"s": f32(4)})),
    ("antialias", Model(node("Resize", "x", "", "s", mode="linear", antialias=1), constants={"s": f32(4)}, opset=18),
     "antialias is ignored", "error", Model(node("Resize", "x", "", "s", mode="linear"), constants={"s": f32(4)})),
    ("resized integers", Model(node("Resize", "x", "", "s"), constants={"s": f32(4)}, kinds={"x": INT64, "y": INT64}),
     "is INT64", "error", Model(node("Resize", "x", "", "s"), constants={"s": f32(4)})),
    ("computed scales of Upsample", Model(node("Upsample", "x", "s"), computed("s", 4), opset=9), "computes its scales",
     "error", Model(node("Upsample", "x", "s"), constants={"s": f32(4)}, opset=9)),
    ("computed K", Model(node("TopK", "x", "k", outputs=("y", "i")), computed("k", 1), kinds={"k": INT64, "i": INT64}),
     "computes its K", "error", Model(node("TopK", "x", "k", outputs=("y", "i")), constants={"k": i64(2)},
     kinds={"i": INT64})),
    ("sorted integers", Model(node("TopK", "x", "k", outputs=("y", "i")), constants={"k": i64(2)}, kinds={
        "x": INT64, "y": INT64, "i": INT64}), "is INT64", "error",
     Model(node("TopK", "x", "k", outputs=("y", "i")), constants={"k": i64(2)}, kinds={"i": INT64})),
    ("computed axis of CumSum", Model(node("CumSum", "x", "a"), computed("a"), kinds={"a": INT64}), "computes its axis",
     "error", Model(node("CumSum", "x", "a"), constants={"a": np.int64(1)})),
    ("computed axes of Slice", Model(node("Slice", "x", "s", "e", "a"), computed("a", 1), {"s": i64(0), "e": i64(2)},
     {"a": INT64}), "computes its axes", "error",
     Model(node("Slice", "x", "s", "e", "a"), constants={"s": i64(0), "e": i64(2), "a": i64(1)})),
    ("computed axes of Squeeze", Model(node("Squeeze", "x", "a"), computed("a", 1), kinds={"a": INT64}),
     "computes its axes", "error", Model(node("Squeeze", "x", "a"), constants={"a": i64(0)})),
    ("computed axes of Unsqueeze", Model(node("Unsqueeze", "x", "a"), computed("a", 1), kinds={"a": INT64}),
     "computes its axes", "error", Model(node("Unsqueeze", "x", "a"), constants={"a": i64(0)})),
    ("axes of Pad", Model(node("Pad", "x", "p", "v", "a"), constants={"p": i64(1, 1), "v": np.float32(0), "a": i64(2)},
     opset=18), "axes as an input", "error",
     Model(node("Pad", "x", "p", "v"), constants={"p": i64(0, 0, 1, 1, 0, 0, 1, 1), "v": np.float32(0)})),
    ("wrapped padding", Model(node("Pad", "x", "p", mode="wrap"), constants={"p": i64(0, 0, 1, 1, 0, 0, 1, 1)},
     opset=19), "mode is 'wrap'", "error",
     Model(node("Pad", "x", "p", mode="reflect"), constants={"p": i64(0, 0, 1, 1, 0, 0, 1, 1)})),
    ("uneven parts", Model(node("Split", "x", outputs=("y", "z", "u"), axis=1, num_outputs=3), opset=18),
     "4 elements into 3 parts", "error",
     Model(node("Split", "x", outputs=("y", "z"), axis=1, num_outputs=2), opset=18)),
    ("part of a shape", Model(node("Shape", "x", start=1), opset=15, kinds={"y": INT64}), "start is ignored", "error",
     Model(node("Shape", "x"), kinds={"y": INT64})),
    ("added by ScatterND", Model(node("ScatterND", "x", "i", "u", reduction="add"), {"x": (4,), "u": (1,)},
     {"i": np.zeros((1, 1), np.int64)}, opset=16), "reduction is ignored", "error",
     Model(node("ScatterND", "x", "i", "u"), {"x": (4,), "u": (1,)}, {"i": np.zeros((1, 1), np.int64)})),
    ("added by ScatterElements", Model(node("ScatterElements", "x", "i", "u", reduction="add"), {"x": (4,), "u": (1,)},
     {"i": i64(0)}, opset=16), "reduction is ignored", "error",
     Model(node("ScatterElements", "x", "i", "u"), {"x": (4,), "u": (1,)}, {"i": i64(0)})),
    *((f"{kind} of truth values", Model(node(kind, "x", "i"), {"x": (4, 4)}, {"i": np.zeros((1, 2), np.int64)}, {
        "x": BOOL, "y": BOOL}), "is BOOL", "error",
       Model(node(kind, "x", "i"), {"x": (4, 4)}, {"i": np.zeros((1, 2), np.int64)}))
      for kind in ("Gather", "GatherElements", "GatherND")),
    ("gather of an image", Model(node("Gather", "x", "i", axis=1), constants={"i": i64(0, 2)}), "copies the whole",
     "note", Model(node("Gather", "x", "i", axis=1), {"x": (1, 4)}, {"i": i64(0, 2)})),
    ("choice of truth values", Model(node("Where", "c", "x", "x"), {"c": (4,), "x": (4,)}, kinds={
        "c": BOOL, "x": BOOL, "y": BOOL}), "input 1 is BOOL", "error",
     Model(node("Where", "c", "x", "x"), {"c": (4,), "x": (4,)}, kinds={"c": BOOL})),
    ("ellipsis", Model(node("Einsum", "x", equation="...i->...")), "ellipsis", "error",
     Model(node("Einsum", "x", equation="abcd->abc"))),
    ("diagonal", Model(node("Einsum", "x", equation="abcc->abc")), "diagonal", "error",
     Model(node("Einsum", "x", equation="abcd->abdc"))),
    ("broadcast", Model(node("Einsum", "x", "z", equation="ab,ab->ab"), {"x": (4, 4), "z": (1, 4)}), "broadcast",
     "error", Model(node("Einsum", "x", "z", equation="ab,ab->ab"), {"x": (4, 4), "z": (4, 4)})),
    ("Gemm of rank 3", Model(node("Gemm", "x", "w"), ROW, {"w": f32(8, 2)}), "3 axes", "error",
     Model(node("Gemm", "x", "w", "c"), {"x": (1, 8)}, {"w": f32(8, 2), "c": f32(2)})),
    ("product of integers", Model(node("MatMul", "x", "x"), {"x": (4, 4)}, kinds={"x": INT64, "y": INT64}), "is INT64",
     "error", Model(node("MatMul", "x", "x"), {"x": (4, 4)})),
    ("depth to space of rank 3", Model(node("DepthToSpace", "x", blocksize=2), ROW), "3 axes", "error",
     Model(node("DepthToSpace", "x", blocksize=2))),
    ("space to depth of rank 3", Model(node("SpaceToDepth", "x", blocksize=2), ROW), "3 axes", "error",
     Model(node("SpaceToDepth", "x", blocksize=2))),
    ("value_int", Model(node("Constant", value_int=3), {}, kinds={"y": INT64}), "value_int is read as a float",
     "error", Model(node("Constant", value=numpy_helper.from_array(i64(3))), {}, kinds={"y": INT64})),
    ("value_ints", Model(node("Constant", value_ints=[3]), {}, kinds={"y": INT64}), "value_ints", "error",
     Model(node("Constant", value_float=3.0), {})),
    ("value_string", Model(node("Constant", value_string="no"), {}, kinds={"y": TensorProto.STRING}), "value_string",
     "error", Model(node("Constant", value_floats=[3.0]), {})),
    ("cast to bytes", Model(node("Cast", "x", to=TensorProto.UINT8), kinds={"y": TensorProto.UINT8}), "to UINT8",
     "error", Model(node("Cast", "x", to=TensorProto.INT32), kinds={"y": TensorProto.INT32})),
    ("dropout in training", Model(node("Dropout", "x", "r", "t"), constants={
        "r": np.float32(0.5), "t": np.bool_(True)}), "training mode", "error",
     Model(node("Dropout", "x", "r", "t"), constants={"r": np.float32(0.5), "t": np.bool_(False)})),
    ("zero point", Model(node("QuantizeLinear", "x", "s", "z"), constants={"s": np.float32(1), "z": np.int8(3)}, kinds={
        "y": TensorProto.INT8}), "zero point", "error", Model(node("Round", "x"))),
    ("dequantized zero point", Model(node("DequantizeLinear", "x", "s", "z"), constants={
        "s": np.float32(1), "z": np.int8(3)}, kinds={"x": TensorProto.INT8}), "zero point", "error",
     Model(node("Round", "x"))),
    ("no INT8", Model(node("QuantizeLinear", "x", "s", "z"), constants={"s": np.float32(1), "z": np.int8(0)}, kinds={
        "y": TensorProto.INT8}), "no INT8", "note", Model(node("Round", "x"))),
    *((f"layout of {kind}", Model(node(kind, "x", "w", "r", hidden_size=1, layout=1), {"x": (1, 3, 2)}, {
        "w": f32(1, n, 2), "r": f32(1, n, 1)}, opset=14), "layout is ignored", "error",
       Model(node(kind, "x", "w", "r", hidden_size=1), {"x": (3, 1, 2)}, {"w": f32(1, n, 2), "r": f32(1, n, 1)}))
      for kind, n in (("LSTM", 4), ("GRU", 3), ("RNN", 1))),
    *((f"axes of {kind}", Model(node(kind, "x", "a"), constants={"a": i64(2, 3)}, opset=18), "everything is reduced",
       "error", Model(node(kind, "x", axes=[2, 3])))
      for kind in ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSumExp",
                   "ReduceSumSquare")),
    ("computed value of Pad", Model(node("Pad", "x", "p", "v"), computed("v", 1), {"p": i64(0, 0, 1, 1, 0, 0, 1, 1)}),
     "which is no scalar", "error",
     Model(node("Pad", "x", "p", "v"), computed("v"), {"p": i64(0, 0, 1, 1, 0, 0, 1, 1)})),
)  # fmt: skip


@pytest.mark.parametrize(("bad", "piece", "severity", "good"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_rule(bad: Model, piece: str, severity: str, good: Model) -> None:
    findings = lint(bad.proto())
    assert said(findings, piece, severity), f"not found: {piece!r} in {[str(f) for f in findings]}"
    assert all(finding.cure for finding in findings)
    assert not said(lint(good.proto()), piece, severity)
