"""Costs of everything: what no rule knows is counted by torch's formulas, or named wherever a figure leaves it out."""

from __future__ import annotations

from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import flop_registry, register_flop_formula

import l1rr_fx
from l1rr_fx.lowering import Latency
from l1rr_fx.pruning.report import Report
from l1rr_fx.testing import kill, randomised
from passes import Program, capture, normalise, rules
from passes.accounts import NotCounted
from passes.audit.costs import dense_macs, not_counted
from passes.errors import InputError

aten = torch.ops.aten


@torch.library.custom_op("l1rr_costs::mix", mutates_args=())
def mix(x: Tensor, weight: Tensor) -> Tensor:
    return x @ weight


@mix.register_fake
def _(x: Tensor, weight: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight.shape[1]))


class Mixed(nn.Module):
    """Linear(8, 8), an operator of somebody else's with a weight of 8 x 64, Linear(64, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.weight, self.last = nn.Linear(8, 8), nn.Parameter(torch.randn(8, 64)), nn.Linear(64, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(mix(self.first(x), self.weight))


ROWS = (0, 2, 5, 7)
ARGS = (torch.randn(20, 8, dtype=torch.float64),)


def mixed() -> Mixed:
    model = randomised(Mixed())
    kill(model.first, rows=ROWS)
    return model


def test_an_operator_without_rule_and_formula_is_named() -> None:
    report = l1rr_fx.prune(mixed(), ARGS).report
    assert report.not_counted == (NotCounted("mix", "l1rr_costs.mix"),)
    assert (report.before.macs, report.after.macs) == (3_840, 3_200)
    text = str(report)
    assert "MACs after / limit as far as known = 1.0000 of what is counted\n" in text
    assert "around l1rr_costs.mix nothing is known to be dead\nnot counted: l1rr_costs.mix, which no rule knows" in text
    assert all(f"at least {figure}" in text for figure in ("3,840", "3,200", "83.3%"))
    assert "at least 95.0%" not in text, "parameters are all counted"
    assert Report.from_json(report.to_json()) == report


def test_a_formula_of_torch_counts_an_operator_without_rule() -> None:
    packet = torch.ops.l1rr_costs.mix
    try:
        register_flop_formula(packet)(lambda x, weight, **_: 2 * x[0] * x[1] * weight[1])
        report = l1rr_fx.prune(mixed(), ARGS).report
    finally:
        flop_registry.pop(packet, None)
    assert report.not_counted == ()
    assert (report.before.macs, report.after.macs) == (3_840 + 20 * 8 * 64, 3_200 + 20 * 8 * 64)
    assert report.limit.macs == report.after.macs
    assert [each.reason for each in report.accounts.kept] == [
        "unknown operator: l1rr_costs.mix.default reads everything"
    ]
    assert "at least" not in str(report)


def test_a_composite_operator_is_counted_by_its_parts() -> None:
    """Linear(8, 8), GRU(8, 64), Linear(64, 2) on 20 steps, the GRU without a rule: it stays as it is."""

    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.layer, self.last = nn.Linear(8, 8), nn.GRU(8, 64), nn.Linear(64, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.layer(self.first(x))[0])

    model = randomised(Recurrent())
    kill(model.first, rows=ROWS)
    with patch.dict(rules.OVERLOADS, {"gru.input": rules.UNKNOWN}):
        report = l1rr_fx.prune(model, (torch.randn(20, 1, 8, dtype=torch.float64),)).report
    assert (report.before.macs, report.after.macs) == (280_320, 279_680)
    assert report.not_counted == ()


class WithMatrix(nn.Module):
    """A batch norm whose channels can go, and an operator that nobody knows behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16)
        self.weight, self.last = nn.Parameter(torch.randn(16, 16)), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(mix(self.norm(self.conv(x)).mean((2, 3)), self.weight))


IMAGE = (torch.randn(1, 3, 8, 8, dtype=torch.float64),)


def test_budgets_and_inspections_say_what_they_leave_out() -> None:
    model = randomised(WithMatrix())
    plan = l1rr_fx.choose(model, IMAGE, budget=l1rr_fx.Budget(macs=0.6))
    lines = str(plan).splitlines()
    assert any(line.startswith("macs: at least 0.") and "(budget 0.6)" in line for line in lines)
    assert any(line.startswith("params: 0.") for line in lines)
    assert "not counted: l1rr_costs.mix, which no rule knows" in lines
    assert type(plan).from_json(plan.to_json()) == plan
    with pytest.raises(InputError, match=r"at least .*macs=0.* is reachable \(not counted: l1rr_costs.mix"):
        l1rr_fx.choose(model, IMAGE, budget=l1rr_fx.Budget(macs=0.01))
    assert "not counted: l1rr_costs.mix" in str(l1rr_fx.inspect(model, IMAGE))


def test_predictions_say_what_they_leave_out() -> None:
    prediction = Latency("jetson-tx2").of(mixed().float(), (torch.randn(20, 8),))
    assert prediction.not_counted == ("mix",)
    assert f"predicted at least {prediction.ms:.2f} ms in at least 3 kernels" in str(prediction)
    assert "at least" not in str(Latency("jetson-tx2").of(nn.Linear(8, 8), (torch.randn(20, 8),)))


def products(x: Tensor, y: Tensor) -> dict[Any, tuple[int, Tensor]]:
    """Products that torch has no formula for, with their multiply-accumulates."""
    return {"mv": (6 * 8, y @ x[0]), "dot": (8, x[0].dot(x[1])), "addmv": (6 * 8, torch.addmv(y[:, 0], y, x[0]))}


@pytest.mark.parametrize("name", ("mv", "dot", "addmv"))
def test_products_with_vectors_count(name: str) -> None:
    class Product(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return products(x, y)[name][1]

    args = (torch.randn(2, 8, dtype=torch.float64), torch.randn(6, 8, dtype=torch.float64))
    program = Program(normalise(capture(Product(), args)), rules.rule_for)
    assert (dense_macs(program), not_counted(program)) == (products(*args)[name][0], ())
