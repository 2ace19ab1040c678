"""Networks for `l1rr-fx conformance --cases tests.conformance_zoo:cases`: torchvision's, and Ultralytics' detectors."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from l1rr_fx.conformance import Case
from l1rr_fx.conformance.zoo import zoo
from l1rr_fx.testing import randomised
from tests.torchvision_shim import import_torchvision
from tests.zoo import by_name

DETECTORS = ("yolov3-tiny", "yolov5n", "yolov8n", "yolov9t", "yolov10n", "yolo11n")


def cases() -> tuple[Case, ...]:
    """The zoo, where torchvision may be without its C++ operators, and the detectors."""
    import_torchvision()
    detectors = (Case(f"zoo/{name}", "zoo", f"Ultralytics' {name}", partial(_detector, name)) for name in DETECTORS)
    return (*zoo(), *detectors)


def _detector(name: str) -> tuple[nn.Module, tuple[Any, ...]]:
    model, args, _ = by_name(f"yolo/{name}").build()
    return randomised(model), tuple(image.double() for image in args)
