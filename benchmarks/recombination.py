"""Is a pruned network as fast as its MACs say, or do the copies between its branches cost what was saved?

    python -m benchmarks.recombination --out recombination.csv                     # the whole table: hours
    python -m benchmarks.recombination --quick                                     # one small network: a minute
    python -m benchmarks.recombination --networks tv/resnet50@224 --zeroing random --threads 1 --rounds 31

Half of the channels of each network are zeroed, at random or by |gamma|, and it is pruned with each mode. What comes
out, and the ideal (see `benchmarks/ideal.py`), are timed in one process in ONNX Runtime on the CPU and in eager mode
(one thread): rounds in which each runs once, in an order that turns round from one to the next. Times are medians;
ratios are medians of the ratios within rounds, with their quartiles. "copies" is what recombination moves (bytes read
and written) as a share of all activations written. Run it from the root of the repository, on a quiet machine;
`--cpu-time` counts the time of the process instead, for one thread on a busy one.
"""

from __future__ import annotations

import argparse
import csv
import io
import itertools
import random
import statistics
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import onnxruntime
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

import l1rr_fx
from benchmarks.ideal import Subject, subject
from l1rr_fx.pruning.report import Report
from passes.assignment.pq_tree import consecutive_order
from passes.rewriting.fold import fold_batch_norm, fold_constants

NETWORKS = ("yolo/yolov5s@640", "yolo/yolov8s@640", "tv/resnet50@224", "body/retinanet_resnet50_fpn@640")
QUICK = ("yolo/yolov5n@160",)
ZEROING = ("gamma", "random")
MODES = ("recombine", "union", "exclude", "ideal")
LEAST_S = 0.02  # of one measurement: a faster network runs several times
WARMING = 3

Row = dict[str, Any]
Run = Callable[[], Any]
Clock = Callable[[], float]


def main() -> None:
    options = _options()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    print(arrangement_line(), flush=True)
    rows: list[Row] = []
    for network, how in itertools.product(options.networks, options.zeroing):
        rows += measured(network, how, options)
        write(options.out, rows)
        say(markdown(rows[-len(options.runtimes) :]))
    print(f"\n{markdown(rows)}")


def measured(network: str, how: str, options: argparse.Namespace) -> list[Row]:
    """One row for each runtime."""
    name, size = network.split("@")
    say(f"{network} {how}: zeroing")
    subjects = subject(name, int(size), how)
    rows = []
    for runtime in options.runtimes:
        modules, reports = {}, {}
        for mode in MODES:
            say(f"{network} {how}: pruning for {runtime}, {mode}")
            target = options.target or ("cpu" if runtime == "eager" else "onnxruntime")
            modules[mode], reports[mode] = pruned(subjects, mode, target, options.multiple)
        about = {"network": network, "zeroing": how, **accounts(reports)}
        say(f"{network} {how}: timing, {runtime}")
        runs = {mode: runner(module, subjects.args, runtime) for mode, module in modules.items()}
        clock = time.process_time if options.cpu_time and runtime in ("ort1", "eager") else time.perf_counter
        rows.append(about | {"runtime": runtime} | compared(interleaved(runs, options.rounds, clock)))
    return rows


def pruned(subjects: Subject, mode: str, target: str, multiple: int | None) -> tuple[GraphModule, Report]:
    """The network as it would be deployed, and the report of its pruning; the ideal has no branches that differ."""
    model, mode = (subjects.ideal, "union") if mode == "ideal" else (subjects.model, mode)
    small = l1rr_fx.prune(model, subjects.args, mode=mode, target=target, channel_multiple=multiple, verify=False)
    assert isinstance(small.module, GraphModule)
    return fold_constants(fold_batch_norm(small.module)), small.report


def accounts(reports: Mapping[str, Report]) -> Row:
    """MACs and recombinations."""
    own = reports["recombine"].accounts.recombinations
    kinds = Counter(each.kind for each in own if each.kind != "folded")
    moved = {mode: sum(each.bytes_moved for each in report.accounts.recombinations) for mode, report in reports.items()}
    limit = reports["recombine"].limit.macs
    return {
        **{f"{mode} MACs/limit": round(report.after.macs / limit, 4) for mode, report in reports.items()},
        "left": ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()) or "none",
        "copies MB": round(moved["recombine"] / 1e6, 3),
        "copies %": round(100 * moved["recombine"] / reports["recombine"].after.activation_bytes, 2),
        "ideal copies MB": round(moved["ideal"] / 1e6, 3),
    }


# --- running ---------------------------------------------------------------------------------------------------------


