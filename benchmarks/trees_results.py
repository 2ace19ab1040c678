"""The tables and plots of `benchmarks.trees`, from its results alone: mean and spread over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

BEGIN, END = "<!-- tables: python -m benchmarks.trees report -->", "<!-- end of tables -->"
Cell = Mapping[str, Any]


def precision(scene: str, trees: str, threshold: str) -> Callable[[Cell, Cell], float | None]:
    """Reads an average precision from a cell."""

    def read(cell: Cell, dense: Cell) -> float | None:
        return float(cell[scene][trees][threshold])

    return read


def gain(scene: str) -> Callable[[Cell, Cell], float | None]:
    """Reads by how much AP50 is above that of the same seed's dense network: luck that both share is gone."""

    def read(cell: Cell, dense: Cell) -> float | None:
        return float(cell[scene]["all"]["AP50"] - dense[scene]["all"]["AP50"])

    return read


def share(name: str) -> Callable[[Cell, Cell], float | None]:
    """Reads a cost as a share of the dense network's."""

    def read(cell: Cell, dense: Cell) -> float | None:
        return float(cell[name] / dense[name])

    return read


def speed(cell: Cell, dense: Cell) -> float | None:
    """How many times as fast as the dense network."""
    return 1.0 if cell is dense else cell.get("speed")


COLUMNS: Mapping[str, Callable[[Cell, Cell], float | None]] = {
    "AP30": precision("test", "all", "AP30"),
    "AP40": precision("test", "all", "AP40"),
    "AP50": precision("test", "all", "AP50"),
    "small: AP30": precision("test", "small", "AP30"),
    "small: AP50": precision("test", "small", "AP50"),
    "AP50 - dense": gain("test"),
    "held out: AP50": precision("held out", "all", "AP50"),
    "held out: AP50 - dense": gain("held out"),
    "parameters": share("parameters"),
    "MACs": share("macs"),
    "times as fast": speed,
}


class Results:
    """All finished cells, and what they say of a row at a budget."""

    def __init__(self, cells: Sequence[Cell], order: Sequence[str]) -> None:
        self.cells = [cell for cell in cells if "impossible" not in cell]
        self.refused = [cell for cell in cells if "impossible" in cell]
        self.dense = {cell["seed"]: cell for cell in self.cells if cell["budget"] is None}
        self.rows = [row for row in order if any(cell["row"] == row for cell in cells)]
        self.budgets = sorted({cell["budget"] for cell in cells if cell["budget"] is not None}, reverse=True)

    def seeds(self, budget: float) -> set[int]:
        """The seeds for which all rows are finished at a budget: rows are compared on the same ones."""
        done = {(cell["row"], cell["seed"]) for cell in (*self.cells, *self.refused) if cell["budget"] == budget}
        rows = [row for row in self.rows if row != "dense"]
        return {seed for seed in self.dense if all((row, seed) in done for row in rows)}

    def of(self, row: str, budget: float) -> list[Cell]:
        """The row's cells at a budget, one a seed; those of the dense network are the same at all."""
        at = None if row == "dense" else budget
        seeds = self.seeds(budget)
        return [c for c in self.cells if c["row"] == row and c["budget"] == at and c["seed"] in seeds]

    def values(self, row: str, budget: float, column: str) -> list[float]:
        """The column of the row's cells."""
        read = [COLUMNS[column](cell, self.dense[cell["seed"]]) for cell in self.of(row, budget)]
        return [value for value in read if value is not None]


def report(cells: Sequence[Cell], docs: Path, order: Sequence[str]) -> None:
    """Write the tables into docs/results.md, between the lines that mark them, and the plots beside it; `order` is that
    of the rows."""
    lengths = sorted({cell["fine"] for cell in cells})
    studies = {steps: Results([cell for cell in cells if cell["fine"] == steps], order) for steps in lengths}
    page = docs / "results.md"
    text = page.read_text(encoding="utf-8") if page.exists() else f"# Results\n\n{BEGIN}\n{END}\n"
    before, rest = text.split(BEGIN)
    tables = "\n".join(
        line
        for steps, results in studies.items()
        for budget in results.budgets
        for line in (f"### MACs -{1 - budget:.0%}, {steps} steps of fine-tuning\n", *table(results, budget))
    )
    page.write_text(f"{before}{BEGIN}\n\n{tables}\n{END}{rest.split(END)[1]}", encoding="utf-8")
    _curves(studies[lengths[0]], docs / "results-macs.png")
    _parts(studies[lengths[0]], docs / "results-parts.png")


def table(results: Results, budget: float) -> Iterator[str]:
    """One budget as a table in Markdown."""
    yield f"| row | seeds | {' | '.join(COLUMNS)} |"
    yield f"|---|---:|{'---:|' * len(COLUMNS)}"
    for row in results.rows:
        if count := len(results.of(row, budget)):
            yield f"| {row} | {count} | {' | '.join(shown(results.values(row, budget, name)) for name in COLUMNS)} |"
    for cell in results.refused:
        if cell["budget"] == budget:
            yield f"\n{cell['row']}, seed {cell['seed']}: {cell['impossible']}"
    yield ""


def shown(values: Sequence[float]) -> str:
    """The mean, and the standard deviation where there are several seeds."""
    if not values:
        return ""
    mean = statistics.fmean(values)
    return f"{mean:.3f} ± {statistics.stdev(values):.3f}" if len(values) > 1 else f"{mean:.3f}"


SCENES = {"AP50": "AP50, test image", "held out: AP50": "AP50, held-out strip"}


def _curves(results: Results, path: Path) -> None:
    figure, panels = pyplot.subplots(1, 2, figsize=(11, 4.5), layout="constrained")
    for axes, (column, label) in zip(panels, SCENES.items(), strict=True):
        for number, row in enumerate(results.rows):
            found = [(budget, results.values(row, budget, column)) for budget in results.budgets]
            points = [(budget, values) for budget, values in found if values]
            middle = [statistics.fmean(values) for _, values in points]
            spread = [statistics.stdev(values) if len(values) > 1 else 0.0 for _, values in points]
            at = [100 * budget + 0.3 * (number - len(results.rows) / 2) for budget, _ in points]
            width = 2.5 if row.endswith("L1RR") else 1
            colour = pyplot.get_cmap("tab20")(number - 1) if row != "dense" else "black"
            axes.errorbar(at, middle, spread, label=row, capsize=2, marker=".", linewidth=width, color=colour)
        axes.set_xlabel("MACs left, % of the dense network's")
        axes.set_ylabel(label)
    panels[-1].legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=80)
    pyplot.close(figure)


def _parts(results: Results, path: Path) -> None:
    count = len(results.budgets)
    figure, panels = pyplot.subplots(2, count, figsize=(9, 6), sharey=True, squeeze=False, layout="constrained")
    for line, (column, label) in zip(panels, SCENES.items(), strict=True):
        for axes, budget in zip(line, results.budgets, strict=True):
            for place, row in enumerate(reversed(results.rows)):
                values = results.values(row, budget, column)
                if values:
                    axes.barh(place, statistics.fmean(values), color="0.85" if row != "dense" else "0.6")
                    axes.plot(values, [place] * len(values), "k.", markersize=4)
            axes.set_title(f"MACs -{1 - budget:.0%}", fontsize=8)
            axes.set_xlabel(label, fontsize=7)
            axes.tick_params(axis="x", labelsize=6)
            axes.set_yticks(range(len(results.rows)), list(reversed(results.rows)), fontsize=6)
    figure.savefig(path, dpi=90)
    pyplot.close(figure)
