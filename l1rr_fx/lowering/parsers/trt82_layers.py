"""TensorRT 8.2: what convolutions, pools, norms, resizes, recurrent layers and quantisation may not have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from l1rr_fx.lowering.parsers.onnx_file import OnnxModel, OnnxNode
from l1rr_fx.lowering.parsers.remarks import (
    Check,
    Remark,
    constant,
    constant_input,
    given_sizes,
    helper,
    importer,
    ones,
    ranks,
    values_in,
    without_attributes,
)

EXPLICIT = ("NOTSET", "VALID")


def _pads(node: OnnxNode) -> list[tuple[int, int]]:
    """Per axis the padding at its begin and at its end, where the attribute gives it."""
    if node.attributes.get("auto_pad", "NOTSET") not in EXPLICIT:
        return []
    pads = list(node.attributes.get("pads", ()))
    half = len(pads) // 2
    return list(zip(pads[:half], pads[half:]))


# Convolutions


def _weight(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    name = node.input(1)
    producer = model.producers.get(name)
    if not constant(model, name) and (producer is None or producer.kind != "DequantizeLinear"):
        yield Remark("the network computes its weight", "make the weight an initializer")


def _bias(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    if len(node.inputs) < 3:
        return
    if not node.input(2):
        yield Remark("its bias is an empty name, which is not read as none", "leave the third input out")
    elif not constant(model, node.input(2)):
        yield Remark("the network computes its bias", "make the bias an initializer")


def _even_pads(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    if model.rank_of(node.input(0)) != 5 or node.attributes.get("output_shape"):
        return
    pads = _pads(node)
    extra = node.attributes.get("output_padding", [0] * len(pads))
    if any(begin != max(end - more, 0) for (begin, end), more in zip(pads, extra)):
        yield Remark(
            f"its pads {node.attributes['pads']} differ at the two ends, which is not read of a 3-D layer",
            "pad evenly, and slice its output",
        )


def _grown(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    if model.rank_of(node.input(0)) == 3 and "output_padding" in node.attributes:
        yield Remark(
            "its output_padding is that of one axis, and the parser reads a second number that is not set",
            "pad its output, or write it over an image one pixel high",
        )


CONVOLUTION = (
    Check("constant or dequantized weight", _weight, basis="NvInfer.h"),
    Check("constant bias, or none", _bias),
)
SPATIAL = "reshape its input to 3 to 5 axes"


# Pools


def _average_pads(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    if any(end - begin not in (0, 1) for begin, end in _pads(node)[:2]):
        yield Remark(
            f"its pads are {node.attributes['pads']}; of each axis the end has to be the begin, or one more",
            "pad evenly, or with a Pad before it",
        )


def _max_pool(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    if len(node.outputs) > 1:
        yield Remark("it has no second output (indices)", "do not use the positions of maxima")


POOLING = helper("poolingHelper")
POOL = (
    ranks(3, 4, 5, cure=SPATIAL, source=POOLING),
    ones("dilations", "dilated windows are not read", "use windows without gaps", POOLING),
)


# Norms


def _computed_norm(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    if not all(constant(model, name) for name in node.inputs[1:5]):
        yield Remark(
            "the network computes its parameters, so that it becomes five element-wise layers",
            "make all four parameters initializers",
            "warning",
        )


def _instance_norm(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    for i, what in ((1, "scale"), (2, "bias")):
        held = model.constants.get(node.input(i))
        if held is not None and held.kind != "FLOAT":
            yield Remark(
                f"its {what} is {held.kind} and is read as FLOAT: garbage, silently", f"store the {what} as FLOAT"
            )


# Resizes


def _half_pixel_for_nearest(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    if node.attributes.get("coordinate_transformation_mode") != "tf_half_pixel_for_nn":
        return
    if node.attributes.get("nearest_mode", "round_prefer_floor") != "round_prefer_floor":
        yield Remark("tf_half_pixel_for_nn is read with round_prefer_floor only", "use asymmetric and floor")
    elif node.attributes.get("mode", "nearest") == "linear":
        yield Remark("tf_half_pixel_for_nn is read as half_pixel, silently", "use half_pixel or asymmetric")


def _scales(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    i = 2 if model.opset >= 11 else 1
    if not node.input(3) and not constant(model, node.input(i)):
        yield Remark("the network computes its scales", "make the scales an initializer")


OUTER = Remark("it interpolates beyond the last 3 axes", "reshape its input so that the first axes are one")


def _linear_scales(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    i = 2 if node.kind == "Resize" and model.opset >= 11 else 1
    held = model.constants.get(node.input(i))
    if node.attributes.get("mode") == "linear" and not node.input(3) and held is not None:
        if (held.values()[:-3] != 1).any():
            yield OUTER


def _linear_sizes(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    before, after = model.shape_of(node.input(0)), model.shape_of(node.output(0))
    if node.attributes.get("mode") == "linear" and node.input(3) and before and after and before[:-3] != after[:-3]:
        yield OUTER


# Recurrent layers


def _both_directions(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    names = list(node.attributes.get("activations", ()))
    half = len(names) // 2
    if node.attributes.get("direction") == "bidirectional" and names[:half] != names[half:]:
        yield Remark("its two directions have different activations", "split it into two layers of one direction")


RECURRENT = (
    without_attributes("layout", cure="keep the time axis first"),
    Check("both directions have the same activations", _both_directions),
)


# Quantisation


def _zero_point(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    point = model.constants.get(node.input(2))
    if not node.input(2):
        yield Remark("it has no zero point", "give a zero point of INT8 zeros")
    elif point is not None and point.kind == "UINT8":
        yield Remark("its zero point is UINT8 and becomes INT8, silently", "quantize to INT8, symmetrically")
    elif point is not None and point.values().any():
        yield Remark("its zero point is not 0", "quantize symmetrically")


def _no_int8(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    yield Remark("the TX2 has no INT8 arithmetic", "use FP16", "note")


QUANTISING = "builtin_op_importers.cpp: QuantDequantLinearHelper"
QUANTISATION = (
    Check("a zero point of INT8 zeros", _zero_point, QUANTISING),
    Check("the TX2 has no INT8 arithmetic (note)", _no_int8, QUANTISING, "NvInfer.h"),
)

NEAREST_MODES = ("floor", "ceil", "round_prefer_floor", "round_prefer_ceil")
TRANSFORMATIONS = ("half_pixel", "pytorch_half_pixel", "tf_half_pixel_for_nn", "asymmetric", "align_corners")

LAYERS: Mapping[str, tuple[Check, ...]] = {
    "Conv": (*CONVOLUTION, ranks(3, 4, 5, cure=SPATIAL, basis="NvInfer.h")),
    "ConvTranspose": (
        *CONVOLUTION,
        ranks(3, 4, 5, cure=SPATIAL),
        Check("pads of a 3-D layer are even", _even_pads),
        Check("no output_padding of a 1-D layer", _grown),
    ),
    "MaxPool": (*POOL, Check("one output", _max_pool)),
    "AveragePool": (
        *POOL,
        Check("per axis, the end of the pads is the begin, or one more", _average_pads, POOLING),
    ),
    "LpPool": (
        ranks(4, 5, cure="make it a pool over an image one pixel high", basis="NvInfer.h"),
        values_in("p", (1, 2), 2, "write it with Abs, Pow and AveragePool"),
        without_attributes("ceil_mode", cure="pad by hand"),
        ones("dilations", "dilations are ignored, silently", "use windows without gaps"),
    ),
    "GlobalLpPool": (values_in("p", (2,), 2, "write it with ReduceL1, or with Abs, Pow and ReduceSum"),),
    "BatchNormalization": (
        Check("constant parameters (warning)", _computed_norm),
        without_attributes("training_mode", cure="export it in eval mode"),
    ),
    "InstanceNormalization": (
        constant_input(1, "scale"),
        constant_input(2, "bias"),
        Check("scale and bias are FLOAT", _instance_norm),
        ranks(3, 4, 5, cure="reshape its input"),
    ),
    "LpNormalization": (values_in("p", (1, 2), 2, "write it with Abs, Pow and ReduceSum"),),
    "Resize": (
        values_in("mode", ("nearest", "linear"), "nearest", "use those, or a product with constant matrices"),
        values_in("nearest_mode", NEAREST_MODES, "round_prefer_floor", "use floor"),
        values_in(
            "coordinate_transformation_mode",
            TRANSFORMATIONS,
            "half_pixel",
            "use half_pixel, asymmetric or align_corners",
        ),
        Check("tf_half_pixel_for_nn is nearest, round_prefer_floor", _half_pixel_for_nearest),
        Check("constant scales", _scales),
        Check("linear over the last 3 axes, by scales", _linear_scales, helper("canUseLinearResize")),
        Check("linear over the last 3 axes, by sizes", _linear_sizes, importer("Resize"), "NvInfer.h"),
        given_sizes(3),
        without_attributes("antialias", "axes", "keep_aspect_ratio_policy", cure="use what opset 13 has"),
    ),
    "Upsample": (
        constant_input(1, "scales"),
        Check("linear over the last 3 axes, by scales", _linear_scales, helper("canUseLinearResize")),
    ),
    "NonMaxSuppression": (
        *(constant_input(i, what) for i, what in ((2, "number of boxes"), (3, "IoU"), (4, "threshold of scores"))),
    ),
    "LSTM": (
        *RECURRENT,
        values_in("input_forget", (0,), 0, "export it with separate gates"),
    ),
    "GRU": RECURRENT,
    "RNN": RECURRENT,
    "QuantizeLinear": QUANTISATION,
    "DequantizeLinear": QUANTISATION,
}
"""The checks of each operator, by name."""
