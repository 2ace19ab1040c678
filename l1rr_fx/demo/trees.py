"""Tree crowns drawn on aerial images of the US National Ecological Observatory Network (NEON).

The images and boxes lie in the wheel of deepforest 2.1.0 (Weinstein et al., 2019, Remote Sensing 11, 1309), which is
read as files and never imported. About 0.1 m a pixel.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from xml.etree import ElementTree

import numpy
import torch
from PIL import Image
from torch import Tensor

from l1rr_fx.demo.boxes import area, clipped
from passes.errors import InputError

WHEEL = "deepforest==2.1.0"
TRAIN_IMAGE = "2019_YELL_2_528000_4978000_image_crop2.png"
TEST_IMAGE = "2019_YELL_2_541000_4977000_image_crop.png"
HELD_OUT_FROM = 2016
"""Rows of the training image from here down (456 of 2472) are never trained on: choices are made on them."""


@dataclass(frozen=True)
class Scene:
    """An image, uint8 RGB of shape (3, h, w), and its trees, (n, 4) as left, top, right, bottom in pixels."""

    image: Tensor
    boxes: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.image.shape[1], self.image.shape[2]


def training_scenes() -> tuple[Scene, Scene]:
    """The part of the training image to learn from, and the strip held out for choosing."""
    whole = read_scene(TRAIN_IMAGE)
    height, width = whole.size
    return window(whole, (0, 0, width, HELD_OUT_FROM)), window(whole, (0, HELD_OUT_FROM, width, height))


def test_scene() -> Scene:
    """The test image: another place, looked at only for the final report."""
    return read_scene(TEST_IMAGE)


test_scene.__test__ = False  # type: ignore[attr-defined]  # pytest: not a test


def read_scene(name: str) -> Scene:
    """The image `name` of the wheel and the boxes beside it. InputError if the wheel or the file is missing."""
    with Image.open(_file(name)) as picture:
        pixels = numpy.array(picture.convert("RGB"))
    boxes = _boxes(_file(name.replace(".png", ".xml")))
    return Scene(torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), boxes)


def window(scene: Scene, box: tuple[int, int, int, int], *, visible: float = 0.5) -> Scene:
    """The scene inside `box` (left, top, right, bottom); trees of which less than `visible` is inside are dropped."""
    left, top, right, bottom = box
    inside = clipped(scene.boxes, box)
    kept = area(inside) >= visible * area(scene.boxes)
    origin = torch.tensor([left, top, left, top], dtype=inside.dtype)
    return Scene(scene.image[:, top:bottom, left:right], inside[kept] - origin)


def _file(name: str) -> Path:
    install = f"install the demo's data with: python -m pip install --no-deps {WHEEL}"
    try:
        files = metadata.files("deepforest") or []
    except metadata.PackageNotFoundError as error:
        raise InputError(f"the tree images come with {WHEEL}, which is not installed; {install}") from error
    for file in files:
        if file.name == name:
            path = Path(str(file.locate()))
            if path.is_file():
                return path
    version = metadata.version("deepforest")
    raise InputError(f"{name} is not among the files of deepforest {version}; {install}")


def _boxes(path: Path) -> Tensor:
    rows = [
        [float(tree.findtext(f"bndbox/{side}", "nan")) for side in ("xmin", "ymin", "xmax", "ymax")]
        for tree in ElementTree.parse(path).getroot().iter("object")
    ]
    boxes = torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)
    if not len(boxes) or boxes.isnan().any():
        raise InputError(f"{path.name} holds no complete boxes; reinstall {WHEEL}")
    return boxes
