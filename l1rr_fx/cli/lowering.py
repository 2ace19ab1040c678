"""`l1rr-fx onnx DIR -o FILE` and `l1rr-fx lint FILE`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from l1rr_fx.cli.application import MORE, JsonOption, QuietOption, app, examples, reporting, show
from l1rr_fx.cli.subject import ModelArgument, ShapeOption, in_eval_mode, load_subject
from l1rr_fx.support.choices import FileTarget
from l1rr_fx.support.documents import list_json

if TYPE_CHECKING:
    from l1rr_fx.lowering.parsers.lint import Finding


TargetOption = Annotated[FileTarget, typer.Option("--target", help="What reads the file.")]


@app.command(
    "onnx",
    rich_help_panel=MORE,
    epilog=examples("l1rr-fx onnx small -o small.onnx", "l1rr-fx onnx best.pt -o best.onnx --target onnxruntime"),
)
def onnx_command(
    model: ModelArgument,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The file to write.")],
    shape: ShapeOption = None,
    target: TargetOption = "jetson-tx2",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE.")] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write MODEL as an ONNX file that the target reads, and check it."""
    with reporting("writing"):
        from l1rr_fx.lowering import to_onnx

        subject = load_subject(model, shape)
        emitted = to_onnx(
            in_eval_mode(subject.model),
            subject.args,
            output,
            kwargs=subject.kwargs,
            target=target,
            overwrite=overwrite,
        )
    lines = [Text(str(emitted)), *(Text(str(finding)) for finding in emitted.findings)]
    show(*lines, document=lambda: list_json(emitted.findings), json=json, quiet=quiet)


@app.command(
    "lint",
    rich_help_panel=MORE,
    epilog=examples("l1rr-fx lint small.onnx", "l1rr-fx lint theirs.onnx --target tensorrt-10 --json"),
)
def lint_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An ONNX file, whoever wrote it.")],
    target: TargetOption = "jetson-tx2",
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show what the target would refuse in FILE or silently misread. Exit code 1 if there is an error."""
    with reporting("reading"):
        from l1rr_fx.lowering import lint

        findings = lint(file, target)
    part = _findings_table(findings) if findings else Text(f"{file}: nothing to say against it on {target}")
    show(part, document=lambda: list_json(findings), json=json, quiet=quiet)
    if any(finding.severity == "error" for finding in findings):
        raise typer.Exit(1)


def _findings_table(findings: Sequence[Finding]) -> Table:
    table = Table("", "node", "problem", "cure")
    for finding in findings:
        where = f"{finding.operator} {finding.node}".strip() or "model"
        table.add_row(*(Text(cell) for cell in (finding.severity, where, finding.problem, finding.cure)))
    return table
