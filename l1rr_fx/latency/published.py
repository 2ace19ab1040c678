"""Latencies on a Jetson TX2 that others published, batch 1: what the latency model is fitted to.

None was measured by us. Networks are named as in `benchmarks/tx2_networks.py`, which builds them. The GPU's clock is
stated by the source for the first, second and last of them; for the others the highest is assumed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Source:
    """Where measurements come from: the page, the software, and the GPU's clock in GHz."""

    page: str
    software: str
    clock: float


@dataclass(frozen=True)
class Measurement:
    """Milliseconds for one image, in `precision` "fp16" or "fp32"."""

    network: str
    precision: str
    ms: float
    source: str


MAXN, MAXP = 1.3005, 1.122
"""GHz of the GPU in nvpmodel 0 (with jetson_clocks) and in modes 2 to 4."""

SOURCES: Mapping[str, Source] = {
    "tf_to_trt": Source(
        "github.com/NVIDIA-AI-IOT/tf_to_trt_image_classification",
        "JetPack 3.2, TensorRT 3/4, nvpmodel 3, transfers included",
        MAXP,
    ),
    "tf_trt": Source(
        "github.com/NVIDIA-AI-IOT/tf_trt_models", "TensorFlow-TensorRT, nvpmodel 0 and jetson_clocks", MAXN
    ),
    "tkdnn": Source("github.com/ceccocats/tkDNN", "JetPack 4.2, TensorRT 5.0.6", MAXN),
    "yolov3": Source("github.com/faedtodd/TensorRT-Yolov3 and Tensorrt-Yolov3-tiny", "TensorRT 5.0.6", MAXN),
    "yolov8": Source(
        "github.com/cyrusbehr/tensorrt-cpp-api, a fork for the TX2",
        "JetPack 4.6.4, TensorRT 8.2.1, nvpmodel 3, probably with pre-processing",
        MAXP,
    ),
}

_TF_TO_TRT: Mapping[str, tuple[float, float]] = {  # FP16, FP32
    "inception_v1": (7.98, 12.8),
    "inception_v3": (26.3, 46.1),
    "inception_v4": (52.1, 88.2),
    "inception_resnet_v2": (53.0, 98.7),
    "resnet_v1_50": (15.7, 27.1),
    "resnet_v1_101": (29.9, 51.8),
    "resnet_v1_152": (42.6, 78.2),
    "resnet_v2_50": (27.5, 44.4),
    "mobilenet_v1_0.25_128": (2.67, 2.65),
    "mobilenet_v1_0.5_160": (3.95, 4.00),
    "mobilenet_v1_1.0_224": (12.9, 12.9),
    "vgg_16": (38.2, 79.2),
}

_TF_TRT: Mapping[str, float] = {
    "inception_v1": 7.36,
    "inception_v3": 20.7,
    "inception_v4": 38.5,
    "resnet_v1_50": 12.5,
    "resnet_v1_101": 20.6,
    "resnet_v1_152": 28.9,
    "mobilenet_v1_1.0_224": 11.1,
}
"""Left out: inception_v2, which we cannot build, and two SSDs, whose boxes TensorFlow sorts on the CPU."""

_TKDNN: Mapping[int, tuple[float, float]] = {  # images a second: FP32, FP16
    320: (11.18, 15.32),
    416: (7.30, 9.45),
    512: (5.96, 7.22),
    608: (3.63, 4.67),
}

_YOLOV3: Mapping[str, float] = {"yolov3_416": 74.19, "yolov3_tiny_416": 9.5, "yolov3_tiny_608": 20.0}

_YOLOV8: Mapping[str, float] = {"yolov8n": 37.26, "yolov8m": 123.69, "yolov8x": 297.17}


def _measurements() -> Iterator[Measurement]:
    for network, (half, single) in _TF_TO_TRT.items():
        yield Measurement(network, "fp16", half, "tf_to_trt")
        yield Measurement(network, "fp32", single, "tf_to_trt")
    for size, (single, half) in _TKDNN.items():
        yield Measurement(f"yolov4_{size}", "fp16", 1000 / half, "tkdnn")
        yield Measurement(f"yolov4_{size}", "fp32", 1000 / single, "tkdnn")
    for source, table in (("tf_trt", _TF_TRT), ("yolov3", _YOLOV3), ("yolov8", _YOLOV8)):
        for network, ms in table.items():
            yield Measurement(network, "fp16", ms, source)


MEASUREMENTS: tuple[Measurement, ...] = tuple(_measurements())
