"""What those who run an ONNX file read from it beside the network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from passes.errors import InputError

TASKS = ("detect", "segment", "pose", "obb", "classify")


def yolo_metadata(
    names: Mapping[int, str] | Sequence[str],
    *,
    stride: int,
    image_size: tuple[int, int],
    task: str = "detect",
    batch: int = 1,
    channels: int = 3,
    end2end: bool = False,
    keypoint_shape: tuple[int, int] | None = None,
) -> dict[str, object]:
    """The metadata with which `ultralytics.YOLO("model.onnx")` runs a file whose first output is that of a YOLO head.

    `names` are the class names, `stride` the largest of the head's strides, `image_size` is (height, width) in pixels.
    """
    if task not in TASKS:
        raise InputError(f"there is no task {task!r}; there are {', '.join(TASKS)}")
    numbered = dict(names) if isinstance(names, Mapping) else dict(enumerate(names))
    found: dict[str, object] = {
        "stride": int(stride),
        "task": task,
        "batch": int(batch),
        "imgsz": [int(n) for n in image_size],
        "names": {int(number): str(name) for number, name in numbered.items()},
        "channels": int(channels),
        "end2end": bool(end2end),
        "args": {"batch": int(batch), "dynamic": False, "nms": False},
    }
    return found if keypoint_shape is None else {**found, "kpt_shape": list(keypoint_shape)}
