"""docs/testing.md is what it says it is: its snippets run, one after the other."""

from __future__ import annotations

import re
from pathlib import Path

from l1rr_fx.testing import assert_stays_prunable
from passes.rules import REGISTERED

TEXT = (Path(__file__).resolve().parent.parent / "docs" / "testing.md").read_text(encoding="utf-8")


def test_the_snippets_run() -> None:
    namespace: dict[str, object] = {}
    try:
        for code in re.findall(r"^```python\n(.*?)^```$", TEXT, flags=re.MULTILINE | re.DOTALL):
            exec(compile(code, "testing.md", "exec"), namespace)
        assert set(REGISTERED) == {"mylib::swish", "mylib::rescale"}
    finally:
        REGISTERED.clear()
    namespace["test_my_detector_stays_prunable"](assert_stays_prunable)  # type: ignore[operator]  # the fixture is it


def test_the_names_and_files_that_the_page_names_exist() -> None:
    root = Path(__file__).resolve().parent.parent
    files = re.findall(r"`((?:passes|l1rr_fx|tests|docs)/[\w./]+)`", TEXT)
    assert files
    assert [file for file in files if not (root / file).exists()] == []
    assert "@@" not in TEXT
