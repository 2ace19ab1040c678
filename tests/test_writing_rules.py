"""docs/writing_rules.md is what it says it is: its snippets run in order and print what the page shows."""

from __future__ import annotations

import re
from pathlib import Path
from textwrap import dedent

import pytest

from l1rr_fx.lowering.onnx import operators
from passes import rules

PAGE = Path(__file__).resolve().parent.parent / "docs" / "writing_rules.md"


@pytest.fixture
def registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty registries of rules and forms; what a test adds is forgotten."""
    monkeypatch.setattr("passes.rules.REGISTERED", {})
    monkeypatch.setattr("l1rr_fx.lowering.onnx.operators.REGISTERED", {})


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language in order; those inside of lists are indented."""
    fenced = re.findall(rf"^( *)```{language}\n(.*?)^ *```$", PAGE.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    return [dedent(code) for _, code in fenced]


@pytest.mark.usefixtures("registries")
def test_the_snippets_run_and_print_what_is_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for code in blocks("python"):
        exec(compile(code, PAGE.name, "exec"), namespace)
    printed = capsys.readouterr().out
    assert [shown for shown in blocks("text") if shown not in printed] == []
    assert set(rules.REGISTERED) == {"mylib::softcap", "mylib::calibrate"}
    assert set(operators.REGISTERED) == {"mylib::softcap"}
