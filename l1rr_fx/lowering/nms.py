"""Non-maximum suppression at the end of an ONNX file, by TensorRT's own plugin.

ONNX's NonMaxSuppression is experimental in TensorRT 8.2. Its plugin EfficientNMS_TRT runs on the GPU with fixed sizes.
No other runtime knows it, so that a file is checked before the node is added.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from l1rr_fx.lowering.packages import optional
from passes.errors import InputError

DOMAIN, PLUGIN, CENTRES = "TRT", "EfficientNMS_TRT", 1
NAMES = ("num_dets", "det_boxes", "det_scores", "det_classes")


@dataclass(frozen=True)
class Nms:
    """What is kept of detections: at most `most` an image, of a score above `score`, that overlap others of their class
    by an IoU of at most `overlap`.

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
        if not 0 <= self.score <= 1 or not 0 < self.overlap <= 1:
            raise InputError(f"nms: score {self.score} and overlap {self.overlap} must lie in [0, 1]")
        if self.most < 1:
            raise InputError(f"nms: at most {self.most} detections are wanted; 1 or more are needed")


def add_nms(model: Any, nms: Nms) -> None:
    """Append the plugin to an `onnx.ModelProto`. InputError if the output is not of the shape that `Nms` wants."""
    onnx = optional("onnx", "onnx")
    outputs = list(model.graph.output)
    if not 0 <= nms.output < len(outputs):
        raise InputError(f"nms: the file has no output {nms.output}; it has {len(outputs)}")
    found = outputs[nms.output]
    shape = [size.dim_value for size in found.type.tensor_type.shape.dim]
    if len(shape) != 3 or shape[1] < 5:
        raise InputError(f"nms: output {found.name!r} is {tuple(shape)}; (images, 4 + classes, anchors) is wanted")
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


def _shapes(images: int, most: int) -> tuple[list[int], ...]:
    return [images, 1], [images, most, 4], [images, most], [images, most]


def _append_nodes(onnx: Any, graph: Any, nms: Nms, source: str, channels: int) -> None:
    """Anchors before channels, boxes and scores apart, then the plugin."""
    helper, name = onnx.helper, "nms"
    graph.initializer.append(helper.make_tensor(f"{name}/parts", onnx.TensorProto.INT64, [2], [4, channels - 4]))
    boxes, scores = f"{name}/boxes", f"{name}/scores"
    graph.node.extend(
        [
            helper.make_node("Transpose", [source], [f"{name}/rows"], name=f"{name}/Transpose", perm=[0, 2, 1]),
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
