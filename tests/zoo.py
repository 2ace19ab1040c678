"""The zoo: networks of torchvision, Ultralytics, timm, transformers and others, built offline with random weights.

    entry = by_name("tv/resnet18")
    model, args, kwargs = entry.build()      # float32, eval mode, with a small input

Ultralytics is AGPL: only tests and benchmarks build its networks, and nothing of ours imports it.
"""

from __future__ import annotations

import os
import tempfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from tests.package_detectors import PACKAGE_DETECTORS, package_detector
from tests.query_detectors import QUERY_DETECTORS, query_detector
from tests.torchvision_shim import import_torchvision

Built = tuple[nn.Module, tuple[Any, ...], dict[str, Any]]
Size = int | tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """One network of the zoo.

    `convolutional` networks are held to the MAC limit; the others mix channels by attention or normalise over them.
    `heavy` ones have over 60 million parameters or take long; `whole` ones are detectors called with a list of images.
    """

    name: str
    make: Callable[[], nn.Module]
    size: Size = 64
    convolutional: bool = True
    heavy: bool = False
    whole: bool = False

    def build(self) -> Built:
        """The network in eval mode with `args` and `kwargs` to call it, the same ones each time."""
        torch.manual_seed(0)
        model = self.make().eval()
        shape = (3, self.size, self.size) if isinstance(self.size, int) else self.size
        if self.whole:
            return model, ([torch.rand(shape), torch.rand(shape)],), {}
        return model, (torch.randn(1, *shape),), {}


class Body(nn.Module):
    """A torchvision detector without anchors, proposals and NMS: its backbone, then its heads, as one network."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone = detector.backbone
        self.head = detector.head

    def forward(self, images: Tensor) -> Any:
        return self.head(_levels(self.backbone(images)))


class RegionBody(nn.Module):
    """A torchvision R-CNN with one pooled region for each image: its backbone, proposal head and region heads."""

    def __init__(self, detector: Any) -> None:
        super().__init__()
        self.backbone = detector.backbone
        self.rpn_head = detector.rpn.head
        regions = detector.roi_heads
        self.heads = nn.ModuleDict()
        for task in ("box", "mask", "keypoint"):
            if getattr(regions, f"{task}_head", None) is not None:
                self.heads[task] = nn.Sequential(
                    getattr(regions, f"{task}_head"), getattr(regions, f"{task}_predictor")
                )

    def forward(self, images: Tensor) -> Any:
        levels = _levels(self.backbone(images))
        outputs = {
            task: head(adaptive_avg_pool2d(levels[0], 7 if task == "box" else 14)) for task, head in self.heads.items()
        }
        return self.rpn_head(levels), outputs


def _levels(features: Tensor | OrderedDict[str, Tensor]) -> list[Tensor]:
    return [features] if isinstance(features, Tensor) else list(features.values())


def _torchvision(name: str, **options: Any) -> nn.Module:
    torchvision = import_torchvision()
    if any(word in name for word in ("fcn_", "deeplab", "lraspp", "rcnn", "retinanet", "fcos", "ssd")):
        options = {"weights_backbone": None, **options}
    if name in ("googlenet", "inception_v3"):
        options = {"init_weights": False, **options}
    model: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    return model


def _body(name: str) -> nn.Module:
    detector = _torchvision(name)
    return RegionBody(detector) if "rcnn" in name else Body(detector)


def _detector(name: str) -> nn.Module:
    """The whole detector, few boxes: so that a slow NMS does not matter, yet no score is too low to be compared."""
    if "rcnn" in name:
        few = {"rpn_pre_nms_top_n_test": 100, "rpn_post_nms_top_n_test": 20, "box_score_thresh": 0.0}
        return _torchvision(name, min_size=128, max_size=160, box_detections_per_img=10, **few)
    scales = {} if "ssd" in name else {"min_size": 128, "max_size": 160}
    return _torchvision(name, score_thresh=0.0, topk_candidates=30, detections_per_img=10, **scales)


def _ultralytics(name: str) -> nn.Module:
    import_torchvision()
    os.environ.setdefault("YOLO_OFFLINE", "true")
    os.environ.setdefault("YOLO_VERBOSE", "false")
    os.environ.setdefault("YOLO_CONFIG_DIR", tempfile.gettempdir())
    from ultralytics.nn import tasks

    kind = next((kind for word, kind in YOLO_TASKS.items() if word in name), "DetectionModel")
    model: nn.Module = getattr(tasks, kind)(f"{name.removesuffix(END_TO_END)}.yaml", verbose=False)
    if name.endswith(END_TO_END):
        model.model[-1].end2end = True  # type: ignore[index, union-attr]  # a list of layers
    return model


def _timm(name: str, **options: Any) -> nn.Module:
    import_torchvision()
    import timm

    model: nn.Module = timm.create_model(name, pretrained=False, **options)
    return model


def _names(text: str) -> list[str]:
    return text.split()


YOLO_TASKS = {
    "rtdetr": "RTDETRDetectionModel",
    "-seg": "SegmentationModel",
    "-pose": "PoseModel",
    "-obb": "OBBModel",
    "-cls": "ClassificationModel",
}

CLASSIFIERS: Mapping[str, Size] = dict.fromkeys(
    _names("""
    alexnet vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn squeezenet1_0 squeezenet1_1
    resnet18 resnet34 resnet50 resnet101 resnet152 wide_resnet50_2 wide_resnet101_2
    resnext50_32x4d resnext101_32x8d resnext101_64x4d
    densenet121 densenet161 densenet169 densenet201 googlenet
    mobilenet_v2 mobilenet_v3_small mobilenet_v3_large mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3
    shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0
    efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_b5 efficientnet_b6
    efficientnet_b7 efficientnet_v2_s efficientnet_v2_m efficientnet_v2_l
    regnet_x_400mf regnet_x_800mf regnet_x_1_6gf regnet_x_3_2gf regnet_x_8gf regnet_x_16gf regnet_x_32gf
    regnet_y_400mf regnet_y_800mf regnet_y_1_6gf regnet_y_3_2gf regnet_y_8gf regnet_y_16gf regnet_y_32gf regnet_y_128gf
    """),
    64,
) | {"inception_v3": 128}

TRANSFORMERS: Mapping[str, Size] = dict.fromkeys(
    _names(
        "convnext_tiny convnext_small convnext_base convnext_large swin_t swin_s swin_b swin_v2_t swin_v2_s swin_v2_b"
    ),
    64,
) | {"maxvit_t": 224}

SEGMENTERS = _names("""
    fcn_resnet50 fcn_resnet101 deeplabv3_resnet50 deeplabv3_resnet101 deeplabv3_mobilenet_v3_large
    lraspp_mobilenet_v3_large
