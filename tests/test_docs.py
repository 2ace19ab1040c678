"""Documents are what they say: snippets and commands run, tables are printed, the list of folders is complete."""

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
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/code.md",
    "docs/conformance.md",
    "docs/deploy.md",
    "docs/design.md",
    "docs/glossary.md",
    "docs/integrations.md",
    "docs/l1rr.md",
    "docs/lowering.md",
    "docs/testing.md",
    "docs/writing_rules.md",
)
PUBLIC = re.compile(r"l1rr_fx(\.lowering|\.testing|\.integrations(\.\w+)?)?|passes(\.rules(\.\w+)?)?")
"""The modules that users import from."""


def blocks(language: str, page: str = "README.md") -> list[str]:
    """The fenced blocks of a language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text(page), flags=re.MULTILINE | re.DOTALL)


def run(code: str, namespace: dict[str, object], page: str = "README.md") -> None:
    exec(compile(code, page, "exec"), namespace)


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


def test_the_example_of_the_design_prints_what_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    namespace: dict[str, object] = {}
    for code in blocks("python", "docs/design.md"):
        run(code, namespace, "docs/design.md")
    printed, shown = capsys.readouterr().out, blocks("text", "docs/design.md")
    assert len(shown) == 4
    assert [block for block in shown if block not in printed] == []


@pytest.mark.parametrize("page", PAGES)
def test_snippets_import_public_modules_alone(page: str) -> None:
    imported = re.findall(
        r"^ *(?:from|import) ((?:l1rr_fx|passes)[\w.]*)", "\n".join(blocks("python", page)), re.MULTILINE
    )
    assert [module for module in imported if not PUBLIC.fullmatch(module)] == []


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


def test_every_folder_of_the_code_has_its_line() -> None:
    listed = re.findall(r"^- `([\w/]+/)`: ", text("docs/code.md"), flags=re.MULTILINE)
    folders = {
        f"{path.parent.relative_to(ROOT).as_posix()}/"
        for package in ("passes", "l1rr_fx")
        for path in (ROOT / package).rglob("__init__.py")
    }
    assert len(listed) == len(set(listed))
    assert set(listed) == folders


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page: str) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text(page))
    missing = [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
    paths = re.findall(r"`((?:passes|l1rr_fx|tests|benchmarks|docs)/[\w./]*)`", text(page))
    missing += [path for path in paths if not (ROOT / path).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES)
def test_sections_that_are_linked_exist(page: str) -> None:
    missing = []
    for file, anchor in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", text(page)):
        linked = (ROOT / page).parent / file if file else ROOT / page
        if anchor not in anchors(linked):
            missing.append(f"{file}#{anchor}")
    assert missing == []


def anchors(page: Path) -> set[str]:
    """The anchors of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def text(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")
