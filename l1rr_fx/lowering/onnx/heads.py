"""`check_head`: whether TensorRT's NMS can read what a detection head gives, by the head's task."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import nn
from torch.fx import GraphModule

from l1rr_fx.lowering.onnx.nms import PLUGIN, Nms
from l1rr_fx.lowering.onnx.output_names import names_of_leaves, output_structure
from passes.errors import InputError

HEADS: Mapping[str, str] = {
    "OBB": "obb", "Segment": "segment", "Pose": "pose", "Classify": "classify", "RTDETRDecoder": "set",
}  # fmt: skip
"""Ultralytics' classes of heads other than plain detection, with their tasks; versions of them inherit from these."""
SET_BOXES = "pred_boxes"
"""The field in which DETR and its successors give their boxes, apart from the scores."""
OUTSIDE = (
    'expected no nms: leave it out and suppress after the network, as ultralytics.YOLO("model.onnx").predict does '
    "with a file that has yolo_metadata"
)
REFUSED: Mapping[str, str] = {
    "obb": f"its last row is an angle, which {PLUGIN} would take for a class, and the plugin suppresses upright boxes",
    "segment": f"its last rows are mask coefficients, and {PLUGIN} gives no indices by which to keep them",
    "pose": f"its last rows are keypoints, and {PLUGIN} gives no indices by which to keep them",
    "classify": "it has no boxes",
    "set": "it predicts each object once, so that nothing is to be suppressed",
}
CURES: Mapping[str, str] = {
    "set": "expected no nms: keep the queries whose score (the sigmoid of the logits of RT-DETR and D-FINE, the "
    "softmax of those of DETR) is over a threshold",
}
"""What to do, where it is not `OUTSIDE`."""
BRANCH = re.compile(r"(?P<head>.*?)(?:one2one_)?(?P<branch>cv2|cv3|cv4|cv4_kpts|proto)\.(?P<rest>.*)")
"""The layers of Ultralytics' heads: boxes (cv2), classes (cv3), and what a task has beside them (cv4)."""


def check_head(nms: Nms | None, module: nn.Module, metadata: Mapping[str, object] | None) -> None:
    """Raise InputError if NMS is asked for behind a head that it would misread."""
    if nms is None:
        return
    if task := task_of_head(module, metadata or {}):
        raise InputError(f"nms: this is a head for the task {task!r}: {REFUSED[task]}; {CURES.get(task, OUTSIDE)}")


def check_fields(nms: Nms | None, graph: GraphModule) -> None:
    """Raise InputError if NMS is asked for behind a captured network that predicts a set, as DETR does.

    It is known by the fields in which it gives its outputs: `pred_boxes` beside `logits` or `pred_logits`.
    """
    structure = None if nms is None else output_structure(graph)
    if structure is not None and SET_BOXES in (names := names_of_leaves(structure)):
        given = ", ".join(str(name) for name in names[:4])
        raise InputError(f"nms: this network gives {given}: {REFUSED['set']}; {CURES['set']}")


def task_of_head(module: nn.Module, metadata: Mapping[str, object]) -> str:
    """The task of a network's head if it is one of `REFUSED`, else "".

    It is known by Ultralytics' metadata or by the class of the head; of a pruned network, which is a graph, by the
    names of its layers.
    """
    if (stated := str(metadata.get("task", ""))) in REFUSED:
        return stated
    for part in module.modules():
        for base in type(part).__mro__:
            if base.__name__ in HEADS and base.__module__.startswith("ultralytics."):
                return HEADS[base.__name__]
    return _by_names({name: tuple(tensor.shape) for name, tensor in module.state_dict().items()})


def _by_names(shapes: Mapping[str, tuple[int, ...]]) -> str:
    heads: dict[str, dict[str, dict[str, tuple[int, ...]]]] = {}
    for name, shape in shapes.items():
        if found := BRANCH.fullmatch(name):
            branches = heads.setdefault(found["head"], {})
            branches.setdefault(found["branch"], {})[found["rest"]] = shape
    return next((task for branches in heads.values() if (task := _task(branches))), "")


def _task(branches: Mapping[str, Mapping[str, tuple[int, ...]]]) -> str:
    """The task by a head's branches, each a list of levels with layers in a row: names such as 0.2.weight."""
    extra = [_layer(rest) for rest in branches.get("cv4", {}) if _layer(rest) is not None]
    levels = ("cv2", "cv3")
    if not extra or not all(any(_layer(rest) is not None for rest in branches.get(b, {})) for b in levels):
        return ""
    if "proto" in branches:
        return "segment"
    last = max(layer for layer in extra if layer is not None)
    one = branches["cv4"].get(f"{last[0]}.{last[1]}.weight", (0,))[0] == 1
    return "obb" if one and "cv4_kpts" not in branches else "pose"


def _layer(rest: str) -> tuple[int, int] | None:
    """Level and layer of a parameter of a branch; None for a layer of another block with such a name."""
    found = re.match(r"(\d+)\.(\d+)\.", rest)
    return (int(found[1]), int(found[2])) if found else None
