"""Verdicts in a file, one a line: what was judged once need not be judged again."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from l1rr_fx.conformance.judgement import Judgement, Verdict
from l1rr_fx.conformance.tools import TOOLS
from l1rr_fx.support.json_text import json_value
from passes.errors import InputError


@dataclass(frozen=True)
class Record:
    """A file of verdicts; each line says the versions of tool and torch that it holds for."""

    file: Path

    def found(self, tool: str, time_limit: float) -> dict[str, Judgement]:
        """The verdicts on this version of the tool by case, but not what ran into a shorter time limit than this one.

        InputError if a line is not one of a record.
        """
        lines = self.file.read_text(encoding="utf-8").splitlines() if self.file.exists() else []
        found: dict[str, Judgement] = {}
        for number, line in enumerate(lines, 1):
            try:
                read = json_value(line)
                judgement = _judgement(read["judgement"])
                holds = read["versions"] == versions(judgement.tool)
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"line {number} of {self.file} is no verdict: {error!r}") from error
            hung = judgement.verdict is Verdict.hangs and judgement.seconds < time_limit
            if judgement.tool == tool and holds and not hung:
                found[judgement.case] = judgement
        return found

    def add(self, judgement: Judgement) -> None:
        """Append a verdict."""
        line = json.dumps({"versions": versions(judgement.tool), "judgement": asdict(judgement)})
        with self.file.open("a", encoding="utf-8") as lines:
            lines.write(f"{line}\n")


def versions(tool: str) -> list[str]:
    """The versions that a verdict depends on."""
    return [TOOLS[tool].version if tool in TOOLS else "", f"torch {torch.__version__}"]


def _judgement(read: dict[str, object]) -> Judgement:
    macs = read["macs"]
    fields = {**read, "verdict": Verdict(read["verdict"]), "macs": tuple(macs) if isinstance(macs, list) else None}
    return Judgement(**fields)  # type: ignore[arg-type]  # what json has read; wrong names are a TypeError
