"""Does every pruned network of the zoo become an ONNX file that TensorRT 8.2 reads?

    python -m benchmarks.onnx_zoo --out docs/onnx_zoo.md          # all that are not heavy, half of the channels dead
    python -m benchmarks.onnx_zoo --only yolo/ --ratio 0.3

Each network is zeroed, pruned and written for the target; `to_onnx` runs ONNX's checker, the lint and ONNX Runtime and
writes nothing if one of them objects. `error` is the largest deviation of an output from torch, relative, in float32;
`moved` counts the layout-moving nodes that the model did not ask for. One thread. Run it from the root of the
repository. Detectors that are called with a list of images cannot be one graph and are left out; their bodies are in.
"""

from __future__ import annotations

import argparse
import gc
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

import l1rr_fx
from l1rr_fx.lowering import to_onnx
from passes.errors import first_line
from tests.oracle import zeroed_case
from tests.zoo import ZOO, Entry

HEADER = ("network", "status", "error", "nodes", "moved", "warnings", "capture and prune s", "emission s", "note")


def cells(entry: Entry, ratio: float, target: str, path: Path) -> tuple[str, ...]:
    """One row of the table; what is refused says why."""
    try:
        case = zeroed_case(entry, ratio)
        start = time.perf_counter()
        model = case.model.float()
        args = tuple(each.float() if each.is_floating_point() else each for each in case.args)
        pruned = l1rr_fx.prune(model, args, case.kwargs, verify=False)
        pruning = time.perf_counter() - start
        emitted = to_onnx(pruned.module, args, path, kwargs=case.kwargs, target=target, overwrite=True)
    except l1rr_fx.L1RRError as error:
        return entry.name, "refused", "", "", "", "", "", "", first_line(error)
    loud = sum(finding.severity == "warning" for finding in emitted.findings)
    seconds = emitted.seconds["emission"]
    return (
        entry.name, "ok", f"{emitted.deviation:.1e}", str(emitted.nodes), str(len(emitted.introduced)), str(loud),
        f"{pruning:.1f}", f"{seconds:.2f}", "",
    )  # fmt: skip


def rows(options: argparse.Namespace) -> Iterator[tuple[str, ...]]:
    with tempfile.TemporaryDirectory() as directory:
        for entry in ZOO:
            if entry.whole or options.only not in entry.name or (entry.heavy and not options.heavy):
                continue
            yield cells(entry, options.ratio, options.target, Path(directory) / "model.onnx")
            gc.collect()


def line(row: tuple[str, ...]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="the table, as Markdown")
    parser.add_argument("--only", default="", help="networks whose name contains this")
    parser.add_argument("--heavy", action="store_true", help="the heavy networks too")
    parser.add_argument("--ratio", type=float, default=0.5)
    parser.add_argument("--target", default="jetson-tx2")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = []
    for row in rows(options):
        found.append(row)
        print(line(row), flush=True)
    counts = ", ".join(f"{count} {status}" for status, count in sorted(Counter(row[1] for row in found).items()))
    print(counts)
    if options.out is not None:
        text = (
            f"# The zoo as ONNX files for {options.target}\n\nMade by `python -m benchmarks.onnx_zoo --out "
            f"{options.out}`, {options.ratio:.0%} of the channels dead at random: {counts}.\n\n"
        )
        table = [line(HEADER), line(("---",) * len(HEADER)), *map(line, found)]
        options.out.write_text(text + "\n".join(table) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
