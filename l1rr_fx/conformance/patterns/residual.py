"""Chains, point-wise functions and sums of branches."""

from __future__ import annotations

# mypy: no-warn-return-any
# (what a torch.nn.Module returns when it is called is Any)
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l1rr_fx.conformance.cases import pattern
from l1rr_fx.conformance.patterns.parts import Between, cb, cbr, conv


@pattern()
class PlainChain(Between):
    """Convolution, batch norm and ReLU, twice."""

    def __init__(self) -> None:
        super().__init__()
        self.body = cbr(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)))


@pattern()
class ConvolutionsWithBias(Between):
    """Convolutions without norms: a channel is dead if row and bias are zero."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv(8, 12), conv(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b(F.relu(self.a(self.stem(x))))))


@pattern()
class SigmoidBetween(Between):
    """A dead channel becomes the constant 0.5."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = cb(8, 8), cbr(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(torch.sigmoid(self.a(self.stem(x)))))


@pattern()
class BatchNormAfterRelu(Between):
    """A dead channel meets a batch norm and becomes a constant that a padded convolution reads."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.b = nn.BatchNorm2d(8), cbr(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.norm(self.stem(x))))


@pattern()
class ScalarArithmetic(Between):
    """Numbers added and multiplied between layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = cbr(8, 8), cbr(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(self.stem(x)) * 2 - 1) / 3)


@pattern()
class LeakyActivations(Between):
    """SiLU, Hardswish, GELU and a PReLU with a slope for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.slope = cb(8, 8), cb(8, 8), cb(8, 8), nn.PReLU(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.slope(self.c(F.gelu(self.b(F.hardswish(self.a(F.silu(self.stem(x)))))))))


@pattern()
class ResidualStage(Between):
    """Three blocks with identity shortcuts."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(*cbr(8, 6), *cb(6, 8)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = F.relu(x + block(x))
        return self.head(x)


@pattern()
class Bottleneck(Between):
    """A bottleneck with a strided projection as its shortcut."""

    def __init__(self) -> None:
        super().__init__(12)
        self.a, self.b, self.c, self.down = cbr(8, 4, 1), cbr(4, 4, stride=2), cb(4, 12, 1), cb(8, 12, 1, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.relu(self.c(self.b(self.a(x))) + self.down(x)))


@pattern()
class IndependentBranches(nn.Module):
    """Two branches of a sum that are dead in different channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = cb(3, 8), cb(3, 8), conv(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a(x) + self.b(x))


@pattern()
class WideSum(Between):
    """Four branches in one sum."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList(cb(8, 8, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.relu(sum(branch(x) for branch in self.branches)))


@pattern()
class PreActivation(Between):
    """Norm and ReLU come before the convolution, so that sums meet norms."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(8) for _ in range(3))
        self.convs = nn.ModuleList(conv(8, 8, bias=False) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for norm, layer in zip(self.norms, self.convs):
            x = x + layer(F.relu(norm(x)))
        return self.head(F.relu(self.norms[2](x)))


@pattern()
class ZeroPaddedShortcut(Between):
    """ResNet's option A: the shortcut is strided and padded with channels of zeros."""

    def __init__(self) -> None:
        super().__init__(12)
        self.a = cb(8, 12, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.relu(self.a(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))))


@pattern()
class InvertedResidual(Between):
    """Expansion, depthwise convolution, projection, sum."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(*cbr(8, 16, 1), *cbr(16, 16, groups=16), *cb(16, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.block(x))


@pattern()
class RepBranches(Between):
    """A 3x3, a 1x1 and an identity batch norm, as RepVGG trains."""

    def __init__(self) -> None:
        super().__init__()
        self.three, self.one, self.identity = cb(8, 8), cb(8, 8, 1), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.relu(self.three(x) + self.one(x) + self.identity(x)))


@pattern()
class DifferenceOfBranches(Between):
    """A weighted difference and a maximum of branches."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = cb(8, 8), cb(8, 8), cb(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(torch.maximum(self.a(x) - 0.5 * self.b(x), self.c(x)))


@pattern()
class SumWithInput(nn.Module):
    """The image itself is one side of the sum, so its partner stays whole."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = cbr(3, 8), conv(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.head(self.a(x))


@pattern()
class LayerScale(Between):
    """A bare parameter scales each channel of a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.gamma = cbr(8, 8), nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(x + self.gamma.view(1, 8, 1, 1) * self.a(x))


@pattern()
class ChannelBuffer(Between):
    """A buffer with a number for each channel is subtracted."""

    def __init__(self) -> None:
        super().__init__()
        self.a = cbr(8, 8)
        self.mean = nn.Buffer(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a(self.stem(x) - self.mean.view(1, -1, 1, 1)))


@pattern()
class InPlaceAdd(Between):
    """`x += y` and in-place activations."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = cb(8, 8), cbr(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.a(x)
        y += x
        return self.head(self.b(y.relu_()))


@pattern()
class InPlaceSlice(Between):
    """Part of a tensor is written to."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = cb(8, 8), cbr(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.a(x)
        y[:, :4] = y[:, :4] * 2 + x[:, 4:]
        return self.head(self.b(y))


@pattern()
class SharedBlock(Between):
    """One block used three times in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.block = cbr(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.block(self.block(self.stem(x)))))


@pattern()
class TiedWeights(Between):
    """Two convolutions own the same weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = conv(8, 8, bias=False), nn.BatchNorm2d(8), conv(8, 8, bias=False)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.b(F.relu(self.norm(self.a(self.stem(x)))))))


@pattern(training=True)
class TrainingMode(Between):
    """Batch norms take the statistics of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = cbr(8, 8), cb(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.relu(x + self.b(self.a(x))))
