"""The argument MODEL of the command line: a saved export, or a function that makes the model."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import nn

from l1rr_fx.pruning.pruned import Pruned, load
from l1rr_fx.support.arguments import path_of
from l1rr_fx.support.files import blamed
from l1rr_fx.support.functions import called
from passes.errors import InputError, first_line

MODEL_HELP = (
    "A .pt2 file written by torch.export.save, or package.module:function, called without arguments, which "
    "returns (model, args); args is a tuple of example inputs. Open neither from sources that you do not trust: both "
    "may run code."
)
UNPACKED = 2
"""An archive unpacks to at most this many times its bytes, and a MiB: what torch writes is not compressed."""
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)]


@dataclass(frozen=True)
class Subject:
    """A model with one example input."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    pruned: Pruned | None = None


def load_subject(spec: str) -> Subject:
    """The model that MODEL names. Raises InputError, saying what is wrong with it."""
    return _exported(path_of("MODEL", spec, "a .pt2 file")) if spec.endswith(".pt2") else _made(spec)


def _exported(path: Path) -> Subject:
    """The program of a .pt2 file with the inputs that it was exported with."""
    with blamed(path, "read"):
        if not path.is_file():
            raise InputError(f"{path}: there is no such file")
        if not zipfile.is_zipfile(path):
            raise InputError(f"{path}: this is not a file of torch.export.save")
    try:
        _check_sizes(path)
        program = torch.export.load(path)
        if program.example_inputs is None:
            raise InputError(f"{path}: it holds no example inputs; export it again with this torch")
        args, kwargs = program.example_inputs
        return Subject(program.module(check_guards=False), tuple(args), dict(kwargs))
    except InputError:
        raise
    except Exception as error:  # torch and pickle raise anything on a damaged file
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise InputError(f"{path}: torch.export.load cannot read it: {reason}") from error


def _check_sizes(path: Path) -> None:
    """Refuse an archive that unpacks to more than it holds: torch stores its files as they are."""
    with zipfile.ZipFile(path) as archive:
        size = sum(entry.file_size for entry in archive.infolist())
    if size > UNPACKED * path.stat().st_size + 2**20:
        raise InputError(f"{path}: it unpacks to {size:,} bytes, which no file of torch.export.save does")


def in_eval_mode(model: nn.Module) -> nn.Module:
    """The model, switched to eval mode; that of a .pt2 file is in the mode that it was exported in."""
    from l1rr_fx.lowering.onnx.emission import has_modes

    return model.eval() if has_modes(model) else model


def _made(spec: str) -> Subject:
    """The model that `package.module:function` returns, looked up in the working directory first."""
    made = called(spec, "MODEL", wanted="a .pt2 file or package.module:function")
    if not (isinstance(made, tuple) and len(made) == 2):
        raise InputError(f"{spec} returned a {type(made).__name__}; expected (model, args)")
    model, args = made
    if not isinstance(model, nn.Module):
        raise InputError(f"{spec} returned a {type(model).__name__} as its model; expected a torch.nn.Module")
    if not isinstance(args, tuple):
        raise InputError(f"{spec} returned a {type(args).__name__} as its args; expected a tuple of example inputs")
    return Subject(model, args, {})


def network_subject(spec: str, shapes: list[str]) -> Subject:
    """The saved network in a directory, with random inputs, or the model that `load_subject` finds."""
    with blamed(spec, "read"):
        is_saved = path_of("NETWORK", spec).is_dir()
    if not is_saved:
        return load_subject(spec)
    if not shapes:
        raise InputError(
            f"{spec} is a saved network, which holds no example input: say its --shape, such as 1x3x640x640"
        )
    torch.manual_seed(0)
    pruned = load(spec)
    return Subject(pruned.module.eval(), tuple(torch.rand(_sizes(shape)) for shape in shapes), {}, pruned)


def _sizes(text: str) -> tuple[int, ...]:
    sizes = text.lower().split("x")
    if not all(size.isdecimal() and 0 < int(size) < 2**31 for size in sizes):
        raise InputError(f"the shape is {text!r}; expected sizes with x between them, such as 1x3x640x640")
    return tuple(map(int, sizes))
