"""Heads before NMS: known by their task, in the model, in a pruned graph and in a file's metadata."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from l1rr_fx.lowering import Nms, lower, to_onnx, yolo_metadata
from l1rr_fx.lowering.onnx.heads import task_of_head
from passes.errors import InputError
from passes.frontend.capture import capture

IMAGE = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
TASKS = {"obb": "angle", "segment": "mask coefficients", "pose": "keypoints"}


def branch(channels: int) -> nn.ModuleList:
    """A branch of Ultralytics' heads: for each level of the pyramid layers in a row."""
    return nn.ModuleList([nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, channels, 1))])


class Head(nn.Module):
    """A head with the layers' names of Ultralytics': boxes, three classes, and `extra` columns."""

    def __init__(self, extra: int = 0, proto: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.cv2, self.cv3 = branch(4), branch(3)
        self.cv4 = branch(extra) if extra else None
        self.proto = nn.ModuleList([nn.Conv2d(3, 2, 1)]) if proto else None

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        parts = [self.cv2[0](x).exp(), self.cv3[0](x).sigmoid()]
        if self.cv4 is not None:
            parts.append(self.cv4[0](x).sigmoid())
        found = torch.cat(parts, 1).flatten(2)
        return (found,) if self.proto is None else (found, self.proto[0](x))


HEADS = {"obb": Head(1), "segment": Head(8, proto=True), "pose": Head(6), "": Head()}


class Chosen(nn.Module):
    """The best of a head, as an end-to-end network gives them: (images, rows, detections)."""

    def __init__(self) -> None:
        super().__init__()
        self.head = Head()

    def forward(self, x: Tensor) -> Tensor:
        (found,) = self.head(x)
        best = found[:, 4:].amax(1).topk(20)[1]
        return found.gather(2, best[:, None].expand(-1, 7, -1))


@pytest.mark.parametrize("task", HEADS)
def test_a_head_is_known_by_the_names_of_its_layers(task: str) -> None:
    model = nn.Sequential(HEADS[task]).eval()
    assert task_of_head(model, {}) == task
    assert task_of_head(capture(model, (IMAGE,)), {}) == task


@pytest.mark.parametrize("task", TASKS)
def test_nms_is_refused_by_the_task_with_the_way_that_works(task: str, tmp_path: Path) -> None:
    model = HEADS[task].eval()
    message = rf"head for the task '{task}': .*{TASKS[task]}.*; expected no nms.*ultralytics\.YOLO"
    with pytest.raises(InputError, match=message):
        to_onnx(model, (IMAGE,), tmp_path / "m.onnx", nms=Nms())
    with pytest.raises(InputError, match=message):
        lower(model, (IMAGE,), out=tmp_path / "b", nms=Nms())
    assert not list(tmp_path.iterdir())
    assert to_onnx(model, (IMAGE,), tmp_path / "m.onnx").nodes  # without NMS it is lowered


def test_the_task_in_the_metadata_counts_for_any_head(tmp_path: Path) -> None:
    found = yolo_metadata(["a", "b", "c"], stride=8, image_size=(16, 16), task="obb")
    with pytest.raises(InputError, match="head for the task 'obb'"):
        to_onnx(HEADS[""].eval(), (IMAGE,), tmp_path / "m.onnx", nms=Nms(), metadata=found)


def test_a_plain_head_ends_with_nms(tmp_path: Path) -> None:
    found = to_onnx(HEADS[""].eval(), (IMAGE,), tmp_path / "m.onnx", nms=Nms())
    assert found.operators["EfficientNMS_TRT"] == 1


def test_layers_of_such_names_in_other_blocks_are_no_head() -> None:
    """As of YOLOv9, whose blocks have convolutions cv1 to cv4."""
    block = nn.Module()
    for name in ("cv1", "cv2", "cv3", "cv4"):
        block.add_module(name, nn.Sequential(nn.Conv2d(3, 3, 1)) if name in ("cv2", "cv3") else nn.Conv2d(3, 3, 1))
    assert task_of_head(block, {}) == ""


def test_an_end_to_end_head_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"depends on .*TopK.*end-to-end.*end2end=False"):
        to_onnx(Chosen().eval(), (IMAGE,), tmp_path / "m.onnx", nms=Nms())


@pytest.mark.parametrize(
    ("name", "task"), [("yolov8n-obb", "obb"), ("yolo11n-seg", "segment"), ("yolo26n-pose", "pose"), ("yolo11n", "")]
)
def test_heads_of_ultralytics(name: str, task: str) -> None:
    ultralytics = pytest.importorskip("ultralytics")
    model = ultralytics.YOLO(f"{name}.yaml").model.eval()
    assert task_of_head(model, {}) == task
    assert task_of_head(capture(model, (torch.zeros(1, 3, 64, 64),)), {}) == task
