"""The commands as one chain: inspect, choose, prune, lower; whatever MODEL is, without a word of Python."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import l1rr_fx
from l1rr_fx.cli import app
from l1rr_fx.cli.subject import load_subject
from l1rr_fx.testing import randomised

MODULE = """
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.body(x))


def none():
    return nn.Linear(3, 2).eval(), ()
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with the checkpoint `net.pt`, whose class is in `chain_nets.py` there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["", *sys.path])
    (tmp_path / "chain_nets.py").write_text(MODULE)
    monkeypatch.delitem(sys.modules, "chain_nets", raising=False)
    import chain_nets  # type: ignore[import-not-found]  # written above

    torch.save(randomised(chain_nets.Net()).eval(), "net.pt")
    yield tmp_path
    monkeypatch.delitem(sys.modules, "chain_nets", raising=False)


def said(*arguments: str, code: int = 0) -> str:
    result = CliRunner().invoke(app, [*arguments], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result.output


SHAPE = ("--shape", "1x3x16x16")


def test_a_checkpoint_goes_through_the_whole_chain(here: Path) -> None:
    said("inspect", "net.pt", *SHAPE)
    said("choose", "net.pt", *SHAPE, "-b", "macs=0.5", "-o", "plan.json")
    assert "saved in small" in said("prune", "net.pt", *SHAPE, "--plan", "plan.json", "-o", "small")
    plan = l1rr_fx.Plan.from_json(Path("plan.json").read_text())
    small = l1rr_fx.load("small")
    assert small.report.accounts.after.macs / small.report.accounts.before.macs == pytest.approx(plan.reached["macs"])
    # what follows knows the inputs from the file
    assert "opset 13" in said("onnx", "small", "-o", "small.onnx")
    said("lower", "small", "-o", "bundle", "--dense", "net.pt", *SHAPE, "--no-half-model")
    assert (here / "bundle" / "model.onnx").is_file()
    zeroed = load_subject("net.pt", [SHAPE[1]]).model
    plan.zero_(zeroed)
    image = torch.rand(2, 3, 16, 16)
    torch.testing.assert_close(small.module.eval()(image[:1]), zeroed(image[:1]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "command",
    [
        ("inspect", "net.pt", *SHAPE),
        ("choose", "net.pt", *SHAPE, "-b", "macs=0.5", "-o", "plan.json"),
        ("prune", "net.pt", *SHAPE, "-o", "small"),
        ("onnx", "net.pt", *SHAPE, "-o", "net.onnx"),
        ("lower", "net.pt", *SHAPE, "-o", "bundle", "--no-half-model"),
    ],
    ids=lambda command: command[0],
)
def test_every_result_is_json_or_silence(here: Path, command: tuple[str, ...]) -> None:
    found = json.loads(said(*command, "--json"))
    assert isinstance(found, (dict, list))
    again = ("--overwrite",) if command[0] != "inspect" else ()
    assert said(*command, *again, "--quiet") == ""


def test_lint_answers_as_json_with_its_exit_code(here: Path) -> None:
    said("onnx", "net.pt", *SHAPE, "-o", "net.onnx", "--quiet")
    assert json.loads(said("lint", "net.onnx", "--json")) == []
    l1rr_fx.to_onnx(nn.Hardswish().eval(), (torch.rand(1, 3, 8, 8),), "bad.onnx", target="onnxruntime")
    found = json.loads(said("lint", "bad.onnx", "--json", code=1))
    assert found[0]["severity"] == "error" and found[0]["operator"] == "HardSwish"


CHECKPOINTS: dict[str, tuple[Any, str]] = {
    "a state dict": (lambda: nn.Linear(3, 2).state_dict(), "weights without the network"),
    "a state dict in a dict": (lambda: {"model": nn.Linear(3, 2).state_dict(), "epoch": 3}, "calls load_state_dict"),
    "a tensor": (lambda: torch.zeros(3), "weights without the network"),
    "a model without its input": (lambda: nn.Linear(3, 2), "say its --shape"),
}


@pytest.mark.parametrize("case", CHECKPOINTS)
def test_a_checkpoint_without_a_whole_model_is_answered_with_what_to_do(here: Path, case: str) -> None:
    make, answer = CHECKPOINTS[case]
    torch.save(make(), "theirs.pt")
    assert answer in said("inspect", "theirs.pt", code=2)


@pytest.mark.parametrize("content", [b"", b"a network", b"PK\x03\x04 and no more"])
def test_a_damaged_checkpoint_is_one_line(here: Path, content: bytes) -> None:
    Path("theirs.pt").write_bytes(content)
    said_of_it = said("inspect", "theirs.pt", code=2)
    assert "theirs.pt" in said_of_it and said_of_it.count("\n") == 1


def test_the_average_of_a_checkpoint_is_taken(here: Path) -> None:
    models = {"model": nn.Linear(3, 2), "ema": nn.Linear(3, 4)}
    torch.save(models, "both.pt")
    assert load_subject("both.pt", ["1x3"]).model.out_features == 4


def test_a_plan_that_is_none_or_of_another_model_is_named(here: Path) -> None:
    Path("plan.json").write_text("{}")
    assert "plan.json: this is not a plan" in said("prune", "net.pt", *SHAPE, "--plan", "plan.json", "-o", "s", code=2)
    Path("binary.json").write_bytes(bytes(range(256)))
    assert "binary.json: " in said("prune", "net.pt", *SHAPE, "--plan", "binary.json", "-o", "s", code=2)
    said("choose", "net.pt", *SHAPE, "-b", "macs=0.5", "-o", "plan.json", "--overwrite", "-q")
    other = said("prune", "chain_nets:none", "--shape", "1x3", "--plan", "plan.json", "-o", "s", code=2)
    assert "plan.json: " in other and "model" in other
    assert not Path("s").exists()


def test_a_saved_network_knows_its_inputs(here: Path, tmp_path: Path) -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.out = nn.Embedding(5, 4), nn.Linear(4, 2)

        def forward(self, tokens: torch.Tensor, *, scale: dict[str, torch.Tensor]) -> torch.Tensor:
            return self.out(self.table(tokens)) * scale["by"]

    call = ((torch.zeros(2, 3, dtype=torch.int64),), {"scale": {"by": torch.ones(1, dtype=torch.float64)}})
    l1rr_fx.prune(Two().eval(), *call).save("two")
    again = l1rr_fx.load("two")
    assert again.example is not None
    args, kwargs = again.example.args, again.example.kwargs
    assert (args[0].shape, args[0].dtype, args[0].is_meta) == ((2, 3), torch.int64, True)
    assert kwargs["scale"]["by"].dtype == torch.float64
    again.save("three")
    assert Path("two/graph.json").read_bytes() == Path("three/graph.json").read_bytes()
    subject = load_subject("two")
    assert subject.model(*subject.args, **subject.kwargs).shape == (2, 3, 2)
