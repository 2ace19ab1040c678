"""`l1rr-fx onnx` and `l1rr-fx lint`: what they print, and their exit codes."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import l1rr_fx
from l1rr_fx.cli import app, lowering
from l1rr_fx.lowering import to_onnx

IMAGE = (torch.rand(1, 3, 8, 8),)


def run(*arguments: str) -> tuple[int, str]:
    assert lowering  # registers the commands
    result = CliRunner().invoke(app, list(arguments), env={"COLUMNS": "200"})
    return result.exit_code, result.output


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Hardswish()).eval()
    l1rr_fx.prune(model, IMAGE).save(tmp_path / "small")
    return tmp_path / "small"


def test_onnx_writes_a_file(saved: Path, tmp_path: Path) -> None:
    file = tmp_path / "small.onnx"
    code, output = run("onnx", str(saved), "--shape", "1x3x8x8", "-o", str(file))
    assert code == 0 and "opset 13, 3 nodes for jetson-tx2" in output
    onnx.checker.check_model(file)
    code, output = run("onnx", str(saved), "--shape", "1x3x8x8", "-o", str(file))
    assert code == 2 and "exists already" in output


def test_an_exported_program_is_written_and_lowered(tmp_path: Path) -> None:
    program = torch.export.export(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()).eval(), IMAGE)
    torch.export.save(program, tmp_path / "model.pt2")
    code, output = run("onnx", str(tmp_path / "model.pt2"), "-o", str(tmp_path / "model.onnx"))
    assert code == 0 and "opset 13, 2 nodes for jetson-tx2" in output
    code, output = run("lower", str(tmp_path / "model.pt2"), "-o", str(tmp_path / "bundle"), "--no-half-model")
    assert code == 0 and (tmp_path / "bundle" / "model.onnx").exists()


def test_lint_prints_findings_and_fails_on_errors(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Hardswish()).eval()
    for name, target in (("good", "jetson-tx2"), ("bad", "onnxruntime")):
        to_onnx(model, IMAGE, tmp_path / f"{name}.onnx", target=target)
    code, output = run("lint", str(tmp_path / "good.onnx"))
    assert code == 0 and "nothing to say against it" in output
    code, output = run("lint", str(tmp_path / "bad.onnx"))
    assert code == 1 and "HardSwish" in output and "Mul(x,HardSigmoid" in output
    code, output = run("lint", str(tmp_path / "none.onnx"))
    assert code == 2 and "cannot be read" in output
