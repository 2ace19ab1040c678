"""The command line `l1rr-fx`: one file for each family of commands, which registers them with the application."""

from __future__ import annotations

from l1rr_fx.cli import compiling as compiling
from l1rr_fx.cli import conforming as conforming
from l1rr_fx.cli import lowering as lowering
from l1rr_fx.cli import measuring as measuring
from l1rr_fx.cli import planning as planning
from l1rr_fx.cli.application import app


def main() -> None:
    """The console script. Exit codes: 0, 2 for bad input (one line on stderr), 130 when interrupted."""
    app()
