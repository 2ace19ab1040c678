"""Plans for YOLO networks, and the images of their data sets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from l1rr_fx.integrations.ultralytics.networks import (
    LICENCE,
    OLDEST,
    PACKAGE,
    Size,
    Source,
    example_image,
    load,
    pixels,
)
from l1rr_fx.method.attention.loss import FeatureAttention
from l1rr_fx.method.planning.choose import choose
from l1rr_fx.method.planning.plan import Plan
from l1rr_fx.method.sites.budget import Budget
from l1rr_fx.support.clock import logged
from l1rr_fx.support.packages import required


def plan(
    source: Source, *, budget: Budget, data: str | None = None, imgsz: Size = 640, images: int = 64, **options: Any
) -> Plan:
    """The channels to zero for a budget; see `choose`, whose options these are.

    With `data`, a data set of Ultralytics (yaml), by the feature attention loss on its first training images; without,
    by the scales of batch norms. How far it is, and how long it will take, is logged at INFO.
    """
    model = load(source)
    args = (example_image(model, imgsz),)
    if data is not None and "attention" not in options:
        batches = labelled_images(model, data, imgsz=imgsz, count=images)
        options["attention"] = FeatureAttention(model, args, batches)
    return choose(model, args, budget=budget, **{"progress": logged("measuring layers"), **options})


def labelled_images(
    model: nn.Module, data: str, *, imgsz: Size = 640, count: int = 64
) -> Iterator[tuple[Tensor, list[dict[str, Tensor]]]]:
    """The first training images of a data set with their boxes, one at a time, as `FeatureAttention` reads them.

    Images have shape (1, 3, h, w) and values in [0, 1]; they are scaled and padded as for validation.
    """
    required(PACKAGE, OLDEST, note=LICENCE)
    build = required(PACKAGE, OLDEST, module=f"{PACKAGE}.data.build")
    utils = required(PACKAGE, OLDEST, module=f"{PACKAGE}.data.utils")
    config = required(PACKAGE, OLDEST, module=f"{PACKAGE}.cfg").get_cfg(overrides={"imgsz": max(pixels(imgsz))})
    found = utils.check_det_dataset(data)
    stride = int(max(model.stride))  # type: ignore[arg-type]  # a tensor of three
    dataset = build.build_yolo_dataset(config, found["train"], 1, found, mode="val", rect=False, stride=stride)
    for number in range(min(count, len(dataset))):
        item = dataset[number]
        image = item["img"].float()[None] / 255
        height, width = image.shape[-2:]
        x, y, w, h = (item["bboxes"] * torch.tensor([width, height, width, height])).unbind(1)
        corners = (x - w / 2).clamp(min=0), (y - h / 2).clamp(min=0), (x + w / 2).clamp(max=width), y + h / 2
        boxes = torch.stack([*corners[:3], corners[3].clamp(max=height)], 1)
        yield image, [{"boxes": boxes, "labels": item["cls"].flatten().long()}]
