"""Saving and loading of a pruned network: its module, what was kept of each parameter, and the text of its report."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.fx import GraphModule

from l1rr_fx.archive.decode import decode
from l1rr_fx.archive.encode import encode
from l1rr_fx.archive.files import GRAPH, LIMITS, REPORT, TENSORS, read_all, write_all
from l1rr_fx.support.arguments import of_kind
from l1rr_fx.support.checks import naming, parsed
from l1rr_fx.support.files import move_to, new_directory_beside
from passes.errors import InputError, LoadError
from passes.graph.selection import Selection


def save(
    module: nn.Module,
    kept: Mapping[str, Selection],
    report: str,
    directory: str | os.PathLike[str],
    *,
    overwrite: bool = False,
) -> None:
    """Write a captured network to `directory`: all of it or, on any failure, nothing.

    `kept` says which part of the original each parameter and buffer is; `report` is a JSON text, stored as it is.
    Raises InputError if the directory is not empty (with `overwrite` a saved network is replaced, and nothing else
    is), if the network holds what the format cannot, or if the disk refuses.
    """
    target = Path(directory)
    of_kind("module", module, nn.Module)
    check_target(target, overwrite=overwrite)
    document, tensors = encode(module, kept)
    try:
        decode(document, tensors, torch.device("cpu"))  # what is saved can be loaded
    except LoadError as error:
        raise InputError(f"this network cannot be saved: {error}") from error
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with new_directory_beside(target) as work:
            write_all(work, document, tensors, report)
            move_to(work, target)
    except OSError as error:
        raise InputError(f"{target}: cannot be written: {error.strerror or error}") from error


def load(
    directory: str | os.PathLike[str], *, device: torch.device | str = "cpu"
) -> tuple[GraphModule, dict[str, Selection], str]:
    """The module, what was kept and the report's text that `save` wrote, with all tensors on `device`.

    Safe on files from anywhere: nothing in them is run. Raises LoadError, naming the file and what is wrong with it,
    unless every file is there, plain, within its limit, of the size and hash in the manifest, and holds a network of
    known operators whose tensors fit together.
    """
    path = Path(directory)
    content = read_all(path)
    with naming(path / TENSORS):
        tensors = stored_tensors(content[TENSORS])
    with naming(path / GRAPH):
        module, kept = decode(parsed(content[GRAPH]), tensors, torch.device(device))
    with naming(path / REPORT):
        try:
            report = content[REPORT].decode()
        except UnicodeDecodeError as error:
            raise LoadError(str(error)) from error
    return module, kept, report


def check_target(target: Path, *, overwrite: bool) -> None:
    """Raise InputError if `save` may not write to `target`: nothing but a saved network is ever replaced."""
    try:
        if not target.exists() and not target.is_symlink():
            return
        if target.is_symlink() or not target.is_dir():
            raise InputError(f"{target} exists and is not a directory")
        found = {entry.name for entry in target.iterdir()}
    except OSError as error:
        raise InputError(f"{target}: cannot be read: {error.strerror or error}") from error
    if not found:
        return
    if not overwrite:
        raise InputError(f"{target} exists and is not empty; overwrite=True replaces a saved network")
    if found != {*LIMITS}:
        raise InputError(f"{target} is not a saved network, so it is not replaced: it holds {sorted(found)[0]!r}")


def stored_tensors(content: bytes) -> dict[str, Tensor]:
    """The tensors of a safetensors file, copied out of its memory."""
    try:
        return {name: tensor.clone() for name, tensor in safetensors.torch.load(content).items()}
    except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise LoadError(f"is not a safetensors file that torch can read: {error}") from error
