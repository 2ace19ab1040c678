"""The command line: `l1rr-fx inspect MODEL`, `l1rr-fx prune MODEL -o DIR`, `l1rr-fx demo`."""

from __future__ import annotations

import contextlib
import importlib
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.text import Text
from torch import nn

from l1rr_fx import __version__
from passes.errors import InputError, L1RRError

app = typer.Typer(
    name="l1rr-fx",
    help="Make zeroed channels disappear: a network that computes the same, and is smaller.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

MODEL_HELP = (
    "A .pt2 file written by torch.export.save, or package.module:function, called without arguments, which "
    "returns (model, args); args is a tuple of example inputs. Open neither from sources that you do not trust: both "
    "may run code."
)
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)]


class Mode(str, Enum):
    """What happens to channels that meet in an addition: see `l1rr_fx.prune`."""

    recombine = "recombine"
    union = "union"
    exclude = "exclude"


@dataclass(frozen=True)
class Subject:
    """A model with one example input."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def main() -> None:
    """The console script. Exit codes: 0, 2 for bad input (one line on stderr), 130 when interrupted."""
    app()


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"l1rr-fx {__version__} (torch {torch.__version__})")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Make zeroed channels disappear: a network that computes the same, and is smaller."""


@app.command("inspect")
def inspect_command(model: ModelArgument) -> None:
    """Show the channels of MODEL, their groups, what could go, and what blocks the rest. Needs no training."""
    from l1rr_fx.inspect import inspect

    with _reporting("inspecting"):
        subject = load_subject(model)
        inspection = inspect(subject.model, subject.args, subject.kwargs)
    Console().print(inspection)


@app.command("prune")
def prune_command(
    model: ModelArgument,
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Where to save the small network.")],
    mode: Annotated[Mode, typer.Option(help="What happens to channels that meet in an addition.")] = Mode.recombine,
    channel_multiple: Annotated[int, typer.Option(min=1, help="Keep a multiple of this many channels.")] = 1,
    verify: Annotated[bool, typer.Option(help="Compare with the zeroed model on the example input.")] = True,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the saved network in DIR.")] = False,
    details: Annotated[bool, typer.Option("--details", help="Show every layer too.")] = False,
) -> None:
    """Remove what is zeroed in MODEL and save the small network in DIR, with its report (report.json)."""
    from l1rr_fx import prune
    from l1rr_fx.archive import check_target

    with _reporting("pruning"):
        check_target(output, overwrite=overwrite)
        subject = load_subject(model)
        pruned = prune(
            subject.model,
            subject.args,
            subject.kwargs,
            mode=mode.value,
            channel_multiple=channel_multiple,
            verify=verify,
        )
        pruned.save(output, overwrite=overwrite)
    console = Console()
    console.print(pruned.report)
    if details:
        console.print(Text(pruned.report.details()), soft_wrap=True)
    console.print(Text(f"saved in {output}"), soft_wrap=True)


@app.command("demo")
def demo_command(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Where the picture and the numbers go.")
    ] = Path("demo-output"),
) -> None:
    """Zero, prune and compare a detector of tree crowns on real aerial images."""
    with _reporting(None):
        try:
            from l1rr_fx.demo.run import run
        except ModuleNotFoundError as error:
            raise InputError(f"the demo needs the package {error.name}: pip install 'l1rr-fx[demo]'") from error
        run(output, console=Console())


@contextlib.contextmanager
def _reporting(doing: str | None) -> Iterator[None]:
    """Show what is being done while it lasts; turn our errors into one line and exit code 2."""
    console = Console(stderr=True)
    try:
        with console.status(doing) if doing is not None else contextlib.nullcontext():
            yield
    except L1RRError as error:
        console.print(Text(f"error: {error}", style="red"), soft_wrap=True)
        raise typer.Exit(2) from error


def load_subject(spec: str) -> Subject:
    """The model that MODEL names. Raises InputError, saying what is wrong with it."""
    return _exported(Path(spec)) if spec.endswith(".pt2") else _made(spec)


def _exported(path: Path) -> Subject:
    """The program of a .pt2 file with the inputs that it was exported with."""
    if not path.is_file():
        raise InputError(f"{path}: there is no such file")
    if not zipfile.is_zipfile(path):
        raise InputError(f"{path}: this is not a file of torch.export.save")
    try:
        program = torch.export.load(path)
    except (RuntimeError, ValueError, KeyError, AssertionError, OSError, zipfile.BadZipFile) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"{path}: torch.export.load cannot read it: {first}") from error
    if program.example_inputs is None:
        raise InputError(f"{path}: it holds no example inputs; export it again with this torch")
    args, kwargs = program.example_inputs
    return Subject(program.module(check_guards=False), tuple(args), dict(kwargs))


def _made(spec: str) -> Subject:
    """The model that `package.module:function` returns, looked up in the working directory first."""
    module_name, colon, function_name = spec.partition(":")
    if not (colon and function_name.isidentifier() and all(part.isidentifier() for part in module_name.split("."))):
        raise InputError(f"MODEL is {spec!r}; a .pt2 file or package.module:function is wanted")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the user's module may raise anything
        raise InputError(f"{module_name} cannot be imported: {type(error).__name__}: {error}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise InputError(f"{module_name} has no function {function_name!r}")
    try:
        made = function()
    except Exception as error:  # and so may the function
        raise InputError(f"{spec} raised {type(error).__name__}: {error}") from error
    if not (isinstance(made, tuple) and len(made) == 2):
        raise InputError(f"{spec} returned a {type(made).__name__}; (model, args) is wanted")
    model, args = made
    if not isinstance(model, nn.Module):
        raise InputError(f"{spec} returned a {type(model).__name__} as its model; a torch.nn.Module is wanted")
    if not isinstance(args, tuple):
        raise InputError(f"{spec} returned a {type(args).__name__} as its args; a tuple of example inputs is wanted")
    return Subject(model, args, {})


if __name__ == "__main__":
    main()
