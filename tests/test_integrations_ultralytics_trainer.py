"""What the callbacks do in a trainer, with a trainer that is made of plain objects: no data, no training."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import l1rr_fx
from l1rr_fx.integrations.ultralytics import held, sparse
from l1rr_fx.integrations.ultralytics.networks import example_image, load
from l1rr_fx.support.clock import EVERY, logged


class Student(nn.Module):
    """A network that looks like one of Ultralytics, as far as the integration asks."""

    def __init__(self) -> None:
        super().__init__()
        self.yaml = {"channels": 3}
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(self.stem(x))
        return out


class Distilled(nn.Module):
    """A student beside its teacher, as the trainer wraps them under `distill_model`."""

    def __init__(self, student: nn.Module) -> None:
        super().__init__()
        self.yaml = {"channels": 3}
        self.teacher_model, self.student_model = Student(), student


class Yolo:
    """The part of a YOLO object that takes callbacks; `run` calls those of an event."""

    def __init__(self) -> None:
        self.callbacks: dict[str, list[Any]] = {}

    def add_callback(self, event: str, handler: Any) -> None:
        self.callbacks.setdefault(event, []).append(handler)

    def run(self, event: str, trainer: Any) -> None:
        for handler in list(self.callbacks.get(event, ())):
            handler(trainer)


def trainer_of(model: nn.Module, folder: Path, *, batches: int = 100, accumulate: int = 1) -> Any:
    return SimpleNamespace(
        model=model,
        ema=None,
        args=SimpleNamespace(imgsz=32),
        epochs=3,
        epoch=0,
        start_epoch=0,
        train_loader=range(batches),
        accumulate=accumulate,
        batch_size=4,
        wdir=folder,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
    )


@pytest.mark.parametrize("wrapped", [False, True], ids=["alone", "with a teacher"])
def test_the_student_is_held(wrapped: bool, tmp_path: Path) -> None:
    student, average = Student(), Student()
    plan = l1rr_fx.threshold(student, (torch.rand(1, 3, 32, 32),), below=2.0)
    assert plan.zeroed
    trainer = trainer_of(Distilled(student) if wrapped else student, tmp_path)
    trainer.ema = SimpleNamespace(ema=Distilled(average) if wrapped else average)
    yolo = Yolo()
    with held(yolo, plan):
        yolo.run("on_train_start", trainer)
        for model in (student, average):
            assert int((model.stem[1].weight == 0).sum()) == plan.zeroed
        if wrapped:
            assert bool((trainer.model.teacher_model.stem[1].weight == 1).all())
    yolo_of = SimpleNamespace(model=trainer.model, add_callback=None)
    assert set(load(yolo_of).state_dict()) == set(student.state_dict())


@pytest.mark.parametrize(("accumulate", "warned"), [(1, False), (16, True)])
def test_a_penalty_of_few_steps_warns(
    accumulate: int, warned: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer, yolo = trainer_of(Distilled(Student()), tmp_path, accumulate=accumulate), Yolo()
    with caplog.at_level(logging.INFO, "l1rr_fx"), sparse(yolo):
        yolo.run("on_train_start", trainer)
        assert ("too few to move" in caplog.text and "nbs=4" in caplog.text) is warned
        yolo.run("on_train_end", trainer)
    assert "0 of 8 scales are zero" in caplog.text
    assert [each.levelname for each in caplog.records][-1] == "WARNING"


def test_networks_are_compared_on_an_image_with_content() -> None:
    image = example_image(Student(), (32, 48))
    assert image.shape == (1, 3, 32, 48) and 0 <= float(image.min()) and float(image.max()) <= 1
    assert float(image.std()) > 0.1 and torch.equal(image, example_image(Student(), (32, 48)))


def test_a_long_work_says_how_long_it_will_take(caplog: pytest.LogCaptureFixture) -> None:
    clock = iter([0.0, 1.0, EVERY + 1, EVERY + 2, 40.0])
    progress = logged("measuring", now=lambda: next(clock))
    with caplog.at_level(logging.INFO, "l1rr_fx"):
        for done in (3, 4, 5, 8):  # three were done before
            progress(done, 8)
    assert [each.getMessage() for each in caplog.records] == [
        f"measuring: 4 of 8, about {4 * (EVERY + 1):.0f} s left",
        "measuring: 8 of 8",
    ]
