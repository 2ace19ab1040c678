"""`l1rr-fx prune MODEL -o DIR`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.text import Text

from l1rr_fx.cli.application import CHAIN, JsonOption, QuietOption, app, examples, reporting, show
from l1rr_fx.cli.inspecting import TargetMachine
from l1rr_fx.cli.subject import ModelArgument, ShapeOption, load_subject
from l1rr_fx.support.choices import Shift
from l1rr_fx.support.files import blamed, read_file
from passes.choices import Mode
from passes.errors import InputError

MOST_BYTES = 2**26
"""A plan's file has at most so many bytes."""
PLAN_HELP = "Zero the channels of this plan, which `l1rr-fx choose` wrote, first. Without it, MODEL's own zeros go."
EXAMPLES = examples(
    "l1rr-fx prune models:detector --plan plan.json --target jetson-tx2 -o small",
    "l1rr-fx prune zeroed.pt -o small --details",
)


ModeOption = Annotated[Mode, typer.Option(help="What happens to channels that meet in an addition.")]


@app.command("prune", rich_help_panel=CHAIN, epilog=EXAMPLES)
def prune_command(
    model: ModelArgument,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where to save the small network.")],
    plan: Annotated[Path | None, typer.Option(metavar="FILE", help=PLAN_HELP)] = None,
    shift: Annotated[
        Shift, typer.Option(help="With --plan: zero the shifts of the channels too, or keep them as constants.")
    ] = "zero",
    mode: ModeOption = "recombine",
    target: TargetMachine = "none",
    channel_multiple: Annotated[
        int | None, typer.Option(min=1, help="Keep a multiple of this many channels (default: where it pays).")
    ] = None,
    inference: Annotated[
        bool, typer.Option("--inference", help="For evaluation alone: batch norms of constant channels go too.")
    ] = False,
    verify: Annotated[bool, typer.Option(help="Compare with the zeroed model on the example input.")] = True,
    shape: ShapeOption = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the saved network in DIR.")] = False,
    details: Annotated[bool, typer.Option("--details", help="Show every layer too.")] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Remove what is zeroed in MODEL and save the small network in DIR, with its report (report.json)."""
    with reporting("pruning"):
        from l1rr_fx import prune
        from l1rr_fx.archive import check_target

        check_target(output, overwrite=overwrite)
        subject = load_subject(model, shape)
        if plan is not None:
            _zero(subject.model, plan, shift)
        pruned = prune(
            subject.model,
            subject.args,
            subject.kwargs,
            mode=mode,
            target=target,
            channel_multiple=channel_multiple,
            inference=inference,
            verify=verify,
        )
        pruned.save(output, overwrite=overwrite)
    report = pruned.report
    parts = (report, Text(report.details())) if details else (report,)
    show(*parts, Text(f"saved in {output}"), document=report.to_json, json=json, quiet=quiet)


def _zero(model: Any, plan: Path, shift: Any) -> None:
    """Zero the channels of the plan in a file."""
    from l1rr_fx.method.planning.plan import Plan

    with blamed(plan, "read"):
        content = read_file(plan, MOST_BYTES)
    try:
        Plan.from_json(content.decode()).zero_(model, shift)
    except ValueError as error:  # InputError, or no text at all
        raise InputError(f"{plan}: {error}") from error
