"""Does every pruned network of the zoo become an ONNX file that TensorRT 8.2 reads?

    python -m benchmarks.onnx_zoo --rows onnx_zoo.csv --out docs/onnx_zoo.md      # half of the channels dead
    python -m benchmarks.onnx_zoo --rows onnx_zoo.csv --only yolo/ --heavy        # these alone, the heavy ones too

Each network is zeroed, pruned and written for the target; `to_onnx` runs ONNX's checker, the lint and ONNX Runtime and
writes nothing if one of them objects. `error` is the largest deviation of an output from torch, relative, in float32
(of a network that chooses: where both choose alike). `judge` is the verdict of the tests' judge of TensorRT 8.2's
parser (tests/trt82_parser.py) about the file; where a comparison fails, about the file that it refuses. `moved` counts
the layout-moving nodes that the model did not ask for.

One thread; a process for eight networks, of a heavy one alone, so that one that fails costs one row. Rows are appended
to the CSV as they come, and a second run goes on where the first was stopped. Run it from the root of the repository.
"""

from __future__ import annotations

import argparse
import csv
import gc
import json
import subprocess
import sys
import tempfile
import textwrap
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import torch

import l1rr_fx
from l1rr_fx.lowering import to_onnx
from passes.errors import VerifyError, first_line
from tests.oracle import zeroed_case
from tests.trt82_parser import judged, verdict_of
from tests.zoo import ZOO, by_name

FIELDS = (
    "network", "status", "error", "judge", "nodes", "moved", "warnings", "capture and prune s", "emission s", "note",
)  # fmt: skip
Row = dict[str, str]
BATCH = 8
"""Networks for one process, whose start takes as long as a small network."""


def measured(name: str, ratio: float, target: str, path: Path) -> Row:
    """One row of the table; what is refused says why."""
    try:
        case = zeroed_case(by_name(name), ratio)
        start = time.perf_counter()
        model = case.model.float()
        args = tuple(each.float() if each.is_floating_point() else each for each in case.args)
        pruned = l1rr_fx.prune(model, args, case.kwargs, verify=False)
        pruning = time.perf_counter() - start
        row = {"network": name, "status": "ok", "error": "", "note": "", "capture and prune s": f"{pruning:.1f}"}
        try:
            emitted = to_onnx(pruned.module, args, path, kwargs=case.kwargs, target=target)
            row["error"] = f"{emitted.deviation:.1e}"
        except VerifyError as error:
            row |= {"status": "differs", "note": first_line(error)}
            emitted = to_onnx(pruned.module, args, path, kwargs=case.kwargs, target=target, verify=False)
    except l1rr_fx.L1RRError as error:
        return {"network": name, "status": "refused", "note": first_line(error)}
    return row | {
        "judge": verdict(path),
        "nodes": str(emitted.nodes),
        "moved": str(len(emitted.introduced)),
        "warnings": str(sum(finding.severity == "warning" for finding in emitted.findings)),
        "emission s": f"{emitted.seconds['emission']:.2f}",
    }


def verdict(path: Path) -> str:
    """The judge's word about a file, and at what it is not content."""
    found = verdict_of(str(path))
    kinds = sorted({each.operator for each in judged(str(path)) if each.verdict == found})
    return f"{found}: {', '.join(kinds)}" if kinds else found


