"""TensorRT 8.2: reshapes, transpositions, paddings, slices and gathers that are refused or misread."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from l1rr_fx.lowering.parsers.onnx_file import OnnxModel, OnnxNode
from l1rr_fx.lowering.parsers.remarks import (
    Check,
    Remark,
    constant,
    constant_input,
    given_sizes,
    importer,
    ranks,
    values_in,
    without_attributes,
)

OWN_NAME = Remark(
    "it does nothing to an input of the network, and the input gets the name of its output", "remove the node"
)


def _flatten(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    rank, axis = model.rank_of(node.input(0)), node.attributes.get("axis", 1)
    if rank is None or rank > 2:
        return
    if rank != 2 or axis not in (1, -1):
        yield Remark(f"of {rank} axes nothing is flattened, silently; only axis 1 of 2 axes is", "write it as Reshape")
    elif node.input(0) in model.inputs:
        yield OWN_NAME


def _transposed_constant(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    name = node.input(0)
    if not constant(model, name):
        return
    kind, rank = model.kind_of(name), model.rank_of(name) or 0
    if kind not in ("FLOAT", "FLOAT16", "DOUBLE") or rank > 4:
        yield Remark(
            f"it transposes a constant of type {kind} with {rank} axes; FLOAT with at most 4 is read",
            "store the constant transposed",
        )


def _identity(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    rank = model.rank_of(node.input(0))
    if rank is not None and node.input(0) in model.inputs:
        order = list(node.attributes.get("perm", range(rank - 1, -1, -1)))
        if order == list(range(rank)):
            yield OWN_NAME


def _allowzero(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    if model.opset >= 14 and "allowzero" not in node.attributes:
        yield Remark(f"at opset {model.opset} it needs allowzero", "write allowzero=0, or export it with opset 13")


# Paddings


def _widths(model: OnnxModel, node: OnnxNode) -> list[int]:
    """Its pads, where they are known."""
    if model.opset < 11:
        return [int(n) for n in node.attributes.get("pads", ())]
    held = model.constants.get(node.input(1))
    return [] if held is None else [int(n) for n in held.values().reshape(-1)]


def _negative(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    widths = _widths(model, node)
    if min(widths, default=0) < 0:
        yield Remark(f"its pads are {widths}; negative ones are not read", "write it as Slice")


def _fill(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    held = model.constants.get(node.input(2))
    if node.attributes.get("mode", "constant") != "constant" or held is None or held.kind in ("FLOAT", "DOUBLE"):
        return
    if held.values().any() and any(_widths(model, node)):
        yield Remark(
            f"its value {held.values().reshape(-1)[0]} is {held.kind} and is read as FLOAT: garbage, silently",
            "pad x - value by 0 and add the value, or pad in FLOAT",
        )


def _scalar(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    if node.input(2) and not constant(model, node.input(2)) and model.rank_of(node.input(2)) != 0:
        yield Remark("the network computes its constant_value, which is no scalar", "make it an initializer")


def _axes_of_pad(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    if node.input(3):
        yield Remark("axes as an input (opset 18) are ignored, and the value with them, silently", "pad all axes")


# Parts


def _even_parts(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    shape, axis, parts = model.shape_of(node.input(0)), node.attributes.get("axis", 0), len(node.outputs)
    given = node.input(1) if model.opset >= 13 else node.attributes.get("split")
    if given or not shape or shape[axis] is None or not parts:
        return
    if (shape[axis] or 0) % parts:
        yield Remark(
            f"it splits {shape[axis]} elements into {parts} parts and drops the rest, silently",
            "give the sizes as the input split",
        )


def _starts(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    rank, starts = model.rank_of(node.input(0)), model.shape_of(node.input(1))
    if model.opset < 10 or len(node.inputs) > 3 or rank is None or not starts:
        return
    if starts[0] not in (rank, None):
        yield Remark(f"it has {starts[0]} starts for {rank} axes, and no axes", "give its axes as the input axes")


def _axes_of_slice(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    if len(node.inputs) > 3 and not node.input(3):
        yield Remark("its axes are an empty name, which is not read as none", "give its axes as the input axes")


def _gather(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    rank = model.rank_of(node.input(0))
    if not constant(model, node.input(0)) and rank is not None and rank >= 3:
        yield Remark("it copies the whole tensor and nothing fuses with it", "put the selection into weights", "note")


SCATTER = (without_attributes("reduction", cure="write the reduction out"),)
BLOCKS = (ranks(4, cure="write it as Reshape, Transpose, Reshape"),)
SIZES = given_sizes(1)

SHAPES: Mapping[str, tuple[Check, ...]] = {
    "Flatten": (Check("more than 2 axes, or axis 1 of 2; not of an input of the network", _flatten),),
    "Transpose": (
        Check("a constant is FLOAT, with at most 4 axes", _transposed_constant, "ShapedWeights.cpp: transposeWeights"),
        Check("no identity of an input of the network", _identity, "ImporterContext.hpp: registerTensor"),
    ),
    "Reshape": (Check("allowzero from opset 14 on", _allowzero), SIZES),
    "Expand": (SIZES,),
    "Tile": (SIZES,),
    "ConstantOfShape": (given_sizes(0),),
    "Slice": (
        constant_input(3, "axes"),
        Check("without axes, a start for each axis", _starts),
        Check("axes that are left out are no empty name", _axes_of_slice),
        given_sizes(1, 2, 4),
    ),
    "Squeeze": (constant_input(1, "axes"),),
    "Unsqueeze": (constant_input(1, "axes"),),
    "Pad": (
        Check("no axes as an input (ignored)", _axes_of_pad),
        values_in("mode", ("constant", "reflect", "edge"), "constant", "pad with slices and a Concat"),
        Check("pads are not negative", _negative, "onnx2trt_utils.cpp: convertOnnxPadding"),
        Check("a value other than 0 is FLOAT", _fill),
        Check("a computed value is a scalar", _scalar, importer("Pad"), "NvInfer.h"),
        SIZES,
    ),
    "Split": (Check("equal parts have equal sizes", _even_parts), SIZES),
    "Shape": (without_attributes("start", "end", cure="take all sizes and Slice them"),),
    "ScatterND": SCATTER,
    "ScatterElements": SCATTER,
    "Gather": (Check("copies a feature map (note)", _gather),),
    "DepthToSpace": BLOCKS,
    "SpaceToDepth": BLOCKS,
    "EyeLike": (ranks(2, cure="make it an initializer"),),
}
"""The checks of each operator, by name."""
