"""The report prints as tables and goes to JSON and back."""

from __future__ import annotations

import io
import json
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from l1rr_fx.pruning.pruned import Pruned
from l1rr_fx.pruning.report import SHOWN_REASONS, Report
from l1rr_fx.support.tables import with_unit
from passes.accounts import RECOMBINATION_KINDS, Accounts, Alternative, Cost, Family, Kept, Layer, Recombination
from passes.errors import InputError

BEFORE, AFTER, LIMIT = Cost(1000, 50_000, 64, 4096), Cost(400, 12_600, 32, 2048), Cost(390, 12_000, 30, 2000)

numbers = st.integers(0, 2**60)
words = st.text(min_size=1, max_size=12)
pairs = st.tuples(numbers, numbers)
reals = st.floats(allow_nan=False)
costs = st.builds(Cost, numbers, numbers, numbers, numbers)
recombinations = st.builds(Recombination, words, words, st.sampled_from(RECOMBINATION_KINDS), numbers, numbers, numbers)
kepts = st.builds(Kept, words, words, numbers, numbers)
families = st.builds(Family, words, *[numbers] * 4, st.none() | words, *[numbers] * 3)
layers = st.builds(Layer, words, words, pairs, pairs, st.tuples(numbers, numbers, numbers))


def tuples(elements: st.SearchStrategy) -> st.SearchStrategy:
    return st.lists(elements, max_size=3).map(tuple)


accounts = st.builds(
    Accounts,
    costs,
    costs,
    costs,
    tuples(layers),
    tuples(recombinations),
    tuples(kepts),
    st.dictionaries(words, reals, max_size=3),
    tuples(families),
)
reports = st.builds(Report, accounts, words, st.none() | reals, words, tuples(words), tuples(words), numbers)


def report(**changes: object) -> Report:
    parts: dict[str, object] = {
        "layers": (Layer("stem.conv", "conv2d", (3, 3), (16, 9), (10_000, 5_000, 4_500)),),
        "recombinations": (
            Recombination("add", "conv2d_1", "folded", 9, 7, 0),
            Recombination("add", "relu", "gather", 9, 8, 640),
            Recombination("cat", "relu_1", "gather", 9, 8, 360),
        ),
        "kept": (
            Kept("view", "heads are rectangular", 2, 500),
            Kept("mystery", "unknown operator aten.mystery", 1, 100),
        ),
        "seconds": {"capture": 0.5},
    }
    accounts = Accounts(BEFORE, AFTER, LIMIT, **{key: changes.pop(key, value) for key, value in parts.items()})
    return Report(accounts, "recombine", **{"deviation": 3e-16, "notes": ("a note",), **changes})


@given(reports)
def test_json_round_trip(report: Report) -> None:
    assert Report.from_json(report.to_json()) == report


def test_reports_of_before_counted_nothing() -> None:
    document = json.loads(report(compared=7).to_json())
    assert Report.from_json(json.dumps(document)).compared == document.pop("compared") == 7
    assert Report.from_json(json.dumps(document)).compared == 0


def test_deviations_that_json_lacks_come_back() -> None:
    text = report(deviation=math.nan).to_json()
    json.loads(text, parse_constant=pytest.fail)
    assert math.isnan(Report.from_json(text).deviation)


@given(reports)
def test_every_report_prints(report: Report) -> None:
    assert "MACs" in str(report)
    assert "layer" in report.details()


def test_what_is_printed() -> None:
    text = str(report())
    assert "MACs after / limit = 1.0500" in text
    assert "3.00e-16 (relative)" in text
    assert "3.00e-16 (relative, 1,234 numbers compared)" in str(report(compared=1234))
    assert "not verified" in str(report(deviation=None))
    assert "note: a note" in text
    rows = rows_of(text)
    assert rows["MACs"] == ["50,000", "12,600", "12,000", "25.2%"]
    assert "heads are rectangular" in rows
    assert rows_of(report().details())["gather"] == ["2", "1,000"]


def rows_of(text: str) -> dict[str, list[str]]:
    """The rows of all tables by their first cells."""
    cells = ([cell.strip() for cell in line.split("│")[1:-1]] for line in text.splitlines() if line.startswith("│"))
    return {first: rest for first, *rest in cells}


LARGE = Cost(87_654_321_098, 4_389_120_000_123, 1_608, 123_456_789_012)


