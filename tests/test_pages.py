"""The page of a network: whole by itself, every layer on it, and drawn by a real browser."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import l1rr_fx
from l1rr_fx.cli import app
from l1rr_fx.pages import page_of
from l1rr_fx.pages.drawing import drawing_of
from l1rr_fx.testing import kill, randomised
from passes.accounts import Kept

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VOID = {"meta", "br", "path", "rect"}


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.left, self.right = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        out: Tensor = self.head(torch.cat((h + self.left(h), self.right(h)), 1))
        return out


@pytest.fixture(scope="module")
def pruned() -> l1rr_fx.Pruned:
    model = randomised(Net()).float().eval()
    kill(model.stem[1], [1, 2, 5])
    return l1rr_fx.prune(model, (torch.rand(1, 3, 8, 8),), target="jetson-tx2")


class Reader(HTMLParser):
    """Tags that open and close in their order, ids, and what would be fetched."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: Counter[str] = Counter()
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        self.fetched += [value or "" for name, value in attrs if name in ("src", "href", "srcset", "data")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in VOID
        self.handle_starttag(tag, attrs)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    assert not reader.open
    return reader


def test_the_page_is_whole_by_itself(pruned: l1rr_fx.Pruned) -> None:
    text = page_of(pruned, "small")
    reader = read(text)
    assert not reader.fetched and "@import" not in text and "url(" not in text
    assert reader.tags["rect"] == len(drawing_of(pruned.module, (torch.rand(1, 3, 8, 8),), {}).boxes) == 7
    for layer in pruned.report.accounts.layers:
        assert f"<td>{layer.node}</td>" in text and f"{layer.outputs[1]} of {layer.outputs[0]}" in text
    for _, answer in pruned.report.answers:
        assert answer in text
    assert "jetson-tx2, FP16" in text and "A prediction" in text


def test_names_are_text(pruned: l1rr_fx.Pruned) -> None:
    hostile = '<script>alert("x")</script>'
    accounts = replace(pruned.report.accounts, kept=(Kept(hostile, hostile, 1, 2),))
    text = page_of(replace(pruned, report=replace(pruned.report, accounts=accounts, notes=(hostile,))), hostile)
    assert read(text).tags["script"] == 1  # its own
    assert text.count("&lt;script&gt;") == 5


def test_what_cannot_be_shown_is_said(pruned: l1rr_fx.Pruned) -> None:
    text = page_of(replace(pruned, example=None), "old")
    assert text.count("does not know the sizes of its inputs") == 2 and read(text).tags["svg"] == 0


def test_the_drawing_follows_the_data(pruned: l1rr_fx.Pruned) -> None:
    drawing = drawing_of(pruned.module, (torch.rand(1, 3, 8, 8),), {})
    names = [box.name for box in drawing.boxes]
    lines = {(names[a], names[b]) for a, b in drawing.lines}
    add, cat = next(name for name in names if "add" in name), next(name for name in names if "cat" in name)
    assert {("input", "stem.0"), ("left", add), (add, cat), ("right", cat), (cat, "head")} <= lines
    assert all(drawing.boxes[a].y < drawing.boxes[b].y for a, b in drawing.lines)
    assert len({(box.x, box.y) for box in drawing.boxes}) == len(drawing.boxes)


def test_the_command_writes_it(pruned: l1rr_fx.Pruned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pruned.save("small")

    def said(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["report", *arguments], env={"COLUMNS": "200"})
        return result.exit_code, result.output

    assert "smaller?" in said("small")[1]
    code, output = said("small", "--html", "small.html")
    assert code == 0 and "written to small.html" in output
    assert "<title>small</title>" in Path("small.html").read_text()
    assert said("small", "--html", "small.html") == (2, "error: small.html exists; --overwrite replaces it\n")
    assert said("small", "--html", "no/folder.html")[0] == said("small", "--html", ".")[0] == 2
    assert said("nothing")[0] == said("small.html")[0] == 2


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium (apt install chromium), which CI installs")
def test_a_browser_shows_it(pruned: l1rr_fx.Pruned, tmp_path: Path) -> None:
    """The page's script runs without an error, and every box lies inside of the picture."""
    (tmp_path / "page.html").write_text(
        page_of(pruned, "small").replace(
            "</body>",
            """<script>
            const error = []; window.onerror = message => error.push(message);
            const first = document.querySelector("#network g[data-group='1']");
            first.dispatchEvent(new MouseEvent("mouseenter"));
            const size = document.querySelector("#network").getBBox();
            document.title = [document.querySelectorAll("#network g.off").length, error.length,
                document.querySelectorAll("#layers tr").length, size.x >= 0 && size.y >= 0].join(" ");
            </script></body>""",
        )
    )
    assert BROWSER is not None
    flags = ("--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom")
    shown = subprocess.run([BROWSER, *flags, str(tmp_path / "page.html")], capture_output=True, text=True, timeout=600)
    (title,) = re.findall("<title>(.*?)</title>", shown.stdout)[:1]
    off, errors, rows, inside = title.split()
    assert (errors, rows, inside) == ("0", str(1 + len(pruned.report.accounts.layers)), "true"), title
    assert int(off) > 0
