"""The networks whose latency on a Jetson TX2 was published, built offline with random weights.

Those of torchvision, timm and Ultralytics come from there; what these lack is written here from the published
descriptions: TensorFlow-Slim's ResNets (which halve the image at the end of a block, so that they multiply less than
torchvision's), MobileNet v1, Darknet's YOLOv3, YOLOv3-tiny and YOLOv4.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.torchvision_shim import import_torchvision

Network = tuple[nn.Module, tuple[Tensor, ...]]


def build(name: str) -> Network:
    """The network of that name in eval mode, with an input of batch 1 at the published size."""
    make, size = NETWORKS[name]
    torch.manual_seed(0)
    with torch.no_grad():
        return make().eval(), (torch.rand(1, 3, size, size),)


def block(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Convolution, batch norm, activation."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), act())


class Leaky(nn.LeakyReLU):
    """Darknet's."""

    def __init__(self) -> None:
        super().__init__(0.1)


class SlimUnit(nn.Module):
    """A bottleneck whose stride halves what it returns; the shortcut is subsampled, or projected in a block's first."""

    def __init__(self, inputs: int, width: int, stride: int, before: bool) -> None:
        super().__init__()
        self.before = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU()) if before else nn.Identity()
        kept = nn.MaxPool2d(1, stride) if stride > 1 else nn.Identity()
        self.project = nn.Conv2d(inputs, 4 * width, 1) if inputs != 4 * width else kept
        last = [nn.Conv2d(width, 4 * width, 1)] + ([] if before else [nn.BatchNorm2d(4 * width)])
        self.body = nn.Sequential(block(inputs, width, 1), block(width, width, 3, stride), *last)
        self.after = nn.Identity() if before else nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        inner = self.before(x)
        shortcut = self.project(inner if isinstance(self.project, nn.Conv2d) else x)
        added: Tensor = self.after(self.body(inner) + shortcut)
        return added


def slim_resnet(units: tuple[int, ...], before: bool = False) -> nn.Module:
    """TensorFlow-Slim's resnet_v1 (or, with activations `before`, resnet_v2)."""
    layers: list[nn.Module] = [block(3, 64, 7, 2), nn.MaxPool2d(3, 2, 1)]
    inputs = 64
    for width, count, stride in zip((64, 128, 256, 512), units, (2, 2, 2, 1)):
        for index in range(count):
            layers.append(SlimUnit(inputs, width, stride if index == count - 1 else 1, before))
            inputs = 4 * width
    tail: list[nn.Module] = [nn.BatchNorm2d(inputs), nn.ReLU()] if before else []
    return nn.Sequential(*layers, *tail, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))


def mobilenet(width: float) -> nn.Module:
    """MobileNet v1 with its width multiplier."""
    plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    inputs = int(32 * width)
    layers: list[nn.Module] = [block(3, inputs, 3, 2, nn.ReLU6)]
    for full, stride in plan:
        outputs = int(full * width)
        depthwise = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
        layers += [depthwise, nn.BatchNorm2d(inputs), nn.ReLU6(), block(inputs, outputs, 1, 1, nn.ReLU6)]
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 1000))


class Residual(nn.Module):
    """Darknet's residual block."""

    def __init__(self, channels: int, hidden: int, act: type[nn.Module]) -> None:
        super().__init__()
        self.body = nn.Sequential(block(channels, hidden, 1, 1, act), block(hidden, channels, 3, 1, act))

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = x + self.body(x)
        return added