@pytest.mark.parametrize("width", [60, 80, 200])
def test_no_number_is_cut_where_the_screen_is_narrow(width: int) -> None:
    """A number is whole, or rounded and with a unit; it is never a part of itself."""
    large = Report(Accounts(LARGE, replace(LARGE, macs=LARGE.macs // 2), LARGE), "union")
    console = Console(width=width, file=io.StringIO())
    with console.capture() as capture:
        console.print(large)
    text = capture.get()
    assert "…" not in text and max(map(len, text.splitlines())) <= width
    macs = {line.split("│")[2].strip() for line in text.splitlines() if line.startswith("│ MACs")}
    assert macs == {"4,389,120,000,123" if width > 90 else "4.39 T"}


def test_the_first_lines_say_whether_it_is_smaller_faster_and_equal() -> None:
    ways = (Alternative("union", 0.010, 0), Alternative("the network as it is", 0.0175, 0))
    lines = str(report(alternatives=ways, target="jetson-tx2")).splitlines()
    assert lines[1].split() == "smaller? 25.2% of the MACs left; MACs after / limit = 1.0500".split()
    assert lines[2].split() == "faster? predicted 10.00 ms on jetson-tx2, 1.75 x as fast as before (17.50 ms)".split()
    assert lines[3].startswith("equal?") and "3.00e-16" in lines[3]
    assert "not predicted" in str(report())


@pytest.mark.parametrize(
    ("number", "text"),
    [(0, "0"), (999, "999"), (1000, "1.00 k"), (9995, "10.0 k"), (99949, "99.9 k"), (999499, "999 k"),
     (999500, "1.00 M"), (-85_196_800, "-85.2 M"), (10**20, "100000 P")],
)  # fmt: skip
def test_units(number: int, text: str) -> None:
    assert with_unit(number) == text


def test_a_notebook_shows_tables() -> None:
    for shown in (report(), Pruned(torch.nn.Identity(), report())):
        bundle = shown._repr_mimebundle_((), ())
        assert "smaller?" in bundle["text/html"] and "smaller?" in bundle["text/plain"]
    assert repr(shown) == "<Pruned: 25.2% of the MACs, 400 of 1,000 parameters; print it for the report>"


def test_details_has_a_row_for_each_layer() -> None:
    (row,) = (line for line in report().details().splitlines() if "stem.conv" in line)
    assert [cell.strip() for cell in row.strip("│").split("│")[1:]] == [
        "conv2d", "3 -> 3", "16 -> 9", "10,000", "5,000", "4,500",
    ]  # fmt: skip


def test_reasons_beyond_the_shown_ones_are_summed() -> None:
    kept = tuple(Kept(f"node{i}", f"reason {i}", 1, 1000 - i) for i in range(SHOWN_REASONS + 3))
    text = str(report(kept=kept))
    shown = [line for line in text.splitlines() if "reason " in line]
    assert len(shown) == SHOWN_REASONS
    assert "reason 0 " in shown[0]
    (rest,) = (line for line in text.splitlines() if "3 other reasons" in line)
    assert f"{sum(each.macs for each in kept[SHOWN_REASONS:]):,}" in rest


def test_names_are_not_taken_for_markup() -> None:
    console = Console(width=100, file=io.StringIO())
    with console.capture() as capture:
        console.print(report(kept=(Kept("[red]x[/red]", "list[tensor]", 1, 1),), notes=("[bold]",)))
    assert "[red]x[/red]" in capture.get()
    assert "list[tensor]" in capture.get()
    assert "[bold]" in capture.get()


def test_an_empty_limit() -> None:
    empty = Cost(0, 0, 0, 0)
    assert Report(Accounts(empty, empty, empty), "union").macs_over_limit == 1.0
    assert Report(Accounts(BEFORE, AFTER, empty), "union").macs_over_limit == math.inf


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("mode"), "'mode' is missing"),
        (lambda d: d.update(surprise=1), "'surprise' is missing or unknown"),
        (lambda d: d.update(mode=3), r"report\.mode"),
        (lambda d: d["accounts"]["before"].update(macs="many"), r"report\.accounts\.before\.macs"),
        (lambda d: d["accounts"]["before"].update(macs=True), r"report\.accounts\.before\.macs"),
        (lambda d: d["accounts"]["recombinations"][0].update(kind="magic"), r"recombinations\[0\]\.kind"),
        (lambda d: d["accounts"]["layers"][0].update(inputs=[1]), r"layers\[0\]\.inputs: expected 2 values"),
        (lambda d: d["accounts"].update(kept={}), r"accounts\.kept: expected a list"),
        (lambda d: d.update(accounts=[]), r"report\.accounts: expected an object"),
        (lambda d: d.update(format="else"), "not a report"),
        (lambda d: d.update(version=99), "version 99"),
    ],
)
def test_a_damaged_report_names_the_field(change: object, message: str) -> None:
    document = json.loads(report().to_json())
    change(document)
    with pytest.raises(InputError, match=message):
        Report.from_json(json.dumps(document))


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "NaN", "[" * 100_000, "1" * 5000])
def test_what_is_no_report(text: str) -> None:
    with pytest.raises(InputError):
        Report.from_json(text)
