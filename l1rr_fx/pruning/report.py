"""The report of a pruning: what was removed, what stays and why, as tables and as JSON."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field

from rich.console import Group, RenderableType
from rich.jupyter import JupyterMixin
from rich.table import Column, Table
from rich.text import Text

from l1rr_fx.pruning.dense import Dense
from l1rr_fx.support.documents import from_json, to_json
from l1rr_fx.support.tables import Count, numeric, printed
from l1rr_fx.support.uncounted import at_least, uncounted, unknown_places
from passes.accounts import (
    AS_IT_IS,
    RECOMBINATION_KINDS,
    Accounts,
    Alternative,
    Constant,
    Cost,
    Kept,
    NotCounted,
    Opaque,
)

VERSION = 1
SHOWN_REASONS = 12


@dataclass(frozen=True)
class Report(JupyterMixin):
    """What was removed, what is left and why.

    `deviation` is the largest relative deviation from the zeroed model on the example, over the `compared` numbers
    (None: not verified, or no number could be compared; `notes` then say why). `target` is the machine whose cost model
    chose between copies and multiplications. `pieces` names the submodules that were captured one by one where the
    whole model could not be; it is empty otherwise. `dense` is what predicts the latency of the network before pruning
    (None: of pieces). `alternatives` are the ways to write the network by the time that the target predicts, the one
    that was written first; empty where it predicts none.
    """

    accounts: Accounts
    mode: str
    deviation: float | None = None
    target: str = "none"
    pieces: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    compared: int = 0
    dense: Dense | None = field(default=None, repr=False)
    alternatives: tuple[Alternative, ...] = ()

    @property
    def before(self) -> Cost:
        return self.accounts.before

    @property
    def after(self) -> Cost:
        return self.accounts.after

    @property
    def limit(self) -> Cost:
        """The least that an exact channel-level method can reach: live inputs x live outputs of every contraction.

        Where `opaque` names places it is the limit as far as known: what is dead around them counts as live.
        """
        return self.accounts.limit

    @property
    def opaque(self) -> tuple[Opaque, ...]:
        """The calls without a rule, and the model's own code between pieces, through which nothing is known to pass."""
        return self.accounts.opaque

    @property
    def not_counted(self) -> tuple[NotCounted, ...]:
        """The calls whose multiply-accumulates are in no figure."""
        return self.accounts.not_counted

    @property
    def macs_over_limit(self) -> float:
        """MACs after / MACs at the limit, of what is counted; 1.0 is the best there is."""
        if self.limit.macs == 0:
            return 1.0 if self.after.macs == 0 else math.inf
        return self.after.macs / self.limit.macs

    @property
    def answers(self) -> tuple[tuple[str, str], ...]:
        """Whether the network is smaller, faster and equal: three questions, each with a line."""
        return (("smaller?", self._smaller()), ("faster?", self._faster()), ("equal?", self._equal()))

    def __str__(self) -> str:
        return printed(self)

    def __rich__(self) -> RenderableType:
        accounts = self.accounts
        parts: list[RenderableType] = [*self._first_lines(), _cost_table(self)]
        if self.alternatives:
            parts.append(_alternative_table(self))
        if accounts.constants:
            parts.append(_constant_table(accounts.constants))
        if accounts.kept:
            parts.append(_kept_table(accounts.kept))
        parts.extend(Text(f"note: {note}") for note in self.notes)
        return Group(*parts)

    def _first_lines(self) -> Iterator[RenderableType]:
        """Smaller? Faster? Equal? And what is left out of the figures."""
        yield Text(f"mode {self.mode}, target {self.target}")
        table = Table.grid(padding=(0, 2))
        for question, answer in self.answers:
            table.add_row(question, Text(answer))
        yield table
        if self.opaque:
            yield Text(unknown_places(self.opaque))
        if self.not_counted:
            yield Text(uncounted(self.not_counted))
        if self.pieces:
            yield Text(f"captured in {len(self.pieces)} pieces: {', '.join(self.pieces)}")

    def _smaller(self) -> str:
        limit = f"limit{' as far as known' * bool(self.opaque)}"
        ratio = f"MACs after / {limit} = {self.macs_over_limit:.4f}{' of what is counted' * bool(self.not_counted)}"
        if not self.before.macs:
            return ratio
        return f"{at_least(f'{self.after.macs / self.before.macs:.1%}', self.not_counted)} of the MACs left; {ratio}"

    def _faster(self) -> str:
        if not self.alternatives:
            cure = "target='jetson-tx2' predicts it" if self.target == "none" else "measure it"
            return f"not predicted: {cure}; fewer MACs are not always less time"
        now = self.alternatives[0].seconds
        as_it_is = next((each.seconds for each in self.alternatives if each.name == AS_IT_IS), None)
        before = "" if as_it_is is None else f", {as_it_is / now:.2f} x as fast as before ({as_it_is * 1e3:.2f} ms)"
        return f"predicted {now * 1e3:.2f} ms on {self.target}{before}"

    def _equal(self) -> str:
        if self.deviation is None:
            return "not verified against the zeroed model"
        count = f", {self.compared:,} numbers compared" if self.compared else ""
        return f"largest deviation from the zeroed model: {self.deviation:.2e} (relative{count})"

    def details(self) -> str:
        """Tables of the copies, of the sums of branches, and of the contractions with their widths and MACs."""
        accounts = self.accounts
        parts: list[RenderableType] = []
        if accounts.recombinations:
            parts.append(_recombination_table(accounts))
        if accounts.families:
            parts.append(_family_table(accounts))
        return printed(Group(*parts, self._layer_table()))

    def _layer_table(self) -> Table:
        """A row for each contraction: its widths and MACs before, after and at the limit."""
        table = Table("layer", "operator", title="Layers", title_justify="left")
        numeric(table, "inputs", "outputs", "MACs before", "after", "limit")
        for layer in self.accounts.layers:
            widths = (f"{before:,} -> {after:,}" for before, after in (layer.inputs, layer.outputs))
            table.add_row(Text(layer.node), Text(layer.operator), *widths, *map(Count, layer.macs))
        return table

    def to_json(self) -> str:
        """The whole report as a JSON document; `Report.from_json` gives an equal report back."""
        return to_json(self, "report", VERSION)

    @classmethod
    def from_json(cls, text: str) -> Report:
        """The report that `to_json` wrote. Raises InputError, naming the field, where the text is anything else."""
        return from_json(cls, text, "report", VERSION)


