"""`l1rr-fx inspect MODEL`, `l1rr-fx prune MODEL -o DIR` and `l1rr-fx demo`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from l1rr_fx.cli.application import app, reporting
from l1rr_fx.cli.subject import ModelArgument, load_subject
from passes.errors import InputError

TARGET_HELP = "The machine that will run it: none, cpu or onnxruntime (this one), or jetson-tx2."


class Mode(str, Enum):
    """What happens to channels that meet in an addition: see `l1rr_fx.prune`."""

    recombine = "recombine"
    union = "union"
    exclude = "exclude"


@app.command("inspect")
def inspect_command(
    model: ModelArgument,
    target: Annotated[str, typer.Option(metavar="MACHINE", help=TARGET_HELP)] = "none",
) -> None:
    """Show the channels of MODEL, their groups, what could go, and what blocks the rest. Needs no training."""
    from l1rr_fx.method.sites.inspection import inspect

    with reporting("inspecting"):
        subject = load_subject(model)
        inspection = inspect(subject.model, subject.args, subject.kwargs, target=target)
    Console().print(inspection)


@app.command("prune")
def prune_command(
    model: ModelArgument,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where to save the small network.")],
    mode: Annotated[Mode, typer.Option(help="What happens to channels that meet in an addition.")] = Mode.recombine,
    target: Annotated[str, typer.Option(metavar="MACHINE", help=TARGET_HELP)] = "none",
    channel_multiple: Annotated[
        int | None, typer.Option(min=1, help="Keep a multiple of this many channels (default: where it pays).")
    ] = None,
    inference: Annotated[
        bool, typer.Option("--inference", help="For evaluation alone: batch norms of constant channels go too.")
    ] = False,
    verify: Annotated[bool, typer.Option(help="Compare with the zeroed model on the example input.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the saved network in DIR.")] = False,
    details: Annotated[bool, typer.Option("--details", help="Show every layer too.")] = False,
) -> None:
    """Remove what is zeroed in MODEL and save the small network in DIR, with its report (report.json)."""
    from l1rr_fx import prune
    from l1rr_fx.archive import check_target

    with reporting("pruning"):
        check_target(output, overwrite=overwrite)
        subject = load_subject(model)
        pruned = prune(
            subject.model,
            subject.args,
            subject.kwargs,
            mode=mode.value,
            target=target,
            channel_multiple=channel_multiple,
            inference=inference,
            verify=verify,
        )
        pruned.save(output, overwrite=overwrite)
    console = Console()
    console.print(pruned.report)
    if details:
        console.print(Text(pruned.report.details()), soft_wrap=True)
    console.print(Text(f"saved in {output}"), soft_wrap=True)


@app.command("demo")
def demo_command(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where the picture and the numbers go.")
    ] = Path("demo-output"),
) -> None:
    """The whole method on a detector of tree crowns: choose, fine-tune, prune, compare."""
    with reporting(None):
        try:
            from l1rr_fx.demo.run import run
        except ModuleNotFoundError as error:
            raise InputError(f"the demo needs the package {error.name}: pip install 'l1rr-fx[demo]'") from error
        run(output, console=Console())
