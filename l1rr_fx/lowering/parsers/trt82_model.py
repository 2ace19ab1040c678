"""TensorRT 8.2: what a whole ONNX model may not have, and what no node may have, whatever its operator."""

from __future__ import annotations

from collections.abc import Iterator

from l1rr_fx.lowering.parsers.onnx_file import STANDARD, Constant, OnnxModel, OnnxNode
from l1rr_fx.lowering.parsers.remarks import Check, ModelCheck, Remark, helper
from l1rr_fx.lowering.parsers.trt82_values import READABLE

OPSET, IR_VERSION, MOST_AXES = 13, 7, 8
INT32 = 2**31 - 1


# Versions


def _newer(model: OnnxModel) -> Iterator[Remark]:
    if model.opset > OPSET:
        yield Remark(
            f"it declares opset {model.opset}; the parser knows {OPSET}, and ignores what newer ones add",
            f"export it with opset {OPSET}",
            "warning",
        )


def _older(model: OnnxModel) -> Iterator[Remark]:
    if model.opset < 7:
        yield Remark(f"opset {model.opset} broadcasts in another way", "export it with opset 7 to 13")


def _domains(model: OnnxModel) -> Iterator[Remark]:
    if len(model.domains) > 1 and "" not in model.domains:
        yield Remark(
            f"it imports {', '.join(model.domains)}; beside another domain, that of ONNX has to be the empty name",
            "name the domain of ONNX ''",
        )


def _ir_version(model: OnnxModel) -> Iterator[Remark]:
    if model.ir_version > IR_VERSION:
        yield Remark(
            f"IR version {model.ir_version} is newer than that of ONNX 1.8, whose tools JetPack 4.6 has",
            f"write IR version {IR_VERSION}",
            "warning",
        )


# Parts that are not read


def _functions(model: OnnxModel) -> Iterator[Remark]:
    if model.functions:
        yield Remark(f"its functions ({', '.join(model.functions)}) are ignored", "inline them")


def _sparse(model: OnnxModel) -> Iterator[Remark]:
    if model.sparse:
        yield Remark(f"its sparse constants ({', '.join(model.sparse)}) are not read", "store them as plain ones")


# Inputs, outputs and constants


def _sizes(model: OnnxModel) -> Iterator[Remark]:
    for name in model.inputs:
        shape = model.shape_of(name)
        if shape is None or None in shape:
            yield Remark(
                f"the sizes of input {name} are not fixed", "export it for one size: a static engine is asked for"
            )


def _ports(model: OnnxModel) -> Iterator[Remark]:
    for what, names in (("input", model.inputs), ("output", model.outputs)):
        for name in names:
            kind = model.kind_of(name)
            if kind not in (*READABLE, *(("UNDEFINED", None) if what == "output" else ())):
                yield Remark(f"{what} {name} is {kind}, which cannot be read", "make it FLOAT and cast outside")


def _constants(model: OnnxModel) -> Iterator[Remark]:
    for constant in model.constants.values():
        yield from _stored(model, constant)


def _stored(model: OnnxModel, constant: Constant) -> Iterator[Remark]:
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


IMPORT = "ModelImporter.cpp: importModel"
MODEL_CHECKS = (
    ModelCheck("at most opset 13 (warning)", _newer, "ImporterContext.hpp: getOpsetVersion"),
    ModelCheck("at least opset 7", _older, helper("broadcastTensor")),
    ModelCheck("beside other domains, that of ONNX is ''", _domains, "ImporterContext.hpp: getOpsetVersion"),
    ModelCheck("at most IR version 7 (warning; not read by the parser)", _ir_version, IMPORT),
    ModelCheck("no functions", _functions, IMPORT),
    ModelCheck("no sparse constants", _sparse, "ModelImporter.cpp: parseGraph"),
    ModelCheck("sizes of inputs are fixed", _sizes, "ModelImporter.cpp: importInput", "NvInfer.h"),
    ModelCheck("inputs and outputs have types that are read", _ports, helper("convertDtype")),
    ModelCheck("constants have types that are read, and fit into 32 bits", _constants, helper("convertOnnxWeights")),
)


# Every node


def _domain(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    if node.domain not in STANDARD:
        yield Remark(f"the domain {node.domain!r} is ignored: the standard operator of that name is built", "rename it")


def _axes(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    axes, name = max((model.rank_of(name) or 0, name) for name in ("", *node.inputs, *node.outputs))
    if axes > MOST_AXES:
        yield Remark(f"{name} has {axes} axes; at most {MOST_AXES} are read", "merge axes by a Reshape outside")


OPTIONAL = {("Resize", 1), ("Resize", 2), ("ReduceSum", 1), ("ReduceLogSum", 1), ("Pad", 1), ("Squeeze", 1)}
"""Inputs that may be empty, or have a check of their own."""
SHAPE_INPUTS = {("Reshape", 1), ("Tile", 1), ("ConstantOfShape", 0)}
"""An empty constant in these is the shape of a scalar, which the parser reads as meant."""


def _empty(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    for i, name in enumerate(node.inputs):
        held = model.constants.get(name)
        if held is not None and 0 in held.shape and (node.kind, i) not in OPTIONAL | SHAPE_INPUTS:
            yield Remark(f"its input {i} is the constant {name} without elements", "leave the input out")


EVERY_NODE = (
    Check("domains are those of ONNX (others are ignored)", _domain, "ModelImporter.cpp: parseGraph"),
    Check(f"at most {MOST_AXES} axes", _axes, "onnx_utils.hpp: convertOnnxDims"),
    Check("no constants without elements", _empty, helper("convertToTensor"), "NvInfer.h"),
)
"""The checks of each node that has an importer."""
