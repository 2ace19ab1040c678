"""Groups of channels, weights that are computed or constant, other dimensions."""

from __future__ import annotations

# mypy: no-warn-return-any
# (what a torch.nn.Module returns when it is called is Any)
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l1rr_fx.conformance.cases import pattern
from l1rr_fx.conformance.patterns.parts import Between, cb, cbr, conv


@pattern()
class Grouped(Between):
    """A grouped convolution that is dead in other channels in each group."""

    def __init__(self) -> None:
        super().__init__(12)
        self.a = cbr(8, 12, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a(self.stem(x)))


@pattern()
class GroupedChain(Between):
    """Two groups, then four."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = cbr(8, 8, groups=2), cbr(8, 8, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(self.stem(x))))


@pattern()
class GroupedShuffle(Between):
    """ShuffleNet v1: grouped convolutions with a shuffle between them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = cbr(8, 8, 1, groups=4), cbr(8, 8, 1, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(self.stem(x))
        n, c, h, w = x.shape
        return self.head(self.b(x.reshape(n, 4, c // 4, h, w).transpose(1, 2).reshape(n, c, h, w)))


@pattern()
class Depthwise(Between):
    """A depthwise convolution with a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = cbr(8, 8, groups=8), cbr(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(self.stem(x))))


@pattern()
class DepthwiseMultiplier(Between):
    """A depthwise convolution that makes two channels of each."""

    def __init__(self) -> None:
        super().__init__(16)
        self.a = cbr(8, 16, groups=8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a(self.stem(x)))


@pattern()
class MixedKernels(Between):
    """Parts of a split go through depthwise kernels of different sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = cbr(4, 4, 3, groups=4), cbr(4, 4, 5, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.split(self.stem(x), [4, 4], 1)
        return self.head(torch.cat((self.a(a), self.b(b)), 1))


@pattern()
class GhostModule(Between):
    """Cheap features from a depthwise convolution beside the first ones, cut to an odd number."""

    def __init__(self) -> None:
        super().__init__(7)
        self.first, self.cheap = cbr(8, 4, 1), cbr(4, 4, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        first = self.first(self.stem(x))
        return self.head(torch.cat((first, self.cheap(first)), 1)[:, :7])


@pattern()
class ResNextBlock(Between):
    """A bottleneck with groups, and a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(*cbr(8, 8, 1), *cbr(8, 8, groups=4), *cb(8, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.relu(x + self.block(x)))


@pattern()
class Transposed(Between):
    """A transposed convolution with a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.norm = nn.ConvTranspose2d(8, 8, 2, 2), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.up(self.stem(x)))))


@pattern()
class GroupedTransposed(Between):
    """A transposed convolution in two groups."""

    def __init__(self) -> None:
        super().__init__(12)
        self.up, self.norm = nn.ConvTranspose2d(8, 12, 2, 2, groups=2), nn.BatchNorm2d(12)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.up(self.stem(x)))))


@pattern()
class StandardisedWeight(Between):
    """The weight is standardised in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        weight = self.a.weight
        weight = (weight - weight.mean((1, 2, 3), keepdim=True)) / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return self.head(F.relu(F.conv2d(self.stem(x), weight, self.a.bias, padding=1)))


@pattern()
class ConstantBlur(Between):
    """A depthwise blur whose weight is a buffer."""

    def __init__(self) -> None:
        super().__init__()
        line = torch.tensor([1.0, 2.0, 1.0])
        self.blur = nn.Buffer((line.outer(line) / 16).expand(8, 1, 3, 3).clone())
        self.b = cbr(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(F.conv2d(self.stem(x), self.blur, stride=2, padding=1, groups=8)))


@pattern((2, 3, 12))
class OneDimension(nn.Module):
    """Convolutions and norms over a line."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.head = nn.Conv1d(3, 8, 3), nn.BatchNorm1d(8), nn.Conv1d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.a(x))))


@pattern((2, 3, 4, 4, 4))
class ThreeDimensions(nn.Module):
    """Convolutions and norms over a volume."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.head = nn.Conv3d(3, 8, 3), nn.BatchNorm3d(8), nn.Conv3d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.a(x))))


@pattern((2, 8))
class Perceptron(nn.Module):
    """Linear layers with and without norms."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.head = nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Linear(16, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b(F.relu(self.norm(self.a(x))))))


@pattern((2, 4), (2, 6))
class WideAndDeep(nn.Module):
    """One input goes around the hidden layers of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 10), nn.Linear(10, 8), nn.Linear(12, 1)

    def forward(self, wide: Tensor, deep: Tensor) -> Tensor:
        return self.head(torch.cat((wide, F.relu(self.b(F.relu(self.a(deep))))), -1))
