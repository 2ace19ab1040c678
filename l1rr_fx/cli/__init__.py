"""The command line `l1rr-fx`: in goes a line of words, out come printed tables and files, or one line of error.

application    the application, its progress, results and errors
subject        the argument MODEL
checkpoints    a MODEL that is a .pt checkpoint
inspecting     inspect
planning       choose
compiling      prune
measuring      lower, measure and compare
lowering       onnx and lint

showing        report
conforming     conformance
trying         demo

Torch is loaded when a command runs, not for help, completion or the version.
"""

from __future__ import annotations

from l1rr_fx.cli import compiling as compiling
from l1rr_fx.cli import conforming as conforming
from l1rr_fx.cli import inspecting as inspecting
from l1rr_fx.cli import lowering as lowering
from l1rr_fx.cli import measuring as measuring
from l1rr_fx.cli import planning as planning
from l1rr_fx.cli import showing as showing
from l1rr_fx.cli import trying as trying
from l1rr_fx.cli.application import app

WORKFLOW = (
    "inspect",
    "choose",
    "prune",
    "lower",
    "measure",
    "compare",
    "report",
    "onnx",
    "lint",
    "conformance",
    "demo",
)
"""The commands in the order in which help lists them."""
app.registered_commands.sort(key=lambda command: WORKFLOW.index(str(command.name)))


def main() -> None:
    """The console script. Exit codes: 0, 1 if a judgement is bad, 2 for bad input (one line on stderr), 130 when
    interrupted."""
    app()
