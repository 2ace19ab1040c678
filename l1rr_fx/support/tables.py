"""Tables: as plain text, and with numbers that are never cut where the screen is narrow."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderableType
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

WIDTH = 110
UNITS = ("", "k", "M", "G", "T", "P")


def printed(content: RenderableType) -> str:
    """What rich shows for `content`, as plain text of at most `WIDTH` columns.

    Names are printed as they are: a layer called "[red]" is no colour, and ":x:" no picture.
    """
    out = io.StringIO()
    Console(file=out, width=WIDTH, color_system=None, highlight=False, markup=False, emoji=False).print(content)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def numeric(table: Table, *headings: str) -> None:
    """Add columns of numbers to a table: to the right, and folded rather than cut."""
    for heading in headings:
        table.add_column(heading, justify="right", overflow="fold")


@dataclass(frozen=True)
class Count:
    """A whole number as a cell of a table: "4,389,120,000" where it fits, "4.39 G" where the screen is narrow.

    `prefix` stands in front of it.
    """

    value: int
    prefix: str = ""

    @property
    def exact(self) -> str:
        return f"{self.prefix}{self.value:,}"

    @property
    def short(self) -> str:
        """Three digits and a unit, where that is shorter."""
        return min(f"{self.prefix}{with_unit(self.value)}", self.exact, key=len)

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        fits = len(self.exact) <= options.max_width
        return Measurement(len(self.short), len(self.exact if fits else self.short))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Text]:
        yield Text(self.exact if len(self.exact) <= options.max_width else self.short, overflow="fold")


def with_unit(value: int) -> str:
    """A number with three digits and a unit: "85.2 M"."""
    number, power = float(abs(value)), 0
    while number >= 999.5 and power < len(UNITS) - 1:
        number, power = number / 1000, power + 1
    digits = f"{number:.{0 if power == 0 or number >= 99.95 else 1 if number >= 9.995 else 2}f}"
    return f"{'-' * (value < 0)}{digits} {UNITS[power]}".strip()
