"""Products of branches: gates over channels and over space."""

from __future__ import annotations

# mypy: no-warn-return-any
# (what a torch.nn.Module returns when it is called is Any)
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l1rr_fx.conformance.cases import pattern
from l1rr_fx.conformance.patterns.parts import Between, cb, cbr, conv


@pattern()
class SqueezeExcite(Between):
    """A gate of 1x1 convolutions over pooled channels."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = conv(8, 4, 1), conv(4, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x * self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))).sigmoid())


@pattern()
class SqueezeExciteLinear(Between):
    """The same with linear layers and a view."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(8, 4), nn.Linear(4, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = self.up(F.relu(self.down(x.mean((2, 3))))).sigmoid()
        return self.head(x * gate.view(x.shape[0], 8, 1, 1))


@pattern()
class SpatialMask(Between):
    """A mask of one channel multiplies all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.mask = cbr(8, 8), conv(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.a(x) * self.mask(x).sigmoid())


@pattern()
class BlockAttention(Between):
    """A gate over channels and one over space, made of means and maxima."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp, self.spatial = nn.Sequential(conv(8, 4, 1), nn.ReLU(), conv(4, 8, 1)), conv(2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x * (self.mlp(F.adaptive_avg_pool2d(x, 1)) + self.mlp(F.adaptive_max_pool2d(x, 1))).sigmoid()
        planes = torch.cat((x.mean(1, keepdim=True), x.amax(1, keepdim=True)), 1)
        return self.head(x * self.spatial(planes).sigmoid())


@pattern()
class EfficientChannelAttention(Between):
    """A convolution along the channels makes the gate."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        line = x.mean((2, 3), keepdim=True).squeeze(-1).transpose(1, 2)
        return self.head(x * self.mix(line).transpose(1, 2).unsqueeze(-1).sigmoid())


@pattern()
class GatedLinearUnit(Between):
    """`F.glu`: one half gates the other."""

    def __init__(self) -> None:
        super().__init__(4)
        self.a = cb(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.glu(self.a(self.stem(x)), 1))


@pattern()
class SimpleGate(Between):
    """The halves are multiplied."""

    def __init__(self) -> None:
        super().__init__(4)
        self.a = cb(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.a(self.stem(x)).chunk(2, 1)
        return self.head(a * b)


@pattern()
class ProductOfBranches(Between):
    """A channel of the product is dead if it is in either branch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = cbr(8, 8), cbr(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.a(x) * self.b(x))


@pattern()
class SelectiveKernel(Between):
    """A softmax over branches weighs each channel of them."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.squeeze, self.gates = cbr(8, 8), cbr(8, 8), conv(8, 4, 1), conv(4, 16, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        a, b = self.a(x), self.b(x)
        gates = self.gates(F.relu(self.squeeze((a + b).mean((2, 3), keepdim=True)))).view(-1, 2, 8, 1, 1).softmax(1)
        return self.head((torch.stack((a, b), 1) * gates).sum(1))


@pattern((2, 3, 8, 8), (2, 4))
class Modulation(Between):
    """A second input scales and shifts the channels of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Linear(4, 16)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        scale, shift = self.time(t)[:, :, None, None].chunk(2, 1)
        return self.head(self.stem(x) * (1 + scale) + shift)


@pattern((2, 6, 5))
class SwiGlu(nn.Module):
    """The feed-forward block of language models."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.gate, self.up, self.down = (
            nn.Linear(5, 8),
            nn.Linear(8, 12),
            nn.Linear(8, 12),
            nn.Linear(12, 8),
        )
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.embed(x))
        return self.head(x + self.down(F.silu(self.gate(x)) * self.up(x)))
