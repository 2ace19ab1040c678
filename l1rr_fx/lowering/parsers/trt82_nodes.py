"""What the ONNX parser of TensorRT 8.2 refuses or misreads of each operator: a table of checks by name.

Read in the same sources as `trt82`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from l1rr_fx.lowering.parsers.onnx_file import OnnxModel, OnnxNode
from l1rr_fx.lowering.parsers.remarks import (
    Check,
    Remark,
    at_most_inputs,
    constant_input,
    not_of,
    ones,
    ranks,
    values_in,
    without_attributes,
)

READABLE = ("FLOAT", "FLOAT16", "DOUBLE", "INT8", "INT32", "INT64", "BOOL")
"""The types that the parser reads; it refuses all others, those of later versions too."""
NUMBERS = ("INT32", "INT64")


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

CHECKS: Mapping[str, tuple[Check, ...]] = {
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
"""The checks of each operator, by name."""
