"""Operators that read all channels: what is removed still counts in their statistics."""

from __future__ import annotations

# mypy: no-warn-return-any
# (what a torch.nn.Module returns when it is called is Any)
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l1rr_fx.conformance.cases import pattern
from l1rr_fx.conformance.patterns.parts import Between, cbr, conv


@pattern()
class GroupNorm(Between):
    """Statistics of groups of channels see the zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = conv(8, 8), nn.GroupNorm(2, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.a(self.stem(x)))))


@pattern((2, 6, 5))
class LayerNorm(nn.Module):
    """Statistics of the channels of a token see the zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b, self.head = nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b(self.norm(self.a(x)))))


@pattern()
class ConvNextBlock(Between):
    """Depthwise, layer norm over channels, two linear layers, a scale, a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.depthwise, self.norm = conv(8, 8, groups=8), nn.LayerNorm(8)
        self.up, self.down, self.gamma = nn.Linear(8, 16), nn.Linear(16, 8), nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        return self.head(x + (self.gamma * self.down(F.gelu(self.up(y)))).permute(0, 3, 1, 2))


@pattern()
class InstanceNorm(Between):
    """Each channel has statistics of its own, so nothing is shared."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = conv(8, 8), nn.InstanceNorm2d(8, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.a(self.stem(x)))))


@pattern()
class SoftmaxOverChannels(Between):
    """A zero counts as exp(0) in the sum."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a(self.stem(x)).softmax(1))


@pattern()
class MeanOverChannels(Between):
    """A mean divides by the number of all channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a = cbr(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(self.stem(x))
        return self.head(x - x.mean(1, keepdim=True))


@pattern()
class MaxOverChannels(Between):
    """A maximum of negative numbers and a zero is the zero."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = -self.a(self.stem(x)).exp()
        return self.head(x * x.amax(1, keepdim=True))


@pattern()
class UnitLength(Between):
    """`F.normalize` over channels: zeros add nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.normalize(self.a(self.stem(x)), dim=1))


@pattern()
class CumulativeSum(Between):
    """A sum that runs along the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a = cbr(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cumsum(self.a(self.stem(x)), 1))


@pattern()
class SortedChannels(Between):
    """Each position sorts its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a(self.stem(x)).sort(1)[0])


@pattern()
class FourierOfChannels(Between):
    """A Fourier transform along the channels: no pruner is expected to follow it."""

    def __init__(self) -> None:
        super().__init__()
        self.a = cbr(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.fft.fft(self.a(self.stem(x)), dim=1).real)


@pattern()
class ResponseNorm(Between):
    """AlexNet's local response norm reads neighbouring channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a = cbr(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.local_response_norm(self.a(self.stem(x)), 3))
