"""The command line: what it prints, and exit code 2 with one clear line for whatever is wrong with its input."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

import l1rr_fx
from l1rr_fx.cli import app
from l1rr_fx.pruning.pruned import Pruned
from l1rr_fx.pruning.report import Report
from passes.accounts import Accounts, Cost, Layer
from passes.errors import VerifyError
from passes.frontend.capture import capture

MODELS = """
import os, signal, sys
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)).eval(), (torch.ones(1, 3, 4, 4),)

def one():
    return net()[0]

def no_tuple():
    return net()[0], torch.ones(1, 3, 4, 4)

def no_model():
    return "net", ()

def interrupted():
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job starts without it
    os.kill(os.getpid(), signal.SIGINT)
    return net()

def leaves():
    sys.exit(3)

number = 3
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with `cli_models.py` and `net.pt2`; imports of it are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "cli_models.py").write_text(MODELS)
    (tmp_path / "broken.py").write_text("import a_package_that_does_not_exist")
    (tmp_path / "leaves.py").write_text("import sys; sys.exit('not here')")
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()).eval()
    torch.export.save(torch.export.export(model, (torch.ones(1, 3, 4, 4),)), tmp_path / "net.pt2")
    monkeypatch.delitem(sys.modules, "cli_models", raising=False)
    return tmp_path


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The options with which the command line called `prune`, which is replaced by a capture."""
    seen: list[dict[str, Any]] = []

    def prune(model: nn.Module, args: tuple[Any, ...], kwargs: Any = None, **options: Any) -> Pruned:
        seen.append(options)
        cost = Cost(1, 2_345, 3, 4)
        layers = (Layer("0", "conv2d", (3, 3), (4, 4), (192, 192, 192)),)
        return Pruned(capture(model, args, kwargs), Report(Accounts(cost, cost, cost, layers), options["mode"]))

    monkeypatch.setattr(l1rr_fx, "prune", prune, raising=False)
    return seen


def call(*arguments: str) -> Result:
    return CliRunner().invoke(app, [*arguments])


def test_help_names_the_commands() -> None:
    result = call("--help")
    assert result.exit_code == 0
    for command in ("inspect", "prune", "demo", "--version"):
        assert command in result.output


@pytest.mark.parametrize("command", ["inspect", "prune", "demo"])
def test_help_of_each_command(command: str) -> None:
    assert call(command, "--help").exit_code == 0


def test_version() -> None:
    result = call("--version")
    assert result.exit_code == 0
    assert l1rr_fx.__version__ in result.output


@pytest.mark.parametrize("model", ["net.pt2", "cli_models:net"])
def test_inspect(here: Path, model: str) -> None:
    result = call("inspect", model)
    assert result.exit_code == 0, result.output
    assert "channels" in result.output


@pytest.mark.parametrize("model", ["net.pt2", "cli_models:net"])
def test_prune_saves_the_network_and_prints_the_report(here: Path, calls: list[dict[str, Any]], model: str) -> None:
    result = call("prune", model, "-o", "small", "--details")
    assert result.exit_code == 0, result.output
    assert "2,345" in result.output
    assert "conv2d" in result.output
    assert "saved in small" in result.output
    assert calls == [
        {"mode": "recombine", "target": "none", "channel_multiple": None, "inference": False, "verify": True}
    ]
    x = torch.rand(1, 3, 4, 4)
    assert l1rr_fx.load("small").module(x).shape == (1, 4, 4, 4)
    assert Report.from_json((here / "small" / "report.json").read_text()).mode == "recombine"


def test_prune_says_that_nothing_was_zero(here: Path) -> None:
    result = call("prune", "net.pt2", "-o", "dense")
    assert result.exit_code == 0, result.output
    assert "note: nothing was removed: no channel is zero" in result.output


def test_options_reach_prune(here: Path, calls: list[dict[str, Any]]) -> None:
    result = call(
        "prune",
        "cli_models:net",
        "-o",
        "s",
        "--mode",
        "union",
        "--channel-multiple",
        "8",
        "--target",
        "cpu",
        "--no-verify",
    )
    assert result.exit_code == 0, result.output
    assert calls == [{"mode": "union", "target": "cpu", "channel_multiple": 8, "inference": False, "verify": False}]


def test_a_full_directory_is_refused_before_the_work(here: Path, calls: list[dict[str, Any]]) -> None:
    assert call("prune", "cli_models:net", "-o", "small").exit_code == 0
    result = call("prune", "cli_models:net", "-o", "small")
    assert_one_line(result, "not empty")
    assert len(calls) == 1
    assert call("prune", "cli_models:net", "-o", "small", "--overwrite").exit_code == 0


def assert_one_line(result: Result, message: str) -> None:
    """Exit code 2 and one line on stderr, with the message."""
    assert result.exit_code == 2, result.output
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert result.stdout == ""


WRONG = {
    "nothing.pt2": "nothing.pt2: there is no such file",
    "cli_models.py": "package.module:function",
    "cli_models": "package.module:function",
    "cli models:net": "package.module:function",
    "cli_models:": "package.module:function",
    "../cli_models:net": "package.module:function",
    "no_such_module:net": "no_such_module cannot be imported",
    "broken:net": "a_package_that_does_not_exist",
    "cli_models:no_such_function": "no function 'no_such_function'",
    "cli_models:number": "no function 'number'",
    "cli_models:one": "returned a Sequential; expected (model, args)",
    "cli_models:no_tuple": "returned a Tensor as its args",
    "leaves:net": "leaves cannot be imported: SystemExit: not here",
    "cli_models:leaves": "cli_models:leaves raised SystemExit: 3",
    "cli_models:no_model": "returned a str as its model",
}


@pytest.mark.parametrize("model", WRONG)
@pytest.mark.parametrize("command", ["inspect", "prune"])
def test_a_wrong_model(here: Path, calls: list[dict[str, Any]], command: str, model: str) -> None:
    options = ("-o", "small") if command == "prune" else ()
    assert_one_line(call(command, model, *options), WRONG[model])
    assert not (here / "small").exists()


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("a network"),
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "another zip": lambda path: torch.save({"x": 1}, path),
    "a directory": lambda path: [path.unlink(), path.mkdir()],  # type: ignore[func-returns-value]
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_pt2(here: Path, damage: str) -> None:
    DAMAGE[damage](here / "net.pt2")
    assert_one_line(call("inspect", "net.pt2"), "net.pt2: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("inspect", "cli_models:net", "--target", "moon"), "'moon' is not one of 'none', 'cpu'"),
        (("inspect",), "Missing argument 'MODEL'"),
        (("prune", "cli_models:net"), "Missing option '--output'"),
        (("inspect", "cli_models:net", "--sharp"), "No such option: --sharp"),
        (("inspct", "cli_models:net"), "No such command 'inspct'"),
        (("prune", "cli_models:net", "-o", "small", "--channel-multiple", "0"), "greater than or equal to 1"),
    ],
)
def test_a_line_that_cannot_be_read_is_answered_by_one(here: Path, arguments: tuple[str, ...], message: str) -> None:
    assert_one_line(call(*arguments), message)


def test_an_error_of_ours_is_one_line(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def prune(*_: object, **__: object) -> Pruned:
        raise VerifyError("the pruned network differs by 0.1 at [node]")

    monkeypatch.setattr(l1rr_fx, "prune", prune, raising=False)
    assert_one_line(call("prune", "cli_models:net", "-o", "small"), "differs by 0.1 at [node]")


@pytest.mark.parametrize(
    "arguments",
    [
        ["prune", "cli_models:net"],
        ["prune", "-o", "small"],
        ["prune", "cli_models:net", "-o", "small", "--mode", "magic"],
        ["prune", "cli_models:net", "-o", "small", "--channel-multiple", "0"],
        ["prune", "cli_models:net", "-o", "small", "--channel-multiple", "many"],
        ["prune", "cli_models:net", "-o", "small", "--surprise"],
        ["inspect"],
        ["inspect", "a:b", "c:d"],
        ["magic"],
    ],
)
def test_wrong_options_exit_with_2(here: Path, calls: list[dict[str, Any]], arguments: list[str]) -> None:
    assert call(*arguments).exit_code == 2
    assert not calls


@pytest.mark.parametrize("option", ["--record", "--write"])
def test_a_file_that_cannot_be_written_is_refused_before_the_run(here: Path, option: str) -> None:
    (here / "binary").write_bytes(bytes(range(256)))
    reasons = {".": "Is a directory", "no/file": "No such file or directory", "binary": "it is no text"}
    for path, message in reasons.items():
        result = call("conformance", "--case", "no_case", option, path)
        assert_one_line(result, f"{option} {path}: {message}; expected the path of a text file")
    assert_one_line(call("conformance", "--case", "no_case", option, "new"), "there is no case 'no_case'")
    assert not (here / "new").exists()


def run(*arguments: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(l1rr_fx.__file__).parent.parent)  # installed or not
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root, **more}
    return subprocess.run(
        [sys.executable, "-m", "l1rr_fx", *arguments], cwd=cwd, env=environment, capture_output=True, text=True
    )


def test_a_real_process(here: Path) -> None:
    right = run("inspect", "cli_models:net", cwd=here, PYTHONIOENCODING="latin-1", COLUMNS="40")
    assert right.returncode == 0, right.stderr
    assert "channels" in right.stdout and "?" in right.stdout
    wrong = run("inspect", "nothing.pt2", cwd=here)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr == "error: nothing.pt2: there is no such file\n"


def test_an_interrupted_process_exits_with_130(here: Path) -> None:
    interrupted = run("inspect", "cli_models:interrupted", cwd=here)
    assert interrupted.returncode == 130, interrupted.stderr
    assert "Traceback" not in interrupted.stderr
