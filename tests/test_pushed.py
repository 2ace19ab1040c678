"""Sparse training for a budget: what it pushes to zero, what it leaves to the plan, and what it refuses."""

from __future__ import annotations

import copy
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW

from l1rr_fx.method.planning.choose import choose
from l1rr_fx.method.sites.budget import Analysis, Budget
from l1rr_fx.method.training.decay import parameter_groups
from l1rr_fx.method.training.pushed import PART
from l1rr_fx.method.training.sparsity import ReweightedL1
from passes.errors import InputError

ARGS = (torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)),)


class Net(nn.Module):
    """A stem, a residual block and a prediction."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24)
        self.inner, self.inner_norm = nn.Conv2d(24, 20, 3, padding=1, bias=False), nn.BatchNorm2d(20)
        self.outer, self.outer_norm = nn.Conv2d(20, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24)
        self.last, self.last_norm = nn.Conv2d(24, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32)
        self.head = nn.Conv2d(32, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_norm(self.stem(x)))
        x = F.relu(x + self.outer_norm(self.outer(F.relu(self.inner_norm(self.inner(x))))))
        found: Tensor = self.head(F.relu(self.last_norm(self.last(x))))
        return found


def network() -> Net:
    torch.manual_seed(0)
    model = Net()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
    return model


def train(model: nn.Module, steps: int, sparsity: ReweightedL1 | None = None, first: int = 0) -> None:
    optimizer = AdamW(parameter_groups(model, weight_decay=0.01), lr=1e-3)
    if sparsity is not None:
        sparsity.attach(optimizer)
    for step in range(first, first + steps):
        x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        (model.train()(x) - x.mean((1, 2, 3), keepdim=True)).square().mean().backward()
        optimizer.step()


def macs_left(model: nn.Module) -> float:
    """The share of the MACs that is left without the channels that are zero now, shifts or not."""
    analysis = Analysis(model.eval(), ARGS)
    zero = {
        site.name: model.get_parameter(site.weight).detach() == 0 for site in analysis.sites if site.kind == "scale"
    }
    return analysis.size(zero).shares(analysis.dense)["macs"]


def test_rounds_end_at_their_budgets_and_leave_half_of_the_choice_to_the_plan() -> None:
    """Of what each round takes, training zeroes PART; the plan takes the rest by its own measure."""
    model, plan, before = network(), None, 0
    for limit in (0.7, 0.5, 0.35):
        held: Any = nullcontext() if plan is None else plan.hold(model)
        sparsity = ReweightedL1(model, total_steps=30, args=ARGS, budget=Budget(macs=limit))
        with held:
            train(model, 30, sparsity)
        assert sparsity.finished
        assert macs_left(model) > limit + 0.01, "training has taken all of it"
        zero = sum(int((p == 0).sum()) for name, p in model.named_parameters() if name.endswith("norm.weight"))
        plan = choose(model.eval(), ARGS, budget=Budget(macs=limit))
        assert limit - 0.02 <= plan.reached["macs"] <= limit
        assert 0 < zero - before <= (PART + 0.1) * (plan.zeroed - before)
        before = plan.zeroed


def test_a_channel_that_the_budget_leaves_is_never_pushed() -> None:
    model = network()
    start = {name: each.detach().clone() for name, each in model.named_parameters() if name.endswith("norm.weight")}
    sparsity = ReweightedL1(model, total_steps=20, args=ARGS, budget=Budget(macs=0.5))
    for step in range(20):
        sparsity.step(0.05)  # no gradients: the smallest scales count least
        if step == 0:
            assert all(torch.equal(model.get_parameter(name), each) for name, each in start.items()), (
                "before any choice"
            )
    for name, each in start.items():
        now = model.get_parameter(name).detach()
        pushed = now != each
        assert bool((now[pushed] == 0).all()), "all that are pushed arrive"
        assert not bool(pushed.any()) or float(each[pushed].max()) <= float(each[~pushed].min())
    assert sparsity.finished


def test_a_smaller_budget_pushes_more() -> None:
    shares = []
    for limit in (0.8, 0.5, 0.2):
        model = network()
        sparsity = ReweightedL1(model, total_steps=20, args=ARGS, budget=Budget(macs=limit))
        for _ in range(20):
            sparsity.step(0.05)
        shares.append(sum(int(mask.sum()) for mask in sparsity.zeros().values()))
    assert 0 < shares[0] < shares[1] < shares[2]


def test_a_budget_that_is_met_already_pushes_nothing() -> None:
    model = network()
    plan = choose(model.eval(), ARGS, budget=Budget(macs=0.4))
    plan.zero_(model)
    start = copy.deepcopy(model.state_dict())
    sparsity = ReweightedL1(model, total_steps=20, args=ARGS, budget=Budget(macs=0.5))
    for _ in range(20):
        sparsity.step(0.05)
    assert sparsity.finished and all(torch.equal(model.state_dict()[name], each) for name, each in start.items())


def test_nested_branches_of_a_sum_lose_the_same_channels() -> None:
    zeros = {}
    for nested in (False, True):
        model = network()
        sparsity = ReweightedL1(model, total_steps=20, args=ARGS, budget=Budget(macs=0.4), nested=nested)
        for _ in range(20):
            sparsity.step(0.05)
        zeros[nested] = sparsity.zeros()
    assert torch.equal(zeros[True]["stem_norm"], zeros[True]["outer_norm"]) and bool(zeros[True]["stem_norm"].any())
    assert not torch.equal(zeros[False]["stem_norm"], zeros[False]["outer_norm"])


def test_latency_on_a_machine_is_a_budget() -> None:
    model = network()
    sparsity = ReweightedL1(model, total_steps=10, args=ARGS, budget=Budget(latency=0.95), target="jetson-tx2")
    for _ in range(10):
        sparsity.step(0.1)
    assert sparsity.finished and any(bool(mask.any()) for mask in sparsity.zeros().values())


def test_training_for_a_budget_goes_on_bit_for_bit() -> None:
    def run(parts: tuple[int, ...]) -> list[Tensor]:
        model, state, first = network(), None, 0
        for steps in parts:
            sparsity = ReweightedL1(model, total_steps=30, args=ARGS, budget=Budget(macs=0.5))
            if state is not None:
                sparsity.load_state_dict(state)
            for _ in range(steps):
                for site in sparsity.sites:  # gradients that differ from step to step
                    weight = model.get_parameter(site.weight)
                    weight.grad = torch.rand(weight.shape, generator=torch.Generator().manual_seed(first))
                sparsity.step(0.03)
                first += 1
            state = copy.deepcopy(sparsity.state_dict())
        return [each.detach() for each in model.parameters()]

    assert all(torch.equal(a, b) for a, b in zip(run((30,)), run((7, 23)), strict=True))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no example": ({"budget": Budget(macs=0.5)}, r"a budget needs an example input.*args=\(image,\)"),
    "spared too": ({"budget": Budget(macs=0.5), "args": ARGS, "spared": 0.5}, "leave spared=0.5 out"),
    "no cost": ({"budget": Budget(attention=0.1), "args": ARGS}, "limits no cost"),
    "a number": ({"budget": 0.35, "args": ARGS}, "budget is a float"),
    "no predictor": ({"budget": Budget(latency=0.5), "args": ARGS}, "limits latency, which target 'none' does not"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_options_that_exclude_a_budget(case: str) -> None:
    options, message = REFUSED[case]
    with pytest.raises(InputError, match=message):
        ReweightedL1(network(), total_steps=10, **options)


def test_a_state_of_another_budget_is_refused() -> None:
    state = ReweightedL1(network(), total_steps=10, args=ARGS, budget=Budget(macs=0.5)).state_dict()
    with pytest.raises(InputError, match="another penalty: its budget is "):
        ReweightedL1(network(), total_steps=10, args=ARGS, budget=Budget(macs=0.4)).load_state_dict(state)