class CrossStage(nn.Module):
    """A stage of CSPDarknet53: down, two 1x1 branches, residuals in one, joined again."""

    def __init__(self, inputs: int, outputs: int, depth: int, *, first: bool = False) -> None:
        super().__init__()
        half, act = outputs if first else outputs // 2, nn.Mish
        self.down = block(inputs, outputs, 3, 2, act)
        self.short = block(outputs, half, 1, 1, act)
        self.enter = block(outputs, half, 1, 1, act)
        hidden = half // 2 if first else half
        self.inner = nn.Sequential(*[Residual(half, hidden, act) for _ in range(depth)], block(half, half, 1, 1, act))
        self.leave = block(2 * half, outputs, 1, 1, act)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(x)
        left: Tensor = self.leave(torch.cat([self.inner(self.enter(x)), self.short(x)], 1))
        return left


def alternating(inputs: int, width: int, count: int) -> nn.Sequential:
    """`count` blocks, 1x1 to `width` and 3x3 to twice that in turn, leaky."""
    layers = []
    for index in range(count):
        outputs = width if index % 2 == 0 else 2 * width
        layers.append(block(inputs, outputs, 1 if index % 2 == 0 else 3, 1, Leaky))
        inputs = outputs
    return nn.Sequential(*layers)


def output(width: int) -> nn.Sequential:
    return nn.Sequential(block(width, 2 * width, 3, 1, Leaky), nn.Conv2d(2 * width, 255, 1))


def doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="nearest")


