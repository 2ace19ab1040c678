"""`l1rr-fx onnx DIR -o FILE` and `l1rr-fx lint FILE`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from l1rr_fx.cli.application import app, reporting
from l1rr_fx.cli.subject import in_eval_mode, network_subject


class TargetName(str, Enum):
    """What the file is written for."""

    jetson_tx2 = "jetson-tx2"
    onnxruntime = "onnxruntime"
    tensorrt_10 = "tensorrt-10"
    tensorrt_11 = "tensorrt-11"


TargetOption = Annotated[TargetName, typer.Option("--target", help="What reads the file.")]


@app.command("onnx")
def onnx_command(
    network: Annotated[
        str,
        typer.Argument(metavar="NETWORK", help="A directory that `l1rr-fx prune` wrote, or a model, as for `prune`."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The file to write.")],
    shape: Annotated[
        list[str] | None,
        typer.Option(metavar="1x3xHxW", help="The shape of an input of a saved network; repeat it for more inputs."),
    ] = None,
    target: TargetOption = TargetName.jetson_tx2,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace FILE.")] = False,
) -> None:
    """Write a network as an ONNX file that the target reads, and check it."""
    from l1rr_fx.lowering import to_onnx

    with reporting("writing"):
        subject = network_subject(network, shape or [])
        emitted = to_onnx(
            in_eval_mode(subject.model),
            subject.args,
            output,
            kwargs=subject.kwargs,
            target=target.value,
            overwrite=overwrite,
        )
    console = Console()
    console.print(Text(str(emitted)), soft_wrap=True)
    for finding in emitted.findings:
        console.print(Text(str(finding)), soft_wrap=True)


@app.command("lint")
def lint_command(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="An ONNX file, whoever wrote it.")],
    target: TargetOption = TargetName.jetson_tx2,
) -> None:
    """Show what the target would refuse in FILE or silently misread. Exit code 1 if there is an error."""
    from l1rr_fx.lowering import lint

    with reporting("reading"):
        findings = lint(file, target.value)
    console = Console()
    if not findings:
        console.print(Text(f"{file}: nothing to say against it on {target.value}"), soft_wrap=True)
        return
    table = Table("", "node", "problem", "cure")
    for finding in findings:
        where = f"{finding.operator} {finding.node}".strip() or "model"
        table.add_row(*(Text(cell) for cell in (finding.severity, where, finding.problem, finding.cure)))
    console.print(table)
    if any(finding.severity == "error" for finding in findings):
        raise typer.Exit(1)
