"""The command line `l1rr-fx`: in goes a line of words, out come printed tables and files, or one line of error.

application    the application, its progress and its errors
subject        the argument MODEL
compiling      inspect, prune and demo
planning       choose
lowering       onnx and lint
measuring      lower, measure and compare
conforming     conformance
"""

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
