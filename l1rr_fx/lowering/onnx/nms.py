"""Non-maximum suppression at the end of an ONNX file, by TensorRT's own plugin.

ONNX's NonMaxSuppression is experimental in TensorRT 8.2. Its plugin EfficientNMS_TRT runs on the GPU with fixed sizes.
No other runtime knows it, TensorRT for RTX neither, so that a file is checked before the node is added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from l1rr_fx.support.packages import required
from passes.errors import InputError

DOMAIN, PLUGIN, CENTRES = "TRT", "EfficientNMS_TRT", 1
NAMES = ("num_dets", "det_boxes", "det_scores", "det_classes")
TRANSPOSE = "nms/Transpose"
TENSORRT = ("jetson", "tensorrt")
"""The names of targets that are TensorRT start with one of these."""


@dataclass(frozen=True)
class Nms:
    """The options of non-maximum suppression.

    Each image keeps at most `most` detections, with a score of at least `score`, whose IoU with better detections of
    their class is below `overlap`.

    The network's output number `output` (of those in the file) must be (images, 4 + classes, anchors): centre, width
    and height of boxes, then scores in [0, 1], as the heads of YOLOv8 and later give them. In its place come `num_dets`
    (images, 1) in INT32, `det_boxes` (images, most, 4) as corners x1 y1 x2 y2, `det_scores` (images, most) and
    `det_classes` (images, most) in INT32.
    """

    output: int = 0
    score: float = 0.25
    overlap: float = 0.7
    most: int = 300

    def __post_init__(self) -> None:
        if not 0 <= self.score <= 1:
            raise InputError(f"nms: the score is {self.score}; expected a threshold from 0 to 1")
        if not 0 < self.overlap <= 1:
            raise InputError(f"nms: the overlap is {self.overlap}; expected an IoU above 0 and up to 1")
        if self.most < 1:
            raise InputError(f"nms: most is {self.most}; expected 1 or more detections")


def check_nms(nms: Nms | None, target: str) -> None:
    """Raise InputError if the plugin is asked for and the target has none."""
    if not isinstance(nms, Nms | None):
        raise InputError(f"nms is a {type(nms).__name__}; expected Nms(score=..., overlap=...) or None")
    if nms is not None and not target.startswith(TENSORRT):
        raise InputError(
            f"nms is a plugin of TensorRT; the target {target!r} has none: leave it out, and suppress after the network"
        )


def check_detections(output: Any, name: str) -> None:
    """Raise InputError if an output, a numpy array, cannot be boxes (centre, size) and scores."""
    sizes, scores = output[:, 2:4], output[:, 4:]
    if not (scores.min() >= 0 and scores.max() <= 1):
        raise InputError(
            f"nms: output {name!r} has scores from {scores.min():.3g} to {scores.max():.3g}; they must lie in [0, 1]: "
            "end the network with their sigmoid"
        )
    if not sizes.min() >= 0:
        raise InputError(
            f"nms: output {name!r} has a box of width or height {sizes.min():.3g}: "
            "its first four rows are the centre, width and height of boxes"
        )


def add_nms(model: Any, nms: Nms) -> None:
    """Append the plugin to an `onnx.ModelProto`. Raises InputError unless the output has the shape that `Nms` takes."""
    onnx = required("onnx", extra="onnx")
    outputs = list(model.graph.output)
    if not 0 <= nms.output < len(outputs):
        raise InputError(f"nms: the file has no output {nms.output}; it has {len(outputs)}, counted from 0")
    found = outputs[nms.output]
    shape = [size.dim_value for size in found.type.tensor_type.shape.dim]
    if len(shape) != 3 or shape[1] < 5:
        raise InputError(
            f"nms: output {found.name!r} is {tuple(shape)}; expected (images, 4 + classes, anchors): "
            "pick another one with Nms(output=...)"
        )
    if choice := _choice_before(model.graph, found.name):
        raise InputError(
            f"nms: output {found.name!r} depends on {choice}, which chooses the best: this head is end-to-end, and its "
            "output are detections already; expected no nms, or a head that gives all candidates (end2end=False)"
        )
    kind = found.type.tensor_type.elem_type
    _append_nodes(onnx, model.graph, nms, found.name, shape[1])
    ports = zip(
        NAMES, _shapes(shape[0], nms.most), (onnx.TensorProto.INT32, kind, kind, onnx.TensorProto.INT32), strict=True
    )
    outputs[nms.output : nms.output + 1] = [
        onnx.helper.make_tensor_value_info(name, of, size) for name, size, of in ports
    ]
    del model.graph.output[:]
    model.graph.output.extend(outputs)
    model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))


def _choice_before(graph: Any, output: str) -> str:
    """The name of a TopK on which an output of an ONNX graph depends; "" if there is none."""
    makers = {value: node for node in graph.node for value in node.output}
    seen, waiting = {output}, [output]
    while waiting:
        node = makers.get(waiting.pop())
        if node is None:
            continue
        if node.op_type == "TopK":
            return str(node.name)
        waiting.extend(name for name in node.input if name not in seen)
        seen.update(node.input)
    return ""


def _shapes(images: int, most: int) -> tuple[list[int], ...]:
    return [images, 1], [images, most, 4], [images, most], [images, most]


def _append_nodes(onnx: Any, graph: Any, nms: Nms, source: str, channels: int) -> None:
    """Anchors before channels, boxes and scores apart, then the plugin."""
    helper, name = onnx.helper, "nms"
    graph.initializer.append(helper.make_tensor(f"{name}/parts", onnx.TensorProto.INT64, [2], [4, channels - 4]))
    boxes, scores = f"{name}/boxes", f"{name}/scores"
    graph.node.extend(
        [
            helper.make_node("Transpose", [source], [f"{name}/rows"], name=TRANSPOSE, perm=[0, 2, 1]),
            helper.make_node("Split", [f"{name}/rows", f"{name}/parts"], [boxes, scores], name=f"{name}/Split", axis=2),
            helper.make_node(
                PLUGIN,
                [boxes, scores],
                list(NAMES),
                name=f"{name}/{PLUGIN}",
                domain=DOMAIN,
                plugin_version="1",
                background_class=-1,
                box_coding=CENTRES,
                score_activation=0,
                score_threshold=nms.score,
                iou_threshold=nms.overlap,
                max_output_boxes=nms.most,
            ),
        ]
    )
