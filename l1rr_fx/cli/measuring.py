"""`l1rr-fx lower DIR -o BUNDLE`, `l1rr-fx measure BUNDLE --ssh user@host` and `l1rr-fx compare results.json ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from l1rr_fx.cli.application import CHAIN, JsonOption, QuietOption, app, examples, reporting, show
from l1rr_fx.cli.subject import ModelArgument, ShapeOption, in_eval_mode, load_subject
from l1rr_fx.support.choices import FileTarget
from l1rr_fx.support.documents import from_text, list_json

NMS_HELP = (
    "End the network with TensorRT's NMS: score=0.25,overlap=0.7,most=300,output=0, or those that differ from these. "
    "The output must be boxes (centre and size) and scores in [0, 1], as YOLOv8 gives them."
)
BundleArgument = Annotated[Path, typer.Argument(metavar="BUNDLE", help="A folder that `l1rr-fx lower` wrote.")]


@app.command(
    "lower",
    rich_help_panel=CHAIN,
    epilog=examples(
        "l1rr-fx lower small -o bundle --dense best.pt",
        'l1rr-fx lower best.pt -o bundle-dense --nms "score=0.3,most=100" --image street.jpg',
    ),
)
def lower_command(
    model: ModelArgument,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="BUNDLE", help="The new folder.")],
    target: Annotated[FileTarget, typer.Option(help="What it is lowered for.")] = "jetson-tx2",
    shape: ShapeOption = None,
    label: Annotated[str, typer.Option(help="What comparisons call the network.")] = "",
    half_model: Annotated[bool, typer.Option(help="Add a file in FP16, for TensorRT 11.")] = True,
    nms: Annotated[str | None, typer.Option(metavar="NAME=NUMBER,...", help=NMS_HELP)] = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE", help="A picture that shows objects, as the first input; repeat it to check FP16 on more."
        ),
    ] = None,
    dense: Annotated[
        str | None, typer.Option(metavar="MODEL", help="The network before pruning, to predict it beside: as MODEL.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the bundle that is there.")] = False,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Write a folder that builds, checks and measures the network on its target, and print the predicted latency."""
    with reporting("lowering"):
        from l1rr_fx.lowering.bundle.folder import check_folder
        from l1rr_fx.lowering.bundle.writing import lower
        from l1rr_fx.lowering.onnx.nms import Nms

        suppression = None if nms is None else from_text(Nms, nms, "--nms")
        check_folder(output, overwrite=overwrite)
        subject = load_subject(model, shape)
        before = None if dense is None else in_eval_mode(load_subject(dense, shape).model)
        bundle = lower(
            subject.pruned or in_eval_mode(subject.model),
            subject.args,
            subject.kwargs,
            target=target,
            out=output,
            label=label,
            half_model=half_model,
            nms=suppression,
            image=image[0] if image else None,
            examples=image[1:] if image else (),
            dense=before,
            overwrite=overwrite,
        )
    half = () if bundle.half is None else (bundle.half,)
    show(
        *bundle.predictions.values(),
        *half,
        Text(str(bundle)),
        document=lambda: list_json(bundle.predictions.values()),
        json=json,
        quiet=quiet,
    )


@app.command(
    "measure",
    rich_help_panel=CHAIN,
    epilog=examples(
        "l1rr-fx measure bundle --ssh nvidia@tx2",
        "l1rr-fx measure bundle --ssh me@box --engine onnxruntime -o cpu.json",
    ),
)
def measure_command(
    bundle: BundleArgument,
    ssh: Annotated[str, typer.Option(metavar="USER@HOST", help="The machine, as the system's ssh knows it.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", metavar="FILE", help="[default: results.json in BUNDLE]")
    ] = None,
    python: Annotated[str, typer.Option(help="The Python there.")] = "python3",
    engine: Annotated[str, typer.Option(help="auto, tensorrt or onnxruntime.")] = "auto",
    iterations: Annotated[int, typer.Option(min=1, help="Runs that are timed.")] = 100,
    warmup: Annotated[float, typer.Option(min=0, metavar="SECONDS", help="Runs before those that are timed.")] = 2.0,
    ssh_option: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="As for ssh -o; repeatable.")
    ] = None,
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Copy BUNDLE to another machine, build and measure it there, and fetch results.json."""
    with reporting(f"measuring on {ssh}"):
        from l1rr_fx.lowering.bundle.remote import RESULTS, measure

        found = measure(
            bundle,
            ssh,
            out=output or bundle / RESULTS,
            python=python,
            arguments=("--engine", engine, "--iterations", str(iterations), "--warmup", str(warmup)),
            ssh_options=ssh_option or (),
        )
    lines = [
        f"{found.label}, {found.engine}, {run.precision.upper()}{' with NMS' * run.nms}: {run.ms:.3f} ms measured"
        for run in found.runs
    ]
    lines += [*(f"note: {note}" for note in found.notes), f"written to {output or bundle / RESULTS}"]
    show(*map(Text, lines), document=(output or bundle / RESULTS).read_text, json=json, quiet=quiet)


@app.command(
    "compare",
    rich_help_panel=CHAIN,
    epilog=examples(
        "l1rr-fx compare bundle-dense/results.json bundle/results.json", "l1rr-fx compare dense.json small.json --json"
    ),
)
def compare_command(
    results: Annotated[
        list[Path], typer.Argument(metavar="RESULTS...", help="results.json files, the dense one first.")
    ],
    json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Print measured networks side by side, by layer, and tell why pruning did not help where it did not."""
    with reporting(None):
        from l1rr_fx.latency.results import read_all
        from l1rr_fx.lowering.bundle.comparison import compare

        comparisons = compare(read_all(results))
    show(
        *comparisons,
        document=lambda: list_json(comparisons),
        json=json,
        quiet=quiet,
    )
