"""Which copies does a pruned network have that the dense one has not: gathers, batch norms left, bytes?

    python -m benchmarks.gathers --out gathers.csv                     # the networks of docs/recombination.md
    python -m benchmarks.gathers --out gathers.csv --only tv/ --all    # every convolutional network of the zoo
    python -m benchmarks.gathers --out gathers.csv --all --mode recombine --target jetson-tx2
    python -m benchmarks.gathers --prices                              # what it costs on a TX2 that no gather is left

Half of the channels of each layer are dead at random, at the zoo's input size. A row for each network, mode and target,
with the way that was written:

- gathers: calls of `index_select`, `index` and `gather` beyond those of the dense network;
- batch norms: those that `fold_batch_norm` leaves, beyond those that it leaves of the dense network;
- copies: bytes that recombinations read and write, over the bytes of all activations written. Cuts of a
  concatenation's inputs count as recombinations; slices elsewhere copy nothing under torch and count 0;
- MACs over the limit, and the seconds of capture, analysis and rewrite.

Rows are appended to the CSV as they come, and a second run goes on where the first was stopped; a Markdown table is
written beside it. Run it from the root of the repository.
"""

from __future__ import annotations

import argparse
import csv
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule
from torch.nn.modules.batchnorm import _BatchNorm

import l1rr_fx
from l1rr_fx import L1RRError
from l1rr_fx.lowering import Latency
from l1rr_fx.machines.jetson_tx2 import JetsonTX2, jetson_tx2_target
from passes import capture
from passes.assignment.cost_model import Target
from passes.graph.modes import BatchNormCall
from passes.graph.nodes import attribute, operator_name
from passes.rewriting.fold import fold_batch_norm
from tests.oracle import zeroed_case
from tests.zoo import ZOO, by_name

NETWORKS = (
    "tv/resnet50", "tv/densenet121", "tv/shufflenet_v2_x1_0", "tv/regnet_y_400mf", "tv/mobilenet_v3_large",
    "tv/mnasnet1_0", "tv/googlenet", "yolo/yolov5n", "yolo/yolov8n", "yolo/yolov9t",
)  # fmt: skip
MODES = ("recombine", "union", "exclude")
TARGETS = ("none", "jetson-tx2")
GATHERS = ("index_select", "index", "gather")
FIELDS = ("network", "mode", "target", "way", "gathers", "batch norms", "copies %", "kinds", "MACs / limit", "seconds")
PRICED = ("yolo/yolov5s@640", "yolo/yolov8s@640", "tv/resnet50@224")
Row = dict[str, Any]


def main() -> None:
    """Append the rows to the CSV, or print the table of prices."""
    options = _options()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if options.prices:
        print_prices()
        return
    names = [entry.name for entry in ZOO if entry.convolutional and not entry.heavy and not entry.whole]
    names = [name for name in (names if options.all else NETWORKS) if options.only in name]
    done = {(row["network"], row["mode"], row["target"]) for row in read(options.out)}
    ways = [(mode, target) for mode in options.mode or MODES for target in options.target or TARGETS]
    for name in names:
        if all((name, *way) in done for way in ways):
            continue
        for row in rows(name, ways):
            append(options.out, row)
            print(", ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    options.out.with_suffix(".md").write_text(markdown(read(options.out)), encoding="utf-8")


def rows(name: str, ways: Sequence[tuple[str, str]]) -> Iterator[Row]:
    """The rows of one network, one for each mode and target."""
    case = zeroed_case(by_name(name), 0.5)
    dense = capture(case.model, case.args, case.kwargs)
    own_gathers, own_norms = gathers(dense), norms(dense)
    for mode, target in ways:
        try:
            pruned = l1rr_fx.prune(case.model, case.args, case.kwargs, mode=mode, target=target, verify=False)
        except L1RRError as error:
            print(f"{name}: left out, {str(error).splitlines()[0]:.100}", flush=True)
            continue
        assert isinstance(pruned.module, GraphModule)
        accounts = pruned.report.accounts
        kinds = Counter(each.kind for each in accounts.recombinations if each.kind != "folded")
        moved = sum(each.bytes_moved for each in accounts.recombinations)
        ways_found = pruned.report.alternatives
        yield {
            "network": name,
            "mode": mode,
            "target": target,
            "way": ways_found[0].name if ways_found else mode,
            "gathers": gathers(pruned.module) - own_gathers,
            "batch norms": norms(pruned.module) - own_norms,
            "copies %": f"{100 * moved / max(1, accounts.after.activation_bytes):.1f}",
            "kinds": ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()) or "none",
            "MACs / limit": f"{pruned.report.macs_over_limit:.3f}",
            "seconds": f"{sum(accounts.seconds.values()):.1f}",
        }


