"""The table of checks in docs/lowering.md. `python -m tests.test_lint_table` prints it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from l1rr_fx.lowering.parsers.trt82 import table
from l1rr_fx.lowering.parsers.trt82_model import EVERY_NODE, MODEL_CHECKS
from l1rr_fx.lowering.parsers.trt82_nodes import CHECKS

DOCS = Path(__file__).parent.parent / "docs" / "lowering.md"
HEAD = ("operators", "what has to hold", "decided in", "how sure")


def rules() -> Iterator[tuple[str, str, str, str]]:
    """Per operator (in words, if it is all of them): a rule, its source and its basis."""
    yield from (("the model", check.rule, check.source, check.basis) for check in MODEL_CHECKS)
    yield from (("all", check.rule, check.source, check.basis) for check in EVERY_NODE)
    for kind, checks in CHECKS.items():
        yield from ((kind, check.rule, check.source or "its importer", check.basis) for check in checks)
    for kind, entry in table().items():
        if entry.supported in ("yes", "partly", "experimental") and entry.typed != ():
            types = f"types: {', '.join(entry.types)}"
            source = "its importer" if entry.source.endswith(f"import{kind}") else entry.source
            if entry.basis == "certain":
                yield kind, types, source, entry.basis


def printed() -> str:
    """The table as Markdown: operators with the same rule share a row."""
    rows: dict[tuple[str, str, str], list[str]] = {}
    for kind, *rest in rules():
        rule, source, basis = rest
        rows.setdefault((rule, source, basis), []).append(kind)
    lines = [HEAD, ("---",) * 4, *((", ".join(kinds), *row) for row, kinds in rows.items())]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def test_the_table_in_the_docs_is_that_of_the_code() -> None:
    assert printed() in DOCS.read_text(encoding="utf-8"), "run python -m tests.test_lint_table"


if __name__ == "__main__":
    sys.stdout.write(printed())
