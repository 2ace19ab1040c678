"""Detectors of packages that keep one or a few of them, built offline, for the zoo.

Install them without their dependencies, which ask for another torch; two pure Python packages are needed beside them:
`pip install --no-deps effdet retinaface-pytorch facenet-pytorch onnx2torch ddddocr cjm-yolox-pytorch omegaconf
cjm-psl-utils`.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import interpolate

from tests.torchvision_shim import import_torchvision


def package_detector(name: str) -> nn.Module:
    """The network `name`, one of PACKAGE_DETECTORS; only MTCNN and that of ddddocr have trained weights."""
    import_torchvision()
    return PACKAGE_DETECTORS[name][1]()


def _efficientdet(**options: Any) -> nn.Module:
    """EfficientDet-D0 for images of 128 x 128."""
    import effdet

    model: nn.Module = effdet.create_model(
        "efficientdet_d0", pretrained_backbone=False, image_size=(128, 128), **options
    )
    return model


def _efficientdet_with_nms() -> nn.Module:
    """The same with its choice of detections: top-k, then NMS, as one network that gives 10 rows an image."""
    return _efficientdet(bench_task="predict", max_det_per_image=10)


def _retinaface() -> nn.Module:
    from retinaface.network import RetinaFace

    levels = {"layer2": 1, "layer3": 2, "layer4": 3}
    return RetinaFace("Resnet50", pretrained=False, in_channels=256, return_layers=levels, out_channels=256)


class Cascade(nn.Module):
    """The three networks of MTCNN, each on the image at its own size, without the choice of boxes between them."""

    def __init__(self, networks: Any) -> None:
        super().__init__()
        self.proposals, self.refined, self.landmarks = networks.PNet(), networks.RNet(), networks.ONet()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        refined = self.refined(interpolate(images, (24, 24)))
        return (*self.proposals(images), *refined, *self.landmarks(interpolate(images, (48, 48))))


def _mtcnn() -> nn.Module:
    import facenet_pytorch

    return Cascade(facenet_pytorch)


def _ddddocr() -> nn.Module:
    """The detector of ddddocr as onnx2torch reads its file."""
    import onnx2torch

    spec = importlib.util.find_spec("ddddocr")
    assert spec is not None and spec.origin is not None
    return onnx2torch.convert(str(Path(spec.origin).with_name("common_det.onnx")))


def _yolox() -> nn.Module:
    from cjm_yolox_pytorch.model import build_model

    model: nn.Module = build_model("yolox_tiny", num_classes=80, pretrained=False)
    return model


PACKAGE_DETECTORS: Mapping[str, tuple[int, Callable[[], nn.Module]]] = {
    "effdet/efficientdet_d0": (128, _efficientdet),
    "effdet/efficientdet_d0-nms": (128, _efficientdet_with_nms),
    "retinaface-pytorch/resnet50": (128, _retinaface),
    "facenet-pytorch/mtcnn": (64, _mtcnn),
    "ddddocr/common_det": (416, _ddddocr),
    "cjm-yolox-pytorch/yolox_tiny": (160, _yolox),
}
"""The side of the image of each network, and what builds it."""
