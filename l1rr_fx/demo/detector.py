"""A small single-class detector with structures that make pruning hard: residual and pyramid additions, a chunk.

Plain PyTorch, without data-dependent control flow, so that `torch.export` takes it whole.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STRIDES: tuple[int, ...] = (8, 16)
MULTIPLE = 32
"""Height and width of an image must be multiples of this."""


@dataclass(frozen=True)
class Widths:
    """Channels of the detector at strides 2, 4, 8, 16 and 32, and of its pyramid."""

    stride2: int = 24
    stride4: int = 32
    stride8: int = 64
    stride16: int = 96
    stride32: int = 96
    pyramid: int = 64


class ConvBlock(nn.Sequential):
    """Convolution, batch norm, SiLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 3, stride: int = 1) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False),
            nn.BatchNorm2d(outputs),
            nn.SiLU(),
        )


class Residual(nn.Module):
    """Two convolution blocks whose result is added to their input."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.first = ConvBlock(channels, hidden)
        self.second = ConvBlock(hidden, channels)

    def forward(self, x: Tensor) -> Tensor:
        added: Tensor = x + self.second(self.first(x))
        return added


class SplitBlock(nn.Module):
    """Half of the channels goes through residual blocks one after another; everything met on the way is concatenated.

    The two-way chunk is the one of C2f (Ultralytics YOLOv8's description of the architecture)."""

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        half = channels // 2
        self.enter = ConvBlock(channels, channels, 1)
        self.blocks = nn.ModuleList(Residual(half, half) for _ in range(depth))
        self.leave = ConvBlock((2 + depth) * half, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.enter(x).chunk(2, 1))
        for block in self.blocks:
            parts.append(block(parts[-1]))
        left: Tensor = self.leave(torch.cat(parts, 1))
        return left


class Head(nn.Module):
    """One scale's raw maps, shape (n, 5, h, w): a tree's logit, then its left, top, right and bottom distances."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.score_tower = ConvBlock(channels, channels)
        self.sides_tower = ConvBlock(channels, channels)
        self.score = nn.Conv2d(channels, 1, 1)
        self.sides = nn.Conv2d(channels, 4, 1)
        nn.init.constant_(self.score.bias, -4.0)  # type: ignore[arg-type]  # Conv2d(bias=True) has one
        nn.init.constant_(self.sides.bias, 2.0)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.score(self.score_tower(x)), self.sides(self.sides_tower(x))


class TreeDetector(nn.Module):
    """Tree crowns in an aerial image of about 0.1 m a pixel: residual backbone, added pyramid, anchor-free heads.

    `forward` takes RGB in [0, 1], shape (n, 3, h, w) with h and w multiples of 32, and returns for each stride s of
    (8, 16) "score_<s>", logits of shape (n, 1, h/s, w/s), and "sides_<s>", shape (n, 4, h/s, w/s): see `boxes.decode`.
    """

    def __init__(self, widths: Widths = Widths()) -> None:
        super().__init__()
        w = widths
        self.stem = nn.Sequential(ConvBlock(3, w.stride2, stride=2), ConvBlock(w.stride2, w.stride4, stride=2))
        self.stage4 = Residual(w.stride4, w.stride4)
        self.stage8 = nn.Sequential(ConvBlock(w.stride4, w.stride8, stride=2), SplitBlock(w.stride8, 2))
        self.stage16 = nn.Sequential(ConvBlock(w.stride8, w.stride16, stride=2), SplitBlock(w.stride16, 2))
        self.stage32 = nn.Sequential(ConvBlock(w.stride16, w.stride32, stride=2), Residual(w.stride32, w.stride32 // 2))
        self.lateral8 = ConvBlock(w.stride8, w.pyramid, 1)
        self.lateral16 = ConvBlock(w.stride16, w.pyramid, 1)
        self.lateral32 = ConvBlock(w.stride32, w.pyramid, 1)
        self.head8 = Head(w.pyramid)
        self.head16 = Head(w.pyramid)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        c8 = self.stage8(self.stage4(self.stem(image)))
        c16 = self.stage16(c8)
        c32 = self.stage32(c16)
        p16 = self.lateral16(c16) + F.interpolate(self.lateral32(c32), scale_factor=2.0, mode="nearest")
        p8 = self.lateral8(c8) + F.interpolate(p16, scale_factor=2.0, mode="nearest")
        score8, sides8 = self.head8(p8)
        score16, sides16 = self.head16(p16)
        return {"score_8": score8, "sides_8": sides8, "score_16": score16, "sides_16": sides16}