def _cost_table(report: Report) -> Table:
    table = Table(Column(overflow="fold"), title="Cost of one forward pass", title_justify="left")
    numeric(table, "before", "after", "limit", "after / before")
    rows = (
        ("parameters", "parameters"),
        ("MACs", "macs"),
        ("channels", "channels"),
        ("activation bytes", "activation_bytes"),
    )
    for title, name in rows:
        before, after, limit = (getattr(cost, name) for cost in (report.before, report.after, report.limit))
        share = f"{after / before:.1%}" if before else "-"
        left_out = report.not_counted if name == "macs" else ()
        least = at_least("", left_out)
        table.add_row(title, *(Count(cost, least) for cost in (before, after, limit)), f"{least}{share}")
    return table


def _alternative_table(report: Report) -> Table:
    """The ways to write the network; the first is the one that was written."""
    table = Table("way to write it", title=f"Predicted for {report.target}", title_justify="left")
    numeric(table, "ms", "copies")
    for index, each in enumerate(report.alternatives):
        table.add_row(each.name + " (written)" * (not index), f"{each.seconds * 1e3:.3f}", f"{each.copies:,}")
    return table


def _recombination_table(accounts: Accounts) -> Table:
    table = Table("recombinations", title="Channels rearranged", title_justify="left")
    numeric(table, "number", "bytes moved")
    for kind in RECOMBINATION_KINDS:
        of_kind = [each for each in accounts.recombinations if each.kind == kind]
        if of_kind:
            table.add_row(kind, f"{len(of_kind):,}", Count(sum(each.bytes_moved for each in of_kind)))
    return table


def _family_table(accounts: Accounts) -> Table:
    """How the branches of sums meet: the families with most sums first."""
    table = Table("family of", title="Sums of branches", title_justify="left")
    numeric(table, "channels", "sums", "sets", "runs", "in place", "as zeros", "copied")
    table.add_column("natural order, because")
    shown = sorted(accounts.families, key=lambda each: -each.sums)
    for each in shown[:SHOWN_REASONS]:
        counts = (each.channels, each.sums, each.sets, each.runs, each.in_place, each.as_zeros, each.copied)
        table.add_row(Text(each.name), *(f"{count:,}" for count in counts), Text(each.fixed or ""))
    if rest := shown[SHOWN_REASONS:]:
        sums = [sum(getattr(each, name) for each in rest) for name in ("in_place", "as_zeros", "copied")]
        table.add_row(
            f"{len(rest)} more", "", f"{sum(each.sums for each in rest):,}", "", "", *(f"{n:,}" for n in sums), ""
        )
    return table


PLACES = {
    "bias": "into the reader's bias",
    "merged": "into one channel for all of them",
    "shift": "into a shift beside a sum",
    "gate": "times a gate, on 1 x 1 maps",
}


def _constant_table(constants: tuple[Constant, ...]) -> Table:
    """Where the channels went that are constant, not zero: by place, then those that stay by reason."""
    by_place: dict[str, list[Constant]] = defaultdict(list)
    for each in constants:
        by_place[PLACES.get(each.place, f"stays: {each.reason}")].append(each)
    table = Table("constant, not zero", "where", title="Constant channels", title_justify="left")
    numeric(table, "readers", "channels read")
    for place, of_place in sorted(by_place.items(), key=lambda item: (item[0].startswith("stays"), item[0])):
        top = max(of_place, key=lambda each: each.channels)
        table.add_row(
            Text(place), Text(top.reader), f"{len(of_place):,}", f"{sum(each.channels for each in of_place):,}"
        )
    return table


def _kept_table(kept: tuple[Kept, ...]) -> Table:
    """The dead channels that stay, by reason: the most MACs first, reasons beyond `SHOWN_REASONS` as one sum."""
    by_reason: dict[str, list[Kept]] = defaultdict(list)
    for each in kept:
        by_reason[each.reason].append(each)
    reasons = sorted(by_reason.items(), key=lambda item: -sum(each.macs for each in item[1]))
    table = Table("why", "where", title="Dead channels that stay", title_justify="left")
    numeric(table, "nodes", "channels", "MACs")

    def add(reason: str, of_reason: list[Kept]) -> None:
        top = max(of_reason, key=lambda each: each.macs).node
        channels, macs = sum(each.channels for each in of_reason), sum(each.macs for each in of_reason)
        table.add_row(Text(reason), Text(top), f"{len(of_reason):,}", f"{channels:,}", Count(macs))

    for reason, of_reason in reasons[:SHOWN_REASONS]:
        add(reason, of_reason)
    if rest := reasons[SHOWN_REASONS:]:
        add(f"{len(rest)} other reasons", [each for _, of_reason in rest for each in of_reason])
    return table
