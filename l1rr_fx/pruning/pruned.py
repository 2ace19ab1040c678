"""What `l1rr_fx.prune` returns: the small network, its report, and which part of each parameter was kept."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.jupyter import JupyterMixin
from torch import nn

from l1rr_fx.archive import network
from l1rr_fx.archive.files import REPORT
from l1rr_fx.pruning.modules import name_holders
from l1rr_fx.pruning.pt2_file import Example, float_type, write_pt2
from l1rr_fx.pruning.report import Report
from l1rr_fx.support.checks import naming
from passes.errors import InputError, LoadError
from passes.graph.selection import Selection


@dataclass(frozen=True, eq=False, repr=False)
class Pruned(JupyterMixin):
    """A small network that computes what the zeroed model computes.

    `module` is a `torch.fx.GraphModule` (a copy of the model that holds several of them where `report.pieces` is not
    empty). Its parameters keep their original dotted names; `kept` says, for each of them and for the buffers,
    which part of the original it is. `example` is the call that it was pruned for, without values (None: not known).
    """

    module: nn.Module
    report: Report
    kept: Mapping[str, Selection] = field(default_factory=dict)
    example: Example | None = None

    def save(self, directory: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write everything to `directory`, whole or not at all; `l1rr_fx.load` reads it back.

        Raises InputError if the directory exists and is not empty (unless `overwrite`, which replaces a saved network
        and nothing else), or if the network holds what the format cannot.
        """
        call = None if self.example is None else (self.example.args, self.example.kwargs)
        network.save(self.module, self.kept, self.report.to_json(), directory, call=call, overwrite=overwrite)

    def export(
        self,
        path: str | os.PathLike[str],
        args: tuple[Any, ...] | None = None,
        kwargs: Mapping[str, Any] | None = None,
        *,
        dynamic_shapes: Any = None,
        overwrite: bool = False,
    ) -> None:
        """Write a `.pt2` file, which `torch.export.load` reads in a process without this package.

        `args`, `kwargs` and `dynamic_shapes` are those of the pruning unless others are given. A network that was
        loaded knows by its size guards which sizes may change; give `dynamic_shapes` where all of them may. Operators
        of other libraries need these where the file is loaded.

        Raises InputError for wrong arguments, a file that exists (unless `overwrite`), a module in training mode, or a
        network that cannot be exported, as one that was pruned in pieces.
        """
        if pieces := self.report.pieces:
            raise InputError(
                f"this network was pruned in {len(pieces)} pieces, joined by code that torch.export cannot capture; "
                "expected a network that is one graph: move what the report's notes name out of forward, or export "
                f"each piece by torch.export.export({_expression(self.module, pieces[0])}, its inputs)"
            )
        write_pt2(self.module, self._call(args, kwargs, dynamic_shapes), path, overwrite=overwrite)

    def _call(self, args: Any, kwargs: Any, dynamic_shapes: Any) -> Example:
        """The call to export: the one given, or else the one of the pruning."""
        if self.example is not None and dynamic_shapes is None:
            dynamic_shapes = self.example.dynamic_shapes
        elif self.example is not None and self.example.dynamic_shapes is None and not self.example.sizes_by_guards:
            raise InputError(
                "this network was pruned for inputs of fixed sizes, by which its code may have chosen its way; "
                "expected dynamic_shapes to be given to l1rr_fx.prune"
            )
        if args is not None:
            return Example(args, kwargs or {}, dynamic_shapes)
        if kwargs is not None:
            raise InputError("kwargs are given without args; expected both, such as export(path, (image,), {...})")
        if self.example is None:
            raise InputError(
                "this network does not know what inputs it takes, as one that an older l1rr-fx saved; "
                "expected an example of them: export(path, (image,))"
            )
        return replace(self.example, dynamic_shapes=dynamic_shapes)

    def __str__(self) -> str:
        return str(self.report)

    def __rich__(self) -> Report:
        return self.report

    def __repr__(self) -> str:
        before, after = self.report.before, self.report.after
        share = f"{after.macs / before.macs:.1%} of the MACs" if before.macs else "no MACs"
        return f"<Pruned: {share}, {after.parameters:,} of {before.parameters:,} parameters; print it for the report>"


def load(directory: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> Pruned:
    """The pruned network that `Pruned.save` wrote, with its tensors on `device`. Safe on files from anywhere.

    Nothing in them is run. Raises LoadError, naming the file and what is wrong with it, unless every file is there,
    plain, within its limit, of the size and hash in the manifest, and holds a network of known operators whose tensors
    fit together.
    """
    module, kept, text, call = network.load(directory, device=device)
    with naming(Path(directory) / REPORT):
        try:
            report = Report.from_json(text)
        except InputError as error:
            raise LoadError(str(error)) from error
    name_holders(module)
    example = None if call is None else Example(*call, dtype=float_type(module), sizes_by_guards=True)
    return Pruned(module, report, kept, example)


def _expression(module: Any, piece: str) -> str:
    """The code that gives a piece; one that stands for several layers of a Sequential is no submodule of it."""
    try:
        module.get_submodule(piece)
    except AttributeError:
        parent = piece.rpartition(".")[0]
        holder = f"pruned.module.get_submodule({parent!r})" if parent else "pruned.module"
        return f"next({holder}.pieces)"
    return f"pruned.module.get_submodule({piece!r})"