class YOLOv3(nn.Module):
    """Darknet-53 with three output scales."""

    def __init__(self) -> None:
        super().__init__()
        stages, inputs = [], 32
        for outputs, depth in ((64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)):
            body = [Residual(outputs, outputs // 2, Leaky) for _ in range(depth)]
            stages.append(nn.Sequential(block(inputs, outputs, 3, 2, Leaky), *body))
            inputs = outputs
        self.stem = nn.Sequential(block(3, 32, 3, 1, Leaky), *stages[:3])
        self.stage4, self.stage5 = stages[3], stages[4]
        self.neck5, self.neck4 = alternating(1024, 512, 5), alternating(768, 256, 5)
        self.neck3 = alternating(384, 128, 5)
        self.up5, self.up4 = block(512, 256, 1, 1, Leaky), block(256, 128, 1, 1, Leaky)
        self.outputs = nn.ModuleList(output(width) for width in (512, 256, 128))

    def forward(self, x: Tensor) -> list[Tensor]:
        c3 = self.stem(x)
        c4 = self.stage4(c3)
        p5 = self.neck5(self.stage5(c4))
        p4 = self.neck4(torch.cat([doubled(self.up5(p5)), c4], 1))
        p3 = self.neck3(torch.cat([doubled(self.up4(p4)), c3], 1))
        return [head(p) for head, p in zip(self.outputs, (p5, p4, p3))]


class YOLOv4(nn.Module):
    """CSPDarknet53 with Mish, spatial pyramid pooling and a path aggregation network."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            block(3, 32, 3, 1, nn.Mish),
            CrossStage(32, 64, 1, first=True),
            CrossStage(64, 128, 2),
            CrossStage(128, 256, 8),
        )
        self.stage4, self.stage5 = CrossStage(256, 512, 8), CrossStage(512, 1024, 4)
        self.before, self.pools = (
            alternating(1024, 512, 3),
            nn.ModuleList(nn.MaxPool2d(k, 1, k // 2) for k in (13, 9, 5)),
        )
        self.after = alternating(2048, 512, 3)
        self.up5, self.side4, self.neck4 = (
            block(512, 256, 1, 1, Leaky),
            block(512, 256, 1, 1, Leaky),
            alternating(512, 256, 5),
        )
        self.up4, self.side3, self.neck3 = (
            block(256, 128, 1, 1, Leaky),
            block(256, 128, 1, 1, Leaky),
            alternating(256, 128, 5),
        )
        self.down3, self.back4 = block(128, 256, 3, 2, Leaky), alternating(512, 256, 5)
        self.down4, self.back5 = block(256, 512, 3, 2, Leaky), alternating(1024, 512, 5)
        self.outputs = nn.ModuleList(output(width) for width in (128, 256, 512))

    def forward(self, x: Tensor) -> list[Tensor]:
        c3 = self.stem(x)
        c4 = self.stage4(c3)
        deep = self.before(self.stage5(c4))
        p5 = self.after(torch.cat([*(pool(deep) for pool in self.pools), deep], 1))
        p4 = self.neck4(torch.cat([self.side4(c4), doubled(self.up5(p5))], 1))
        p3 = self.neck3(torch.cat([self.side3(c3), doubled(self.up4(p4))], 1))
        n4 = self.back4(torch.cat([self.down3(p3), p4], 1))
        n5 = self.back5(torch.cat([self.down4(n4), p5], 1))
        return [head(p) for head, p in zip(self.outputs, (p3, n4, n5))]


class YOLOv3Tiny(nn.Module):
    """Seven convolutions and max pools, two output scales."""

    def __init__(self) -> None:
        super().__init__()
        layers, inputs = [], 3
        for width in (16, 32, 64, 128, 256):
            layers += [block(inputs, width, 3, 1, Leaky), nn.MaxPool2d(2, 2)]
            inputs = width
        self.stem, self.pool = nn.Sequential(*layers[:-1]), layers[-1]
        self.deep = nn.Sequential(
            block(256, 512, 3, 1, Leaky),
            nn.ZeroPad2d((0, 1, 0, 1)),
            nn.MaxPool2d(2, 1),
            block(512, 1024, 3, 1, Leaky),
            block(1024, 256, 1, 1, Leaky),
        )
        self.out5 = nn.Sequential(block(256, 512, 3, 1, Leaky), nn.Conv2d(512, 255, 1))
        self.up = block(256, 128, 1, 1, Leaky)
        self.out4 = nn.Sequential(block(384, 256, 3, 1, Leaky), nn.Conv2d(256, 255, 1))

    def forward(self, x: Tensor) -> list[Tensor]:
        c4 = self.stem(x)
        p5 = self.deep(self.pool(c4))
        return [self.out5(p5), self.out4(torch.cat([doubled(self.up(p5)), c4], 1))]


class Bottleneck5(nn.Module):
    """A 1x1 and a 3x3 convolution of the same width, added to their input where there is a `shortcut`."""

    def __init__(self, channels: int, shortcut: bool) -> None:
        super().__init__()
        self.body = nn.Sequential(block(channels, channels, 1, 1, nn.SiLU), block(channels, channels, 3, 1, nn.SiLU))
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        inner: Tensor = self.body(x)
        return x + inner if self.shortcut else inner


class C3(nn.Module):
    """YOLOv5's cross-stage block."""

    def __init__(self, inputs: int, outputs: int, depth: int, shortcut: bool = True) -> None:
        super().__init__()
        half = outputs // 2
        self.enter, self.short = block(inputs, half, 1, 1, nn.SiLU), block(inputs, half, 1, 1, nn.SiLU)
        self.inner = nn.Sequential(*[Bottleneck5(half, shortcut) for _ in range(depth)])
        self.leave = block(2 * half, outputs, 1, 1, nn.SiLU)

    def forward(self, x: Tensor) -> Tensor:
        left: Tensor = self.leave(torch.cat([self.inner(self.enter(x)), self.short(x)], 1))
        return left


class Pyramid(nn.Module):
    """Three max pools in a row, concatenated (SPPF)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter, self.leave = (
            block(channels, channels // 2, 1, 1, nn.SiLU),
            block(2 * channels, channels, 1, 1, nn.SiLU),
        )
        self.pool = nn.MaxPool2d(5, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.enter(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        left: Tensor = self.leave(torch.cat(parts, 1))
        return left


class YOLOv5s(nn.Module):
    """YOLOv5s of version 6 with anchors, as the paper's: 7.05 M parameters with ten classes; outputs are the raw maps.

    Ultralytics' present yolov5s.yaml is another network, with an anchor-free head and 9.1 M parameters.
    """

    def __init__(self, classes: int = 10) -> None:
        super().__init__()
        down = lambda inputs, outputs: block(inputs, outputs, 3, 2, nn.SiLU)
        stem = nn.Conv2d(3, 32, 6, 2, 2, bias=False)
        self.stem = nn.Sequential(stem, nn.BatchNorm2d(32), nn.SiLU(), down(32, 64), C3(64, 64, 1))
        self.stage8 = nn.Sequential(down(64, 128), C3(128, 128, 2))
        self.stage16 = nn.Sequential(down(128, 256), C3(256, 256, 3))
        self.stage32 = nn.Sequential(down(256, 512), C3(512, 512, 1), Pyramid(512))
        self.side32, self.top16 = block(512, 256, 1, 1, nn.SiLU), C3(512, 256, 1, False)
        self.side16, self.top8 = block(256, 128, 1, 1, nn.SiLU), C3(256, 128, 1, False)
        self.down8, self.low16 = down(128, 128), C3(256, 256, 1, False)
        self.down16, self.low32 = down(256, 256), C3(512, 512, 1, False)
        self.outputs = nn.ModuleList(nn.Conv2d(width, 3 * (classes + 5), 1) for width in (128, 256, 512))

    def forward(self, x: Tensor) -> list[Tensor]:
        c8 = self.stage8(self.stem(x))
        c16 = self.stage16(c8)
        p32 = self.side32(self.stage32(c16))
        p16 = self.side16(self.top16(torch.cat([doubled(p32), c16], 1)))
        n8 = self.top8(torch.cat([doubled(p16), c8], 1))
        n16 = self.low16(torch.cat([self.down8(n8), p16], 1))
        n32 = self.low32(torch.cat([self.down16(n16), p32], 1))
        return [head(p) for head, p in zip(self.outputs, (n8, n16, n32))]


def _torchvision(name: str, **options: object) -> nn.Module:
    model: nn.Module = import_torchvision().models.get_model(name, weights=None, **options)
    return model


def _timm(name: str) -> nn.Module:
    import_torchvision()
    import timm

    model: nn.Module = timm.create_model(name, pretrained=False)
    return model


def _ultralytics(name: str) -> nn.Module:
    from tests.zoo import _ultralytics as made

    return made(name)


NETWORKS: Mapping[str, tuple[Callable[[], nn.Module], int]] = {
    "inception_v1": (partial(_torchvision, "googlenet", init_weights=False, aux_logits=False), 224),
    "inception_v3": (partial(_torchvision, "inception_v3", init_weights=False, aux_logits=False), 299),
    "inception_v4": (partial(_timm, "inception_v4"), 299),
    "inception_resnet_v2": (partial(_timm, "inception_resnet_v2"), 299),
    "resnet_v1_50": (partial(slim_resnet, (3, 4, 6, 3)), 224),
    "resnet_v1_101": (partial(slim_resnet, (3, 4, 23, 3)), 224),
    "resnet_v1_152": (partial(slim_resnet, (3, 8, 36, 3)), 224),
    "resnet_v2_50": (partial(slim_resnet, (3, 4, 6, 3), True), 299),
    "mobilenet_v1_0.25_128": (partial(mobilenet, 0.25), 128),
    "mobilenet_v1_0.5_160": (partial(mobilenet, 0.5), 160),
    "mobilenet_v1_1.0_224": (partial(mobilenet, 1.0), 224),
    "vgg_16": (partial(_torchvision, "vgg16"), 224),
    "yolov3_416": (YOLOv3, 416),
    "yolov3_tiny_416": (YOLOv3Tiny, 416),
    "yolov3_tiny_608": (YOLOv3Tiny, 608),
    **{f"yolov4_{size}": (YOLOv4, size) for size in (320, 416, 512, 608)},
    **{f"yolov8{scale}": (partial(_ultralytics, f"yolov8{scale}"), 640) for scale in "nmx"},
}
