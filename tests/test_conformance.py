"""The conformance suite: ours is exact on every pattern, and each verdict is given to a tool that earns it."""

from __future__ import annotations

import copy
import inspect
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

from l1rr_fx.cli import app
from l1rr_fx.conformance import TOOLS, Case, Judgement, Tool, Verdict, cases_of, judge, judgements, runner
from l1rr_fx.conformance import judge as judging_function
from l1rr_fx.conformance.cases import PATTERNS
from l1rr_fx.conformance.judgement import MEANING, limit, without_removed, zeroed_network
from l1rr_fx.conformance.outputs import output_layers
from l1rr_fx.conformance.page import page
from l1rr_fx.testing import kill, randomised
from passes.errors import InputError

PAGE = Path(__file__).resolve().parent.parent / "docs" / "conformance.md"
CASES = {case.name: case for case in cases_of("patterns")}
JUDGE = inspect.getmodule(judging_function)


def test_there_are_enough_patterns_and_each_is_explained() -> None:
    assert len(CASES) >= 60
    assert all(len(case.about) > 10 for case in CASES.values())
    assert set(MEANING) == set(Verdict)


@pytest.fixture
def without_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit is a second pruning: half of the time of a verdict on ours."""
    monkeypatch.setattr(JUDGE, "limit", lambda model, args: None)


@pytest.mark.usefixtures("without_limits")
def test_ours_is_exact() -> None:
    found = [judge(TOOLS["l1rr"], case) for case in CASES.values()]
    assert [each for each in found if each.verdict is not Verdict.exact] == []
    assert all(each.macs is not None and each.macs[1] <= each.macs[0] for each in found)


def test_ours_is_at_the_limit() -> None:
    for name in ("residual_stage", "c2f_chunk", "independent_branches", "spatial_mask", "single_head"):
        assert judge(TOOLS["l1rr"], CASES[name]).over_limit == pytest.approx(1, abs=0.01), name


class Fake:
    """A tool that does what a function does."""

    name = "fake"
    version = "fake 1"
    refusals: tuple[type[Exception], ...] = (InputError,)

    def __init__(self, act: Callable[[nn.Module], nn.Module], *, dead_only: bool = False) -> None:
        self.act = act
        self.removes_dead_only = dead_only

    def prune(self, model: nn.Module, args: Any) -> nn.Module:
        return self.act(model)


class Cut(nn.Module):
    """The stem of PlainChain without its first channel, and all that reads it."""

    def __init__(self, model: nn.Module, *, columns_from: int = 1) -> None:
        super().__init__()
        self.stem, self.body, self.head = (copy.deepcopy(model.get_submodule(n)) for n in ("stem", "body", "head"))
        rows = slice(1, None)
        conv, norm = self.stem[0], self.stem[1]
        conv.weight = nn.Parameter(conv.weight[rows])
        norm.weight, norm.bias = nn.Parameter(norm.weight[rows]), nn.Parameter(norm.bias[rows])
        norm.running_mean, norm.running_var = norm.running_mean[rows], norm.running_var[rows]
        first = self.body[0].weight
        self.body[0].weight = nn.Parameter(torch.cat([first[:, :0], first[:, columns_from : columns_from + 7]], 1))

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.body(self.stem(x)))


def _refuse(model: nn.Module) -> nn.Module:
    raise InputError("no")


def _crash(model: nn.Module) -> nn.Module:
    raise KeyError("inside")


def _break(model: nn.Module) -> nn.Module:
    model.get_submodule("head").weight = nn.Parameter(torch.ones(3, 5, 1, 1, dtype=torch.float64))
    return model


@pytest.mark.parametrize(
    ("tool", "verdict"),
    [
        (Fake(Cut), Verdict.exact),
        (Fake(Cut, dead_only=True), Verdict.wrong),  # the channel was alive
        (Fake(lambda model: Cut(model, columns_from=0)), Verdict.wrong),  # it cut another column than row
        (Fake(lambda model: model), Verdict.untouched),
        (Fake(_refuse), Verdict.refused),
        (Fake(_crash), Verdict.raises),
        (Fake(_break), Verdict.raises),
    ],
)
def test_each_verdict_is_earned(tool: Tool, verdict: Verdict) -> None:
    model, _ = zeroed_network(CASES["plain_chain"])
    assert bool(model.get_submodule("stem.1").get_parameter("weight")[0] != 0), "the first channel has to live"
    assert judge(tool, CASES["plain_chain"]).verdict is verdict


def test_what_was_removed_is_read_off_the_parameters() -> None:
    model = randomised(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)))
    small = copy.deepcopy(model)
    small[0].weight, small[0].bias = nn.Parameter(small[0].weight[[2, 0]]), nn.Parameter(small[0].bias[[2, 0]])
    small[1].weight = nn.Parameter(small[1].weight[:, [2, 0]])
    expected = copy.deepcopy(model)
    kill(expected[0], [1])
    kill(expected[1], columns=[1])
    found = without_removed(model, small).state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.state_dict().items())


@torch.library.custom_op("l1rr_conformance::doubled", mutates_args=())
def doubled(x: Tensor) -> Tensor:
    return x * 2


doubled.register_fake(torch.empty_like)


class Doubled(nn.Module):
    """An operator that nobody knows: what it multiplies is in no figure."""

    def forward(self, x: Tensor) -> Tensor:
        return doubled(x)


def test_a_limit_that_is_not_whole_is_none() -> None:
    unknown = nn.Sequential(nn.Linear(4, 4), Doubled(), nn.Linear(4, 2))
    assert limit(randomised(unknown), (torch.randn(2, 4, dtype=torch.float64),)) is None
    assert limit(*CASES["long_short_term_memory"].build()) is not None
    assert limit(*CASES["plain_chain"].build()) is not None


@pytest.mark.parametrize(
    ("name", "layers"),
    [
        ("plain_chain", {"head"}),
        ("detector_head", {"head_boxes.0", "head_boxes.1", "head_classes.0", "head_classes.1"}),
        ("returned_features", {"stem.0", "head"}),
    ],
)
def test_the_layers_that_make_the_outputs(name: str, layers: set[str]) -> None:
    assert output_layers(*CASES[name].build()) == layers


# --- in a process of its own


SOURCE = "tests.test_conformance:slow_cases"


def slow_cases() -> list[Case]:
    """Cases for the worker: one that never ends, one that ends the process, one that works."""
    return [
        Case("slow", "test", "It never ends", _never),
        Case("death", "test", "It ends the process", _die),
        Case("fine", "test", "It works", PATTERNS["plain_chain"].build),
    ]


def no_cases() -> int:
    return 3


def _never() -> Any:
    if started := os.environ.get("L1RR_STARTED"):
        Path(started).touch()
    time.sleep(1000)


def _die() -> Any:
    os._exit(3)


@pytest.mark.fuzz
def test_what_hangs_or_dies_is_ended_and_the_rest_goes_on() -> None:
    names = ["slow", "death", "fine", "plain_chain"]
    found = list(judgements("l1rr", ("patterns", SOURCE), names, time_limit=30))
    assert [each.verdict for each in found] == [Verdict.hangs, Verdict.raises, Verdict.exact, Verdict.exact]
    assert "30 s" in found[0].detail
    assert "exit code 3" in found[1].detail


def test_a_suite_that_is_killed_takes_its_process_along(tmp_path: Path) -> None:
    started = tmp_path / "started"
    code = f"from l1rr_fx.conformance.runner import judgements\nlist(judgements('l1rr', ({SOURCE!r},), ['slow']))"
    with Popen([sys.executable, "-c", code], stdout=PIPE, env={**os.environ, "L1RR_STARTED": str(started)}) as suite:
        deadline = time.monotonic() + 600
        while not started.exists() and time.monotonic() < deadline:
            time.sleep(0.1)
        suite.kill()
        assert started.exists()
        suite.communicate(timeout=600)  # the output ends when no process holds it any more; the case sleeps on


def test_bad_sources() -> None:
    with pytest.raises(InputError, match="a list of"):
        cases_of("tests.test_conformance:no_cases")
    assert {case.name for case in cases_of(SOURCE)} == {"slow", "death", "fine"}


# --- the command and the page


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """Judge in this process: the command is what is tested."""

    def judged(tool: str, sources: Any, names: Any, *, time_limit: float) -> list[Judgement]:
        return [judge(TOOLS[tool], CASES[name]) for name in names]

    monkeypatch.setattr("l1rr_fx.conformance.judgements", judged)
    assert runner.TIME_LIMIT > 1


@pytest.mark.usefixtures("here")
def test_the_command_shows_a_case_and_writes_the_page(tmp_path: Path) -> None:
    file = tmp_path / "page.md"
    arguments = ["conformance", "--case", "plain_chain", "--case", "c2f_chunk", "--write", str(file)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "class PlainChain(Between):" in result.output
    text = file.read_text(encoding="utf-8")
    assert re.search(r"\| l1rr-fx [\d.]+ \| 2 \| 0 \| 0 \| 0 \| 0 \| 0 \|", text)
    assert "| `c2f_chunk` | `list(x.chunk(2, 1))`, blocks appended to it, all concatenated | exact, 1.00 |" in text


def test_what_is_recorded_is_not_judged_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    judged: list[str] = []

    def judge_one(tool: str, sources: Any, names: list[str], *, time_limit: float) -> Iterator[Judgement]:
        for name in names:
            judged.append(name)
            if name == "dense_block":
                raise KeyboardInterrupt
            hangs = name == "c2f_chunk" and time_limit < 60
            yield Judgement(
                tool, name, Verdict.hangs if hangs else Verdict.exact, "", 0.0, (8, 4, 4), min(time_limit, 50)
            )

    monkeypatch.setattr("l1rr_fx.conformance.judgements", judge_one)
    file = tmp_path / "record.jsonl"

    def run(*names: str, time_limit: int = 60) -> str:
        judged.clear()
        cases = [argument for name in names for argument in ("--case", name)]
        arguments = ["conformance", "--record", str(file), "--time-limit", str(time_limit), *cases]
        return CliRunner().invoke(app, arguments).output

    run("plain_chain", "c2f_chunk", "dense_block", time_limit=50)  # is stopped at the third
    assert judged == ["plain_chain", "c2f_chunk", "dense_block"]
    output = run("plain_chain", "c2f_chunk", "bottleneck")
    assert judged == ["c2f_chunk", "bottleneck"]  # what ran into a shorter limit is tried again
    assert len(file.read_text(encoding="utf-8").splitlines()) == 4
    assert re.search(r"l1rr\s+│ plain_chain\s+│ exact\s+│\s+│ 1.000", output)
    monkeypatch.setattr(type(TOOLS["l1rr"]), "version", "l1rr-fx 99")
    run("plain_chain")
    assert judged == ["plain_chain"]  # another version is another tool
    file.write_text('{"versions": []}\n', encoding="utf-8")
    assert "line 1 of" in run("plain_chain")


@pytest.mark.usefixtures("here")
def test_the_command_fails_where_a_tool_does() -> None:
    pytest.importorskip("torch_pruning")
    result = CliRunner().invoke(app, ["conformance", "--tool", "torch-pruning", "--case", "flipped_channels"])
    assert result.exit_code == 1
    assert "wrong" in result.output


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--tool", "nobody"], "there is no tool 'nobody'"),
        (["--case", "nothing"], "there is no case 'nothing'"),
        (["--cases", "nowhere:cases"], "nowhere cannot be imported"),
    ],
)
def test_bad_arguments_are_one_line(arguments: list[str], complaint: str) -> None:
    result = CliRunner().invoke(app, ["conformance", *arguments])
    assert result.exit_code == 2
    assert complaint in result.output


def test_every_failure_has_its_command() -> None:
    cases = [CASES["plain_chain"], CASES["c2f_chunk"]]
    found = [
        Judgement("l1rr", "plain_chain", Verdict.wrong, "a | b <c>"),
        Judgement("l1rr", "c2f_chunk", Verdict.exact),
    ]
    text = page({"l1rr": found}, cases, "l1rr-fx conformance")
    assert "| `l1rr-fx conformance --tool l1rr --case plain_chain` | wrong | a \\| b &lt;c> |" in text


def test_the_page_in_the_docs_is_of_these_cases() -> None:
    """It has a row for each pattern, and says of ours that nothing failed."""
    text = PAGE.read_text(encoding="utf-8")
    rows = Counter(re.findall(r"^\| `([\w/-]+)` \|", text, flags=re.MULTILINE))
    assert set(CASES) <= set(rows)
    (ours,) = re.findall(r"^\| l1rr-fx [\d.]+ \| (\d+) \| (\d+) \| \d+ \| 0 \| 0 \| 0 \|$", text, flags=re.MULTILINE)
    assert sum(map(int, ours)) == sum(rows.values())
