"""`l1rr-fx report DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from l1rr_fx.cli.application import CHAIN, JsonOption, QuietOption, app, examples, reporting, show
from l1rr_fx.support.files import blamed, write_file
from passes.errors import InputError, LoadError

DIR_HELP = "A directory that `l1rr-fx prune` wrote."
HTML_HELP = "Write one self-contained page to this file, with the layers, the copies and a drawing of the network."


@app.command(
    "report",
    rich_help_panel=CHAIN,
    epilog=examples("l1rr-fx report small", "l1rr-fx report small --html small.html"),
)
def report_command(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help=DIR_HELP, show_default=False)],
    html: Annotated[Path | None, typer.Option(metavar="FILE", help=HTML_HELP)] = None,
    details: Annotated[bool, typer.Option("--details", help="Show every layer too.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE.")] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show what a pruning did, again: as tables, or as a page for a browser."""
    with reporting("reading"):
        from l1rr_fx.pages import page_of
        from l1rr_fx.pruning.pruned import load

        try:
            pruned = load(directory)
        except LoadError as error:
            raise LoadError(f"{directory}: {error}") from error
        if html is not None:
            with blamed(html):
                if html.exists() and not overwrite:
                    raise InputError(f"{html} exists; --overwrite replaces it")
            write_file(html, page_of(pruned, directory.resolve().name).encode())
    report = pruned.report
    parts = (report, Text(report.details())) if details else (report,)
    written = () if html is None else (Text(f"written to {html}"),)
    show(*parts, *written, document=report.to_json, json=json, quiet=quiet)
