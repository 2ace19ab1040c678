"""What each part of the method earns, on tree crowns: the ablation at equal MACs and equal steps, against peers.

    python -m benchmarks.trees run                 # hours of one core; goes on where it was stopped
    python -m benchmarks.trees run --fine 900 --budgets 0.35
    python -m benchmarks.trees latency             # when nothing else runs
    python -m benchmarks.trees report              # docs/results.md and its plots, from the results alone

Each finished cell is a line of benchmarks/trees.jsonl at once; trained networks are kept in --work. Settings were
chosen on the held-out strip of the training image with seed 0, never on the test image.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from benchmarks.trees_latency import measure
from benchmarks.trees_peers import PEERS
from benchmarks.trees_results import report
from benchmarks.trees_study import Recipe, Row, Scale, Start, at_random, cell, none, ours, reweighted, save
from passes.errors import InputError

RESULTS = Path(__file__).with_suffix(".jsonl")
DOCS = Path(__file__).parents[1] / "docs"
BUDGETS = (0.35, 0.5, 0.2)

EXAMPLE = torch.zeros(1, 3, 64, 64)
RECIPES: Mapping[str, Recipe] = {
    "dense": Recipe(none),
    "constant": reweighted(travel=1.0, schedule="constant", adaptive=False, spared=0.0),
    "dynamic": reweighted(travel=1.0, adaptive=False, spared=0.0),
    "adaptive": reweighted(),
    **{f"spared-{share}": reweighted(spared=share**0.5 - 0.05) for share in BUDGETS},
    "bn-scale": PEERS["bn-scale"].recipe(EXAMPLE),
    "group-norm": PEERS["group-norm"].recipe(EXAMPLE),
}

ROWS = (
    Row("constant L1, exclude", "constant", ours("exclude", attention=False)),
    Row("+ dynamic", "dynamic", ours("exclude", attention=False)),
    Row("+ self-adaptive", "adaptive", ours("exclude", attention=False)),
    Row("+ attention ratios", "adaptive", ours("exclude", attention=True)),
    Row("+ recombine = L1RR", "adaptive", ours("recombine", attention=True)),
    Row("L1RR, spared for the budget", "spared-{}", ours("recombine", attention=True)),
    Row("L1RR, parameters -77.5% too", "adaptive", ours("recombine", attention=True, params=0.225)),
    Row("L1RR, union for recombine", "adaptive", ours("union", attention=True)),
    Row("L1RR, threshold for attention", "adaptive", ours("recombine", attention=False)),
    Row("L1RR without sparse training", "dense", ours("recombine", attention=True)),
    Row("Torch-Pruning BNScale", "bn-scale", PEERS["bn-scale"].smaller),
    Row("Torch-Pruning GroupNorm", "group-norm", PEERS["group-norm"].smaller),
    Row("random", "dense", at_random),
)
DENSE = Row("dense", "dense", at_random)


def run(
    work: Path,
    results: Path,
    scale: Scale,
    seeds: range,
    console: Console,
    *,
    rows: Collection[str],
    budgets: Collection[float],
) -> None:
    """Every cell of these rows that is not among the results yet, a whole seed at a time."""
    chosen = [row for row in ROWS if row.name in rows]
    cells: list[tuple[Row, float | None]] = [(DENSE, None), *((row, share) for share in budgets for row in chosen)]
    for seed in seeds:
        start = Start(seed, scale, work, RECIPES)
        for row, share in cells:
            key = {"seed": seed, "row": row.name, "budget": share, "fine": scale.fine}
            if any(key.items() <= line.items() for line in lines(results)):
                continue
            began = time.process_time()
            try:
                record, smaller = cell(start, row, share)
                save(smaller, start.work / f"{row.name}-{share}.cell")
            except InputError as error:
                record = {"impossible": str(error)}
            record["seconds"] = round(time.process_time() - began, 1)
            with results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(key | record) + "\n")
            console.print(key | record)


def lines(results: Path) -> list[dict[str, Any]]:
    """The cells that are finished."""
    return [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []


def main() -> None:
    """Run, measure or report."""
    parser = argparse.ArgumentParser(description="The ablation on tree crowns.")
    parser.add_argument("what", choices=("run", "latency", "report"))
    parser.add_argument("--work", type=Path, default=Path.home() / ".cache" / "l1rr-fx" / "trees", help="(%(default)s)")
    parser.add_argument("--results", type=Path, default=RESULTS, help="(%(default)s)")
    parser.add_argument("--docs", type=Path, default=DOCS, help="where the report goes (%(default)s)")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", nargs="+", default=[row.name for row in ROWS], metavar="ROW", help="only these")
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS, help="shares of the MACs (%(default)s)")
    parser.add_argument("--fine", type=int, default=Scale.fine, help="steps of what is left (%(default)s)")
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.WARNING)
    console = Console(width=160)
    if given.what == "run":
        scale, seeds = Scale(fine=given.fine), range(given.seeds)
        run(given.work, given.results, scale, seeds, console, rows=given.rows, budgets=given.budgets)
    elif given.what == "latency":
        measure(given.work, given.results, console)
    else:
        report(lines(given.results), given.docs, [DENSE.name, *(row.name for row in ROWS)])


if __name__ == "__main__":
    main()
