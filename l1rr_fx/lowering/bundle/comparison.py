"""Dense against pruned, measured, by layer; and why pruning did not help where it did not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.jupyter import JupyterMixin
from rich.table import Table
from rich.text import Text

from l1rr_fx.latency.results import LayerTime, Results, Run
from l1rr_fx.support.tables import numeric, printed
from passes.errors import InputError

HELPED = 1.05
"""A network that is less than this many times as fast was not helped: repeated measurements differ by some per cent."""
FEWER_MACS, SAME_TIME = 0.8, 0.95
"""A layer with at most this share of its MACs that takes at least this share of its time did not get faster."""
SAME_CLOCK = 1.05
"""Clocks that differ by more are those of two power modes."""
STEADY = 1.25
"""Other work was done beside where 90 % of the runs reach more than this many times the median, or the median more than
this many times the least; a speed-up of more than this many times what multiplications explain has other causes."""
MACHINE = ("board", "machine", "gpu", "nvpmodel", "system")
"""Of the environment, what times depend on."""
NAMED = 5


@dataclass(frozen=True)
class Row:
    """A layer, or all layers of a sort, with its milliseconds in each network (None: not there)."""

    name: str
    ms: tuple[float | None, ...]


@dataclass(frozen=True)
class Comparison(JupyterMixin):
    """Networks at one precision; the first is what the others are compared with. Prints as tables.

    `ms` are medians, `least` the least times, which other work on the machine changes less (None: not known).
    `reasons` says, for each network but the first, why it is not faster, or what still holds it back; `warnings` say
    what else than pruning the times may differ by.
    """

    engine: str
    precision: str
    labels: tuple[str, ...]
    ms: tuple[float, ...]
    rows: tuple[Row, ...]
    reasons: tuple[tuple[str, ...], ...]
    warnings: tuple[str, ...] = ()
    least: tuple[float | None, ...] = ()

    @property
    def speedups(self) -> tuple[float, ...]:
        """How many times as fast as the first each of the others is, by medians."""
        return tuple(self.ms[0] / ms for ms in self.ms[1:])

    @property
    def least_speedups(self) -> tuple[float | None, ...]:
        """The same by the least times."""
        first, *others = self.least or (None,) * len(self.ms)
        return tuple(None if first is None or each is None else first / each for each in others)

    def __str__(self) -> str:
        return printed(self)

    def __rich__(self) -> RenderableType:
        warnings = (f"warning: {each}" for each in self.warnings)
        return Group(self._table(), *(Text(line) for line in (*warnings, *self._verdicts())))

    def _table(self) -> Table:
        table = Table("layer", title=f"{self.engine}, {self.precision.upper()}, measured ms", title_justify="left")
        numeric(table, *self.labels, "last / first")
        whole = Row("the network, not profiled", self.ms)
        for row in (whole, *self.rows):
            cells = ("-" if ms is None else f"{ms:.3f}" for ms in row.ms)
            first, last = row.ms[0], row.ms[-1]
            table.add_row(Text(row.name), *cells, f"{last / first:.2f}" if first and last is not None else "")
            if row is whole:
                table.add_section()
        return table

    def _verdicts(self) -> Iterator[str]:
        found = zip(self.labels[1:], self.speedups, self.least_speedups, self.reasons, strict=True)
        for label, speedup, least, reasons in found:
            both = {speedup >= HELPED, (speedup if least is None else least) >= HELPED}
            helped = "helped" if both == {True} else "did NOT help" if both == {False} else "may have helped"
            beside = "" if least is None else f" ({least:.2f} by the least times)"
            yield (
                f"{label} is {speedup:.2f} times as fast as {self.labels[0]}{beside}: pruning {helped}"
                + ":" * bool(reasons)
            )
            yield from (f"  - {reason}" for reason in reasons)


def compare(results: Sequence[Results]) -> tuple[Comparison, ...]:
    """A comparison for each precision that all results have. The first result is the dense one.

    Other machines, power modes, clocks and networks are compared, with a warning. Raises InputError for what are no
    results, fewer than two of them, of different engines, without a common precision, with and without
    NMS, or with outputs that were not those that are expected.
    """
    if not isinstance(results, Sequence) or not all(isinstance(result, Results) for result in results):
        raise InputError("expected a list of Results: compare([read_results(path), ...]), the dense network's first")
    if len(results) < 2:
        raise InputError(f"{len(results)} results are given; at least two are compared, the dense network's first")
    if len(engines := {result.engine for result in results}) > 1:
        raise InputError(f"times of different engines are not compared: {', '.join(sorted(engines))}")
    by_precision = [{run.precision: run for run in result.runs} for result in results]
    common = [precision for precision in by_precision[0] if all(precision in runs for runs in by_precision)]
    if not common:
        raise InputError("the results have no precision in common")
    return tuple(_compared(results, precision, [runs[precision] for runs in by_precision]) for precision in common)


def _compared(results: Sequence[Results], precision: str, runs: Sequence[Run]) -> Comparison:
    for result, run in zip(results, runs, strict=True):
        if not run.agrees:
            raise InputError(
                f"{result.label}, {precision}: the outputs deviate by {run.deviation:.2g} from what is expected; "
                "the times of a network that computes something else mean nothing"
            )
    if len({run.nms for run in runs}) > 1:
        ends = ", ".join(
            f"{result.label} {'with' if run.nms else 'without'}" for result, run in zip(results, runs, strict=True)
        )
        raise InputError(f"times with NMS and without are not compared, {precision}: {ends}")
    sorts = [_sorted(run) for run in runs]
    names = list(dict.fromkeys(name for sort in sorts for name in sort))
    names.sort(key=lambda name: -max(sort.get(name, 0.0) for sort in sorts))
    return Comparison(
        results[0].engine,
        precision,
        tuple(result.label for result in results),
        tuple(run.ms for run in runs),
        tuple(Row(name, tuple(sort.get(name) for sort in sorts)) for name in names),
        tuple(
            tuple(_reasons(results[0], runs[0], result, run)) for result, run in zip(results[1:], runs[1:], strict=True)
        ),
        (*_warnings(results, runs), *_unsteady(results, runs)),
        tuple(run.ms_least for run in runs),
    )


def _unsteady(results: Sequence[Results], runs: Sequence[Run]) -> Iterator[str]:
    """Times that say more about the machine than about the networks."""
    for result, run in zip(results, runs, strict=True):
        spread = max((run.ms_90th or run.ms) / run.ms, run.ms / (run.ms_least or run.ms))
        if spread > STEADY:
            yield (
                f"the machine did other work while {result.label} was measured (its times differ by {spread:.2f} "
                "times): measure again when nothing else runs, and trust the least times more"
            )
    dense = sum(_macs(results[0]).values())
    for result, run in zip(results[1:], runs[1:], strict=True):
        left = sum(_macs(result).values())
        faster = runs[0].ms / run.ms
        if dense and left and faster > STEADY * max(1.0, dense / left):
            yield (
                f"{result.label} is {faster:.2f} times as fast with {left / dense:.0%} of the multiplications, which "
                f"explain {max(1.0, dense / left):.2f} times: something else than pruning differs, such as what the "
                "machine did beside or a kernel that only one of them has"
            )


def _warnings(results: Sequence[Results], runs: Sequence[Run]) -> Iterator[str]:
    """What the times may differ by beside the networks, and networks that are not one network, pruned."""
    labels = [result.label for result in results]
    facts = {name: [_fact(result, name) for result in results] for name in MACHINE}
    if differing := [f"{name} ({_labelled(labels, found)})" for name, found in facts.items() if len({*found}) > 1]:
        yield f"times of different machines or settings are compared: {', '.join(differing)}"
    clocks = [run.gpu_ghz for run in runs if run.gpu_ghz is not None]
    if clocks and max(clocks) > SAME_CLOCK * min(clocks):
        said = _labelled(labels, ["" if run.gpu_ghz is None else f"{run.gpu_ghz:.2f} GHz" for run in runs])
        yield f"the GPU's clock differed while they were measured: {said}"
    for result in results[1:]:
        if unlike := _unlike(results[0], result):
            yield (
                f"{result.label} does not look like {labels[0]}, pruned: {', '.join(unlike[:NAMED])} (layers: "
                f"{len(unlike)}) are not there, smaller or of another image; the dense network's results come first"
            )


def _fact(result: Results, name: str) -> str:
    said = str(result.environment.get(name, ""))
    return said.partition(",")[0] if name == "gpu" else said  # driver and clock of the moment follow its name


def _labelled(labels: Sequence[str], facts: Sequence[str]) -> str:
    return ", ".join(f"{label}: {fact or 'unknown'}" for label, fact in zip(labels, facts, strict=True))


def _unlike(dense: Results, pruned: Results) -> list[str]:
    """The layers that pruning cannot have made: it keeps names and images, and makes nothing larger."""
    whole, left = _layers(dense), _layers(pruned)
    return [
        name
        for name, (image, macs) in left.items()
        if name not in whole or whole[name][0] != image or whole[name][1] < macs
    ]


def _layers(results: Results) -> Mapping[str, tuple[frozenset[int], int]]:
    """For each module with a weight the sizes of the images that its convolutions make, and its multiplications."""
    macs = _macs(results)
    images: dict[str, frozenset[int]] = {}
    for kernel in results.kernels:
        if kernel.geometry is not None and (kernel.weights or kernel.kind != "matrix"):
            image = {kernel.geometry.columns} if kernel.kind != "matrix" else set()
            images[kernel.name] = images.get(kernel.name, frozenset()) | image
    return {name: (image, macs.get(name, 0)) for name, image in images.items()}


def _sorted(run: Run) -> dict[str, float]:
    """Milliseconds by module for contractions, and in one sum each for copies and for all else."""
    sums: dict[str, float] = {}
    for layer in run.layers:
        name = _sort(layer)
        sums[name] = sums.get(name, 0.0) + layer.ms
    return sums


def _sort(layer: LayerTime) -> str:
    if layer.is_copy:
        return "copies"
    return (layer.module or layer.name) if layer.is_contraction else "other operators"


def _reasons(dense: Results, before: Run, pruned: Results, after: Run) -> Iterator[str]:
    """What costs the pruned network time: copies, layers that did not get faster, odd widths."""
    more = len(after.copies) - len(before.copies)
    if more > 0:
        ms = sum(layer.ms for layer in after.copies) - sum(layer.ms for layer in before.copies)
        slowest = sorted(after.copies, key=lambda layer: -layer.ms)[:NAMED]
        yield f"{more} more copies, {ms:+.3f} ms: {', '.join(layer.node for layer in slowest)}"
    if slow := list(_slow(dense, before, pruned, after)):
        yield f"{len(slow)} layers have fewer multiplications and take as long: {', '.join(slow[:NAMED])}"
    if after.precision == "fp16" and (odd := _odd(pruned)):
        named = ", ".join(odd[:NAMED])
        yield f"{len(odd)} layers have an odd number of channels, which FP16 computes in pairs: {named}"
    if after.ms * HELPED > before.ms and (launches := len(after.layers)) >= len(before.layers):
        yield f"{launches} layers are launched, {len(before.layers)} before; each costs its launch"


def _slow(dense: Results, before: Run, pruned: Results, after: Run) -> Iterator[str]:
    was, now = _sorted(before), _sorted(after)
    many, few = _macs(dense), _macs(pruned)
    for name in sorted(was.keys() & now.keys() & many.keys() & few.keys(), key=lambda name: -now[name]):
        if few[name] <= FEWER_MACS * many[name] and now[name] >= SAME_TIME * was[name]:
            macs, ms = few[name] / many[name], now[name] / max(was[name], 1e-9)
            yield f"{name} ({macs:.0%} of the MACs, {ms:.0%} of the time)"


def _macs(results: Results) -> Mapping[str, int]:
    sums: dict[str, int] = {}
    for kernel in results.kernels:
        if kernel.macs:
            sums[kernel.name] = sums.get(kernel.name, 0) + kernel.macs
    return sums


def _odd(results: Results) -> list[str]:
    wide = [kernel for kernel in results.kernels if kernel.geometry is not None and kernel.kind == "convolution"]
    return [f"{k.name} ({k.geometry.rows})" for k in wide if k.geometry is not None and k.geometry.rows % 2]
