"""The application that commands register with, and how they show progress, results and errors."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from typing import Annotated, Any

import typer
import typer.core
from rich.console import Console, RenderableType
from rich.text import Text

from l1rr_fx.version import __version__
from passes.errors import L1RRError

CHAIN = "The chain, in its order"
MORE = "Files, judgements, a demonstration"
EPILOG = (
    "Exit codes: 0 done; 1 the command ran and its answer is no (lint, conformance); 2 wrong input, one line on "
    "stderr; 130 interrupted."
)

UsageError: type[Exception] = typer.BadParameter.__mro__[1]
"""What typer raises for a command line that it cannot read; it has no public name of its own."""


class _Commands(typer.core.TyperGroup):
    """Says what is wrong with a command line in one line, as of any other input."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except UsageError as error:
            where = getattr(getattr(error, "ctx", None), "command_path", "l1rr-fx")
            text = f"error: {error.format_message()} ({where} --help)"  # type: ignore[attr-defined]  # of typer's base
            Console(stderr=True).print(Text(text, style="red"), soft_wrap=True)
            raise typer.Exit(2) from error


app = typer.Typer(
    name="l1rr-fx",
    cls=_Commands,
    help="Make zeroed channels disappear: a network that computes the same, and is smaller.",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)

JsonOption = Annotated[bool, typer.Option("--json", help="Print the result as one JSON document, and nothing else.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]


def examples(*lines: str) -> str:
    """The end of a command's help: lines that can be typed."""
    return "\n\n".join(["Examples:", *lines])


def _version(asked: bool) -> None:
    if asked:
        try:
            torch = f"torch {version_of('torch')}"
        except PackageNotFoundError:
            torch = "without torch, which it needs"
        typer.echo(f"l1rr-fx {__version__} ({torch})")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Make zeroed channels disappear: a network that computes the same, and is smaller."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # rather a question mark than no output
            stream.reconfigure(errors="replace")


@contextlib.contextmanager
def reporting(doing: str | None) -> Iterator[None]:
    """Show what is being done while it lasts; turn our errors into one line and exit code 2."""
    console = Console(stderr=True)
    try:
        with console.status(doing) if doing is not None else contextlib.nullcontext():
            yield
    except (L1RRError, OSError) as error:
        if not isinstance(error, L1RRError) and error.filename is None:  # no file is to blame: a fault of ours
            raise
        said = str(error) if isinstance(error, L1RRError) else f"{error.filename}: {error.strerror}"
        console.print(Text(f"error: {said}", style="red"), soft_wrap=True)
        raise typer.Exit(2) from error


def show(*parts: RenderableType, document: Callable[[], str], json: bool, quiet: bool) -> None:
    """Print a result: its parts for reading, its document for programs, or nothing."""
    if json:
        typer.echo(document())
        return
    console = Console()
    for part in () if quiet else parts:
        console.print(part, soft_wrap=isinstance(part, Text))
