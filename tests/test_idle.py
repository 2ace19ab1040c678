"""Calls that do nothing are left out: each row is `f(x) is x`; the other rows come near and are not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import l1rr_fx
from l1rr_fx.testing import kill, randomised
from passes import capture, normalise
from passes.canonical.idle import IDLE, idle_source

INFINITY = float("inf")
SIDE = 6

SAME: dict[str, Callable[[Tensor], Tensor]] = {
    "pad": lambda x: F.pad(x, [0, 0, 0, 0]),
    "pad all axes": lambda x: F.pad(x, [0] * 8),
    "pad with a number": lambda x: F.pad(x, [0, 0], value=3.0),
    "pad by reflection": lambda x: F.pad(x, [0, 0, 0, 0], mode="reflect"),
    "pad by replication": lambda x: F.pad(x, [0, 0, 0, 0], mode="replicate"),
    "pad around": lambda x: F.pad(x, [0, 0, 0, 0], mode="circular"),
    "a layer that pads": nn.ZeroPad2d(0),
    "align as a UNet does": lambda x: F.pad(x, [(SIDE - x.shape[3]) // 2, SIDE - x.shape[3], 0, SIDE - x.shape[2]]),
    "repeat": lambda x: x.repeat(1, 1, 1, 1),
    "tile": lambda x: x.tile(1),
    "repeat each": lambda x: x.repeat_interleave(1, dim=1),
    "roll": lambda x: x.roll(0, 1),
    "roll around": lambda x: x.roll((8, -SIDE), (1, 3)),
    "flip": lambda x: x.flip([]),
    "turn": lambda x: x.rot90(0, [2, 3]),
    "turn around": lambda x: x.rot90(-4, [1, 2]),
    "expand": lambda x: x.expand(-1, 8, SIDE, SIDE),
    "expand as": lambda x: x.expand_as(x.detach()),
    "broadcast": lambda x: x.broadcast_to(x.shape),
    "permute": lambda x: x.permute(0, -3, 2, -1),
    "transpose": lambda x: x.transpose(1, -3),
    "swap": lambda x: x.swapaxes(2, 2).swapdims(0, 0),
    "move": lambda x: x.movedim(1, 1).moveaxis((2, 3), (-2, -1)).movedim((0,), (0,)).moveaxis(0, 0),
    "view": lambda x: x.view(-1, 8, SIDE, SIDE),
    "view as": lambda x: x.view_as(x.detach()).reshape_as(x.detach()),
    "reshape": lambda x: x.reshape(x.shape),
    "flatten": lambda x: x.flatten(1, 1),
    "unflatten": lambda x: x.unflatten(1, (8,)),
    "squeeze": lambda x: x.squeeze().squeeze(1).squeeze((2, 3)),
    "at least": torch.atleast_3d,
    "slice": lambda x: x[:, :8, 0:, -SIDE:],
    "narrow": lambda x: x.narrow(1, 0, 8),
    "cat": lambda x: torch.cat([x], 1),
    "shuffle": lambda x: F.channel_shuffle(F.pixel_unshuffle(F.pixel_shuffle(x, 1), 1), 1),
    "triangle": lambda x: x.tril(SIDE - 1).triu(1 - SIDE),
    "max pool": lambda x: F.max_pool2d(x, 1),
    "average pool": lambda x: F.avg_pool2d(x, 1, 1),
    "adaptive pool": lambda x: F.adaptive_avg_pool2d(F.adaptive_avg_pool2d(x, (None, SIDE)), SIDE),
    "resize": lambda x: F.interpolate(F.interpolate(x, scale_factor=1), size=SIDE, mode="nearest-exact"),
    "resize smoothly": lambda x: F.interpolate(F.interpolate(x, size=SIDE, mode="bilinear"), SIDE, mode="bicubic"),
    "arithmetic": lambda x: ((x + 0 - 0.0) * 1 / 1.0) ** 1,
    "clamp": lambda x: x.clamp(-INFINITY, INFINITY).clamp(max=INFINITY),
}

OTHER: dict[str, Callable[[Tensor], Tensor]] = {
    "pad one side": lambda x: F.pad(x, [1, -1]),
    "roll": lambda x: x.roll(1, 1),
    "roll all": lambda x: x.roll(SIDE),
    "flip": lambda x: x.flip(1),
    "turn": lambda x: x.rot90(2, [2, 3]),
    "transpose": lambda x: x.transpose(2, 3),
    "permute": lambda x: x.permute(0, 1, 3, 2),
    "move": lambda x: x.movedim(2, 3),
    "triangle": lambda x: x.tril(SIDE - 2),
    "upper triangle": lambda x: x.triu(2 - SIDE),
    "a pooling that keeps the size": lambda x: F.max_pool2d(x, 3, 1, 1),
    "an average with a divisor": lambda x: F.avg_pool2d(x, 1, 1, divisor_override=2),
    "resize by a scale": lambda x: F.interpolate(x, scale_factor=1.1),
    "another type": lambda x: (x.long() / 1).to(x.dtype),
    "arithmetic": lambda x: x + 1 - 1,
    "division without remainder": lambda x: torch.div(x, 1, rounding_mode="floor"),
    "clamp": lambda x: x.clamp(min=-1.0),
    "a number that is read": lambda x: x * x.max().item(),
}


class Between(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.function, self.last = nn.Conv2d(3, 8, 1), function, nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Any:
        return self.last(self.function(self.first(x)))


X = torch.randn(2, 3, SIDE, SIDE, dtype=torch.float64)


def test_what_does_nothing_is_left_out() -> None:
    x = torch.randn(2, 8, SIDE, SIDE, dtype=torch.float64)
    for name, function in SAME.items():
        assert torch.equal(function(x), x), name

    def everything(x: Tensor) -> Tensor:
        for function in SAME.values():
            x = function(x)
        return x

    captured = capture(randomised(Between(everything)), (X,))
    seen = {node.target for node in captured.graph.nodes if idle_source(node) is not None}
    calls = [str(node.target) for node in normalise(captured).graph.nodes if node.op == "call_function"]
    assert calls == ["aten.conv2d.default", "aten.conv2d.default"]
    others = (
        "1d",
        "3d",
        "vec",
        ".Scalar",
        "native_",
        "_pad2d",
        "_pad_nd",
        "atleast",
        "_unsafe",
    )  # of other ranks, or rare
    assert not [str(each) for each in IDLE if each not in seen and not any(word in str(each) for word in others)]


def test_what_comes_near_stays() -> None:
    class All(Between):
        def forward(self, x: Tensor) -> Any:
            x = self.first(x)
            return [self.last(function(x)) for function in OTHER.values()]

    model = randomised(All(nn.Identity()))
    captured = capture(model, (X,))
    assert not [node for node in captured.graph.nodes if idle_source(node) is not None]
    for name, small, known in zip(OTHER, normalise(captured)(X), model(X), strict=True):
        assert torch.allclose(small, known, rtol=1e-12, atol=1e-12), name


def test_sizes_that_may_change_prove_nothing() -> None:
    """At the example's size the roll is a whole turn and the padding empty; at others they are not."""

    class Aligned(Between):
        def forward(self, x: Tensor) -> Any:
            x = self.first(x)
            return self.last(F.pad(x, [0, SIDE - x.shape[3]]).roll(SIDE, 2))

    model = randomised(Aligned(nn.Identity()))
    kill(model.first, rows=(1, 3))
    free = {2: torch.export.Dim("height", min=2, max=64), 3: torch.export.Dim.AUTO}
    small = l1rr_fx.prune(model, (X,), dynamic_shapes=({**free},)).module
    other = torch.randn(2, 3, SIDE + 3, SIDE, dtype=torch.float64)
    assert torch.allclose(small(other), model(other), rtol=1e-12, atol=1e-12)