""")

DETECTORS: Mapping[str, int] = dict.fromkeys(
    _names("""
    retinanet_resnet50_fpn retinanet_resnet50_fpn_v2 fcos_resnet50_fpn
    fasterrcnn_resnet50_fpn fasterrcnn_resnet50_fpn_v2 fasterrcnn_mobilenet_v3_large_fpn
    fasterrcnn_mobilenet_v3_large_320_fpn maskrcnn_resnet50_fpn maskrcnn_resnet50_fpn_v2 keypointrcnn_resnet50_fpn
    """),
    128,
) | {"ssdlite320_mobilenet_v3_large": 320, "ssd300_vgg16": 300}

VIDEOS: Mapping[str, Size] = dict.fromkeys(_names("r3d_18 mc3_18 r2plus1d_18"), (3, 8, 64, 64)) | {
    "s3d": (3, 16, 224, 224)
}
VIDEO_TRANSFORMERS: Mapping[str, Size] = {
    "swin3d_t": (3, 8, 64, 64),
    "swin3d_s": (3, 8, 64, 64),
    "swin3d_b": (3, 8, 64, 64),
    "mvit_v1_b": (3, 16, 224, 224),
    "mvit_v2_s": (3, 16, 224, 224),
}

YOLOS = _names("""
    yolov3-tiny yolov3 yolov3-spp yolov5n yolov5s yolov6n yolov6s yolov8n yolov8s yolov8n-ghost yolov8n-p2
    yolov9t yolov9s yolov9c
    yolov8n-seg yolov8n-pose yolov8n-obb yolov8n-cls yolov9c-seg
