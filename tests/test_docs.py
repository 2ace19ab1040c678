"""Documents are what they say: snippets and commands run, tables are printed, the list of the code is complete."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest
from typer.testing import CliRunner

from l1rr_fx.cli import app

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/code.md",
    "docs/conformance.md",
    "docs/design.md",
    "docs/integrations.md",
    "docs/testing.md",
)


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def run(code: str, namespace: dict[str, object]) -> None:
    exec(compile(code, "README.md", "exec"), namespace)


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first snippet as the module that it says it is, in an empty working directory."""
    module = ModuleType("example")
    run(blocks("python")[0], vars(module))
    monkeypatch.setitem(sys.modules, "example", module)
    monkeypatch.chdir(tmp_path)


@pytest.mark.usefixtures("example")
def test_the_snippets_run_and_print_the_table_shown(capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, object] = {}
    for code in blocks("python")[1:]:
        run(code, namespace)
    (table,) = (block for block in blocks("text") if "━" in block)
    assert table in capsys.readouterr().out


@pytest.mark.usefixtures("example")
def test_the_commands_run() -> None:
    (commands,) = blocks("sh")
    for line in commands.splitlines():
        program, *arguments = shlex.split(line)
        assert program == "l1rr-fx"
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output


def test_the_targets_of_make_exist() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    named = {
        name for page in PAGES for name in re.findall(r"^make ([a-z]+)|`make ([a-z]+)`", text(page)) for name in name
    }
    assert named - {""} <= targets


def test_every_file_of_the_code_has_its_line() -> None:
    listed = re.findall(r"^- `([\w/]+\.py)`: ", text("docs/code.md"), flags=re.MULTILINE)
    files = {
        path.relative_to(ROOT).as_posix()
        for package in ("passes", "l1rr_fx")
        for path in (ROOT / package).rglob("*.py")
    }
    assert len(listed) == len(set(listed))
    assert set(listed) <= files
    assert {name for name in files if not name.endswith("__init__.py")} <= set(listed)


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text(page))
    missing = [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
    paths = re.findall(r"`((?:passes|l1rr_fx|tests|benchmarks|docs)/[\w./]*)`", text(page))
    missing += [path for path in paths if not (ROOT / path).exists()]
    assert missing == []


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")