def child(options: argparse.Namespace) -> None:
    """Print the rows of the networks, one JSON document a line."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in options.child:
        with tempfile.TemporaryDirectory() as directory:
            print(json.dumps(measured(name, options.ratio, options.target, Path(directory) / "model.onnx")), flush=True)
        gc.collect()


def batches(options: argparse.Namespace, done: set[str]) -> Iterator[list[str]]:
    """The names of the networks that are to be run, as many as one process takes."""
    left = [entry for entry in ZOO if not entry.whole and options.only in entry.name and entry.name not in done]
    for heavy, entries in groupby(left, lambda entry: entry.heavy):
        names = [entry.name for entry in entries if options.heavy or not heavy]
        size = 1 if heavy else BATCH
        yield from (names[i : i + size] for i in range(0, len(names), size))


def rows_of(names: list[str], options: argparse.Namespace) -> Iterator[Row]:
    """The rows of some networks from one process; one that kills it has a row that says so, and the others go on."""
    while names:
        command = [sys.executable, "-m", "benchmarks.onnx_zoo", "--child", *names]
        command += ["--ratio", str(options.ratio), "--target", options.target]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            for text in child.stdout or ():
                names = names[1:]
                yield json.loads(text)
        if names:
            yield {"network": names[0], "status": "error", "note": f"the process ended with {child.returncode}"}
            names = names[1:]


def read_rows(path: Path) -> list[Row]:
    """The rows of a CSV, the last one of each network; none if there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list({row["network"]: row for row in csv.DictReader(file)}.values())


def append_row(path: Path, row: Row) -> None:
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS, restval="")
        if new:
            writer.writeheader()
        writer.writerow(row)


def line(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def markdown(rows: list[Row], options: argparse.Namespace) -> str:
    """The page: what was run, and a row for each network in the order of the zoo."""
    order = {entry.name: i for i, entry in enumerate(ZOO)}
    rows = sorted(rows, key=lambda row: order.get(row["network"], len(order)))
    counts = ", ".join(f"{count} {status}" for status, count in sorted(Counter(row["status"] for row in rows).items()))
    verdicts = Counter(row["judge"].partition(":")[0] for row in rows if row["judge"])
    judge = ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items()))
    left = [entry.name for entry in ZOO if not entry.whole and entry.name not in {row["network"] for row in rows}]
    text = [
        f"# The zoo as ONNX files for {options.target}",
        f"Made by `python -m benchmarks.onnx_zoo --heavy --out docs/onnx_zoo.md`, with {options.ratio:.0%} of the "
        f"channels of each\nnetwork dead at random, {len(rows)} networks: {counts}. The judge: {judge}.",
    ]
    if left:
        text.append(textwrap.fill(f"Not run: {', '.join(left)}.", 120, break_on_hyphens=False))
    text.append(EXPLANATION)
    table = [line(list(FIELDS)), line(["---"] * len(FIELDS)), *(line([row[f] for f in FIELDS]) for row in rows)]
    return "\n\n".join([*text, "\n".join(table)]) + "\n"


EXPLANATION = """\
`error` is the largest relative deviation of an output from torch, in float32; of a network that chooses (top-k), where
ONNX Runtime and torch choose alike. "differs": that comparison fails, and the file is not written; its other columns
are of the file that `verify=False` would write. `judge` is the verdict of the judge of TensorRT 8.2's parser in the
tests (tests/trt82_parser.py): the parser itself does not run here. `moved` counts the layout-moving nodes that the
model did not ask for, `warnings` those of the lint. The seconds are wall time of one thread, on a machine that may have
had other work.

The RT-DETR of Ultralytics differ by rounding (looked at in yolov8n-rtdetr, node by node): all nodes agree to 1e-4 up to
the layer norm in front of its top-k. With half of the channels dead some tokens are nearly constant, of which a norm
makes large numbers; behind it ONNX Runtime and torch differ by 0.7 %, and 2 % of the 300 chosen queries change places.
Unpruned they agree."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=Path, default=Path("onnx_zoo.csv"), help="CSV to append to")
    parser.add_argument("--out", type=Path, help="the table, as Markdown")
    parser.add_argument("--only", default="", help="networks whose name contains this")
    parser.add_argument("--heavy", action="store_true", help="the heavy networks too")
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--target", default="jetson-tx2")
    parser.add_argument("--child", nargs="+", default=[], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options)
        return
    done = {row["network"] for row in read_rows(options.rows)}
    for names in batches(options, done):
        for row in rows_of(names, options):
            append_row(options.rows, row)
            print(line([row.get(field, "") for field in FIELDS]), flush=True)
    if options.out is not None:
        options.out.write_text(markdown(read_rows(options.rows), options), encoding="utf-8")


if __name__ == "__main__":
    main()
