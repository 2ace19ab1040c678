"""The layers that patterns are put together from."""

from __future__ import annotations

from torch import nn


def conv(i: int, o: int, k: int = 3, stride: int = 1, groups: int = 1, bias: bool = True) -> nn.Conv2d:
    """A convolution that keeps the image's size at stride 1."""
    return nn.Conv2d(i, o, k, stride, k // 2, groups=groups, bias=bias)


def cb(i: int, o: int, k: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm."""
    return nn.Sequential(conv(i, o, k, stride, groups, bias=False), nn.BatchNorm2d(o))


def cbr(i: int, o: int, k: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, batch norm, ReLU."""
    return nn.Sequential(*cb(i, o, k, stride, groups), nn.ReLU())


class Between(nn.Module):
    """A stem with 8 channels before and a head of 3 outputs after the pattern, so that pruning has to go through it."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = cbr(3, 8)
        self.head = conv(width, 3, 1)
