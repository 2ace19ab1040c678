"""`l1rr-fx demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from l1rr_fx.cli.application import MORE, app, examples, reporting
from passes.errors import InputError


@app.command("demo", rich_help_panel=MORE, epilog=examples("l1rr-fx demo", "l1rr-fx demo -o /tmp/demo"))
def demo_command(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where the pictures and the numbers go.")
    ] = Path("demo-output"),
) -> None:
    """The whole method on a detector of tree crowns: choose, fine-tune, prune, compare."""
    with reporting(None):
        try:
            from l1rr_fx.demo.run import run
        except ModuleNotFoundError as error:
            raise InputError(f"the demo needs the package {error.name}: pip install 'l1rr-fx[demo]'") from error
        run(output, console=Console())
