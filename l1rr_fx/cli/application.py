"""The application that commands register with, and how they show progress and errors."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.text import Text

from l1rr_fx.version import __version__
from passes.errors import L1RRError

app = typer.Typer(
    name="l1rr-fx",
    help="Make zeroed channels disappear: a network that computes the same, and is smaller.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"l1rr-fx {__version__} (torch {torch.__version__})")
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
