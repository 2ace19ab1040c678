"""The method with its defaults on pairs of detector and data that are small enough to train many times.

    python -m benchmarks.transfer run --work FOLDER                 # goes on where it was stopped; a bar shows how far
    python -m benchmarks.transfer run --pairs "residual, trees" --rows dense L1RR --seeds 2
    python -m benchmarks.transfer report                            # the tables of docs/results.md

Each finished cell (pair, seed, row, budget) is a line of benchmarks/transfer.jsonl at once. Trained networks are kept
in --work. A row whose code has changed is run again with --again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from benchmarks.transfer_pairs import PAIRS
from benchmarks.transfer_peers import PEERS
from benchmarks.transfer_rows import (
    Recipe,
    Row,
    Scale,
    Start,
    at_random,
    cell,
    none,
    ours,
    penalty,
    slimming,
    taught,
    uniform,
)
from passes.errors import InputError

RESULTS = Path(__file__).with_suffix(".jsonl")
PAGE = Path(__file__).parents[1] / "docs" / "results.md"
BEGIN, END = "<!-- tables: python -m benchmarks.transfer report -->", "<!-- end of the tables of transfer -->"
BUDGETS = (0.35, 0.15)
L1RR = "L1RR"

RECIPES: Mapping[str, Recipe] = {
    "dense": none,
    "slimming": slimming,
    "half": penalty(spared=0.5),
    "budget {}": penalty(budgeted=True),
    "nested {}": penalty(budgeted=True, nested=True),
    "taught {}": taught(penalty(budgeted=True)),
    "bn-scale": PEERS["bn-scale"].recipe,
    "group-norm": PEERS["group-norm"].recipe,
}
DENSE = Row("dense", "dense", uniform)
ROWS = (
    Row(L1RR, "budget {}", ours()),
    Row("L1RR, threshold", "budget {}", ours(attention=False)),
    Row("L1RR, exclude", "budget {}", ours("exclude")),
    Row("L1RR, union", "budget {}", ours("union")),
    Row("L1RR, nested sets", "nested {}", ours()),
    Row("L1RR, attention kept in sparse training", "taught {}", ours()),
    Row("L1RR, taught by the dense network", "budget {}", ours(), taught=True),
    Row("no sparse training, attention", "dense", ours()),
    Row("no sparse training, group norm", "dense", ours(attention=False, scores="group-norm")),
    Row("half of all scales pushed, attention", "half", ours()),
    Row("half of all scales pushed, threshold", "half", ours(attention=False, scores="bn-scale")),
    Row("Network Slimming, exclude", "slimming", ours("exclude", attention=False, scores="bn-scale")),
    Row("Torch-Pruning GroupNorm", "group-norm", PEERS["group-norm"].choose),
    Row("Torch-Pruning BNScale", "bn-scale", PEERS["bn-scale"].choose),
    Row("uniform", "dense", uniform),
    Row("random", "dense", at_random),
)


def run(given: argparse.Namespace, console: Console) -> None:
    """Every cell that is not among the results yet."""
    rows = [row for row in (DENSE, *ROWS) if row.name in given.rows]
    wanted = [
        (pair, seed, row, share)
        for seed in range(given.first_seed, given.seeds)
        for pair in given.pairs
        for row in rows
        for share in ((None,) if row is DENSE else given.budgets)
    ]
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    starts: dict[tuple[str, int], Start] = {}
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("cells", total=len(wanted))
        for pair, seed, row, share in wanted:
            key = {"pair": pair, "seed": seed, "row": row.name, "budget": share}
            progress.update(bar, description=f"{pair}, seed {seed}: {row.name}")
            if given.again or not any(key.items() <= line.items() for line in lines(given.results)):
                if (pair, seed) not in starts:
                    starts = {(pair, seed): Start(PAIRS[pair], seed, Scale(), given.work / f"{pair}-{seed}", RECIPES)}
                record = key | measured(starts[pair, seed], row, share)
                with given.results.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(record) + "\n")
                console.print(record)
            progress.advance(bar)


def measured(start: Start, row: Row, share: float | None) -> dict[str, Any]:
    """What is recorded of a cell, with the seconds of the processor that it took."""
    began = time.process_time()
    try:
        record = cell(start, row, share)
    except InputError as error:
        record = {"impossible": str(error)}
    return record | {"seconds": round(time.process_time() - began, 1)}


def lines(results: Path) -> list[dict[str, Any]]:
    """The cells that are finished; of one that was run again, the last."""
    found = [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    return list({(c["pair"], c["seed"], c["row"], c["budget"]): c for c in found}.values())


def report(cells: Sequence[Mapping[str, Any]]) -> str:
    """A table for each budget: for each pair AP50 less that of the dense network of the same seed."""
    pairs = [pair for pair in PAIRS if any(c["pair"] == pair for c in cells)]
    dense = {(c["pair"], c["seed"]): ap(c) for c in cells if c["budget"] is None}
    text = []
    for share in BUDGETS:
        text += [f"### {1 - share:.0%} of the MACs removed\n"]
        text += [f"| row | {' | '.join(pairs)} | mean | zeros before the choice | chosen by loss | MACs |"]
        text += ["|---|" + "---:|" * (len(pairs) + 4)]
        means = [_mean([v for (p, _), v in dense.items() if p == pair]) for pair in pairs]
        text += [f"| dense, AP50 itself | {' | '.join(means)} | | | | |"]
        for row in ROWS:
            own = [
                c for c in cells if c["row"] == row.name and c["budget"] == share and (c["pair"], c["seed"]) in dense
            ]
            if own:
                text.append(f"| {row.name} | {' | '.join(_columns(own, pairs, dense))} |")
        text.append("")
    text += ["### After the sparse training\n", *_sparse(cells, pairs, dense), ""]
    return "\n".join(text)


def ap(cell: Mapping[str, Any], of: str = "ap") -> float:
    """The mean AP50 over what is judged."""
    return statistics.fmean(cell[of].values())


def _columns(own: Sequence[Mapping[str, Any]], pairs: Sequence[str], dense: Mapping[Any, float]) -> Iterator[str]:
    done = [c for c in own if "impossible" not in c]
    gains = {pair: [ap(c) - dense[c["pair"], c["seed"]] for c in done if c["pair"] == pair] for pair in pairs}
    for pair in pairs:
        yield _mean(gains[pair], signed=True)
    every = [statistics.fmean(each) for each in gains.values() if each]
    yield f"{statistics.fmean(every):+.3f} ({len(every)})" if every else ""
    for name in ("zero", "by loss", "macs"):
        values = [c[name] for c in done if c.get(name) is not None]
        yield f"{statistics.fmean(values):.2f}" if values else ""


def _sparse(cells: Sequence[Mapping[str, Any]], pairs: Sequence[str], dense: Mapping[Any, float]) -> Iterator[str]:
    """AP50 after each recipe, less that of the dense network after as many steps."""
    yield f"| sparse training | budget | {' | '.join(pairs)} |"
    yield "|---|---:|" + "---:|" * len(pairs)
    recipes = {row.name: row.recipe for row in ROWS}
    dense = {(c["pair"], c["seed"]): ap(c, "sparse") for c in cells if c["budget"] is None}
    for recipe in dict.fromkeys(recipes.values()):
        for share in BUDGETS if "{}" in recipe else (None,):
            found: dict[str, dict[int, float]] = {pair: {} for pair in pairs}
            for c in cells:
                same = recipes.get(c["row"]) == recipe and (share is None or c["budget"] == share)
                if same and recipe != "dense" and "sparse" in c and (c["pair"], c["seed"]) in dense:
                    found[c["pair"]][c["seed"]] = ap(c, "sparse") - dense[c["pair"], c["seed"]]
            if any(found.values()):
                columns = " | ".join(_mean(list(found[pair].values()), signed=True) for pair in pairs)
                yield f"| {recipe.replace(' {}', '')} | {share or ''} | {columns} |"


def _mean(values: Sequence[float], *, signed: bool = False) -> str:
    if not values:
        return ""
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):{'+' if signed else ''}.3f}{spread} ({len(values)})"


def main() -> None:
    """Run or report."""
    parser = argparse.ArgumentParser(description="The method on small pairs of detector and data.")
    parser.add_argument("what", choices=("run", "report"))
    parser.add_argument(
        "--work", type=Path, default=Path.home() / ".cache" / "l1rr-fx" / "transfer", help="(%(default)s)"
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="(%(default)s)")
    parser.add_argument("--pairs", nargs="+", default=list(PAIRS), metavar="PAIR", help="only these")
    parser.add_argument(
        "--rows", nargs="+", default=[DENSE.name, *(r.name for r in ROWS)], metavar="ROW", help="only these"
    )
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS, help="shares of the MACs (%(default)s)")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--again", action="store_true", help="run cells that are finished again")
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "run":
        run(given, Console(width=160))
        return
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n\n{report(lines(given.results))}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
