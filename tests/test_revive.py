"""Channels that a target computes anyway are alive in the plan, and cost nothing there."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import l1rr_fx
from l1rr_fx.demo.detector import ConvBlock, Residual
from l1rr_fx.method.planning.plan import Plan
from l1rr_fx.method.planning.revive import revival
from l1rr_fx.method.sites.budget import Analysis, Budget
from passes.assignment.cost_model import Target
from tests.machines import BALANCED, FILLS, WIDENS

MACS = 1.01
"""MACs with a target over MACs without one, at most."""


class Net(nn.Module):
    """A chain of residual sums, a depthwise convolution, a grouped one, and branches that are concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvBlock(3, 32, stride=2)
        self.first, self.second = Residual(32, 32), Residual(32, 32)
        self.depthwise = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, groups=32), nn.BatchNorm2d(32), nn.ReLU())
        self.left, self.right = ConvBlock(32, 32, 1), ConvBlock(32, 32)
        self.head = nn.Conv2d(64, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.second(self.first(self.stem(x))))
        found: Tensor = self.head(torch.cat([self.left(x), self.right(x) + x], 1))
        return found


ARGS = (torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64),)


def network(seed: int = 0) -> nn.Module:
    """A network whose batch norms have random scales."""
    torch.manual_seed(seed)
    model = Net().eval().double()
    for norm in model.modules():
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.uniform_(norm.weight, 0.1, 1)
            nn.init.uniform_(norm.bias, 0.1, 1)
    return model


def zeroed(model: nn.Module, plan: Plan) -> nn.Module:
    model = copy.deepcopy(model)
    plan.zero_(model)
    return model


@pytest.mark.parametrize("target", ["jetson-tx2", FILLS, WIDENS, BALANCED], ids=str)
def test_nothing_is_computed_that_is_zero(target: str | Target) -> None:
    model = network()
    small = zeroed(model, plan := l1rr_fx.choose(model, ARGS, budget=Budget(macs=0.5), target=target))
    assert plan.revival is not None and not plan.revival.lost and plan.reached["macs"] <= 0.5
    fast, least = (l1rr_fx.prune(small, ARGS, target=each) for each in (target, "none"))
    assert fast.report.after.macs <= MACS * least.report.after.macs
    torch.testing.assert_close(fast.module(*ARGS), small(*ARGS), rtol=1e-10, atol=1e-10)  # float64


@pytest.mark.parametrize("seed", range(2))
def test_no_channel_that_comes_back_costs_time(seed: int) -> None:
    analysis = Analysis(network(seed), ARGS, target="jetson-tx2")
    random = torch.Generator().manual_seed(seed)
    share = torch.rand(len(analysis.sites), generator=random)
    drawn = {
        unit: torch.rand(site.channels, generator=random) < share[index]
        for index, (unit, site) in enumerate({site.unit: site for site in analysis.sites}.items())
    }
    zeroing = {site.name: drawn[site.unit] for site in analysis.sites if site.blocked is None}
    before, found = analysis.size(zeroing), revival(analysis, zeroing)
    after = analysis.size(found.zeroing)
    assert after == found.size and before.latency is not None and after.latency is not None
    assert after.latency <= before.latency * (1 + 1e-9)
    assert all(bool((zeroing[name] | ~mask).all()) for name, mask in found.zeroing.items())  # none becomes zero
    alive = sum(int(mask.sum()) for mask in zeroing.values()) - sum(int(m.sum()) for m in found.zeroing.values())
    assert found.channels.revived == alive


def test_zeros_of_the_model_stay_and_are_counted() -> None:
    model = network()
    for layer in (model.first, model.second):
        norm = [each for each in layer.modules() if isinstance(each, nn.BatchNorm2d)][-1]
        with torch.no_grad():
            norm.weight[::3] = norm.bias[::3] = 0
    plan = l1rr_fx.choose(model, ARGS, budget=Budget(macs=0.7), target=FILLS)
    dead = {site.name: site.zeroed for site in plan.sites}
    assert plan.revival is not None and plan.revival.lost > 0
    assert any({*range(0, 32, 3)} <= {*channels} for channels in dead.values())
    assert f"{plan.revival.lost:,} were zero before" in str(plan)
    assert Plan.from_json(plan.to_json()) == plan


def test_without_a_target_a_plan_is_as_it_was_chosen() -> None:
    assert l1rr_fx.choose(network(), ARGS, budget=Budget(macs=0.5)).revival is None
