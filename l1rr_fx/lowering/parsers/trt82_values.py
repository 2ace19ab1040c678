"""TensorRT 8.2: reductions, orders, bounds and constants that are refused or computed otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from l1rr_fx.lowering.parsers.onnx_file import OnnxModel, OnnxNode
from l1rr_fx.lowering.parsers.remarks import Check, Remark, constant, constant_input, given_sizes, helper, importer

READABLE = ("FLOAT", "FLOAT16", "DOUBLE", "INT8", "INT32", "INT64", "BOOL")
"""The types that the parser reads; it refuses all others, those of later versions too."""
NARROW = ("FLOAT16", "INT8")
MOST = 3840
"""ITopKLayer::setK of NvInfer.h."""


# Activations


def _celu(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    yield Remark("it becomes a ReLU, silently", "write it as alpha * Elu(x / alpha)")


def _half_bounds(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    for name in node.inputs[1:]:
        held = model.constants.get(name)
        if held is not None and held.kind in NARROW:
            yield Remark(f"its {held.kind} bounds are read as FLOAT: garbage, silently", "store the bounds as FLOAT")


def _half_computed(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    kind = model.kind_of(node.input(0))
    if kind in NARROW and not all(constant(model, name) for name in node.inputs[1:]):
        yield Remark(f"a bound of {kind} values is computed or left out", "clip in FLOAT, or use Max and Min")


def _log_softmax(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    yield Remark(
        "it becomes the logarithm of a softmax: minus infinity where that is 0 (FP16: 17 below the maximum)",
        "write it as x - max - Log(ReduceSum(Exp(x - max)))",
    )


def _log_sum_exp(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    producer = model.producers.get(node.input(0))
    if producer is None or producer.kind != "Sub":
        yield Remark(
            "it takes exponentials without subtracting the maximum: infinite beyond 88 in FP32, beyond 11 in FP16",
            "subtract the maximum of its input first",
        )


# Orders


def _largest(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    if not node.attributes.get("largest", 1):
        yield Remark("largest=0 is ignored: it returns the largest, silently", "negate its input, and the values")


def _most(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    held = model.constants.get(node.input(1))
    if held is not None and held.values().size == 1 and int(held.values().reshape(())) > MOST:
        yield Remark(f"its K is {int(held.values().reshape(()))}; at most {MOST} are selected", "select fewer")


def _last_axes(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    rank = model.rank_of(node.input(0))
    axis = int(node.attributes.get("axis", -1 if node.kind == "TopK" else 0))
    if rank is not None and rank > 4 and axis % rank < rank - 4:
        yield Remark(f"its axis {axis} is none of the last four", "transpose or reshape its input")


LAST_AXES = Check("axis is one of the last four", _last_axes, basis="NvInfer.h")


# Reductions


def _axes_input(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    if node.input(1):
        yield Remark(
            "axes as an input (opset 18) are ignored: everything is reduced, silently",
            "give axes as the attribute of opset 13",
        )


def _empty_axes(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    held = model.constants.get(node.input(1))
    if held is not None and not held.values().size:
        yield Remark("its axes are an empty constant: it reduces over no axis", "leave the axes out, or name them")


def _reduces_nothing(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    if node.attributes.get("noop_with_empty_axes", 0) and not node.input(1) and not node.attributes.get("axes"):
        yield Remark("noop_with_empty_axes is ignored: everything is reduced, silently", "replace it by Identity")


def _scalar(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    if model.rank_of(node.input(0)) == 0:
        yield Remark("its input is a scalar: it reduces over no axis", "remove it, or give the input an axis")


REDUCING = helper("reduceTensor")
NOTHING = Check("no noop_with_empty_axes without axes (ignored)", _reduces_nothing, REDUCING)
AN_AXIS = Check("no reduction of a scalar", _scalar, REDUCING, "NvInfer.h")
BY_ATTRIBUTE = (Check("no axes as an input (ignored)", _axes_input), NOTHING, AN_AXIS)
BY_INPUT = (
    constant_input(1, "axes", source=REDUCING),
    Check("axes are not empty", _empty_axes, REDUCING, "NvInfer.h"),
    NOTHING,
    AN_AXIS,
)


# Types and constants


def _cast(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    kind = model.kind_of(node.output(0))
    if kind not in (None, "UNDEFINED", *READABLE):
        yield Remark(f"it casts to {kind}, which fails", "cast to FLOAT, FLOAT16, INT32 or BOOL")


def _to_bool(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    before, after = model.kind_of(node.input(0)), model.kind_of(node.output(0))
    if after == "BOOL" and before in ("FLOAT", "FLOAT16", "DOUBLE"):
        yield Remark(f"it casts {before} to BOOL, which the builder may refuse", "compare with 0 instead", "warning")


def _constant_node(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    cure = "use the attribute value (a tensor), or an initializer"
    for name in ("value_int", "value_ints"):
        if name in node.attributes:
            yield Remark(f"{name} is read as a float: garbage, silently", cure)
    for name in ("sparse_value", "value_string", "value_strings"):
        if name in node.attributes:
            yield Remark(f"{name} is not read", cure)


def _dropout(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    mode = model.constants.get(node.input(2))
    if node.input(2) and (mode is None or mode.values().any()):
        yield Remark("it is in training mode", "export the network in eval mode")


def _range(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    if model.kind_of(node.output(0)) in ("FLOAT", "DOUBLE") and not all(constant(model, name) for name in node.inputs):
        yield Remark("the network computes its FLOAT limits", "make them initializers, or use INT32")


VALUES: Mapping[str, tuple[Check, ...]] = {
    "Celu": (Check("not read (becomes a ReLU)", _celu),),
    "Clip": (
        Check("bounds are FLOAT", _half_bounds),
        Check("constant bounds of FLOAT16 and INT8", _half_computed),
    ),
    "TopK": (
        constant_input(1, "K"),
        Check("no largest=0 (ignored)", _largest),
        Check(f"K is at most {MOST}", _most, basis="NvInfer.h"),
        LAST_AXES,
    ),
    "ArgMax": (LAST_AXES,),
    "ArgMin": (LAST_AXES,),
    "CumSum": (constant_input(1, "axis"),),
    "LogSoftmax": (Check("not read exactly (log of a softmax)", _log_softmax),),
    "ReduceLogSumExp": (Check("the maximum is subtracted before", _log_sum_exp), *BY_ATTRIBUTE),
    "ReduceSum": BY_INPUT,
    "ReduceLogSum": BY_INPUT,
    **dict.fromkeys(
        ("ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceSumSquare"),
        BY_ATTRIBUTE,
    ),
    "Constant": (Check("a tensor, or floats", _constant_node),),
    "Cast": (
        Check("to a type that is read", _cast),
        Check("to BOOL from INT32 (warning)", _to_bool, importer("Cast"), "NvInfer.h"),
    ),
    "Dropout": (Check("not in training mode", _dropout),),
    "Range": (Check("constant limits, if they are FLOAT", _range), given_sizes(0, 1, 2)),
}
"""The checks of each operator, by name."""
