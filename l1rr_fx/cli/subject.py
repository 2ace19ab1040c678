"""The argument MODEL of the command line: a function, an export, a checkpoint or a saved network."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from l1rr_fx.support.arguments import path_of
from l1rr_fx.support.files import blamed
from l1rr_fx.support.functions import called
from passes.errors import InputError, LoadError, first_line

if TYPE_CHECKING:  # torch takes a second, which help and completion need not wait
    from torch import Tensor, nn

    from l1rr_fx.pruning.pruned import Pruned

MODEL_HELP = (
    "package.module:function, called without arguments, which returns (model, args), args being a tuple of example "
    "inputs; or a .pt2 file of torch.export.save; or a .pt checkpoint that holds a whole model, such as Ultralytics "
    "writes; or a directory that `l1rr-fx prune` wrote. All but the last may run code: open none from sources that "
    "you do not trust."
)
SHAPE_HELP = "The shape of an input, for a file that does not hold it; repeat it for more inputs."
FILES = (".pt2", ".pt", ".pth")
UNPACKED = 2
"""An archive unpacks to at most this many times its bytes, and a MiB: what torch writes is not compressed."""
ModelArgument = Annotated[str, typer.Argument(metavar="MODEL", help=MODEL_HELP, show_default=False)]
ShapeOption = Annotated[list[str] | None, typer.Option(metavar="1x3xHxW", help=SHAPE_HELP, show_default=False)]


@dataclass(frozen=True)
class Subject:
    """A model with one example input."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    pruned: Pruned | None = None


def load_subject(spec: str, shapes: Sequence[str] | None = None) -> Subject:
    """The model that MODEL names; `shapes` are those of random inputs in place of its own.

    Raises InputError, saying what is wrong with it.
    """
    inputs = tuple(_random(sizes) for sizes in map(_sizes, shapes or ()))
    suffix = Path(spec).suffix
    with blamed(spec, "read"):
        is_saved = bool(spec) and path_of("MODEL", spec).is_dir() and suffix not in FILES
    if is_saved:
        return _saved(spec, inputs)
    if suffix == ".pt2":
        subject = _exported(path_of("MODEL", spec, "a .pt2 file"))
    elif suffix in FILES:
        from l1rr_fx.cli.checkpoints import checkpoint

        return Subject(*checkpoint(path_of("MODEL", spec, "a checkpoint"), inputs), {})
    else:
        subject = _made(spec)
    return Subject(subject.model, inputs, {}) if inputs else subject


def in_eval_mode(model: nn.Module) -> nn.Module:
    """The model, switched to eval mode; that of a .pt2 file is in the mode that it was exported in."""
    from l1rr_fx.lowering.onnx.emission import has_modes

    return model.eval() if has_modes(model) else model


def _saved(spec: str, inputs: tuple[Tensor, ...]) -> Subject:
    """A saved network with random inputs of the sizes that it was pruned for."""
    from l1rr_fx.pruning.pruned import load

    try:
        pruned = load(spec)
    except LoadError as error:
        raise LoadError(f"{spec}: {error}") from error
    model = pruned.module.eval()
    if inputs:
        return Subject(model, inputs, {}, pruned)
    if pruned.example is None:
        raise InputError(
            f"{spec} is a saved network of an older l1rr-fx, which holds no example input: say its --shape, such as "
            "1x3x640x640"
        )
    from torch import Tensor
    from torch.utils import _pytree as pytree

    call = (pruned.example.args, dict(pruned.example.kwargs))
    args, kwargs = pytree.tree_map_only(Tensor, lambda each: _random(each.shape, each.dtype), call)
    return Subject(model, args, kwargs, pruned)


def _random(sizes: Sequence[int], dtype: Any = None) -> Tensor:
    """Numbers in [0, 1), the same each time; zeros where the input holds whole numbers, such as indices."""
    import torch

    if dtype is not None and not dtype.is_floating_point:
        return torch.zeros(tuple(sizes), dtype=dtype)
    return torch.rand(tuple(sizes), dtype=dtype, generator=torch.Generator().manual_seed(0))


def _exported(path: Path) -> Subject:
    """The program of a .pt2 file with the inputs that it was exported with."""
    import torch

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


def _made(spec: str) -> Subject:
    """The model that `package.module:function` returns, looked up in the working directory first."""
    from torch import nn

    made = called(
        spec, "MODEL", wanted="a .pt2 or .pt file, the directory of a saved network or package.module:function"
    )
    if not (isinstance(made, tuple) and len(made) == 2):
        raise InputError(f"{spec} returned a {type(made).__name__}; expected (model, args)")
    model, args = made
    if not isinstance(model, nn.Module):
        raise InputError(f"{spec} returned a {type(model).__name__} as its model; expected a torch.nn.Module")
    if not isinstance(args, tuple):
        raise InputError(f"{spec} returned a {type(args).__name__} as its args; expected a tuple of example inputs")
    return Subject(model, args, {})


def _sizes(text: str) -> tuple[int, ...]:
    sizes = text.lower().split("x")
    if not all(size.isdecimal() and 0 < int(size) < 2**31 for size in sizes):
        raise InputError(f"the shape is {text!r}; expected sizes with x between them, such as 1x3x640x640")
    return tuple(map(int, sizes))
