"""Deformable convolution: channels are those of a convolution, offsets and mask are needed whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import l1rr_fx
from l1rr_fx.lowering import Latency
from l1rr_fx.testing import kill, randomised

torchvision = pytest.importorskip("tests.torchvision_shim").import_torchvision()


class Deformed(nn.Module):
    """A stem, a deformable convolution with offsets and a mask that are computed from the input, a head."""

    def __init__(self, offset_groups: int = 1, *, masked: bool = True, bias: bool = True) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(6, 4, 1)
        self.places, self.weights = nn.Conv2d(3, 18 * offset_groups, 3), nn.Conv2d(3, 9 * offset_groups, 3)
        self.deform = torchvision.ops.DeformConv2d(8, 6, 3, bias=bias)
        self.masked = masked

    def forward(self, x: Tensor) -> Tensor:
        mask = self.weights(x).sigmoid() if self.masked else None
        y: Any = self.deform(torch.relu(self.stem(x)), self.places(x), mask)
        return self.head(torch.relu(y))


X = torch.randn(2, 3, 8, 8, dtype=torch.float64)


@pytest.mark.parametrize(
    ("options", "shape"),
    [
        ({}, (4, 5, 3, 3)),
        ({"masked": False}, (4, 5, 3, 3)),
        ({"bias": False}, (4, 5, 3, 3)),
        ({"offset_groups": 2}, (4, 8, 3, 3)),
    ],
    ids=str,
)
def test_dead_channels_go_through_a_deformable_convolution(options: Any, shape: tuple[int, ...]) -> None:
    model = randomised(Deformed(**options))
    kill(model.stem, rows=(1, 4, 6))
    kill(model.deform, rows=(0, 3))
    pruned = l1rr_fx.prune(model, (X,))
    assert pruned.module.get_parameter("deform.weight").shape == shape
    assert pruned.module.get_parameter("head.weight").shape[1] == 4
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    assert torch.allclose(pruned.module(x), model(x), rtol=1e-10, atol=1e-10)
    layer = next(each for each in pruned.report.accounts.layers if "deform" in each.node)
    assert layer.macs[0] == 2 * 36 * 6 * 8 * 9
    assert layer.macs[1] == 2 * 36 * shape[0] * shape[1] * 9
    assert pruned.report.not_counted == ()


def test_a_deformable_convolution_is_predicted_with_its_work() -> None:
    rows = Latency("jetson-tx2").of(Deformed().eval(), (X.float(),)).rows
    assert sum(row.kernel.macs for row in rows) >= 2 * 36 * 6 * 8 * 9
