"""Channels shuffled, turned around, picked or padded."""

from __future__ import annotations

# mypy: no-warn-return-any
# (what a torch.nn.Module returns when it is called is Any)
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l1rr_fx.conformance.cases import pattern
from l1rr_fx.conformance.patterns.parts import Between, cb, cbr


@pattern()
class ShuffleByView(Between):
    """Channel shuffle written as view, transpose, view."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = cbr(8, 8), cbr(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(self.stem(x))
        n, c, h, w = x.shape
        return self.head(self.b(x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)))


@pattern()
class ShuffleModule(Between):
    """`nn.ChannelShuffle`."""

    def __init__(self) -> None:
        super().__init__()
        self.shuffle, self.b = nn.ChannelShuffle(4), cbr(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.shuffle(self.stem(x))))


@pattern()
class ShuffleNetUnit(Between):
    """ShuffleNet v2: half of the channels pass, the rest is worked on, then all are shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.right = nn.Sequential(*cbr(4, 4, 1), *cb(4, 4, groups=4), *cbr(4, 4, 1))

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).chunk(2, 1)
        x = torch.cat((left, self.right(right)), 1)
        n, c, h, w = x.shape
        return self.head(x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w))


@pattern()
class PixelShuffle(Between):
    """Four channels become one of twice the size."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = cbr(8, 16), cbr(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(F.pixel_shuffle(self.a(self.stem(x)), 2)))


@pattern()
class PixelUnshuffle(Between):
    """One channel becomes four of half the size."""

    def __init__(self) -> None:
        super().__init__(32)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.pixel_unshuffle(self.stem(x), 2))


@pattern()
class FocusSlices(Between):
    """YOLOv5's focus: four strided slices concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.a = cbr(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        parts = (x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2])
        return self.head(self.a(torch.cat(parts, 1)))


@pattern()
class FlippedChannels(Between):
    """Channels in reverse."""

    def __init__(self) -> None:
        super().__init__()
        self.b = cbr(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.stem(x).flip(1)))


@pattern()
class RolledChannels(Between):
    """Channels shifted by three and added to themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.b = cbr(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.b(torch.roll(x, 3, 1) + x))


@pattern()
class IndexedByBuffer(Between):
    """Channels picked by an index that is a buffer, one of them twice."""

    def __init__(self) -> None:
        super().__init__()
        self.b = cbr(6, 8)
        self.order = nn.Buffer(torch.tensor([5, 0, 3, 3, 7, 1]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(torch.index_select(self.stem(x), 1, self.order)))


@pattern()
class PartialConvolution(Between):
    """The first three channels are convolved, the others pass."""

    def __init__(self) -> None:
        super().__init__()
        self.part = cbr(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(torch.cat((self.part(x[:, :3]), x[:, 3:]), 1))


@pattern()
class SteppedSlices(Between):
    """Even and odd channels go different ways."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = cb(4, 8), cb(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.relu(self.a(x[:, ::2]) + self.b(x[:, 1::2])))


@pattern()
class PaddedWithOnes(Between):
    """Channels of ones are added: they are not zero."""

    def __init__(self) -> None:
        super().__init__()
        self.a = cbr(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a(F.pad(self.stem(x), (0, 0, 0, 0, 1, 3), value=1.0)))
