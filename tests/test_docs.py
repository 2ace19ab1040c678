"""Documents are what they say: snippets and commands run, tables are printed, the list of folders is complete."""

from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient

from tests import families
from tests.installed import is_installed

ROOT = Path(__file__).resolve().parent.parent
PAGES = (
    "README.md",
    "CONTRIBUTING.md",
    "docs/code.md",
    "docs/conformance.md",
    "docs/deploy.md",
    "docs/design.md",
    "docs/faq.md",
    "docs/glossary.md",
    "docs/index.md",
    "docs/integrations.md",
    "docs/l1rr.md",
    "docs/lowering.md",
    "docs/onnxruntime.md",
    "docs/own.md",
    "docs/start.md",
    "docs/testing.md",
    "docs/tx2.md",
    "docs/writing_rules.md",
    "docs/yolo.md",
)
PUBLIC = re.compile(r"l1rr_fx(\.lowering|\.testing|\.integrations(\.\w+)?)?|passes(\.rules(\.\w+)?)?")
"""The modules that users import from."""


def blocks(language: str, page: str = "README.md") -> list[str]:
    """The fenced blocks of a language, in order; "python ultralytics": those that need this package."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text(page), flags=re.MULTILINE | re.DOTALL)


def run(code: str, namespace: dict[str, object], page: str = "README.md") -> None:
    exec(compile(code, page, "exec"), namespace)


def example() -> str:
    """The module that snippets of several pages import as `example`. (`make readme` runs the README itself.)"""
    (code,) = (code for code in blocks("python") if code.startswith("# example.py"))
    return code


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.ao.quantization, which the FAQ advises against
@pytest.mark.parametrize("page", ["docs/start.md", "docs/own.md", "docs/faq.md"])
def test_the_snippets_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    run("\n".join(blocks("python", page)), {}, page)


@pytest.mark.fuzz
@pytest.mark.filterwarnings("ignore")  # torchao's, of its own parts
@pytest.mark.skipif(not is_installed("torchao"), reason="torchao is missing: pip install --no-deps torchao")
def test_the_quantisation_in_torch_runs() -> None:
    run("\n".join([blocks("python", "docs/faq.md")[0], *blocks("python torchao", "docs/faq.md")]), {}, "docs/faq.md")


def notebook() -> nbformat.NotebookNode:
    return nbformat.read(ROOT / "docs" / "notebooks" / "first_hour.ipynb", as_version=4)


def test_the_cells_of_the_notebook_run() -> None:
    assert not any(cell.get("outputs") for cell in notebook().cells), "it is stored without outputs"
    run("\n".join(cell.source for cell in notebook().cells if cell.cell_type == "code"), {}, "first_hour.ipynb")


@pytest.mark.fuzz
def test_the_notebook_runs_in_a_kernel(tmp_path: Path) -> None:
    done = NotebookClient(notebook(), timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in done.cells for output in cell.get("outputs", ())]
    shown = [output["data"] for output in outputs if output["output_type"] == "execute_result"]
    assert len(shown) == 7 and sum("text/html" in data for data in shown) == 5, "the tables are tables"


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


def test_the_table_of_families_is_that_of_the_zoo() -> None:
    assert families.table() in text("README.md")
    names = {*families.rows("zoo.md"), *families.rows("onnx_zoo.md")}
    assert all(name.startswith("whole/") for name in names if families.family_of(name) is None)


def test_the_figures_of_the_front_page_are_those_of_the_conformance_page() -> None:
    page = text("docs/conformance.md")
    ours, theirs, others = re.findall(r"^\| [\w.-]+ [\d.]+ \| (\d+) \| \d+ \| \d+ \| (\d+) \|", page, re.MULTILINE)
    ratios = [float(ratio) for ratio in re.findall(r"^\| `[^|]*\|[^|]*\| exact, ([\d.]+) \|", page, re.MULTILINE)]
    front = " ".join(text("README.md").split())
    for said in (
        f"of 146 named networks with zeroed channels l1rr-fx prunes {ours[0]} exactly, Torch-Pruning 1.6.1 prunes "
        f"{theirs[0]} and torch-kirigami 0.2.1 prunes {others[0]}.",
        f"{ours[1]} of these results compute something else without a message; of Torch-Pruning's {theirs[1]}, of "
        f"torch-kirigami's {others[1]}.",
        f"{ratios.count(1.0)} of the {len(ratios)} results that have MACs",
        f"at most {max(ratios)} times as many",
    ):
        assert said in front


API = {"l1rr_fx", "l1rr_fx.lowering", "l1rr_fx.testing", "l1rr_fx.integrations.ultralytics", "passes"}


@pytest.mark.parametrize("module", sorted(API))
def test_every_public_name_has_its_place_in_the_api(module: str) -> None:
    """Under one of its names: the error of a lower package is the same object in a higher one."""
    shown = [pkgutil.resolve_name(name) for name in api_names()]
    package = importlib.import_module(module)
    missing = [name for name in package.__all__ if not any(getattr(package, name) is each for each in shown)]
    assert [name for name in missing if name != "__version__"] == []


def api_names() -> list[str]:
    """The names that the pages of the API show."""
    pages = sorted((ROOT / "docs" / "api").glob("*.md"))
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages)
    return re.findall(r"^::: (\S+)$", text, re.MULTILINE)


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
