"""Models that `prune` takes in pieces are inspected and planned in pieces."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import l1rr_fx
from l1rr_fx.testing import randomised


def block(channels_in: int, channels_out: int) -> nn.Sequential:
    first = nn.Conv2d(channels_in, 8, 3, padding=1, bias=False)
    return nn.Sequential(first, nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, channels_out, 3, padding=1))


class Detector(nn.Module):
    """A body and a head in a loop that depends on values; nobody captures it whole."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.offset = block(3, 6), block(6, 4), nn.Parameter(torch.zeros(()))

    def forward(self, images: list[Tensor]) -> list[Tensor]:
        found = self.head(self.body(torch.stack(images)))
        return [each[:, each[0] > self.offset] for each in found]


IMAGES = ([torch.randn(3, 8, 8, dtype=torch.float64), torch.randn(3, 8, 8, dtype=torch.float64)],)


def test_a_model_in_pieces_is_inspected_planned_and_held() -> None:
    model = randomised(Detector())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    inspected = l1rr_fx.inspect(model, IMAGES)
    assert inspected.pieces == ("body", "head") and "inspected in pieces: body, head" in str(inspected)
    by_name = {layer.node: layer.blocked for layer in inspected.layers}
    assert by_name == dict.fromkeys(("body.0", "head.0")) | dict.fromkeys(("body.3", "head.3"), "network output")

    sites = l1rr_fx.channel_sites(model, IMAGES)
    assert [site.name for site in sites if site.blocked is None] == ["body.1", "head.1"]
    plan = l1rr_fx.choose(model, IMAGES, budget=l1rr_fx.Budget(macs=0.6))
    assert plan.pieces == ("body", "head") and l1rr_fx.Plan.from_json(plan.to_json()) == plan
    assert "planned in pieces, of which alone the costs are: body, head" in str(plan)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())

    with plan.hold(model):
        pass
    report = l1rr_fx.prune(model, IMAGES).report
    assert report.pieces == plan.pieces
    assert report.after.macs / report.before.macs == pytest.approx(plan.reached["macs"])


def test_one_that_can_be_captured_is_not_in_pieces() -> None:
    assert l1rr_fx.inspect(block(3, 6), (torch.randn(1, 3, 8, 8),)).pieces == ()
