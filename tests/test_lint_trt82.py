"""The lint against the verdicts that the parser of TensorRT 8.2 gave on small models, and every check with a row.

`M`: it built another network; `R`: it refused; `W`: it refused where the lint once warned; `D`: it accepts what
NvInfer.h forbids; `N`: it read rightly what the lint once refused. Rows without such a name are read in its sources.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from l1rr_fx.lowering import lint
from l1rr_fx.lowering.parsers.onnx_file import read_model
from l1rr_fx.lowering.parsers.trt82 import table
from l1rr_fx.lowering.parsers.trt82_model import EVERY_NODE, MODEL_CHECKS
from l1rr_fx.lowering.parsers.trt82_nodes import CHECKS
from tests.lint_models import BOOL, FLOAT, FLOAT16, INT64, Model, Shape, f32, i64, node, said
from tests.test_lint_rules import ROWS

PAIR: dict[str, Shape] = {"x": (2, 3)}
IMAGE: dict[str, Shape] = {"x": (1, 4, 6, 6)}
ROW: dict[str, Shape] = {"x": (1, 4, 9)}
NINE: dict[str, Shape] = {"x": (1, 1, 1, 1, 1, 1, 1, 1, 2)}
INTEGERS, TRUTHS = {"x": INT64, "y": INT64}, {"x": BOOL, "z": BOOL, "y": BOOL}
ONE = np.float32(1)
LIMITS = {"k": i64(3), "i": f32(1), "t": f32(1)}
NN = "tf_half_pixel_for_nn"


def gemm(**attributes: Any) -> Model:
    """A product with a constant and a bias."""
    return Model(node("Gemm", "x", "w", "b", **attributes), {"x": (3, 3)}, {"w": f32(3, 4), "b": f32(4)})


def topk(k: int, axis: int = -1, shape: Shape = (2, 5000), **attributes: Any) -> Model:
    return Model(
        node("TopK", "x", "k", outputs=("y", "i"), axis=axis, **attributes), {"x": shape}, {"k": i64(k)}, {"i": INT64}
    )


def pad(*pads: int, value: Any = ONE, kind: int = FLOAT) -> Model:
    return Model(node("Pad", "x", "p", "v"), PAIR, {"p": i64(*pads), "v": value}, {"x": kind, "y": kind})


def average(*pads: int, **attributes: Any) -> Model:
    return Model(node("AveragePool", "x", kernel_shape=[3, 3], pads=list(pads), **attributes), IMAGE)


def resize(scales: tuple[float, ...] = (1, 4, 9, 4), **attributes: Any) -> Model:
    return Model(node("Resize", "x", "", "s", **attributes), IMAGE, {"s": np.array(scales, np.float32)})


def sized(*sizes: int) -> Model:
    return Model(node("Resize", "x", "", "", "s", mode="linear"), IMAGE, {"s": i64(*sizes)})


def lstm(**attributes: Any) -> Model:
    count = 2 if attributes.get("direction") == "bidirectional" else 1
    return Model(
        node("LSTM", "x", "w", "r", hidden_size=5, **attributes),
        {"x": (4, 2, 3)},
        {"w": f32(count, 20, 3), "r": f32(count, 20, 5)},
    )


def einsum(equation: str, *shapes: Shape) -> Model:
    names = ("x", "z", "u")[: len(shapes)]
    return Model(node("Einsum", *names, equation=equation), dict(zip(names, shapes)))


def deconvolution(**attributes: Any) -> Model:
    return Model(node("ConvTranspose", "x", "w", **attributes), {"x": (1, 4, 3, 3, 3)}, {"w": f32(4, 2, 3, 3, 3)})


def transposed(*shape: int, kind: Any = np.float32) -> Model:
    return Model(node("Transpose", "w"), {}, {"w": np.ones(shape, kind)}, {"y": INT64 if kind is np.int64 else FLOAT})


def quantized(*more: str, **constants: Any) -> Model:
    held = {"s": np.float32(1), **constants}
    return Model(node("QuantizeLinear", "x", "s", *more), constants=held, kinds={"y": TensorProto.INT8})


def instance_norm(computed: str = "") -> Model:
    given: dict[str, Shape] = {"x": (1, 4, 6), **({computed: (4,)} if computed else {})}
    return Model(
        node("InstanceNormalization", "x", "s", "b"), given, {name: f32(4) for name in "sb" if name != computed}
    )


def casts(before: int, after: int) -> Model:
    return Model(node("Cast", "x", to=after), kinds={"x": before, "y": after})


def reduced(*inputs: str, kind: str = "ReduceSum", **attributes: Any) -> Model:
    return Model(
        node(kind, "x", *inputs, **attributes), PAIR, {"a": i64(1), "none": i64(), "b": np.zeros((), np.int64)}
    )


def of(kind: str, types: dict[str, int], *constants: Any) -> Model:
    """An operator on values of these types, and on constants."""
    held = {f"c{i}": value for i, value in enumerate(constants)}
    given = [name for name in types if name != "y"]
    return Model(node(kind, *given, *held), dict.fromkeys(given, (2, 3)), held, types)


# Each row: its name, a model that is found fault with, a piece of what is said, its severity, and a model that passes.
REPORT: tuple[tuple[str, Model, str, str, Model], ...] = (
    ("M1 the smallest", topk(3, largest=0), "returns the largest", "error", topk(3)),
    ("M2 Celu", Model(node("Celu", "x")), "becomes a ReLU", "error", Model(node("Elu", "x"))),
    ("M3 Pad of INT64", pad(0, 1, 0, 1, value=np.int64(5), kind=INT64), "value 5 is INT64", "error",
     pad(0, 1, 0, 1, value=np.int64(0), kind=INT64)),
    ("M4 Pad of FP16", pad(0, 1, 0, 1, value=np.float16(1), kind=FLOAT16), "value 1.0 is FLOAT16", "error",
     pad(0, 1, 0, 1)),
    ("M5 Flatten at axis 0", Model(node("Flatten", "x", axis=0), PAIR), "nothing is flattened", "error",
     Model(node("Flatten", "x", axis=0), IMAGE)),
    ("Flatten of a vector", Model(node("Flatten", "x"), {"x": (3,)}), "of 1 axes nothing", "error",
     Model(node("Flatten", "x"), IMAGE)),
    ("M7 no reduction", reduced(noop_with_empty_axes=1), "noop_with_empty_axes is ignored", "error",
     reduced("a", noop_with_empty_axes=1)),
    ("M8 transA", gemm(transA=1), "transA is ignored", "error", gemm(transA=1, alpha=2.0)),
    ("M9 one column", Model(node("Gemm", "x", "w"), {"x": (1, 1), "w": (1, 4)}), "is dropped", "error",
     Model(node("Gemm", "x", "w"), {"x": (1, 2), "w": (2, 4)})),
    ("M10 linear half pixel of TF", resize(mode="linear", coordinate_transformation_mode=NN), "as half_pixel", "error",
     resize(mode="linear", coordinate_transformation_mode="half_pixel")),
    ("M11 GlobalLpPool, p=1", Model(node("GlobalLpPool", "x", p=1)), "p is 1", "error",
     Model(node("GlobalLpPool", "x", p=2))),
    ("M14 LogSoftmax", Model(node("LogSoftmax", "x")), "logarithm of a softmax", "error",
     Model(node("Softmax", "x"))),
    ("M15 ReduceLogSumExp", Model(node("ReduceLogSumExp", "x")), "without subtracting the maximum", "error",
     Model(node("ReduceLogSum", "x"))),
    ("M16 Transpose renames an input", Model(node("Transpose", "x", perm=[0, 1]), PAIR), "name of its output", "error",
     Model(node("Transpose", "x", perm=[1, 0]), PAIR)),
    ("M17 Flatten renames an input", Model(node("Flatten", "x"), PAIR), "name of its output", "error",
     Model(node("Flatten", "x"), IMAGE)),
    ("R1 Gemm without C", Model(node("Gemm", "x", "w"), PAIR, {"w": f32(3, 4)}), "without C", "error",
     Model(node("MatMul", "x", "w"), PAIR, {"w": f32(3, 4)})),
    ("R2 Gemm with a C of one element", Model(node("Gemm", "x", "w", "b"), PAIR, {"w": f32(3, 4), "b": f32(1)}),
     "C has 1 elements", "error", gemm()),
    ("R4 Gemm of one column", Model(node("Gemm", "x", "w", "b", alpha=2.0), {"x": (2, 1)}, {
        "w": f32(1, 4), "b": f32(4)}), "is dropped", "error", gemm(alpha=2.0)),
    ("R5 Sign of INT64", of("Sign", INTEGERS), "input 0 is INT64", "error", of("Sign", {"x": FLOAT})),
    ("R6 Pow by INT64", of("Pow", {"x": FLOAT}, np.int64(2)), "input 1 is INT64", "error",
     of("Pow", {"x": FLOAT}, np.float32(2))),
    ("R7 negative pads", pad(0, -1, 0, -1), "negative", "error", pad(0, 1, 0, 0)),
    ("R8 capitals", einsum("IJ,JK->IK", (2, 3), (3, 4)), "letters I, J, K", "error",
     einsum("ij,jk->ik", (2, 3), (3, 4))),
    ("R9 vector by batch", Model(node("MatMul", "x", "z"), {"x": (3,), "z": (5, 3, 4)}), "a vector", "error",
     Model(node("MatMul", "x", "z"), {"x": (5, 4, 3), "z": (3,)})),
    ("R10 transposed INT64", transposed(2, 3, kind=np.int64), "type INT64 with 2 axes", "error", transposed(2, 3)),
    ("R12 pads at the begin", average(1, 1, 0, 0, count_include_pad=1), "or one more", "error",
     average(0, 0, 1, 1, count_include_pad=1)),
    ("R13 LpPool, p=3", Model(node("LpPool", "x", kernel_shape=[2, 2], p=3)), "p is 3", "error",
     Model(node("LpPool", "x", kernel_shape=[2, 2], p=1))),
    ("R15 computed axes", Model(node("ReduceSum", "x", "a"), {"x": (2, 3), "a": (1,)}, kinds={"a": INT64}),
     "computes its axes", "error", reduced("a")),
    ("R16 floor of TF", resize(coordinate_transformation_mode=NN, nearest_mode="floor"), "round_prefer_floor only",
     "error", resize(coordinate_transformation_mode=NN)),
    ("R17 linear over the batch", resize((2, 1, 2, 2), mode="linear"), "beyond the last 3", "error",
     resize((1, 2, 2, 2), mode="linear")),
    ("R18 input_forget", lstm(input_forget=1), "input_forget is 1", "error", lstm()),
    ("R19 transposed, nine axes", Model(node("Transpose", "x"), NINE), "9 axes", "error",
     Model(node("Transpose", "x"))),
    ("R20 nine axes", Model(node("Relu", "x"), NINE), "9 axes", "error", Model(node("Relu", "x"))),
    ("R21 no allowzero", Model(node("Reshape", "x", "s"), PAIR, {"s": i64(-1)}, opset=14), "needs allowzero", "error",
     Model(node("Reshape", "x", "s", allowzero=0), PAIR, {"s": i64(-1)}, opset=14)),
    ("R22 no axes", reduced("none"), "reduces over no axis", "error", reduced()),
    ("R25 empty part", Model(node("Concat", "x", "e", axis=0), {"x": (3,)}, {"e": f32(0)}), "without elements", "error",
     Model(node("Concat", "x", "e", axis=0), {"x": (3,)}, {"e": f32(1)})),
    ("W1 ArgMax of INT64", of("ArgMax", INTEGERS), "input 0 is INT64", "error", of("ArgMax", {"x": FLOAT, "y": INT64})),
    ("W2 Equal of BOOL", of("Equal", TRUTHS), "input 1 is BOOL", "error", of("And", TRUTHS)),
    ("W3 Pow of INT64", of("Pow", INTEGERS, np.int64(2)), "input 0 is INT64", "error", of("Mul", INTEGERS, i64(2))),
    ("D1 K of 4000", topk(4000), "at most 3840", "error", topk(3840)),
    ("D2 three operands", einsum("ij,jk,kl->il", (2, 3), (3, 4), (4, 2)), "3 operands", "error",
     einsum("ij,jk->ik", (2, 3), (3, 4))),
    ("D3 FLOAT to BOOL", casts(FLOAT, BOOL), "FLOAT to BOOL", "warning", casts(TensorProto.INT32, BOOL)),
    # Not among the small models of the run: read in the sources of the parser
    ("constant A", Model(node("Gemm", "w", "x", "b"), {"x": (3, 4)}, {"w": f32(2, 1), "b": f32(4)}), "is dropped",
     "error", Model(node("Gemm", "w", "x", "b"), {"x": (3, 4)}, {"w": f32(2, 3), "b": f32(4)})),
    ("Gemm with an empty name", Model(node("Gemm", "x", "w", ""), PAIR, {"w": f32(3, 4)}), "empty name", "error",
     gemm()),
    ("ConvTranspose with an empty name", Model(node("ConvTranspose", "x", "w", ""), constants={"w": f32(4, 4, 3, 3)}),
     "empty name", "error", Model(node("ConvTranspose", "x", "w"), constants={"w": f32(4, 4, 3, 3)})),
    ("Conv with an empty name", Model(node("Conv", "x", "w", ""), constants={"w": f32(4, 4, 3, 3)}), "empty name",
     "error", Model(node("Conv", "x", "w"), constants={"w": f32(4, 4, 3, 3)})),
    ("uneven pads in 3-D", deconvolution(pads=[1, 1, 1, 0, 0, 0]), "of a 3-D layer", "error",
     deconvolution(pads=[0, 0, 0, 1, 1, 1], output_padding=[1, 1, 1], strides=[2, 2, 2])),
    ("output_padding in 1-D", Model(node("ConvTranspose", "x", "w", output_padding=[1], strides=[2]), ROW, {
        "w": f32(4, 2, 3)}), "of one axis", "error", Model(node("ConvTranspose", "x", "w", strides=[2]), ROW, {
        "w": f32(4, 2, 3)})),
    ("ConvTranspose of rank 6", Model(node("ConvTranspose", "x", "w"), {"x": (1, 4, 2, 2, 2, 2)}, {
        "w": f32(4, 2, 1, 1, 1, 1)}), "6 axes", "error", deconvolution()),
    ("AveragePool of rank 6", Model(node("AveragePool", "x", kernel_shape=[2] * 4), {"x": (1, 4, 2, 2, 2, 2)}),
     "6 axes", "error", Model(node("AveragePool", "x", kernel_shape=[2]), ROW)),
    ("dilated average", Model(node("AveragePool", "x", kernel_shape=[2, 2], dilations=[2, 2]), opset=19), "dilated",
     "error", Model(node("AveragePool", "x", kernel_shape=[2, 2]), opset=19)),
    ("LpPool with ceil_mode", Model(node("LpPool", "x", kernel_shape=[2, 2], ceil_mode=1), opset=18),
     "ceil_mode is ignored", "error", Model(node("LpPool", "x", kernel_shape=[2, 2]), opset=18)),
    ("LpNormalization, p=3", Model(node("LpNormalization", "x", p=3)), "p is 3", "error",
     Model(node("LpNormalization", "x", p=1))),
    ("a computed scale", instance_norm("s"), "computes its scale", "error", instance_norm()),
    ("a computed bias", instance_norm("b"), "computes its bias", "error", instance_norm()),
    ("unknown rounding", resize(nearest_mode="simple"), "nearest_mode is 'simple'", "error",
     resize(nearest_mode="ceil")),
    ("linear over the batch, by sizes", sized(2, 4, 12, 12), "beyond the last 3", "error", sized(1, 4, 12, 12)),
    ("Upsample over the batch", Model(node("Upsample", "x", "s", mode="linear"), IMAGE, {
        "s": np.array([2, 1, 2, 2], np.float32)}, opset=9), "beyond the last 3", "error", Model(
        node("Upsample", "x", "s", mode="linear"), IMAGE, {"s": np.array([1, 1, 2, 2], np.float32)}, opset=9)),
    *((f"two directions of {kind}", Model(node(kind, "x", "w", "r", hidden_size=1, direction="bidirectional",
       activations=names), {"x": (3, 1, 2)}, {"w": f32(2, n, 2), "r": f32(2, n, 1)}), "different activations", "error",
       Model(node(kind, "x", "w", "r", hidden_size=1, direction="bidirectional"), {"x": (3, 1, 2)}, {
           "w": f32(2, n, 2), "r": f32(2, n, 1)}))
      for kind, n, names in (("LSTM", 4, ["Sigmoid", "Tanh", "Tanh", "Sigmoid", "Relu", "Tanh"]),
                             ("GRU", 3, ["Sigmoid", "Tanh", "Sigmoid", "Relu"]), ("RNN", 1, ["Tanh", "Relu"]))),
    ("no zero point", quantized(), "no zero point", "error", quantized("z", z=np.int8(0))),
    ("UINT8 zero point", quantized("z", z=np.uint8(0)), "becomes INT8", "error", quantized("z", z=np.int8(0))),
    ("computed bound in FP16", Model(node("Clip", "x", "l"), {"x": (2, 3), "l": ()}, kinds=dict.fromkeys(
        "xly", FLOAT16)), "computed or left out", "error", Model(node("Clip", "x", "l"), {"x": (2, 3), "l": ()})),
    ("bounds of INT8", Model(node("Clip", "x", "l"), PAIR, {"l": np.int8(0)}, dict.fromkeys("xy", TensorProto.INT8)),
     "its INT8 bounds", "error", Model(node("Clip", "x", "l"), PAIR, {"l": np.int32(0)}, INTEGERS)),
    *((f"computed {what}", Model(node("NonMaxSuppression", *"xskit"), {"x": (1, 5, 4), "s": (1, 2, 5), name: (1,)}, {
        n: value for n, value in LIMITS.items() if n != name}, {"y": INT64, **({name: INT64} if name == "k" else {})}),
       f"computes its {what}", "error", Model(node("NonMaxSuppression", *"xskit"), {"x": (1, 5, 4), "s": (1, 2, 5)},
                                              LIMITS, {"y": INT64}))
      for name, what in (("k", "number of boxes"), ("i", "IoU"), ("t", "threshold of scores"))),
    *((f"{kind} over the first of five axes", Model(node(kind, "x", axis=0), {"x": (2,) * 5}, kinds={"y": INT64}),
       "none of the last four", "error", Model(node(kind, "x", axis=1), {"x": (2,) * 5}, kinds={"y": INT64}))
      for kind in ("ArgMax", "ArgMin")),
    ("TopK over the first of five axes", topk(1, 0, (2,) * 5), "none of the last four", "error",
     topk(1, -4, (2,) * 5)),
    ("axes of ReduceLogSum that are computed", Model(node("ReduceLogSum", "x", "a"), {"x": (2, 3), "a": (1,)}, kinds={
        "a": INT64}, opset=18), "computes its axes", "error",
     Model(node("ReduceLogSum", "x", "a"), PAIR, {"a": i64(1)}, opset=18)),
    ("axes of ReduceLogSum that are empty", Model(node("ReduceLogSum", "x", "a"), PAIR, {"a": i64()}, opset=18),
     "reduces over no axis", "error", Model(node("ReduceLogSum", "x", "a"), PAIR, {"a": i64(1)}, opset=18)),
    *((f"no reduction by {kind}", Model(node(kind, "x", noop_with_empty_axes=1), PAIR, opset=18),
       "noop_with_empty_axes is ignored", "error", Model(node(kind, "x"), PAIR, opset=18))
      for kind in CHECKS if kind.startswith("Reduce") and kind != "ReduceSum"),
    *((f"{kind} of a scalar", Model(node(kind, "x"), {"x": ()}), "is a scalar", "error",
       Model(node(kind, "x"), {"x": (1,)}))
      for kind in CHECKS if kind.startswith("Reduce")),
    ("FLOAT limits that are computed", Model(node("Range", "x", "z", "u"), {"x": ()}, {
        "z": np.float32(3), "u": np.float32(1)}), "FLOAT limits", "error", Model(node("Range", "x", "z", "u"), {}, {
            "x": np.float32(0), "z": np.float32(3), "u": np.float32(1)})),
    ("Slice with an empty name", Model(node("Slice", "x", "s", "e", "", "t"), PAIR, {
        "s": i64(0, 0), "e": i64(2, 3), "t": i64(2, 1)}), "empty name", "error",
     Model(node("Slice", "x", "s", "e"), PAIR, {"s": i64(0, 0), "e": i64(2, 3)})),
    ("too few starts", Model(node("Slice", "x", "s", "e"), PAIR, {"s": i64(0), "e": i64(1)}), "1 starts for 2 axes",
     "error", Model(node("Slice", "x", "s", "e"), PAIR, {"s": i64(0, 0), "e": i64(1, 1)})),
    ("transposed, five axes", transposed(1, 1, 1, 2, 3), "with 5 axes", "error", transposed(1, 1, 2, 3)),
    ("EyeLike of rank 4", Model(node("EyeLike", "x")), "4 axes", "error", Model(node("EyeLike", "x"), PAIR)),
    *((f"sizes of {kind}", Model(node(kind, *("" if name == "-" else name for name in names)), {
        "x": (3,), "s": (1,)}, {"e": i64(2)}, {"s": INT64, **({"x": INT64} if kind == "Range" else {})}),
       "an engine of fixed sizes cannot", "error", Model(node("Relu", "x")))
      for kind, names in (("Reshape", "xs"), ("Expand", "xs"), ("Tile", "xs"), ("ConstantOfShape", "s"),
                          ("Slice", "xse"), ("Pad", "xs"), ("Split", "xs"), ("Resize", "x--s"), ("Range", "see"))),
    ("sum of INT64 exponentials", of("ReduceLogSumExp", INTEGERS), "input 0 is INT64", "error",
     of("ReduceMax", INTEGERS)),
    ("slope of INT64", of("PRelu", {"x": FLOAT}, i64(1)), "input 1 is INT64", "error",
     of("PRelu", {"x": FLOAT}, f32(1))),
    ("choice by type", of("Where", {"c": BOOL, "x": FLOAT, "z": BOOL}), "input 2 is BOOL", "error",
     of("Where", {"c": BOOL, "x": FLOAT, "z": FLOAT})),
    ("clipped truth values", of("Clip", TRUTHS), "input 0 is BOOL", "error", Model(node("Clip", "x"), kinds=INTEGERS)),
    ("scattered truth values", Model(node("ScatterElements", "x", "i", "x"), {"x": (2, 3)}, {
        "i": np.zeros((2, 3), np.int64)}, {"x": BOOL, "y": BOOL}), "input 0 is BOOL", "warning",
     Model(node("ScatterElements", "x", "i", "x"), {"x": (2, 3)}, {"i": np.zeros((2, 3), np.int64)})),
    ("output of UINT8", casts(FLOAT, TensorProto.UINT8), "output y is UINT8", "error", casts(FLOAT, TensorProto.INT8)),
)  # fmt: skip

# Read rightly: each row is its name and a model without an error.
RIGHT: tuple[tuple[str, Model], ...] = (
    ("N1 Conv 1-D", Model(node("Conv", "x", "w", "b"), ROW, {"w": f32(6, 4, 3), "b": f32(6)})),
    ("N2 ConvTranspose 1-D", Model(node("ConvTranspose", "x", "w", strides=[2], pads=[1, 1]), ROW,
                                   {"w": f32(4, 3, 4)})),
    ("N3 MaxPool 1-D", Model(node("MaxPool", "x", kernel_shape=[2], strides=[2]), ROW)),
    ("N4 AveragePool 1-D", Model(node("AveragePool", "x", kernel_shape=[2]), ROW)),
    ("N5 GlobalAveragePool 1-D", Model(node("GlobalAveragePool", "x"), ROW)),
    ("GlobalMaxPool 1-D", Model(node("GlobalMaxPool", "x"), ROW)),
    ("N6 pads at the end, not counted", average(0, 0, 1, 1)),
    ("pads at the end of the third axis", Model(node("AveragePool", "x", kernel_shape=[3] * 3, pads=[0, 0, 1, 0, 0, 0]),
                                                {"x": (1, 4, 6, 6, 6)})),
    ("average padded to the same size", Model(node("AveragePool", "x", kernel_shape=[3, 3], auto_pad="SAME_UPPER"))),
    ("N7 Split, even", Model(node("Split", "x", outputs=("y", "z"), axis=1, num_outputs=2), opset=18)),
    ("N8 axes of ReduceLogSum", Model(node("ReduceLogSum", "x", "a"), constants={"a": i64(2, 3)}, opset=18)),
    *((f"{kind} of INT64", of(kind, INTEGERS)) for kind in (
        "ReduceMax", "ReduceMin", "ReduceMean", "ReduceProd", "ReduceSum", "ReduceL1", "ReduceSumSquare", "Clip", "Abs",
        "Neg")),
    ("scalar by Reshape", Model(node("Reshape", "x", "s"), {"x": (1,)}, {"s": i64()})),
    ("Resize by sizes, with an empty roi", Model(
        node("Resize", "x", "r", "e", "s"), IMAGE, {"r": f32(0), "e": f32(0), "s": i64(1, 4, 12, 12)})),
    ("no padding by INT64", pad(0, 0, 0, 0, value=np.int64(5), kind=INT64)),
)  # fmt: skip


@pytest.mark.parametrize(("bad", "piece", "severity", "good"), [row[1:] for row in REPORT], ids=[r[0] for r in REPORT])
def test_verdict(bad: Model, piece: str, severity: str, good: Model) -> None:
    findings = lint(bad.proto())
    assert said(findings, piece, severity), f"not found: {piece!r} in {[str(f) for f in findings]}"
    assert all(finding.cure and ".cpp: " in finding.source or ".hpp: " in finding.source for finding in findings)
    assert not said(lint(good.proto()), piece, severity)


@pytest.mark.parametrize("model", [row[1] for row in RIGHT], ids=[row[0] for row in RIGHT])
def test_no_needless_error(model: Model) -> None:
    assert [str(finding) for finding in lint(model.proto()) if finding.severity == "error"] == []


def test_two_domains_need_the_empty_name() -> None:
    proto = Model(node("Relu", "x")).proto()
    proto.opset_import[0].domain = "ai.onnx"
    assert not lint(proto)
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    assert said(lint(proto), "it imports ai.onnx, com.microsoft", "error")
    proto.opset_import[0].domain = ""
    assert not lint(proto)


def test_a_subtracted_maximum_needs_no_warning() -> None:
    proto = Model(node("ReduceLogSumExp", "d"), {"x": (2, 3), "m": (2, 1)}).proto()
    proto.graph.node.insert(0, helper.make_node("Sub", ["x", "m"], ["d"]))
    assert not lint(proto)


def test_a_transposed_constant_is_a_constant() -> None:
    proto = Model(node("Conv", "x", "t"), {"x": (1, 4, 6, 6)}, {"w": f32(3, 3, 4, 2)}).proto()
    proto.graph.node.insert(0, helper.make_node("Transpose", ["w"], ["t"], perm=[3, 2, 0, 1]))
    assert not lint(proto)


def broken() -> Iterator[tuple[str, str]]:
    """Per operator the rules that a row breaks."""
    for _, bad, *_ in (*ROWS, *REPORT):
        model = read_model(bad.proto())
        for made in model.nodes:
            for check in (*EVERY_NODE, *CHECKS.get(made.kind, ())):
                if any(check(model, made)):
                    yield (made.kind if check not in EVERY_NODE else "", check.rule)
        yield from (("", check.rule) for check in MODEL_CHECKS if any(check(model)))


def test_every_check_has_a_row_that_breaks_it() -> None:
    checks = {(kind, check.rule) for kind, found in CHECKS.items() for check in found}
    checks |= {("", check.rule) for check in (*EVERY_NODE, *MODEL_CHECKS)}
    elsewhere = {("", "no sparse constants"), ("", "beside other domains, that of ONNX is ''")}
    assert checks - set(broken()) - elsewhere == set()
    assert set(CHECKS) <= set(table())
