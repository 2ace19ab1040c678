"""What the ONNX parser of TensorRT 8.2 refuses or misreads, as rules.

Sources: github.com/onnx/onnx-tensorrt, release/8.2-GA, commit 85e79f6 (builtin_op_importers.cpp, docs/operators.md);
what is silent was read there. It looks operators up by name and checks neither opset, IR version nor domain, so that a
file that it accepts may become another network.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources

from l1rr_fx.lowering.parsers.onnx_file import STANDARD, Constant, OnnxModel, OnnxNode
from l1rr_fx.lowering.parsers.remarks import (
    Remark,
    Rule,
    at_most_inputs,
    constant_input,
    not_of,
    ones,
    ranks,
    values_in,
    without_attributes,
)

OPSET, IR_VERSION = 13, 7
INT32 = 2**31 - 1
READABLE = ("FLOAT", "FLOAT16", "DOUBLE", "INT8", "INT32", "INT64", "BOOL")
"""The types that its parser knows; all others, those of later years too, are refused."""
FLOATS = ("FLOAT", "FLOAT16")
NUMBERS = ("INT32", "INT64")


@dataclass(frozen=True)
class Entry:
    """A row of the table of operators."""

    supported: str
    types: tuple[str, ...]
    alternative: str


@functools.cache
def table() -> Mapping[str, Entry]:
    """What is known of each operator, by name."""
    text = resources.files("l1rr_fx.lowering.parsers").joinpath("trt82_operators.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return {row["operator"]: Entry(row["supported"], tuple(row["types"].split()), row["alternative"]) for row in rows}


# The whole model


def remarks_on_model(model: OnnxModel) -> Iterator[Remark]:
    """What is wrong with its version, its inputs and its constants."""
    if model.opset > OPSET:
        yield Remark(
            f"it declares opset {model.opset}; the parser reads every node as of opset {OPSET} and says nothing",
            f"export it with opset {OPSET}",
            "warning",
        )
    if model.opset < 7:
        yield Remark(f"opset {model.opset} broadcasts in another way", "export it with opset 7 to 13")
    if model.ir_version > IR_VERSION:
        yield Remark(
            f"IR version {model.ir_version} is newer than that of ONNX 1.8, whose tools JetPack 4.6 has",
            f"write IR version {IR_VERSION}",
            "warning",
        )
    if model.functions:
        yield Remark(f"its functions ({', '.join(model.functions)}) are ignored", "inline them")
    if model.sparse:
        yield Remark(f"its sparse constants ({', '.join(model.sparse)}) are not read", "store them as plain ones")
    for name in model.inputs:
        yield from _port(model, name)
    for constant in model.constants.values():
        yield from _constant(model, constant)


def _port(model: OnnxModel, name: str) -> Iterator[Remark]:
    shape, kind = model.shape_of(name), model.kind_of(name)
    if shape is None or None in shape:
        yield Remark(f"the sizes of input {name} are not fixed", "export it for one size: a static engine is asked for")
    if kind not in READABLE:
        yield Remark(f"input {name} is {kind}, which cannot be read", "make it FLOAT and cast outside")


def _constant(model: OnnxModel, constant: Constant) -> Iterator[Remark]:
    where = f"constant {constant.name}"
    if constant.kind == "FLOAT16":
        if not constant.raw:
            yield Remark(f"{where} keeps FLOAT16 in int32_data, which is misread", "store it as FLOAT, in raw_data")
        else:
            yield Remark(
                f"{where} is FLOAT16, which is read natively only since 8.4",
                "store FLOAT and let the builder's FP16 flag choose",
                "warning",
            )
    elif constant.kind == "UINT8":
        yield Remark(f"{where} is UINT8 and becomes INT32", "store INT32", "warning")
    elif constant.kind not in READABLE:
        yield Remark(f"{where} is {constant.kind}, which cannot be read", "store FLOAT, INT32 or BOOL")
    elif constant.kind == "DOUBLE":
        yield Remark(f"{where} is DOUBLE and becomes FLOAT", "store FLOAT", "warning")
    elif constant.kind == "INT64" and not _only_bounds(model, constant.name):
        values = constant.values()
        if values.size and (values.max() > INT32 or values.min() < -INT32 - 1):
            yield Remark(f"{where} has values beyond 32 bits, which are clamped", "keep indices below 2**31")


def _only_bounds(model: OnnxModel, name: str) -> bool:
    """Whether a constant is nothing but the bounds of slices, for which clamped is as good as infinite."""
    return all(node.kind == "Slice" and name != node.input(0) for node in model.nodes if name in node.inputs)


# Every node


def remarks_on_node(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    """What is wrong with a node."""
    entry = table().get(node.kind)
    if entry is None or entry.supported == "no":
        yield Remark("there is no importer for it", _cure(entry))
        return
    if entry.supported == "plugin":
        yield Remark("it is a plugin", "load libnvinfer_plugin before parsing (trtexec does)", "note")
        return
    if node.domain not in STANDARD:
        yield Remark(f"the domain {node.domain!r} is ignored: the standard operator of that name is built", "rename it")
    if entry.supported == "experimental":
        yield Remark("support is experimental", "use EfficientNMS_TRT, or compute it after the engine", "warning")
    for rule in RULES.get(node.kind, ()):
        yield from rule(model, node)
    yield from _types(model, node, entry)


def _cure(entry: Entry | None) -> str:
    if entry is None or not entry.alternative or entry.alternative == "none":
        return "compute it outside the engine, or replace it in the model"
    return f"write it as {entry.alternative}"


NAMES = {"FLOAT": "FP32", "DOUBLE": "FP32", "FLOAT16": "FP16", "INT32": "INT32", "INT64": "INT32", "BOOL": "BOOL"}


def _types(model: OnnxModel, node: OnnxNode, entry: Entry) -> Iterator[Remark]:
    kind = model.kind_of(node.input(0))
    name = NAMES.get(kind or "")
    if name is not None and entry.types and name not in entry.types and node.input(0) not in model.constants:
        yield Remark(
            f"{kind} is not among the types that it takes ({', '.join(entry.types)})", "cast its input", "warning"
        )


# Operators


def _clip(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    for name in node.inputs[1:]:
        if name in model.constants and model.constants[name].kind == "FLOAT16":
            yield Remark("its FLOAT16 bounds are read as FLOAT: garbage, silently", "store the bounds as FLOAT")


def _einsum(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    equation = node.attributes.get("equation", "")
    cure = "write it with MatMul, Transpose and Reshape"
    if "." in equation:
        yield Remark("its equation has an ellipsis, which is not read", cure)
        return
    operands = [part.strip() for part in equation.partition("->")[0].split(",")]
    if any(len(set(letters)) != len(letters) for letters in operands):
        yield Remark("a letter stands twice in one operand (a diagonal), which is not read", cure)
    sizes: dict[str, set[int | None]] = {}
    for letters, name in zip(operands, node.inputs):
        for letter, size in zip(letters, model.shape_of(name) or ()):
            sizes.setdefault(letter, set()).add(size)
    if any(len(found - {None}) > 1 for found in sizes.values()):
        yield Remark("its operands broadcast, which is not read", cure)


def _average_pool(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    pads = list(node.attributes.get("pads", ()))
    half = len(pads) // 2
    if pads[:half] != pads[half:] and not node.attributes.get("count_include_pad", 0):
        yield Remark(
            "padding that differs at the two ends needs count_include_pad", "pad evenly, or with a Pad before it"
        )


def _max_pool(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    if len(node.outputs) > 1 and node.outputs[1]:
        yield Remark("it has no second output (indices)", "do not use the positions of maxima")


def _constant_node(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    cure = "use the attribute value (a tensor), or an initializer"
    for name in ("value_int", "value_ints"):
        if name in node.attributes:
            yield Remark(f"{name} is read as a float: garbage, silently", cure)
    for name in ("sparse_value", "value_string", "value_strings"):
        if name in node.attributes:
            yield Remark(f"{name} is not read", cure)


def _cast(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    kind = model.kind_of(node.output(0))
    if kind not in (None, "UNDEFINED", *READABLE):
        yield Remark(f"it casts to {kind}, which fails", "cast to FLOAT, FLOAT16, INT32 or BOOL")


def _dropout(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    mode = model.constants.get(node.input(2))
    if node.input(2) and (mode is None or mode.values().any()):
        yield Remark("it is in training mode", "export the network in eval mode")


def _zero_point(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    point = model.constants.get(node.input(2))
    if point is not None and point.values().any():
        yield Remark("its zero point is not 0", "quantize symmetrically")
    yield Remark("the TX2 has no INT8 arithmetic", "use FP16", "note")


def _instance_norm(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    for i, what in ((1, "scale"), (2, "bias")):
        constant = model.constants.get(node.input(i))
        if constant is not None and constant.kind != "FLOAT":
            yield Remark(
                f"its {what} is {constant.kind} and is read as FLOAT: garbage, silently", f"store the {what} as FLOAT"
            )


def _gather(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    shape = model.shape_of(node.input(0))
    if node.input(0) in model.constants or shape is None or len(shape) < 3:
        return
    yield Remark("it copies the whole tensor and nothing fuses with it", "put the selection into weights", "note")


def _axes_input(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    if node.input(1):
        yield Remark(
            "axes as an input (opset 18) are ignored: everything is reduced, silently",
            "give axes as the attribute of opset 13",
        )


NEAREST_MODES = ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
SILENT = "{name} is ignored, silently"
POOLS = (ranks(4, 5, cure="make it a pool over an image one pixel high"),)
NO_GAPS = ones("dilations", "dilated windows are not read", "use windows without gaps")
CONVOLUTION = (
    ranks(4, 5, cure="make it a convolution of an image one pixel high"),
    constant_input(1, "weight"),
    constant_input(2, "bias"),
)
RECURRENT = (without_attributes("layout", problem=SILENT, cure="keep the time axis first"),)
SCATTER = (without_attributes("reduction", problem=SILENT, cure="write the reduction out"),)
NO_BOOL = (not_of(0, ("BOOL",), "cast to INT32"),)
NO_INTEGERS = (not_of(0, NUMBERS, "cast to FLOAT"),)

RULES: Mapping[str, tuple[Rule, ...]] = {
    "Conv": CONVOLUTION,
    "ConvTranspose": CONVOLUTION,
    "MaxPool": (*POOLS, _max_pool, NO_GAPS),
    "AveragePool": (*POOLS, _average_pool, NO_GAPS),
    "LpPool": (
        *POOLS,
        without_attributes("ceil_mode", problem=SILENT, cure="pad by hand"),
        ones("dilations", "dilations are ignored, silently", "use windows without gaps"),
    ),
    "GlobalAveragePool": POOLS,
    "GlobalMaxPool": POOLS,
    "BatchNormalization": (
        *(constant_input(i, "parameter", severity="warning") for i in range(1, 5)),
        without_attributes("training_mode", problem=SILENT, cure="export it in eval mode"),
    ),
    "InstanceNormalization": (
        constant_input(1, "scale"), constant_input(2, "bias"), _instance_norm,
        ranks(3, 4, 5, cure="reshape its input"),
    ),
    "Clip": (_clip,),
    "Resize": (
        values_in("mode", ("nearest", "linear"), "nearest", "use those, or a product with constant matrices"),
        values_in("nearest_mode", NEAREST_MODES, "round_prefer_floor", "use floor"),
        values_in(
            "coordinate_transformation_mode",
            ("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners"),
            "half_pixel", "use half_pixel, asymmetric or align_corners",
        ),
        constant_input(2, "scales"),
        without_attributes(
            "antialias", "axes", "keep_aspect_ratio_policy", problem=SILENT, cure="use what opset 13 has"
        ),
        not_of(0, (*NUMBERS, "BOOL"), "cast to FLOAT"),
    ),
    "Upsample": (constant_input(1, "scales"),),
    "TopK": (constant_input(1, "K"), *NO_INTEGERS),
    "CumSum": (constant_input(1, "axis"),),
    "Slice": (constant_input(3, "axes"),),
    "Squeeze": (constant_input(1, "axes"),),
    "Unsqueeze": (constant_input(1, "axes"),),
    "Pad": (
        at_most_inputs(3, "axes as an input (opset 18) are ignored, and the value with them, silently", "pad all axes"),
        values_in("mode", ("constant", "reflect", "edge"), "constant", "pad with slices and a Concat"),
        constant_input(2, "constant_value"),
    ),
    "Split": (without_attributes("num_outputs", problem=SILENT, cure="give the sizes as the input split"),),
    "Shape": (without_attributes("start", "end", problem=SILENT, cure="take all sizes and Slice them"),),
    "ScatterND": SCATTER,
    "ScatterElements": SCATTER,
    "Gather": (*NO_BOOL, _gather),
    "GatherElements": NO_BOOL,
    "GatherND": NO_BOOL,
    "Where": (not_of(1, ("BOOL",), "cast to INT32"),),
    "Einsum": (_einsum,),
    "Gemm": (ranks(2, cure="use MatMul"), *NO_INTEGERS),
    "MatMul": NO_INTEGERS,
    "DepthToSpace": (ranks(4, cure="write it as Reshape, Transpose, Reshape"), *NO_BOOL),
    "SpaceToDepth": (ranks(4, cure="write it as Reshape, Transpose, Reshape"), *NO_BOOL),
    "Constant": (_constant_node,),
    "Cast": (_cast,),
    "Dropout": (_dropout,),
    "QuantizeLinear": (_zero_point,),
    "DequantizeLinear": (_zero_point,),
    "LSTM": RECURRENT,
    "GRU": RECURRENT,
    "RNN": RECURRENT,
    **dict.fromkeys(
        (
            "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceL1", "ReduceL2", "ReduceLogSum",
            "ReduceLogSumExp", "ReduceSumSquare",
        ),
        (_axes_input,),
    ),
}  # fmt: skip
"""What each operator may not have, by name."""
