"""The results as tables: on a terminal, and as the page `docs/conformance.md`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from rich.table import Table
from rich.text import Text

from l1rr_fx.conformance.cases import PATTERNS, Case
from l1rr_fx.conformance.judgement import MEANING, Judgement, Verdict
from l1rr_fx.conformance.tools import TOOLS

Results = Mapping[str, Sequence[Judgement]]
"""The judgements of each tool, in the order of the cases."""

INTRODUCTION = """\
# Conformance

The results of pruners on {count} named networks. Each result is compared with the network whose removed entries are
zero. [docs/testing.md](testing.md) is about tests of your own. This page was written by

```text
{command}
```

with torch {torch}. To run one case alone and see its code: `l1rr-fx conformance --tool TOOL --case NAME`.

Each network is built in float64 with random weights, and about half of the channels of each of its layers are zeroed at
random. So each branch is dead in other channels, as training leaves them. The tool prunes a copy. l1rr-fx claims that
its result computes what the given network computes. The other tools are asked to remove half of the channels by their
own choice. They are called as their documentation does for any model, without options for a single one. The parameters
show which entries a tool removed, and its result must compute what the given network computes with those entries at
zero. Neither of the other tools promises that: "wrong" here means that the result is not the zeroed network, and that
no message said so.

{meanings}

The number after "exact" is the MACs of the result divided by the least MACs that any exact channel-level method needs.
That limit counts the channels that were zeroed at random. So a tool that takes half of a layer by its own choice, or
the same channels of all branches of a sum, stays above 1; so do groups and heads that are made equally wide.
"""


def summary(results: Results) -> Table:
    """How many cases of each verdict each tool has."""
    table = Table("", *(each.value for each in Verdict), title="Conformance")
    for tool, found in results.items():
        table.add_row(Text(TOOLS[tool].version), *(str(_count(found, verdict)) for verdict in Verdict))
    return table


def details(found: Sequence[Judgement]) -> Table:
    """One line a case: the verdict, why, MACs divided by the limit, seconds."""
    table = Table("tool", "case", "verdict", "why", "MACs / limit", "s")
    for each in found:
        over = "" if each.over_limit is None else f"{each.over_limit:.3f}"
        table.add_row(each.tool, each.case, each.verdict.value, Text(each.detail), over, f"{each.seconds:.2f}")
    return table


def page(results: Results, cases: Sequence[Case], command: str, sources: str = "") -> str:
    """The page: what was done, the counts, every case, and every failure with the command that repeats it.

    `sources` are the command-line options that find the cases that are not built-in patterns.
    """
    meanings = "\n".join(f"- **{verdict.value}**: {text}" for verdict, text in MEANING.items())
    head = INTRODUCTION.format(count=len(cases), command=command, torch=torch.__version__, meanings=meanings)
    return "\n".join([head, _counts(results), _cases(results, cases), *_failures(results, sources)])


def _counts(results: Results) -> str:
    rows = [["tool", *(verdict.value for verdict in Verdict)]]
    for tool, found in results.items():
        rows.append([TOOLS[tool].version, *(str(_count(found, verdict)) for verdict in Verdict)])
    return _markdown(rows)


def _cases(results: Results, cases: Sequence[Case]) -> str:
    parts = ["## Every case\n"]
    by_name = {tool: {each.case: each for each in found} for tool, found in results.items()}
    for theme in dict.fromkeys(case.theme for case in cases):
        rows = [[theme, "", *results]]
        for case in (case for case in cases if case.theme == theme):
            rows.append([f"`{case.name}`", case.about, *(_cell(by_name[tool][case.name]) for tool in results)])
        parts.append(_markdown(rows))
    return "\n".join(parts)


def _cell(found: Judgement) -> str:
    if found.verdict is not Verdict.exact:
        return f"**{found.verdict.value}**" if not found.verdict.is_safe else found.verdict.value
    return "exact" if found.over_limit is None else f"exact, {found.over_limit:.2f}"


def _failures(results: Results, sources: str) -> list[str]:
    parts = ["## What failed, and how to see it\n"]
    for tool, found in results.items():
        failed = [each for each in found if not each.verdict.is_safe]
        parts.append(f"### {TOOLS[tool].version}\n\n" + ("" if failed else "Nothing.\n"))
        if failed:
            rows = [["command", "verdict", "why"]]
            for each in failed:
                where = "" if each.case in PATTERNS else sources
                repeat = f"l1rr-fx conformance --tool {tool} --case {each.case}{where}"
                rows.append([f"`{repeat}`", each.verdict.value, _quoted(each.detail)])
            parts.append(_markdown(rows))
    return parts


def _quoted(detail: str) -> str:
    short = detail if len(detail) <= 110 else f"{detail[:107]}..."
    return short.replace("|", "\\|").replace("<", "&lt;")


def _markdown(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], f"|{'---|' * len(rows[0])}", *lines[1:], ""])


def _count(found: Sequence[Judgement], verdict: Verdict) -> int:
    return sum(each.verdict is verdict for each in found)
