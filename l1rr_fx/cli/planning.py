"""`l1rr-fx choose MODEL --budget macs=0.35 -o plan.json`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from l1rr_fx.cli.application import CHAIN, JsonOption, QuietOption, app, examples, reporting, show
from l1rr_fx.cli.compiling import ModeOption
from l1rr_fx.cli.inspecting import TargetMachine
from l1rr_fx.cli.subject import ModelArgument, ShapeOption, load_subject
from l1rr_fx.support.files import blamed, write_file
from l1rr_fx.support.functions import called
from passes.errors import InputError

BUDGET_HELP = (
    "Shares of the dense model to keep, such as macs=0.35,params=0.25, or latency=0.6 with a --target; attention=0.1 "
    "limits the loss."
)
DATA_HELP = (
    "package.module:function, called without arguments, which returns batches (images, targets); targets are boxes in "
    "pixels for each image. Ratios then come from the feature attention loss, else from one threshold on the scores."
)


EXAMPLES = examples(
    "l1rr-fx choose best.pt -b latency=0.6 --target jetson-tx2 -o plan.json",
    "l1rr-fx choose models:detector -b macs=0.35,params=0.25 --data models:batches -o plan.json",
)


@app.command("choose", rich_help_panel=CHAIN, epilog=EXAMPLES)
def choose_command(
    model: ModelArgument,
    budget: Annotated[list[str], typer.Option("--budget", "-b", metavar="NAME=SHARE", help=BUDGET_HELP)],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where the plan goes (JSON).")],
    data: Annotated[str | None, typer.Option("--data", metavar="FUNCTION", help=DATA_HELP)] = None,
    scores: Annotated[
        str | None,
        typer.Option(help="bn-scale (the default without --data), group-norm (with it), weight-norm: orders channels."),
    ] = None,
    mode: ModeOption = "recombine",
    target: TargetMachine = "none",
    curves: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Keep what is measured here, and go on from it.")
    ] = None,
    shape: ShapeOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the plan in FILE.")] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Choose the channels of MODEL to zero for a budget, and write the plan; the model is not changed."""
    console = Console(stderr=True, quiet=quiet)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with reporting(None):
        from l1rr_fx.method.attention.loss import FeatureAttention
        from l1rr_fx.method.planning.choose import choose
        from l1rr_fx.method.sites.budget import Budget

        limits = Budget.parse(",".join(budget))
        _check_output(output, overwrite=overwrite)
        subject = load_subject(model, shape)
        attention = None if data is None else FeatureAttention(subject.model, subject.args, _batches(data))
        with Progress(*columns, console=console, transient=True) as bar:
            task = bar.add_task("measuring layers", total=None, visible=attention is not None)
            plan = choose(
                subject.model,
                subject.args,
                kwargs=subject.kwargs,
                budget=limits,
                scores=scores,
                attention=attention,
                mode=mode,
                target=target,
                curves=curves,
                progress=lambda done, total: bar.update(task, completed=done, total=total),
            )
        write_file(output, f"{plan.to_json()}\n".encode())
    show(plan, Text(f"saved in {output}"), document=plan.to_json, json=json, quiet=quiet)


def _check_output(output: Path, *, overwrite: bool) -> None:
    """InputError where no plan could be written, before anything is measured."""
    with blamed(output):
        if output.is_dir() or not output.parent.is_dir():
            what = "is a folder" if output.is_dir() else "lies in no folder that exists"
            raise InputError(f"{output} {what}; expected the path of a file")
        if output.exists() and not overwrite:
            raise InputError(f"{output} exists; --overwrite replaces it")


def _batches(data: str) -> Sequence[object]:
    found = called(data, "--data")
    if not isinstance(found, Iterable):
        raise InputError(f"{data} returned a {type(found).__name__}; expected batches (images, targets)")
    try:
        return tuple(found)
    except Exception as error:  # a generator of the user's may raise anything
        raise InputError(f"{data} raised {type(error).__name__}: {error}") from error
