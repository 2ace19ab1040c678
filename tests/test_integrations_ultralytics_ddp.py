"""Sparse training with a plan held, by the stock trainer's own two processes and its mixed precision, on a CPU."""

from __future__ import annotations

import pickle
import sys
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from l1rr_fx.integrations import ultralytics as integration
from l1rr_fx.method.planning.plan import Plan
from l1rr_fx.method.sites.budget import Budget
from tests.yolo_trees import SETTINGS, needs_trees, offline_ultralytics, write_network, write_trees


@dataclass(frozen=True)
class Trained:
    """What both processes had at the end, the plan, the checkpoint's network, and the penalty's state."""

    ranks: tuple[dict[str, Any], ...]
    plan: Plan
    saved: Any
    penalty: dict[str, Any]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    with pytest.MonkeyPatch.context() as monkeypatch:
        package = offline_ultralytics(monkeypatch)
        # torch.save takes either; what plain pickle can send, cloudpickle can
        monkeypatch.setitem(sys.modules, "cloudpickle", pickle)
        from tests.yolo_processes import TwoProcesses

        folder = tmp_path_factory.mktemp("ddp")
        settings = {**SETTINGS, "optimizer": "SGD", "batch": 4, "nbs": 4, "project": str(folder), "name": "run"}
        yolo = package.YOLO(write_network(folder), task="detect")
        plan = integration.plan(yolo, budget=Budget(params=0.8), imgsz=64)
        with integration.sparse(yolo, strength=1e3, adaptive=False, spared=0.7), integration.held(yolo, plan):
            yolo.train(trainer=TwoProcesses, data=str(write_trees(folder / "trees")), epochs=2, **settings)
        ranks = tuple(torch.load(folder / "run" / f"rank{rank}.pt") for rank in (0, 1))
        penalty = torch.load(folder / "run" / "weights" / "sparsity.pt")["penalty"]
        return Trained(ranks, plan, package.YOLO(folder / "run" / "weights" / "last.pt").model, penalty)


def masks(trained: Trained) -> dict[str, Tensor]:
    """The zeros of each gamma in the first process."""
    model = trained.ranks[0]["model"]
    return {site.weight: model[site.weight] == 0 for site in trained.plan.sites}


@needs_trees
def test_both_processes_end_with_the_same_parameters(trained: Trained) -> None:
    """Each has seen its own half of every batch."""
    first, second = (rank["model"] for rank in trained.ranks)
    names = [name for name, _ in trained.saved.named_parameters()]
    assert len(names) > 50 and all(torch.equal(first[name], second[name]) for name in names)
    assert not torch.equal(first["model.0.bn.running_mean"], second["model.0.bn.running_mean"])


@needs_trees
def test_the_penalty_and_the_plan_act_in_both(trained: Trained) -> None:
    zeros = masks(trained)
    for site in trained.plan.sites:
        assert bool(zeros[site.weight][list(site.zeroed)].all())
    assert trained.plan.zeroed > 50
    assert 2 * trained.plan.zeroed < sum(int(mask.sum()) for mask in zeros.values()) < 300  # of 544


@needs_trees
def test_a_step_that_the_scaler_skips_is_none_of_the_penalty(trained: Trained) -> None:
    assert {rank["scale"] for rank in trained.ranks} == {128.0}  # lowered once: of four steps one was skipped
    assert trained.penalty["steps"] == 3


@needs_trees
def test_the_checkpoint_has_the_same_zeros(trained: Trained) -> None:
    """The average (EMA) is zero where the plan and the penalty zero it, and nowhere else.

    The checkpoint is that average in FP16, whose rounding may add zeros of its own.
    """
    average = trained.ranks[0]["average"]
    for name, mask in masks(trained).items():
        assert torch.equal(average[name] == 0, mask)
        assert torch.equal(trained.saved.get_parameter(name), average[name].half().float())
