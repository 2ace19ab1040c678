"""docs/yolo.md is what it says, on a small network of Ultralytics: the front page's block, and the commands."""

from __future__ import annotations

import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from l1rr_fx import load
from l1rr_fx.cli import app
from tests.test_docs import blocks, run
from tests.yolo_trees import SETTINGS, needs_trees, offline_ultralytics, write_network, write_trees

PAGE = "docs/yolo.md"
SMALLER = {"imgsz=640": "imgsz=64", "epochs=50": "epochs=2"}


@pytest.mark.fuzz
@needs_trees
def test_the_block_and_the_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = offline_ultralytics(monkeypatch)
    monkeypatch.chdir(tmp_path)
    write_trees(tmp_path, train=3)
    package.YOLO(str(write_network(tmp_path))).save("best.pt")
    quiet = {**SETTINGS, "project": str(tmp_path / "runs"), "name": "held"}
    train = package.YOLO.train
    monkeypatch.setattr(package.YOLO, "train", lambda yolo, **given: train(yolo, **{**quiet, **given}))
    (code,) = blocks("python ultralytics", PAGE)
    for old, new in SMALLER.items():
        assert old in code
        code = code.replace(old, new)
    found: dict[str, object] = {}
    run(code, found, PAGE)
    assert (tmp_path / "small.onnx").is_file()
    shutil.copy(tmp_path / "runs" / "held" / "weights" / "best.pt", "best.pt")  # it knows the size of its images
    (commands,) = blocks("sh ultralytics", PAGE)
    for line in commands.splitlines():
        result = CliRunner().invoke(app, shlex.split(line)[1:])
        assert result.exit_code == 0, result.output
    accounts = load("small").report.accounts
    assert accounts.after.macs < 0.7 * accounts.before.macs
    assert all((tmp_path / name / "model.onnx").is_file() for name in ("bundle", "dense"))


def test_the_front_page_has_the_same_block() -> None:
    assert blocks("python ultralytics") == blocks("python ultralytics", PAGE)
