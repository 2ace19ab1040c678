"""`l1rr-fx conformance`."""

from __future__ import annotations

import inspect
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.text import Text

from l1rr_fx.cli.application import MORE, JsonOption, QuietOption, app, examples, reporting, show
from l1rr_fx.support.documents import list_json
from l1rr_fx.support.files import write_file
from passes.errors import InputError

if TYPE_CHECKING:
    from l1rr_fx.conformance import Case, Judgement, Record

EVERY = "all"


EXAMPLES = examples("l1rr-fx conformance", "l1rr-fx conformance --tool torch-pruning --case residual_add")


@app.command("conformance", rich_help_panel=MORE, epilog=EXAMPLES)
def conformance_command(
    tool: Annotated[
        list[str] | None, typer.Option(help="l1rr, torch-pruning, torch-kirigami or all; may be repeated.")
    ] = None,
    case: Annotated[list[str] | None, typer.Option(help="Judge this case alone and show it; may be repeated.")] = None,
    zoo: Annotated[bool, typer.Option("--zoo", help="Judge networks of torchvision too.")] = False,
    cases: Annotated[
        str | None, typer.Option(metavar="MODULE:FUNCTION", help="Judge the cases that this function returns too.")
    ] = None,
    time_limit: Annotated[float, typer.Option(min=1, help="Seconds for one case.")] = 60.0,
    record: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Add each verdict to this file at once; what it has already is not judged."),
    ] = None,
    write: Annotated[Path | None, typer.Option(metavar="FILE", help="Write the results as a page.")] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show which of many small networks a pruner gets right. Exit code 1 if some are wrong, raise or hang."""
    with reporting(None):
        _check_file(record, "--record")
        _check_file(write, "--write")
        try:
            from l1rr_fx.conformance import Record, Verdict, page
        except ModuleNotFoundError as error:
            raise InputError(f"this needs the package {error.name}: pip install 'l1rr-fx[conformance]'") from error
        sources = ["patterns", *(["zoo"] if zoo else []), *([cases] if cases else [])]
        chosen = _chosen(sources, case or [])
        tools = _tools(tool or ["l1rr"])
        known = None if record is None else Record(record)
        results = {name: _judged(name, sources, chosen, time_limit, known) for name in tools}
    found = [judgement for judgements in results.values() for judgement in judgements]
    show(
        *(Text(f"{each.name}: {each.about}\n{_code(each)}") for each in (chosen if case else ())),
        page.details([each for each in found if case or each.verdict is not Verdict.exact]),
        page.summary(results),
        document=lambda: list_json(found),
        json=json,
        quiet=quiet,
    )
    if write is not None:
        command = shlex.join(["l1rr-fx", *sys.argv[1:]])
        flags = (" --zoo" if zoo else "") + (f" --cases {cases}" if cases else "")
        with reporting(None):
            write_file(write, page.page(results, chosen, command, flags).encode())
        show(Text(f"written: {write}"), document=str, json=False, quiet=quiet or json)
    if not all(judgement.verdict.is_safe for judgement in found):
        raise typer.Exit(1)


def _check_file(path: Path | None, option: str) -> None:
    """InputError unless there is text in the file, and more can be written, or there is none yet and can be."""
    if path is None:
        return
    try:
        is_new = not path.exists()
        path.open("a").close()
        if path.is_file():
            path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "it is no text" if isinstance(error, UnicodeDecodeError) else error.strerror
        raise InputError(f"{option} {path}: {reason}; expected the path of a text file") from error
    if is_new:
        path.unlink()


def _tools(names: list[str]) -> list[str]:
    from l1rr_fx.conformance import TOOLS

    if EVERY in names:
        names = list(TOOLS)
    for name in names:
        if name not in TOOLS:
            raise InputError(f"there is no tool {name!r}; there are {', '.join(TOOLS)} and {EVERY}")
        TOOLS[name].version  # noqa: B018  raises where it is not installed
    return names


def _chosen(sources: list[str], names: list[str]) -> list[Case]:
    """The cases of these names, or all."""
    from l1rr_fx.conformance import cases_of

    found = {case.name: case for source in sources for case in cases_of(source)}
    for name in names:
        if name not in found:
            raise InputError(f"there is no case {name!r}; there are {', '.join(found)}")
    return [found[name] for name in names] if names else list(found.values())


def _judged(
    tool: str, sources: list[str], cases: list[Case], time_limit: float, record: Record | None
) -> list[Judgement]:
    """The verdicts of a tool, with a bar that shows how far it is."""
    from l1rr_fx.conformance import judgements

    found = {} if record is None else record.found(tool, time_limit)
    left = [case.name for case in cases if case.name not in found]
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(tool, total=len(cases), completed=len(cases) - len(left))
        for judgement in judgements(tool, sources, left, time_limit=time_limit):
            found[judgement.case] = judgement
            if record is not None:
                record.add(judgement)
            progress.advance(bar)
    return [found[case.name] for case in cases]


def _code(case: Case) -> str:
    """The source of a pattern's class."""
    model, _ = case.build()
    try:
        return inspect.getsource(type(model))
    except OSError:
        return repr(model)