""")
YOLOS_WITH_ATTENTION = _names("""
    yolov10n yolov10s yolo11n yolo11s yolo12n yolo12s yolo26n yolo26s
    yolo11n-seg yolo11n-pose yolo11n-obb yolo11n-cls yolo12n-seg yolo12n-pose yolo12n-obb
    yolo26n-seg yolo26n-pose yolo26n-obb yolo26n-cls
    rtdetr-l rtdetr-x rtdetr-resnet50 rtdetr-resnet101 yolov8n-rtdetr
    yolov10n-end2end yolo26n-end2end
""")
END_TO_END = "-end2end"
"""The networks that choose their detections themselves, which Ultralytics leaves off unless it is asked."""

TIMMS: Mapping[str, Size] = dict.fromkeys(
    _names("""
    resnest14d res2net50_26w_4s fasternet_t0 mixnet_s hrnet_w18_small ghostnet_100 repvit_m0_9 dla34 densenet121
    cspdarknet53 cspresnet50 rexnet_100 dpn68 skresnet18 ese_vovnet19b_dw selecsls42 mobileone_s0 hgnetv2_b0 starnet_s1
    """),
    64,
)
TIMM_TRANSFORMERS: Mapping[str, Size] = dict.fromkeys(
    _names("efficientvit_b0 edgenext_xx_small mobilevit_xxs poolformer_s12 pvt_v2_b0 convnextv2_atto"), 64
) | {"levit_128s": 224, "xcit_nano_12_p16_224": 64}
PACKAGES = {name: size for name, (size, _) in PACKAGE_DETECTORS.items()}

HEAVY = frozenset(
    f"tv/{name}"
    for name in _names("""
    vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn alexnet wide_resnet50_2 wide_resnet101_2 resnet152
    resnext101_32x8d resnext101_64x4d convnext_base convnext_large swin_b swin_v2_b efficientnet_b5 efficientnet_b6
    efficientnet_b7 efficientnet_v2_m efficientnet_v2_l regnet_x_16gf regnet_x_32gf regnet_y_16gf regnet_y_32gf
    regnet_y_128gf maxvit_t vit_b_16 vit_b_32 vit_l_16 vit_l_32 vit_h_14
    """)
) | frozenset(f"video/{name}" for name in ("s3d", "swin3d_b", "mvit_v1_b", "mvit_v2_s"))
HEAVY |= frozenset({"yolo/yolov3", "yolo/yolov3-spp", "yolo/rtdetr-x", "yolo/rtdetr-resnet101"})


def _entries() -> Iterator[Entry]:
    for kind, make, sizes, convolutional in (
        ("tv", _torchvision, CLASSIFIERS, True),
        ("tv", _torchvision, TRANSFORMERS, False),
        ("seg", _torchvision, dict.fromkeys(SEGMENTERS, 64), True),
        ("body", _body, DETECTORS, True),
        ("video", _torchvision, VIDEOS, True),
        ("video", _torchvision, VIDEO_TRANSFORMERS, False),
        ("yolo", _ultralytics, dict.fromkeys(YOLOS, 160), True),
        ("yolo", _ultralytics, dict.fromkeys(YOLOS_WITH_ATTENTION, 160), False),
        ("timm", _timm, TIMMS, True),
        ("timm", _timm, TIMM_TRANSFORMERS, False),
        ("hf", query_detector, dict.fromkeys(QUERY_DETECTORS, 160) | {"rf_detr": 320}, False),
        ("pkg", package_detector, PACKAGES, True),
    ):
        for name, size in sizes.items():
            yield Entry(f"{kind}/{name}", partial(make, name), size, convolutional, f"{kind}/{name}" in HEAVY)
    for name in ("vit_b_16", "vit_b_32", "vit_l_16", "vit_l_32", "vit_h_14"):
        size = 56 if name == "vit_h_14" else 64
        yield Entry(f"tv/{name}", partial(_torchvision, name, image_size=size), size, False, True)
    for name in DETECTORS:
        yield Entry(f"whole/{name}", partial(_detector, name), 128, True, "vgg16" in name, whole=True)


ZOO: tuple[Entry, ...] = tuple(_entries())


def by_name(name: str) -> Entry:
    """The entry of that name; a KeyError lists the names that are there."""
    names = {entry.name: entry for entry in ZOO}
    if name not in names:
        raise KeyError(f"no network {name!r} in the zoo: {', '.join(names)}")
    return names[name]
