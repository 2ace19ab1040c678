"""YOLO objects end to end: sparse training, a plan, fine-tuning with zeros held, resume, pruning, files. One core, tiny
images, the stock trainer."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from l1rr_fx.integrations import ultralytics as integration
from l1rr_fx.method.planning.plan import Plan
from l1rr_fx.method.sites.budget import Budget
from l1rr_fx.method.training.recalibrate import recalibrate_batch_norm
from l1rr_fx.support import packages
from passes.errors import InputError
from tests.yolo_trees import (
    NETWORK,
    SETTINGS,
    TILE,
    needs_trees,
    offline_ultralytics,
    write_network,
    write_trees,
)

SIZE, WHOLE = int(SETTINGS["imgsz"]), TILE


@dataclass(frozen=True)
class Trained:
    """A YOLO object after sparse training, the plan made of it, and the object fine-tuned with the plan held."""

    package: Any
    data: str
    folder: Path
    zeros: int
    plan: Plan
    yolo: Any

    @property
    def best(self) -> Path:
        return self.folder / "held" / "weights" / "best.pt"

    def settings(self, name: str, **others: Any) -> dict[str, Any]:
        return {**SETTINGS, "data": self.data, "project": str(self.folder), "name": name, **others}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        package = offline_ultralytics(monkeypatch)
        folder = tmp_path_factory.mktemp("yolo")
        data = str(write_trees(folder / "trees"))
        yolo = package.YOLO("yolov8n.yaml")
        yolo.add_callback("on_train_start", slow_average)
        settings = {**SETTINGS, "data": data, "project": str(folder), "optimizer": "SGD", "lr0": 0.01}
        with integration.sparse(yolo, spared=0.9):
            yolo.train(name="sparse", epochs=2, **settings)
        zeros = zero_gammas(yolo.model)
        plan = integration.plan(yolo, budget=Budget(params=0.6), imgsz=SIZE)
        with integration.held(yolo, plan):
            yolo.train(name="held", epochs=2, save_period=1, **settings)
        yield Trained(package, data, folder, zeros, plan, yolo)


def slow_average(trainer: Any) -> None:
    """Let the average (EMA) follow the network as slowly as late in a long training: at first it all but copies it."""
    trainer.ema.decay = lambda updates: 0.9


def zero_gammas(model: nn.Module) -> int:
    norms = (module for module in model.modules() if isinstance(module, nn.BatchNorm2d))
    return sum(int((norm.weight == 0).sum()) for norm in norms)


def all_zero(plan: Plan, model: nn.Module) -> bool:
    masked: list[Tensor] = []
    for site in plan.sites:
        masked += [model.get_parameter(name)[list(site.zeroed)] for name in (site.weight, site.bias) if name]
    return plan.zeroed > 500 and not any(bool(each.any()) for each in masked)


@needs_trees
def test_sparse_training_leaves_zeros_in_the_checkpoint(trained: Trained) -> None:
    """In the average, from which checkpoints are made, too."""
    saved = trained.package.YOLO(trained.folder / "sparse" / "weights" / "last.pt").model
    assert 100 < trained.zeros < 1000
    assert zero_gammas(saved) > 100
    state = torch.load(trained.folder / "sparse" / "weights" / "sparsity.pt", weights_only=True)
    assert state["epoch"] == 1 and state["penalty"]["steps"] == 4


@needs_trees
def test_the_stock_trainer_ends_with_the_same_zeros(trained: Trained) -> None:
    for checkpoint in ("best.pt", "last.pt", "epoch0.pt"):
        model = trained.package.YOLO(trained.best.with_name(checkpoint)).model
        assert all_zero(trained.plan, model)
    moved = trained.package.YOLO(trained.folder / "sparse" / "weights" / "best.pt").model
    assert not torch.equal(moved.model[0].conv.weight, trained.yolo.model.model[0].conv.weight)


@needs_trees
def test_a_resumed_training_holds_them_too(trained: Trained) -> None:
    yolo = trained.package.YOLO(trained.best.with_name("epoch0.pt"))
    assert trained.plan.zeroed  # the checkpoint is of the first of two epochs
    with integration.held(yolo, trained.plan):
        yolo.train(resume=True)
    assert yolo.trainer.start_epoch == 1 and all_zero(trained.plan, yolo.model)


@needs_trees
def test_a_resumed_sparse_training_goes_on(trained: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    yolo = trained.package.YOLO(write_network(tmp_path), task="detect")
    settings = trained.settings("again", epochs=2, save_period=1, val=False)
    steps: list[int] = []
    with integration.sparse(yolo):
        yolo.add_callback("on_train_epoch_end", lambda trainer: steps.append(len(trainer.train_loader)))
        yolo.train(**settings)
    file = trained.folder / "again" / "weights" / "sparsity.pt"
    state = torch.load(file, weights_only=True)
    assert state["penalty"]["steps"] == 4
    resumed = trained.package.YOLO(file.with_name("epoch0.pt"))
    torch.save({**state, "epoch": 0, "penalty": {**state["penalty"], "steps": 2}}, file)  # as it was after that epoch
    with integration.sparse(resumed):
        resumed.train(resume=True)
    assert torch.load(file, weights_only=True)["penalty"]["steps"] == 4 and "its initial state" not in caplog.text


@needs_trees
def test_pruned_networks_detect_the_same(trained: Trained, tmp_path: Path) -> None:
    """From a file, and from a YOLO object that has been validated (its batch norms are folded by then).

    After so few steps the running statistics are not those of any image, and all boxes are the same: they are
    measured. On images of 64 pixels, boxes of a network that has learned nothing cover all.
    """
    yolo = trained.package.YOLO(trained.best)
    images = integration.labelled_images(yolo.model, trained.data, imgsz=WHOLE)
    recalibrate_batch_norm(yolo.model, [torch.cat([image for image, _ in images])])
    checkpoint, file = tmp_path / "calibrated.pt", tmp_path / "small.onnx"
    yolo.save(checkpoint)
    assert all_zero(trained.plan, trained.package.YOLO(checkpoint).model)

    small = integration.prune(checkpoint, imgsz=WHOLE)
    assert small.report.deviation is not None and small.report.deviation < 1e-4
    integration.export(small, file, checkpoint, imgsz=WHOLE)
    yolo = trained.package.YOLO(checkpoint)
    wanted = validated(yolo, trained, tmp_path / "pt")
    found = validated(trained.package.YOLO(file, task="detect"), trained, tmp_path / "onnx")
    assert len(wanted) >= 10 and len({tuple(box["bbox"]) for box in wanted}) >= 6
    assert len(found) == len(wanted)
    for ours, theirs in zip(found, wanted, strict=True):
        assert ours["bbox"] == pytest.approx(theirs["bbox"], abs=0.05)  # pixels; the file has three decimals
        assert ours["score"] == pytest.approx(theirs["score"], abs=1e-4)
    again = integration.prune(yolo, imgsz=WHOLE)
    assert macs(again) == macs(small) < 0.75 * small.report.accounts.before.macs


def macs(pruned: Any) -> int:
    return int(pruned.report.accounts.after.macs)


def validated(yolo: Any, trained: Trained, folder: Path) -> list[dict[str, Any]]:
    """The boxes that the stock validator saves, in the order of their scores."""
    names = ("device", "plots", "workers", "verbose", "exist_ok")
    settings = {name: SETTINGS[name] for name in names} | {
        "data": trained.data,
        "imgsz": WHOLE,
        "batch": 1,
        "rect": False,
    }
    results = yolo.val(**settings, conf=0.001, max_det=10, save_json=True, project=str(folder), name="val")
    assert results.box is not None
    boxes: list[dict[str, Any]] = json.loads((folder / "val" / "predictions.json").read_text())
    return sorted(boxes, key=lambda box: (str(box["image_id"]), -box["score"], box["bbox"]))


@needs_trees
def test_images_come_with_their_boxes(trained: Trained) -> None:
    batches = list(integration.labelled_images(trained.yolo.model, trained.data, imgsz=SIZE, count=3))
    assert len(batches) == 3
    for image, (target,) in batches:
        assert image.shape == (1, 3, SIZE, SIZE) and 0 <= float(image.min()) < float(image.max()) <= 1
        assert target["boxes"].shape == (len(target["labels"]), 4) and not bool(target["labels"].any())
        sides = target["boxes"][:, 2:] - target["boxes"][:, :2]
        assert bool((sides > 0).all()) and float(target["boxes"].max()) <= SIZE


@needs_trees
def test_a_plan_by_attention_to_the_data(trained: Trained) -> None:
    from ultralytics.nn.tasks import DetectionModel

    model = DetectionModel(dict(NETWORK), verbose=False)
    plan = integration.plan(model, budget=Budget(macs=0.6), data=trained.data, imgsz=SIZE, images=2)
    assert plan.attention is not None and plan.zeroed > 0
    assert plan.reached["macs"] == pytest.approx(0.6, abs=0.03)


@needs_trees
def test_callbacks_go_to_other_processes_and_are_taken_off(trained: Trained) -> None:
    yolo = trained.package.YOLO("yolov8n.yaml")
    before = {event: list(each) for event, each in yolo.callbacks.items()}
    with integration.sparse(yolo, strength=1.0), integration.held(yolo, trained.plan):
        added = [each[-2:] for event, each in yolo.callbacks.items() if len(each) > len(before[event])]
        copies = pickle.loads(pickle.dumps(added))
        assert len(copies) == 5 and copies[0][1].__self__.plan == trained.plan
    assert {event: list(each) for event, each in yolo.callbacks.items()} == before


@needs_trees
def test_a_plan_of_another_network_is_refused(trained: Trained) -> None:
    yolo = trained.package.YOLO("yolov5n.yaml")
    with pytest.raises(InputError, match="the plan is of another model"), integration.held(yolo, trained.plan):
        yolo.train(**trained.settings("other", epochs=1))


def test_what_is_no_yolo_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a YOLO object, its network or the path of a .pt file, not a Linear"):
        integration.load(nn.Linear(2, 2))
    with pytest.raises(InputError, match="there is no such file"):
        integration.load(tmp_path / "missing.pt")
    with pytest.raises(InputError, match="expected a YOLO object, not a Linear"), integration.sparse(nn.Linear(2, 2)):
        pass


def test_without_the_package_a_file_is_refused_with_its_licence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> str:
        raise packages.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(packages.metadata, "version", missing)
    (tmp_path / "best.pt").touch()
    with pytest.raises(InputError, match=r"ultralytics 8\.3\.0 or newer, which is not installed; .*AGPL-3\.0"):
        integration.load(tmp_path / "best.pt")
