"""Channels that are split, joined, or read as something else."""

from __future__ import annotations

# mypy: no-warn-return-any
# (what a torch.nn.Module returns when it is called is Any)
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l1rr_fx.conformance.cases import pattern
from l1rr_fx.conformance.patterns.parts import Between, cb, cbr, conv


@pattern()
class C2fChunk(Between):
    """`list(x.chunk(2, 1))`, blocks appended to it, all concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.out = cbr(8, 8, 1), cbr(16, 8, 1)
        self.blocks = nn.ModuleList(cbr(4, 4) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.inside(self.stem(x)).chunk(2, 1))
        for block in self.blocks:
            parts.append(block(parts[-1]))
        return self.head(self.out(torch.cat(parts, 1)))


@pattern()
class C2fResidual(Between):
    """The same with sums inside the blocks, so that a half meets its block's result."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.block, self.out = cbr(8, 8, 1), cbr(4, 4), cbr(12, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.inside(self.stem(x)).split((4, 4), 1)
        return self.head(self.out(torch.cat((a, b, b + self.block(b)), 1)))


@pattern()
class UnevenChunk(Between):
    """8 channels in chunks of 3, 3 and 2."""

    def __init__(self) -> None:
        super().__init__(5)
        self.b = cbr(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.stem(x).chunk(3, 1)
        return self.head(torch.cat((self.b(parts[1]), parts[2]), 1))


@pattern()
class SplitShared(Between):
    """One module reads both halves of a split."""

    def __init__(self) -> None:
        super().__init__(4)
        self.b = cbr(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.split(self.stem(x), 4, 1)
        return self.head(self.b(a) + self.b(b))


@pattern()
class Res2Net(Between):
    """Parts that are added to each other's results one after the other."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.layers, self.out = cbr(8, 12, 1), nn.ModuleList(cbr(4, 4) for _ in range(2)), cb(12, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        a, b, c = torch.split(self.inside(x), 4, 1)
        b = self.layers[0](b)
        c = self.layers[1](c + b)
        return self.head(F.relu(x + self.out(torch.cat((a, b, c), 1))))


@pattern()
class Elan(Between):
    """Every stage of a chain is concatenated."""

    def __init__(self) -> None:
        super().__init__(16)
        self.a, self.layers = cbr(8, 4, 1), nn.ModuleList(cbr(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        outputs = [self.a(self.stem(x))]
        for layer in self.layers:
            outputs.append(layer(outputs[-1]))
        return self.head(torch.cat(outputs, 1))


@pattern()
class DenseBlock(Between):
    """Every layer reads everything before it, through a norm of its own."""

    def __init__(self) -> None:
        super().__init__(16)
        self.n1, self.c1, self.n2, self.c2 = nn.BatchNorm2d(8), conv(8, 4), nn.BatchNorm2d(12), conv(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = torch.cat((x, self.c1(F.relu(self.n1(x)))), 1)
        return self.head(torch.cat((x, self.c2(F.relu(self.n2(x)))), 1))


@pattern()
class CascadedConcat(nn.Module):
    """A concatenation of concatenations of branches of different widths."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.head = cbr(3, 5), cbr(3, 10), cbr(15, 15), conv(30, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.cat((self.a(x), self.b(x)), 1)
        return self.head(torch.cat((first, self.c(first)), 1))


@pattern()
class ConcatSplit(nn.Module):
    """Three branches are concatenated and split elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.stems = nn.ModuleList(cbr(3, width) for width in (5, 6, 7))
        self.heads = nn.ModuleList(conv(6, 2, 1) for _ in range(3))

    def forward(self, x: Tensor) -> list[Tensor]:
        joined = torch.cat([stem(x) for stem in self.stems], 1)
        return [head(part) for head, part in zip(self.heads, torch.split(joined, 6, 1))]


@pattern()
class SumOfConcatenation(Between):
    """Two branches side by side are added to the shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = cb(8, 3), cb(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(F.relu(torch.cat((self.a(x), self.b(x)), 1) + x))


@pattern()
class ConcatWithItself(Between):
    """The same channels twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a = cbr(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.a(torch.cat((x, x), 1)))


@pattern()
class ConcatInSpace(Between):
    """Concatenation and split along the height: channels must not move."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = cbr(8, 8), cbr(8, 8), cbr(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        top, bottom = torch.split(self.c(torch.cat((self.a(x), self.b(x)), 2)), 8, 2)
        return self.head(top - bottom)


@pattern()
class ConcatOfBatches(Between):
    """Concatenation along the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = cbr(8, 8), cbr(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(torch.cat((self.a(x), self.b(x)), 0))


@pattern()
class StackedBranches(Between):
    """Branches stacked along a new axis, and their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = cbr(8, 8), cbr(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(torch.stack((self.a(x), self.b(x)), 1).mean(1))


@pattern()
class RepeatedChannels(Between):
    """Each channel twice in a row."""

    def __init__(self) -> None:
        super().__init__()
        self.a = cbr(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.a(self.stem(x).repeat_interleave(2, 1)))


@pattern()
class FlattenToLinear(nn.Module):
    """A linear layer reads a flattened feature map."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.head = cbr(3, 8), nn.Linear(512, 12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.a(self.stem(x).flatten(1))))


@pattern((2, 6))
class LinearToMap(nn.Module):
    """Linear, view as a map, transposed convolution, flatten, linear."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.up, self.head = nn.Linear(6, 36), nn.ConvTranspose2d(4, 6, 2, 2), nn.Linear(216, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.up(F.relu(self.a(x)).view(-1, 4, 3, 3))).flatten(1))


@pattern()
class ChannelsLast(Between):
    """Linear layers on (batch, height, width, channels)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        return self.head(self.b(F.gelu(self.a(x))).permute(0, 3, 1, 2))
