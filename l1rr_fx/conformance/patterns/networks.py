"""Inputs and outputs, heads, and whole small networks."""

from __future__ import annotations

# mypy: no-warn-return-any
# (what a torch.nn.Module returns when it is called is Any)
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l1rr_fx.conformance.cases import Args, pattern, randoms
from l1rr_fx.conformance.patterns.parts import Between, cb, cbr, conv


@pattern()
class NestedOutputs(nn.Module):
    """A dictionary of lists and tuples is returned."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head_a, self.head_b = cbr(3, 8), conv(8, 4, 1), conv(8, 2, 1)

    def forward(self, x: Tensor) -> dict[str, object]:
        x = self.a(x)
        return {"boxes": [self.head_a(x), (self.head_b(x),)], "count": 3}


def _list_of_images() -> Args:
    return (list(randoms((2, 3, 8, 8), (2, 4, 8, 8))),)


@pattern(make=_list_of_images)
class ListOfInputs(nn.Module):
    """A list of tensors comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = cbr(3, 4), cbr(4, 4), conv(8, 3, 1)

    def forward(self, xs: list[Tensor]) -> Tensor:
        return self.head(torch.cat((self.a(xs[0]), self.b(xs[1])), 1))


@pattern((2, 3, 8, 8), (2, 4, 8, 8))
class TwoInputs(nn.Module):
    """Two inputs meet in a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = cb(3, 8), cb(4, 8), conv(8, 3, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.head(F.relu(self.a(x) + self.b(y)))


@pattern()
class ReturnedFeatures(nn.Module):
    """A feature map is an output too, so its channels stay."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body, self.head = cbr(3, 8), cbr(8, 8), conv(8, 4, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        return x, self.head(self.body(x))


@pattern()
class OneChannel(nn.Module):
    """Layers with a single channel inside and at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = cbr(3, 1), cbr(1, 4), conv(4, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.b(self.a(x))).squeeze(1)


@pattern()
class UnusedParameters(Between):
    """A layer and a parameter that forward never reads."""

    def __init__(self) -> None:
        super().__init__()
        self.idle, self.spare = conv(8, 8), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x))


@pattern()
class BranchOnShape(Between):
    """Python decides by the size of the input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = cbr(8, 8), cbr(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(self.a(x) if x.shape[2] > 4 else self.b(x))


@pattern()
class BranchOnValues(Between):
    """Python decides by the values of the input: no trace holds both ways."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = cbr(8, 8), cbr(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        return self.head(self.a(y) if bool(x.sum() > 0) else self.b(y))


@pattern()
class FlexibleArguments(Between):
    """`forward(*args, **kwargs)`, as detectors have it."""

    def __init__(self) -> None:
        super().__init__()
        self.a = cbr(8, 8)

    def forward(self, x: Tensor, *args: Tensor, **kwargs: Tensor) -> Tensor:
        return self.head(self.a(self.stem(x)))


@pattern()
class SharedHead(nn.Module):
    """One tower reads three levels of a pyramid."""

    def __init__(self) -> None:
        super().__init__()
        self.bottom = nn.ModuleList((cbr(3, 8), cbr(8, 12, stride=2), cbr(12, 16, stride=2)))
        self.sides = nn.ModuleList(cb(width, 8, 1) for width in (8, 12, 16))
        self.tower, self.head = cbr(8, 8), conv(8, 4, 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        levels = []
        for layer in self.bottom:
            x = layer(x)
            levels.append(x)
        top = self.sides[2](levels[2])
        middle = self.sides[1](levels[1]) + F.interpolate(top, scale_factor=2.0)
        low = self.sides[0](levels[0]) + F.interpolate(middle, scale_factor=2.0)
        return [self.head(self.tower(level)) for level in (low, middle, top)]


@pattern()
class DetectorHead(nn.Module):
    """YOLO's head: boxes and classes of two scales, flattened, joined and split again."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = cbr(3, 8), cbr(8, 8, stride=2)
        self.head_boxes = nn.ModuleList(conv(8, 4, 1) for _ in range(2))
        self.head_classes = nn.ModuleList(conv(8, 3, 1) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        maps = [self.a(x)]
        maps.append(self.b(maps[0]))
        outs = [torch.cat((box(f), cls(f)), 1) for f, box, cls in zip(maps, self.head_boxes, self.head_classes)]
        boxes, classes = torch.cat([out.flatten(2) for out in outs], 2).split((4, 3), 1)
        return torch.cat((boxes * 8, classes.sigmoid()), 1)


@pattern()
class UShape(nn.Module):
    """Down, up by a transposed convolution, and a skip that is concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = cbr(3, 6), cbr(6, 10), cbr(12, 8)
        self.up, self.head = nn.ConvTranspose2d(10, 6, 2, 2), conv(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        skip = self.a(x)
        return self.head(self.c(torch.cat((self.up(self.b(F.max_pool2d(skip, 2))), skip), 1)))


@pattern()
class HighResolution(Between):
    """Two resolutions that exchange sums."""

    def __init__(self) -> None:
        super().__init__(14)
        self.high, self.low, self.up, self.down = cb(8, 8), cb(8, 6, stride=2), cb(6, 8, 1), cb(8, 6, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        high, low = F.relu(self.high(x)), F.relu(self.low(x))
        up = F.interpolate(self.up(low), scale_factor=2.0)
        low = F.interpolate(F.relu(low + self.down(high)), scale_factor=2.0)
        return self.head(torch.cat((F.relu(high + up), low), 1))


@pattern()
class Inception(Between):
    """Branches of different kernels and a pooled one, side by side."""

    def __init__(self) -> None:
        super().__init__(18)
        self.a, self.b, self.c, self.d = (
            cbr(8, 4, 1),
            nn.Sequential(*cbr(8, 3, 1), *cbr(3, 6)),
            cbr(8, 4, 5),
            cbr(8, 4, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        return self.head(torch.cat((self.a(x), self.b(x), self.c(x), self.d(F.avg_pool2d(x, 3, 1, 1))), 1))


@pattern()
class PyramidPooling(Between):
    """Maxima of growing windows, all concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = cbr(8, 4, 1), cbr(16, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = [self.a(self.stem(x))]
        for _ in range(3):
            pooled.append(F.max_pool2d(pooled[-1], 5, 1, 2))
        return self.head(self.b(torch.cat(pooled, 1)))


@pattern((2, 3, 7))
class EdgeConvolution(nn.Module):
    """Features of neighbours less one's own, and the maximum over neighbours, as DGCNN has it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.edge, self.head = nn.Conv1d(3, 8, 1), cbr(16, 8, 1), nn.Conv1d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        neighbours = torch.stack([torch.roll(x, shift, 2) for shift in (1, 2, 3)], 3)
        own = x.unsqueeze(3).expand(-1, -1, -1, 3)
        return self.head(self.edge(torch.cat((neighbours - own, own), 1)).amax(-1))


@pattern()
class ConvolutionalRecurrence(Between):
    """The same convolution in three steps, its state concatenated to its input."""

    def __init__(self) -> None:
        super().__init__()
        self.a = conv(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        state = torch.zeros_like(x)
        for _ in range(3):
            state = torch.tanh(self.a(torch.cat((x, state), 1)))
        return self.head(state)


def _words() -> Args:
    return (torch.arange(10).reshape(2, 5),)


@pattern(make=_words)
class WordVectors(nn.Module):
    """An embedding, and an output layer that is tied to it."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(11, 8), nn.Linear(8, 8), nn.Linear(8, 11)
        self.head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.mix(self.embed(x))))
