"""A plan for ONNX Runtime ends with one measurement and one correction. The clock is made up."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import nn

from l1rr_fx import Budget, InputError
from l1rr_fx.integrations import onnxruntime
from l1rr_fx.integrations.onnxruntime import choose_measured
from l1rr_fx.lowering import Measured
from l1rr_fx.machines.onnxruntime import OnnxRuntimeCpu
from l1rr_fx.testing import randomised
from tests.test_cpu_latency import FAKE

ARGS = (torch.rand(1, 3, 24, 24, dtype=torch.float64),)
LIMIT = 0.8


def model() -> nn.Module:
    return randomised(nn.Sequential(nn.Conv2d(3, 160, 3), nn.BatchNorm2d(160), nn.ReLU(), nn.Conv2d(160, 4, 1))).eval()


def clock(monkeypatch: pytest.MonkeyPatch, *off: float) -> list[float]:
    """Measurements of pruned networks are `off` from their predictions, one after the other."""
    waiting, shares = [*off], []

    def measured(modules: Sequence[nn.Module], args: tuple[Any, ...], machine: OnnxRuntimeCpu) -> list[Measured]:
        dense, small = (machine.predict(each, args) for each in modules)
        shares.append(small / dense)
        return [Measured(dense, dense), Measured(small * waiting.pop(0), small)]

    monkeypatch.setattr(onnxruntime, "measured", measured)
    return shares


def test_a_prediction_that_holds_is_not_corrected(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = clock(monkeypatch, 1.005)
    found = choose_measured(model(), ARGS, budget=Budget(latency=LIMIT), machine=FAKE)
    assert not found.corrected and shares == [found.predicted]
    assert found.share == pytest.approx(1.005 * found.predicted)


def test_a_network_that_is_measured_slower_gets_a_smaller_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    shares = clock(monkeypatch, 1.25, 1.25)
    found = choose_measured(model(), ARGS, budget=Budget(latency=LIMIT), machine=FAKE)
    assert found.corrected and found.share <= LIMIT
    assert len(shares) == 2 and shares[1] <= LIMIT / 1.25 < shares[0] <= LIMIT


def test_both_above_the_limit_is_said(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    clock(monkeypatch, 1.25, 1.6)
    with caplog.at_level(logging.WARNING):
        found = choose_measured(model(), ARGS, budget=Budget(latency=LIMIT), machine=FAKE)
    assert found.share > LIMIT and "not the budget latency=0.8" in caplog.text


def test_what_is_not_measured_is_refused() -> None:
    with pytest.raises(InputError, match="no limit on latency"):
        choose_measured(model(), ARGS, budget=Budget(macs=0.5), machine=FAKE)
    with pytest.raises(InputError, match="takes no target"):
        choose_measured(model(), ARGS, budget=Budget(latency=0.5), machine=FAKE, target="none")
