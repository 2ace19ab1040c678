"""Saving and loading of a pruned network: its module, what was kept of each parameter, and the text of its report."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn
from torch.fx import GraphModule

from l1rr_fx.archive.calls import Call
from l1rr_fx.archive.decode import decode
from l1rr_fx.archive.encode import encode
from l1rr_fx.archive.files import GRAPH, REPORT, is_replaceable, read_all, write_all
from l1rr_fx.support.arguments import of_kind, path_of
from l1rr_fx.support.checks import naming, parsed, short
from l1rr_fx.support.files import blamed, move_to, new_directory_beside, tidy
from passes.errors import InputError, LoadError, first_line
from passes.graph.selection import Selection

log = logging.getLogger(__name__)


def save(
    module: nn.Module,
    kept: Mapping[str, Selection],
    report: str,
    directory: str | os.PathLike[str],
    *,
    call: Call | None = None,
    overwrite: bool = False,
) -> None:
    """Write a captured network to `directory`: all of it or, on any failure, nothing.

    `kept` says which part of the original each parameter and buffer is; `report` is a JSON text, stored as it is;
    `call` is an example of the arguments, of which sizes and dtypes are stored.
    Raises InputError if the directory is not empty (with `overwrite` a saved network is replaced, and nothing else
    is), if the network holds what the format cannot, or if the disk refuses.
    """
    target = path_of("directory", directory)
    of_kind("module", module, nn.Module)
    check_target(target, overwrite=overwrite)
    document, tensors, notes = encode(module, kept, call)
    try:
        decode(document, tensors, torch.device("cpu"))  # what is saved can be loaded
    except LoadError as error:
        raise InputError(f"this network cannot be saved: {error}") from error
    for note in notes:
        log.warning("%s: %s", target, note)
    with blamed(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with new_directory_beside(target) as work:
            write_all(work, document, tensors, report, notes)
            check_target(target, overwrite=overwrite)  # which may have been filled meanwhile
            move_to(work, target)


def load(
    directory: str | os.PathLike[str], *, device: torch.device | str = "cpu"
) -> tuple[GraphModule, dict[str, Selection], str, Call | None]:
    """The module, what was kept, the report's text and the call that `save` wrote, with all tensors on `device`.

    The call has tensors without values (None: the file does not say).

    Safe on files from anywhere: nothing in them is run. Raises LoadError, naming the file and what is wrong with it,
    unless every file is there, plain, within its limit, of the size and hash in the manifest, and holds a network of
    known operators whose tensors fit together.
    """
    path, place = path_of("directory", directory), _usable(device)
    content = read_all(path)
    with naming(path / GRAPH):
        module, kept, call = decode(parsed(content.graph), content.tensors, place)
    with naming(path / REPORT):
        try:
            report = content.report.decode()
        except UnicodeDecodeError as error:
            raise LoadError(str(error)) from error
    return module, kept, report, call


def _usable(device: object) -> torch.device:
    """A device that holds tensors here."""
    if str(device).startswith("meta"):
        raise InputError(f"device is {short(device)}, which cannot be used: it holds no values")
    try:
        return torch.empty(0, device=device).device  # type: ignore[call-overload, no-any-return]  # that is the question
    except (RuntimeError, AssertionError, TypeError, ValueError, NotImplementedError, ImportError) as error:
        raise InputError(f"device is {short(device)}, which cannot be used: {first_line(error)}") from error


def check_target(target: Path, *, overwrite: bool) -> None:
    """Raise InputError if `save` may not write to `target`: nothing but a saved network is ever replaced."""
    with blamed(target, "read"):
        tidy(target)
        if not target.exists() and not target.is_symlink():
            return
        if target.is_symlink() or not target.is_dir():
            raise InputError(f"{target} exists and is not a directory")
        if not any(target.iterdir()):
            return
        if not overwrite:
            raise InputError(f"{target} exists and is not empty; overwrite=True (--overwrite) replaces a saved network")
        if reason := is_replaceable(target):
            raise InputError(f"{target} is not a saved network alone, so it is not replaced: {reason}")
