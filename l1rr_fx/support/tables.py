"""Tables as plain text."""

from __future__ import annotations

import io

from rich.console import Console, RenderableType

WIDTH = 110


def printed(content: RenderableType) -> str:
    """What rich shows for `content`, as plain text of at most `WIDTH` columns.

    Names are printed as they are: a layer called "[red]" is no colour, and ":x:" no picture.
    """
    out = io.StringIO()
    Console(file=out, width=WIDTH, color_system=None, highlight=False, markup=False, emoji=False).print(content)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())