def runner(module: GraphModule, args: tuple[Any, ...], runtime: str) -> Run:
    """Runs the network once: "eager", or "ort1", "ort2", ... for ONNX Runtime with that many threads."""
    if runtime == "eager":
        return torch.inference_mode()(lambda: module(*args))
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = int(runtime.removeprefix("ort"))
    settings.add_session_config_entry("session.force_spinning_stop", "1")  # or one network's threads slow the next
    session = onnxruntime.InferenceSession(to_onnx(module, args), settings, providers=["CPUExecutionProvider"])
    feeds = {each.name: value.numpy() for each, value in zip(session.get_inputs(), args, strict=True)}
    return lambda: session.run(None, feeds)


class Flat(nn.Module):
    """A network that returns its tensors as one tuple."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any) -> tuple[Tensor, ...]:
        return tuple(leaf for leaf in pytree.tree_leaves(self.module(*args)) if isinstance(leaf, Tensor))


def to_onnx(module: GraphModule, args: tuple[Any, ...]) -> bytes:
    """The network as ONNX, opset 13."""
    file = io.BytesIO()
    torch.onnx.export(
        Flat(module),
        args,
        file,  # type: ignore[arg-type]  # a stream is taken too
        dynamo=False,
        opset_version=13,
        do_constant_folding=True,
    )
    return file.getvalue()


def interleaved(runs: Mapping[str, Run], rounds: int, clock: Clock) -> dict[str, list[float]]:
    """Seconds for one run, by name, one entry a round."""
    repeats = {}
    for name, run in runs.items():
        repeats[name] = max(1, round(LEAST_S / min(seconds(run, 1, clock) for _ in range(WARMING))))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for index in range(rounds):
        for name in list(runs)[:: 1 if index % 2 else -1]:
            times[name].append(seconds(runs[name], repeats[name], clock))
        say(f"round {index + 1} of {rounds}")
    return times


def seconds(run: Run, repeats: int, clock: Clock = time.perf_counter) -> float:
    started = clock()
    for _ in range(repeats):
        run()
    return max(1e-9, (clock() - started) / repeats)


def compared(times: Mapping[str, Sequence[float]]) -> Row:
    """Medians in ms, and recombine over each of the others with quartiles."""
    row: Row = {f"{mode} ms": round(1e3 * statistics.median(found), 2) for mode, found in times.items()}
    for other in ("ideal", "union", "exclude"):
        ratios = [own / base for own, base in zip(times["recombine"], times[other], strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
        row[f"/{other}"] = round(middle, 3)
        row[f"/{other} quartiles"] = f"{low:.3f}-{high:.3f}"
    return row


def arrangement_line(families: int = 20) -> str:
    """How long it takes to arrange random families of 12 halves of 512 channels."""
    source = random.Random(0)
    times = []
    for _ in range(families):
        sets = [source.sample(range(512), 256) for _ in range(12)]
        times.append(1e3 * seconds(partial(consecutive_order, 512, sets), 1, time.process_time))
    return f"12 random sets of 512 channels are arranged in {statistics.median(times):.1f} ms, at most {max(times):.1f}"


# --- writing ---------------------------------------------------------------------------------------------------------


def write(path: Path, rows: Sequence[Row]) -> None:
    """The rows as CSV, and beside it as Markdown."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    path.with_suffix(".md").write_text(markdown(rows), encoding="utf-8")


def markdown(rows: Sequence[Row]) -> str:
    """Times, then what they are explained by, as two tables."""
    keys = ("network", "zeroing", "runtime")  # two runtimes may have different copies left: they are different targets
    timed = [field for field in rows[0] if field.endswith(" ms") or field.startswith("/")]
    rest = [field for field in rows[0] if field not in (*keys, *timed)]
    return _table([*keys, *timed], rows) + "\n" + _table([*keys, *rest], rows)


def _table(fields: Sequence[str], rows: Sequence[Row]) -> str:
    lines = [fields, ["---"] * len(fields), *([str(row[field]) for field in fields] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("recombination.csv"), help="default: %(default)s")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), help="names of the zoo, with @ and a size")
    parser.add_argument("--zeroing", nargs="+", choices=ZEROING, default=list(ZEROING))
    parser.add_argument("--rounds", type=int, default=21, help="measurements of each (default: %(default)s)")
    parser.add_argument("--threads", type=int, nargs="*", default=[1, 2], help="of ONNX Runtime (default: 1 2)")
    parser.add_argument("--no-eager", action="store_true", help="ONNX Runtime only")
    parser.add_argument("--target", help="what every mode is pruned for (default: onnxruntime; eager mode: cpu)")
    parser.add_argument("--multiple", type=int, help="channel_multiple of every mode")
    parser.add_argument("--cpu-time", action="store_true", help="of the process, where there is one thread")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK[0]}, random, five rounds")
    options = parser.parse_args()
    if options.quick:
        options.networks, options.zeroing, options.rounds = list(QUICK), ["random"], 5
    options.runtimes = [f"ort{count}" for count in options.threads] + ["eager"] * (not options.no_eager)
    return options


if __name__ == "__main__":
    main()