def gathers(module: GraphModule) -> int:
    """How many calls of a network pick elements one by one."""
    calls = (node for node in module.graph.nodes if node.op == "call_function")
    return sum(operator_name(node) in GATHERS for node in calls)


def norms(module: GraphModule) -> int:
    """How many batch norms folding leaves."""
    folded = fold_batch_norm(module)
    owners = [attribute(folded, str(node.target)) for node in folded.graph.nodes if node.op == "call_module"]
    calls = sum(node.op == "call_function" and operator_name(node) == "batch_norm" for node in folded.graph.nodes)
    return calls + sum(isinstance(owner, (BatchNormCall, _BatchNorm)) for owner in owners)


# --- what it costs that no gather is left ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Cheap(JetsonTX2):
    """The TX2 as if a gather were a plain copy."""

    def gather(self, size: float) -> float:
        return self.traffic(size)


def print_prices() -> None:
    """Predicted ms in FP16, MACs over the limit and the copies: gathers at the price of a plain copy, and as priced."""
    from benchmarks.ideal import subject

    priced = jetson_tx2_target("fp16")
    cheap = Cheap(priced.name, priced.multiple, priced.precision, priced.device)
    print("| network | dead | gathers: ms | MACs / limit | copies | none: ms | MACs / limit | copies |")
    print("|---|---|---:|---:|---|---:|---:|---|")
    for network in PRICED:
        name, size = network.split("@")
        for how in ("gamma", "random"):
            subjects = subject(name, int(size), how)
            row = [network, how, *cells(subjects, cheap), *cells(subjects, priced)]
            print(f"| {' | '.join(row)} |", flush=True)


def cells(subjects: Any, target: Target) -> list[str]:
    """Predicted ms, MACs over the limit, and the copies."""
    pruned = l1rr_fx.prune(subjects.model, subjects.args, target=target, verify=False)
    ms = Latency("jetson-tx2", precision="fp16").of(pruned.module, subjects.args).ms
    kinds = Counter(each.kind for each in pruned.report.accounts.recombinations if each.kind != "folded")
    left = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common()) or "none"
    return [f"{ms:.2f}", f"{pruned.report.macs_over_limit:.2f}", left]


# --- files -----------------------------------------------------------------------------------------------------------


def read(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV; none if there is no such file."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append(path: Path, row: Row) -> None:
    new = not path.exists()
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, FIELDS)
        if new:
            writer.writeheader()
        writer.writerow(row)


def markdown(found: list[dict[str, str]]) -> str:
    """The rows as a table."""
    lines = [list(FIELDS), ["---"] * len(FIELDS), *([row[field] for field in FIELDS] for row in found)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("gathers.csv"), help="CSV to append to (default: %(default)s)")
    parser.add_argument("--only", default="", help="networks whose name contains this")
    parser.add_argument("--all", action="store_true", help="every convolutional network of the zoo that is not heavy")
    parser.add_argument("--mode", choices=MODES, action="append", help="this mode only (default: all)")
    parser.add_argument("--target", choices=TARGETS, action="append", help="this target only (default: all)")
    parser.add_argument("--prices", action="store_true", help="what it costs on a TX2 that no gather is left")
    return parser.parse_args()


if __name__ == "__main__":
    main()
