"""Channels that are constant before a function that is zero there: a scale that is gone with a negative shift, say."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import l1rr_fx
from l1rr_fx.testing import assert_prunes_exactly, randomised

IMAGE = (torch.randn(2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)),)


class Clamp(nn.Module):
    """-1 wherever x is below 0, and everywhere else."""

    def forward(self, x: Tensor) -> Tensor:
        return x.clamp(0, -1) * x.abs()  # else the outputs would be constant


SILENT: dict[str, tuple[Callable[[], nn.Module], float]] = {
    "relu": (nn.ReLU, -0.01),
    "relu6": (nn.ReLU6, -0.01),
    "hardtanh": (lambda: nn.Hardtanh(0.0, 2.0), -0.01),
    "hardswish": (nn.Hardswish, -3.01),
    "hardsigmoid": (nn.Hardsigmoid, -3.01),
}
LOUD: dict[str, tuple[Callable[[], nn.Module], float]] = {
    "relu of a positive shift": (nn.ReLU, 0.01),
    "silu": (nn.SiLU, -5.0),
    "hardtanh below zero": (nn.Hardtanh, -0.01),
    "hardswish": (nn.Hardswish, -2.9),
    "clamp with crossing bounds": (Clamp, -0.01),
}


def network(activation: nn.Module, shift: float) -> nn.Module:
    """Of the first layer's 8 channels 1, 4 and 5 have lost their scale, and keep a shift."""
    model = randomised(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), activation, nn.Conv2d(8, 2, 3)))
    norm = model.get_submodule("1")
    norm.get_parameter("weight").data[[1, 4, 5]] = 0
    norm.get_parameter("bias").data[[1, 4, 5]] = shift
    return model


def width(model: nn.Module, name: str = "0.weight") -> int:
    pruned = assert_prunes_exactly(model, IMAGE)
    model.train()
    pruned.module.train()
    with torch.no_grad():  # in training too
        torch.testing.assert_close(pruned.module(*IMAGE), model(*IMAGE))
    model.eval()
    return pruned.module.get_parameter(name).shape[0]


@pytest.mark.parametrize("name", SILENT)
def test_a_shift_that_the_activation_swallows(name: str) -> None:
    activation, shift = SILENT[name]
    assert width(network(activation(), shift)) == 5


@pytest.mark.parametrize("name", LOUD)
def test_a_shift_that_gets_through(name: str) -> None:
    activation, shift = LOUD[name]
    model = network(activation(), shift)
    assert width(model) == 5
    pruned = l1rr_fx.prune(model, IMAGE)
    assert pruned.module.get_parameter("1.weight").shape == (5,)  # the constants are in the bias of the last layer
    assert not torch.equal(pruned.module.get_parameter("3.bias"), model.get_parameter("3.bias"))


def test_a_bias_without_a_row() -> None:
    model = randomised(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1)))
    first = model.get_submodule("0")
    first.get_parameter("weight").data[:4] = 0
    first.get_parameter("bias").data[:4] = torch.tensor([-1.0, 0.0, 1.0, -0.1], dtype=torch.float64)
    assert width(model) == 4  # the one that is positive goes into the next bias


class Preactivated(nn.Module):
    """A batch norm and a ReLU read channels that are dead, as in DenseNet."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.last(self.norm(self.first(x)).relu())
        return result


@pytest.mark.parametrize(
    ("shift", "mean", "kept"), [(-1.0, 1.0, 5), (-1.0, -9.0, 6), (1.0, 9.0, 6), (-1.0, 0.0, 5), (0.0, 1.0, 5)]
)
def test_a_dead_channel_before_a_batch_norm(shift: float, mean: float, kept: int) -> None:
    """It has to be silent by the running statistics and by those of a batch, in which its mean is zero."""
    model = randomised(Preactivated())
    model.get_parameter("first.weight").data[2] = 0
    model.get_parameter("first.bias").data[2] = 0
    model.get_parameter("norm.bias").data[2] = shift
    model.get_buffer("norm.running_mean")[2] = mean
    assert width(model, "norm.weight") == kept


class Gated(nn.Module):
    """Channels times the ReLU of what parameters alone give: negative at 1 and 4, and at 5 after a batch norm that
    takes its own statistics in training."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)
        self.gates, self.normed = nn.Parameter(torch.ones(1, 8, 1, 1)), nn.Parameter(torch.ones(2, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        gates: Tensor = self.gates.relu() * self.norm(self.normed).relu()
        out: Tensor = self.head(self.stem(x) * gates)
        return out


def test_a_gate_that_parameters_alone_close() -> None:
    model = randomised(Gated())
    assert isinstance(model, Gated)
    with torch.no_grad():
        model.gates.fill_(0.5)[:, [1, 4]] = -0.5
        model.normed.copy_(torch.linspace(1, 2, 16).view(2, 8, 1, 1))
        model.norm.running_mean.zero_()[5] = 9.0  # type: ignore[union-attr, index]  # it has one
        assert not model.norm(model.normed).relu()[:, 5].any(), "closed in evaluation"
    assert width(model, "stem.weight") == 6, "the sixth gate opens in training"
