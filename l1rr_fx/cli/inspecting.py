"""`l1rr-fx inspect MODEL`."""

from __future__ import annotations

from typing import Annotated

import typer

from l1rr_fx.cli.application import CHAIN, JsonOption, QuietOption, app, examples, reporting, show
from l1rr_fx.cli.subject import ModelArgument, ShapeOption, load_subject
from l1rr_fx.support.choices import TargetName

TARGET_HELP = "The machine that will run it; cpu and onnxruntime are this one, measured once."
TargetMachine = Annotated[TargetName, typer.Option(help=TARGET_HELP)]
EXAMPLES = examples("l1rr-fx inspect best.pt", "l1rr-fx inspect models:detector --target jetson-tx2 --json")


@app.command("inspect", rich_help_panel=CHAIN, epilog=EXAMPLES)
def inspect_command(
    model: ModelArgument,
    target: TargetMachine = "none",
    shape: ShapeOption = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show the channels of MODEL, their groups, what could go, and what blocks the rest. Needs no training."""
    with reporting("inspecting"):
        from l1rr_fx.method.sites.inspection import inspect
        from l1rr_fx.support.documents import to_json

        subject = load_subject(model, shape)
        inspection = inspect(subject.model, subject.args, subject.kwargs, target=target)
    show(inspection, document=lambda: to_json(inspection, "inspection", 1), json=json, quiet=quiet)
