"""The importers of TensorRT 8.2's parser for windows, interpolation, normalisation, recurrence and plugins.

Facts of onnx-tensorrt at its 8.2 release (85e79f6), builtin_op_importers.cpp and onnx2trt_utils.cpp, stated in words of
our own. A function or its messages name the importer. What NvInfer.h says of a layer is said to be so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from itertools import zip_longest

import numpy as np

from tests.trt82_node import Node, Value

Importer = Callable[[Node], None]


def conv(n: Node) -> None:
    """`importConv`; a computed kernel goes through `convMultiInput`. Three axes are expanded to four."""
    value, kernel = n.tensor(0), n.tensor(1)
    bias = _bias(n, "importConv")
    if not kernel.is_weights:
        made_by = kernel.made_by.op_type if kernel.made_by is not None else "no node"
        n.builder(made_by == "DequantizeLinear", f"convMultiInput: the kernel is computed by {made_by}")
    _kernel_fits(n, value, kernel, "importConv")
    n.builder(value.rank in (3, 4, 5, None), f"a convolution of {value.rank} axes")
    assert kernel.shape is not None
    group = int(n.get("group", 1))
    if value.shape is not None and value.shape[1] is not None:
        channels = (kernel.shape[1] or 0) * group
        n.check(channels == value.shape[1], f"importConv: {channels} channels of weights for {value.shape[1]}")
    if bias is not None and kernel.is_weights:
        n.check(bias.rank in (0, 1), f"importConv: a bias of {bias.rank} axes")
        n.check(not bias.shape or bias.shape[0] == kernel.shape[0], "importConv: the bias has another size")
    n.layer("Convolution", group=group, padding=_padding(n))


def conv_transpose(n: Node) -> None:
    value, kernel = n.tensor(0), n.tensor(1)
    bias = _bias(n, "importConvTranspose")
    n.check(value.rank in (3, 4, 5, None), f"importConvTranspose: {value.rank} axes")
    if not kernel.is_weights:
        n.builder(False, "importConvTranspose: the kernel is computed")
    _kernel_fits(n, value, kernel, "importConvTranspose")
    assert kernel.shape is not None
    outputs = (kernel.shape[1] or 0) * int(n.get("group", 1))
    if bias is not None:
        n.check(
            bias.rank == 1 and bias.shape == (outputs,), f"importConvTranspose: bias {bias.shape}, {outputs} outputs"
        )
    if n.get("output_shape") is not None:
        n.warn("importConvTranspose: output_shape was seen to differ from ONNX Runtime")
    extra = list(n.get("output_padding", ()))
    begin, end = _ends(n)
    if value.rank == 3 and extra:
        n.misread("importConvTranspose: output_padding of one axis: the second number is not set")
    if value.rank == 5:
        end = [e - min(e, x) for e, x in zip_longest(end or [0] * 3, extra[:3], fillvalue=0)]
        n.check((begin or [0] * 3) == end, f"importConvTranspose: three axes padded by {begin} and {end}")
    n.layer("Deconvolution", padding=_padding(n))


def _bias(n: Node, who: str) -> Value | None:
    if len(n.inputs) < 3:
        return None
    bias = n.input(2)
    n.check(bias is not None and bias.is_weights, f"{who}: the bias has to be an initializer")
    return bias


def _kernel_fits(n: Node, value: Value, kernel: Value, who: str) -> None:
    axes = [4 if rank == 3 else rank for rank in (value.rank, kernel.rank)]
    n.check(None in axes or axes[0] == axes[1], f"{who}: an input of {axes[0]} axes, a kernel of {axes[1]}")
    given = n.get("kernel_shape")
    if given is not None and kernel.shape is not None:
        n.check(tuple(given) == kernel.shape[2:], f"{who}: kernel_shape {list(given)} for weights {list(kernel.shape)}")


def _ends(n: Node) -> tuple[list[int], list[int]]:
    pads = [int(pad) for pad in n.get("pads", ())]
    return pads[: len(pads) // 2], pads[len(pads) // 2 :]


def _padding(n: Node) -> str:
    """`getKernelParams`: the padding mode."""
    mode = str(n.get("auto_pad", "NOTSET"))
    return mode if mode.startswith("SAME") else "EXPLICIT"


def pool(kind: str) -> Importer:
    """`poolingHelper`."""

    def importer(n: Node) -> None:
        value = n.tensor(0)
        if kind == "MAX":
            n.check(len(n.proto.output) == 1, "importMaxPool: the indices are not returned")
        axes = len(n.get("kernel_shape", ()))
        n.check(axes in (2, 3) or (axes == 1 and value.rank == 3), f"poolingHelper: a kernel of {axes} axes")
        n.builder(value.rank in (None, axes + 2), f"poolingHelper: {value.rank} axes, a kernel of {axes}")
        if n.opset >= 10:
            gaps = list(n.get("dilations", ()))
            n.check(all(gap == 1 for gap in gaps), f"poolingHelper: dilations {gaps}")
        if kind == "AVERAGE" and _padding(n) == "EXPLICIT":
            for begin, end in list(zip(*_ends(n)))[:2]:
                n.check(end in (begin, begin + 1), f"poolingHelper: an average padded by {begin} and {end}")
        n.layer("Pooling", type=kind, padding=_padding(n), ceil=bool(n.get("ceil_mode", 0)))

    return importer


def lp_pool(n: Node) -> None:
    value = n.tensor(0)
    n.check(value.kind not in ("BOOL", "INT8", "INT32"), f"importLpPool: {value.kind} input")
    p, axes = int(n.get("p", 2)), len(n.get("kernel_shape", ()))
    n.check(p in (1, 2), f"importLpPool: p is {p}")
    n.builder(axes in (2, 3), f"importLpPool: a kernel of {axes} axes")
    gaps = list(n.get("dilations", ()))
    ones = [1] * len(gaps)
    n.layer("Pooling", type="AVERAGE", ceil=(0, int(n.get("ceil_mode", 0))), dilations=(ones, gaps))


def global_pool(operation: str) -> Importer:
    """`globalPoolingHelper`: a reduction of all axes but the first two."""

    def importer(n: Node) -> None:
        value = n.tensor(0)
        if operation == "LP":
            n.check(value.kind not in ("BOOL", "INT32"), f"importGlobalLpPool: {value.kind} input")
            p = int(n.get("p", 2))
            if p % 2:
                n.misread(f"importGlobalLpPool: the power {p} is taken of x itself, not of |x|")
        n.layer("Reduce", operation=operation)

    return importer


def resize(n: Node) -> None:
    value = n.tensor(0)
    n.check(value.kind not in ("INT32", "BOOL"), f"importResize: {value.kind} input")
    n.check(value.rank != 0, "importResize: a scalar")
    mode, nearest = str(n.get("mode", "nearest")), str(n.get("nearest_mode", "round_prefer_floor"))
    where = str(n.get("coordinate_transformation_mode", "half_pixel")) if n.opset >= 11 else "asymmetric"
    by_sizes = n.opset >= 11 and len(n.inputs) == 4
    if n.opset >= 11:
        tf = where == "tf_half_pixel_for_nn"
        n.check(not tf or nearest == "round_prefer_floor", f"importResize: {where} with nearest_mode {nearest}")
        n.check(mode != "cubic", "importResize: cubic")
        read = ("align_corners", "tf_half_pixel_for_nn", "pytorch_half_pixel", "half_pixel", "asymmetric")
        n.check(where in read, f"importResize: coordinate_transformation_mode {where}")
        if tf and mode == "linear":
            n.misread(f"importResize: linear {where} is read as half_pixel")
    for name, plain in (("antialias", 0), ("keep_aspect_ratio_policy", "stretch")):
        if n.get(name, plain) != plain:
            n.misread(f"importResize: {name} is not read")
    if n.get("axes") is not None and value.rank is not None:
        n.check(len(n.get("axes")) == value.rank, "importResize: the axes are not read, and there are not all sizes")
    if by_sizes:
        n.tensor(3)
        n.sizes(3)
        factors = _factors(value, n.meant[0])
    else:
        scales = n.weights(2 if n.opset >= 11 else 1, "importResize: scales")
        n.check(value.rank in (None, scales.size), f"importResize: {scales.size} scales for {value.rank} axes")
        factors = [float(scale) for scale in scales.reshape(-1)]
    if mode == "linear" and any(factor != 1 for factor in factors[:-3]):
        n.check(by_sizes, f"canUseLinearResize: {factors}: more than the last three axes")
        n.builder(False, "a linear resize of more than the last three axes")
    n.layer("Resize", mode=mode, coordinates=where, rounding=nearest)


def _factors(value: Value, result: Value) -> list[float]:
    if value.shape is None or result.shape is None or None in (*value.shape, *result.shape):
        return []
    return [float(b or 0) / float(a or 1) for a, b in zip(value.shape, result.shape)]


def upsample(n: Node) -> None:
    value = n.tensor(0)
    n.check(value.kind not in ("INT32", "BOOL"), f"importUpsample: {value.kind} input")
    scales = n.weights(1, "importUpsample: scales") if n.opset >= 9 else np.array(n.get("scales", ()))
    n.check(value.rank in (None, scales.size), f"importUpsample: {scales.size} scales for {value.rank} axes")
    mode = str(n.get("mode", "nearest"))
    n.check(mode in ("nearest", "linear"), f"importUpsample: mode {mode}")
    n.check(mode != "linear" or bool(np.all(scales.reshape(-1)[:-3] == 1)), "canUseLinearResize: too many axes")
    n.layer("Resize", mode=mode, coordinates="asymmetric", rounding="floor")


def batch_norm(n: Node) -> None:
    values = [n.tensor(i) for i in range(5)]
    n.check(values[1].rank in (1, None), f"importBatchNormalization: a scale of {values[1].rank} axes")
    if n.get("training_mode", 0):
        n.misread("importBatchNormalization: training_mode is not read")
    scaled = all(value.is_weights and value.kind == "FLOAT" for value in values[1:])
    n.layer("Scale" if scaled else "Elementwise")


def instance_norm(n: Node) -> None:
    value = n.tensor(0)
    for i, what in ((1, "scale"), (2, "bias")):
        n.weights(i, f"importInstanceNormalization: the {what}")
        kind = n.tensor(i).kind
        if kind != "FLOAT":
            n.misread(f"importInstanceNormalization: the bytes of a {kind} {what} are read as FLOAT")
    n.check(value.rank in (3, 4, 5, None), f"importInstanceNormalization: {value.rank} axes")
    n.layer("Plugin", name="InstanceNormalization_TRT")


def lrn(n: Node) -> None:
    n.tensor(0)
    n.layer("LRN")


def lp_normalization(n: Node) -> None:
    value = n.tensor(0)
    n.check(value.kind not in ("BOOL", "INT8", "INT32"), f"importLpNormalization: {value.kind} input")
    n.check(n.get("p", 2) in (1, 2), f"importLpNormalization: p is {n.get('p')}")
    n.layer("Elementwise", operation="DIV", axis=n.axis("axis", -1, value.rank))


def quantize(n: Node) -> None:
    """`QuantDequantLinearHelper`: INT8, with zero points of 0."""
    n.tensor(0)
    n.check(len(n.inputs) == 3, f"QuantDequantLinearHelper: {len(n.inputs)} inputs")
    scale, point = n.tensor(1), n.tensor(2)
    if scale.read is not None:
        n.check(bool(np.all(scale.read() > 0)), "QuantDequantLinearHelper: a scale that is not positive")
    if point.read is not None:
        values = point.read()
        n.check(not values.any(), "QuantDequantLinearHelper: a zero point that is not 0")
        if values.dtype != np.int8:
            n.misread(f"QuantDequantLinearHelper: INT8 stands for {values.dtype}")
    n.check(point.shape == scale.shape, "QuantDequantLinearHelper: scale and zero point differ in size")
    n.layer(n.proto.op_type.removesuffix("Linear"))


def recurrent(n: Node) -> None:
    """The importers of RNN, GRU and LSTM, but for their activations."""
    n.check(not n.get("input_forget", 0), "importLSTM: coupled input and forget gates")
    for i in range(3):
        n.tensor(i)
    if n.get("layout", 0):
        n.misread(f"import{n.proto.op_type}: layout is not read")
    n.returned = 3 if n.proto.op_type == "LSTM" else 2
    n.layer("Loop")


def range_(n: Node) -> None:
    values = [n.tensor(i) for i in range(3)]
    static = all(value.is_weights for value in values)
    for i in range(3):
        n.sizes(i)
    n.check(values[0].kind == "INT32" or (static and values[0].kind == "FLOAT"), f"importRange: {values[0].kind}")
    n.layer("Fill")


def random(n: Node) -> None:
    n.layer("Fill")


def eye_like(n: Node) -> None:
    value = n.tensor(0)
    n.check(value.rank in (2, None), f"importEyeLike: {value.rank} axes")
    n.layer("Constant")


def reverse_sequence(n: Node) -> None:
    n.tensor(0)
    n.tensor(1)
    n.layer("Slice")


def non_max_suppression(n: Node) -> None:
    for i in range(2):
        n.check(n.tensor(i).rank in (3, None), f"importNonMaxSuppression: input {i} has {n.tensor(i).rank} axes")
    for i in range(2, len(n.inputs)):
        n.weights(i, f"importNonMaxSuppression: input {i}")
    n.warn("importNonMaxSuppression: a plugin, whose output has a fixed size")
    n.layer("Plugin", name="EfficientNMS_ONNX_TRT")


FIELDS = ("background_class", "box_coding", "iou_threshold", "max_output_boxes", "score_activation", "score_threshold")


def efficient_nms(n: Node) -> None:
    """`importFallbackPluginImporter`: the plugin's fields are attributes of the node."""
    n.returned = 4
    n.layer("Plugin", name="EfficientNMS_TRT", **{name: n.get(name) for name in FIELDS})


def partly(n: Node) -> None:
    n.returned = len(n.proto.output)
    n.warn(f"import{n.proto.op_type}: not judged, nor its graphs")


TABLE: Mapping[str, Importer] = {
    "Conv": conv, "ConvTranspose": conv_transpose, "MaxPool": pool("MAX"), "AveragePool": pool("AVERAGE"),
    "LpPool": lp_pool, "GlobalAveragePool": global_pool("AVG"), "GlobalMaxPool": global_pool("MAX"),
    "GlobalLpPool": global_pool("LP"), "Resize": resize, "Upsample": upsample, "BatchNormalization": batch_norm,
    "InstanceNormalization": instance_norm, "LRN": lrn, "LpNormalization": lp_normalization,
    "QuantizeLinear": quantize, "DequantizeLinear": quantize, "RNN": recurrent, "GRU": recurrent, "LSTM": recurrent,
    "Range": range_, "RandomUniform": random, "RandomUniformLike": random, "EyeLike": eye_like,
    "ReverseSequence": reverse_sequence, "NonMaxSuppression": non_max_suppression, "EfficientNMS_TRT": efficient_nms,
    "If": partly, "Loop": partly, "Scan": partly,
}  # fmt: skip
"""By the name of the operator."""
