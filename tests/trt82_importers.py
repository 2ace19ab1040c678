"""The importers of TensorRT 8.2's parser for arithmetic: assertions, layers, and where those differ from ONNX.

Facts of onnx-tensorrt at its 8.2 release (85e79f6), builtin_op_importers.cpp and onnx2trt_utils.cpp, stated in words of
our own. A function or its messages name the importer. What NvInfer.h says of a layer is said to be so.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import numpy as np

from tests.trt82_node import KINDS, Node, Value, moves_bool, onnx_kind, positive

Importer = Callable[[Node], None]
K_MOST = 3840
"""NvInfer.h, ITopKLayer::setK."""


def _floating(n: Node, i: int, who: str) -> Value:
    value = n.tensor(i)
    n.check(value.kind not in ("INT32", "BOOL"), f"{who}: {value.kind} input")
    return value


# One tensor in, one out


def unary(operation: str) -> Importer:
    """`unaryHelper`."""

    def importer(n: Node) -> None:
        value = n.tensor(0)
        if operation == "NOT":
            n.check(value.kind == "BOOL", f"unaryHelper: {value.kind} input of NOT")
        elif operation not in ("ABS", "NEG"):
            _floating(n, 0, "unaryHelper")
        n.layer("Unary", operation=operation)

    return importer


def activation(kind: str, **defaults: tuple[float, float]) -> Importer:
    """`activationHelper`; `defaults`: what the parser takes where an attribute is absent, and what ONNX does."""

    def importer(n: Node) -> None:
        _floating(n, 0, "activationHelper")
        n.layer("Activation", type=kind)
        for name, (read, meant) in defaults.items():
            if n.get(name) is None and abs(read - meant) > 1e-4:
                n.misread(f"{name} is {read} where it is absent; {meant} is meant")

    return importer


def celu(n: Node) -> None:
    """The product alpha * (exp(x / alpha) - 1) is made a power, whose minimum with 0 is 0."""
    _floating(n, 0, "importCelu")
    n.layer("Activation", type=("RELU", "CELU"))


def cast(n: Node) -> None:
    source, target = n.tensor(0), onnx_kind(int(n.get("to", 0)))
    n.check(target in KINDS, f"importCast: to {target}, which is not a type of TensorRT")
    n.layer("Identity", to=KINDS[target])
    if KINDS[target] == "BOOL" and source.kind not in ("BOOL", "INT32"):
        n.warn(f"a cast of {source.kind} to BOOL is not among the conversions of NvInfer.h")


def identity(n: Node) -> None:
    value = n.input(0)
    if value is not None and value.is_weights:
        n.returns_input()
    else:
        n.tensor(0)
        n.layer("Identity")


def dropout(n: Node) -> None:
    if n.opset <= 6:
        n.check(bool(n.get("is_test", 1)), "importDropout: training mode")
    elif n.opset >= 12 and len(n.inputs) == 3:
        n.check(not np.any(n.weights(2, "importDropout: training_mode")), "importDropout: training mode")
    n.returned = 2
    identity(n)


def is_nan(n: Node) -> None:
    n.tensor(0)
    n.layer("Elementwise", operation="EQUAL")


def softmax(n: Node) -> None:
    value = n.tensor(0)
    axis = n.axis("axis", -1 if n.opset >= 13 else 1, value.rank)
    n.layer("SoftMax", axis=axis)


def log_softmax(n: Node) -> None:
    softmax(n)
    n.misread("importLogSoftmax: the log of a softmax, which is -inf where the softmax rounds to 0")


def clip(n: Node) -> None:
    value = n.tensor(0)
    bounds = n.inputs[1:] if n.opset >= 11 else ()
    if value.kind == "INT32" or any(bound is None or not bound.is_weights for bound in bounds):
        n.check(value.kind in ("FLOAT", "INT32"), f"importClip: {value.kind} with integers, or a bound left out")
        for i in (i for i, bound in enumerate(bounds, 1) if bound is not None):
            n.tensor(i)
        n.layer("Elementwise", operation="MAX, MIN")
        return
    _floating(n, 0, "activationHelper")
    for bound in bounds:
        if bound is not None and bound.kind != "FLOAT":
            n.misread(f"importClip: the bytes of a {bound.kind} bound are read as FLOAT")
    n.layer("Activation", type="CLIP")


# Several tensors in, one out


def elementwise(operation: str) -> Importer:
    """`elementwiseHelper` with `elementwiseCheck`."""

    def importer(n: Node) -> None:
        values = [n.tensor(i) for i in range(len(n.inputs))]
        kinds = {value.kind for value in values}
        where = f"elementwiseHelper: {operation} of {', '.join(value.kind for value in values)}"
        if operation in ("AND", "OR"):
            n.check(kinds == {"BOOL"}, where)
        else:
            n.check("BOOL" not in kinds, where)
        if operation == "POW":
            n.check("INT32" not in kinds, where)
        n.builder(len(kinds) == 1, f"the inputs have different types: {', '.join(sorted(kinds))}")
        n.layer("Elementwise", operation=operation)

    return importer


def where(n: Node) -> None:
    condition, x, y = (n.tensor(i) for i in range(3))
    n.check(x.kind == y.kind and x.kind != "BOOL", f"importWhere: x is {x.kind}, y is {y.kind}")
    n.builder(condition.kind == "BOOL", f"the condition is {condition.kind}")
    n.layer("Select")


def prelu(n: Node) -> None:
    for i in range(2):
        n.check(n.tensor(i).kind != "INT32", "importPRelu: INT32 input")
    n.layer("ParametricReLU")


def concat(n: Node) -> None:
    values = [n.tensor(i) for i in range(len(n.inputs))]
    n.layer("Concatenation", axis=n.axis("axis", 0, values[0].rank))
    moves_bool(n, values[0], "Concatenation")


def einsum(n: Node) -> None:
    equation = str(n.get("equation", ""))
    odd = sorted(set(re.findall(r"[^a-z\->., ]", equation)))
    n.check(not odd, f"importEinsum: invalid characters {', '.join(odd)} in the equation")
    values = [n.tensor(i) for i in range(len(n.inputs))]
    operands = [part.replace(" ", "") for part in equation.partition("->")[0].split(",")]
    for fault, found in (
        ("more than two operands", len(values) > 2),
        ("an ellipsis", "." in equation),
        ("a letter twice in one operand", any(len(set(part)) != len(part) for part in operands if "." not in part)),
    ):
        if found:
            n.warn(f"Einsum {equation} has {fault}: not by NvInfer.h")
    n.layer("Einsum", equation=equation)


# Products


def matmul(n: Node) -> None:
    a, b = n.tensor(0), n.tensor(1)
    n.check("INT32" not in (a.kind, b.kind), "importMatMul: INT32 input")
    if not a.is_weights and b.is_weights and a.rank == b.rank == 2:
        n.check(b.kind in ("FLOAT", "HALF"), f"transposeWeights: {b.kind}")
        n.layer("FullyConnected")
        return
    n.layer("MatrixMultiply")
    if a.rank == 1 and b.rank is not None and b.rank > 2 and b.shape is not None:
        # the 1 that was put before the vector is squeezed from the front of the product, where the batch is
        n.builder(b.shape[0] == 1, f"importMatMul: a vector by {list(b.shape)}: the first axis of the product is no 1")
        n.gives((*b.shape[1:-2], 1, b.shape[-1]))


def gemm(n: Node) -> None:
    a, b = n.tensor(0), n.tensor(1)
    n.check(a.rank in (2, None) and b.rank in (2, None), f"importGemm: inputs of {a.rank} and {b.rank} axes")
    n.check("INT32" not in (a.kind, b.kind), "importGemm: INT32 input")
    c = n.input(2)
    if len(n.inputs) > 2:
        n.tensor(2)
    plain = float(n.get("alpha", 1.0)) == 1 and float(n.get("beta", 1.0)) == 1
    connected = not a.is_weights and b.is_weights and plain
    if connected and (len(n.inputs) < 3 or (c is not None and c.is_weights and c.rank == 1)):
        _fully_connected(n, a, b, c)
    else:
        _matrix_product(n, a, b, c)


def _fully_connected(n: Node, a: Value, b: Value, c: Value | None) -> None:
    """`importGemm` with a constant B: the number of outputs is read off C, and transA is not looked at."""
    n.builder(c is not None, "importGemm: without C the fully connected layer has no number of outputs")
    n.check(b.kind in ("FLOAT", "HALF"), f"transposeWeights: {b.kind}")
    assert a.shape is not None and b.shape is not None and c is not None and c.shape is not None
    inner, outer = b.shape[::-1] if n.get("transB", 0) else b.shape
    n.builder(c.shape[0] == outer, f"importGemm: C has {c.shape[0]} elements for {outer} outputs")
    n.builder(a.shape[1] == inner, f"importGemm: the input has {a.shape[1]} columns for {inner} rows of weights")
    n.layer("FullyConnected", transA=(0, int(n.get("transA", 0))))


def _matrix_product(n: Node, a: Value, b: Value, c: Value | None) -> None:
    """`importGemm` with a matrix product: trailing axes of size 1 of A are squeezed, which makes it a vector."""
    n.layer("MatrixMultiply")
    if a.shape is None or b.shape is None or a.shape[-1] != 1:
        return
    rows, columns = b.shape[::-1] if n.get("transB", 0) else b.shape
    n.builder(a.shape[0] == rows, f"importGemm: matmul of [{a.shape[0]}] and [{rows}, {columns}]")
    shape = (columns,)
    n.gives((1, columns) if c is not None and c.rank == 2 else shape)


# Reductions


def reduction(operation: str, *steps: str, axes_input: bool = False) -> Importer:
    """`reduceTensor`: axes as an input are read by `importReduceSum` alone, `noop_with_empty_axes` by nobody."""

    def importer(n: Node) -> None:
        value = n.tensor(0)
        n.check(not steps or value.kind != "INT32", f"unaryHelper: INT32 input of {', '.join(steps)}")
        given = n.input(1)
        read = axes_input and n.opset >= 13 and given is not None
        axes = n.get("axes")
        meant = None if axes is None else sorted(positive(axes, value.rank))
        if axes is None and read:
            axes = [int(axis) for axis in np.atleast_1d(n.weights(1, "reduceTensor: axes"))]
            n.builder(bool(axes), "reduceTensor: reduces over no axis")
            meant = sorted(positive(axes, value.rank))
        elif axes is None and given is not None:
            meant = None if given.read is None else sorted(positive(given.read().tolist(), value.rank))
            if meant != list(range(value.rank or 0)):
                n.misread(f"reduceTensor: axes as an input are not read: all axes are reduced, {meant} are meant")
        elif axes is None and n.get("noop_with_empty_axes", 0):
            n.misread("reduceTensor: noop_with_empty_axes is not read: all axes are reduced")
        elif axes is None:
            n.builder(value.rank != 0, "reduceTensor: reduces over no axis")
        for axis in axes or ():
            n.converted(int(axis), value.rank)
        n.layer("Reduce", operation=operation, axes=meant)

    return importer


def reduce_log_sum_exp(n: Node) -> None:
    reduction("SUM", "EXP", "LOG")(n)
    if not _has_its_maximum_taken_off(n):
        n.misread("importReduceLogSumExp: log(sum(exp(x))), which is inf for large x (FP16: beyond 11)")


def _has_its_maximum_taken_off(n: Node) -> bool:
    value = n.tensor(0)
    if value.made_by is None or value.made_by.op_type != "Sub":
        return False
    taken = value.made_from[1]
    return taken is not None and taken.made_by is not None and taken.made_by.op_type == "ReduceMax"


def arg_reduction(operation: str) -> Importer:
    """`argMinMaxHelper`: a TopK of one."""

    def importer(n: Node) -> None:
        value = n.tensor(0)
        n.check(value.kind != "INT32", "argMinMaxHelper: INT32 input")
        axis = n.axis("axis", 0, value.rank)
        _top_k_layer(n, value, axis, 1, operation)

    return importer


def top_k(n: Node) -> None:
    value = n.tensor(0)
    n.check(value.kind != "INT32", "importTopK: INT32 input")
    axis = n.axis("axis", -1, value.rank)
    count = n.weights(1, "importTopK: K") if n.opset >= 10 else np.array(n.get("k", 0))
    n.check(count.size == 1, f"importTopK: K has {count.size} values")
    n.returned = 2
    _top_k_layer(n, value, axis, int(count.reshape(())), "MAX")
    if n.opset >= 11 and not n.get("largest", 1):
        n.misread("importTopK: largest is not read: the largest are returned")


def _top_k_layer(n: Node, value: Value, axis: int, count: int, operation: str) -> None:
    n.builder(count <= K_MOST, f"K is {count}, over {K_MOST}")
    n.builder(value.rank is None or axis >= value.rank - 4, f"TopK along axis {axis} of {value.rank}, no one of four")
    n.layer("TopK", operation=operation, k=count, axis=axis)


def cum_sum(n: Node) -> None:
    value = n.tensor(0)
    axis = n.weights(1, "importCumSum: the axis")
    n.layer("Loop", axis=n.converted(int(axis.reshape(-1)[0]), value.rank))


TABLE: Mapping[str, Importer] = {
    **{kind: unary(operation) for kind, operation in {
        "Abs": "ABS", "Acos": "ACOS", "Acosh": "ACOSH", "Asin": "ASIN", "Asinh": "ASINH", "Atan": "ATAN",
        "Atanh": "ATANH", "Ceil": "CEIL", "Cos": "COS", "Cosh": "COSH", "Erf": "ERF", "Exp": "EXP", "Floor": "FLOOR",
        "Log": "LOG", "Neg": "NEG", "Not": "NOT", "Reciprocal": "RECIP", "Round": "ROUND", "Sign": "SIGN", "Sin": "SIN",
        "Sinh": "SINH", "Sqrt": "SQRT", "Tan": "TAN",
    }.items()},
    "Relu": activation("RELU"), "Sigmoid": activation("SIGMOID"), "Tanh": activation("TANH"),
    "Softsign": activation("SOFTSIGN"), "Softplus": activation("SOFTPLUS"),
    "LeakyRelu": activation("LEAKY_RELU", alpha=(0.01, 0.01)), "Elu": activation("ELU", alpha=(1.0, 1.0)),
    "Selu": activation("SELU", alpha=(1.6732, 1.67326319), gamma=(1.0507, 1.05070102)),
    "HardSigmoid": activation("HARD_SIGMOID", alpha=(0.2, 0.2), beta=(0.5, 0.5)),
    "ThresholdedRelu": activation("THRESHOLDED_RELU", alpha=(1.0, 1.0)),
    "Celu": celu, "Cast": cast, "Identity": identity, "Dropout": dropout, "IsNaN": is_nan, "Softmax": softmax,
    "LogSoftmax": log_softmax, "Clip": clip,
    **{kind: elementwise(operation) for kind, operation in {
        "Add": "SUM", "And": "AND", "Div": "DIV", "Equal": "EQUAL", "Greater": "GREATER", "GreaterOrEqual": "GREATER",
        "Less": "LESS", "LessOrEqual": "LESS", "Max": "MAX", "Mean": "SUM", "Min": "MIN", "Mul": "PROD", "Or": "OR",
        "Pow": "POW", "Sub": "SUB", "Sum": "SUM",
    }.items()},
    "Where": where, "PRelu": prelu, "Concat": concat, "Einsum": einsum, "MatMul": matmul, "Gemm": gemm,
    "ReduceSum": reduction("SUM", axes_input=True), "ReduceLogSum": reduction("SUM", "LOG", axes_input=True),
    "ReduceL1": reduction("SUM"), "ReduceL2": reduction("SUM", "SQRT"), "ReduceSumSquare": reduction("SUM"),
    "ReduceMax": reduction("MAX"), "ReduceMean": reduction("AVG"), "ReduceMin": reduction("MIN"),
    "ReduceProd": reduction("PROD"), "ReduceLogSumExp": reduce_log_sum_exp,
    "ArgMax": arg_reduction("MAX"), "ArgMin": arg_reduction("MIN"), "TopK": top_k, "CumSum": cum_sum,
}  # fmt: skip
"""By the name of the operator."""
