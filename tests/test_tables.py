"""Tables as plain text: names that look like rich's markup are printed as they are, in one width."""

from __future__ import annotations

from rich.table import Table

from l1rr_fx.lowering import Comparison
from l1rr_fx.support.tables import WIDTH, printed


def test_markup_and_emoji_codes_are_names() -> None:
    table = Table("[bold]layer", ":x: time", title="[red]")
    table.add_row("stem.[red].conv[/red]", ":smile:")
    text = printed(table)
    assert all(name in text for name in ("[bold]layer", ":x: time", "[red]", "stem.[red].conv[/red]", ":smile:"))


def test_the_label_of_a_network_is_printed_as_it_is() -> None:
    comparison = Comparison("TensorRT", "fp16", ("dense", "[red]"), (2.0, 1.0), (), ((),))
    assert "[red]" in str(comparison).splitlines()[2]


def test_lines_end_at_the_width() -> None:
    table = Table("layer")
    table.add_row("a" * 3 * WIDTH)
    lines = printed(table).splitlines()
    assert max(map(len, lines)) == WIDTH
    assert not any(line.endswith(" ") for line in lines)
