"""What `l1rr_fx.prune` returns: the small network, its report, and which part of each parameter was kept."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from l1rr_fx.archive import network
from l1rr_fx.archive.files import REPORT
from l1rr_fx.pruning.report import Report
from l1rr_fx.support.checks import naming
from passes.errors import InputError, LoadError
from passes.graph.selection import Selection


@dataclass(frozen=True, eq=False)
class Pruned:
    """A small network that computes what the zeroed model computes.

    `module` is a `torch.fx.GraphModule` (a copy of the model that holds several of them where `report.pieces` is not
    empty). Its parameters keep their original dotted names; `kept` says, for each of them and for the buffers,
    which part of the original it is.
    """

    module: nn.Module
    report: Report
    kept: Mapping[str, Selection] = field(default_factory=dict)

    def save(self, directory: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write everything to `directory`, whole or not at all; `l1rr_fx.load` reads it back.

        Raises InputError if the directory exists and is not empty (unless `overwrite`, which replaces a saved network
        and nothing else), or if the network holds what the format cannot.
        """
        network.save(self.module, self.kept, self.report.to_json(), directory, overwrite=overwrite)

    def __str__(self) -> str:
        return str(self.report)


def load(directory: str | os.PathLike[str], *, device: torch.device | str = "cpu") -> Pruned:
    """The pruned network that `Pruned.save` wrote, with its tensors on `device`. Safe on files from anywhere.

    Nothing in them is run. Raises LoadError, naming the file and what is wrong with it, unless every file is there,
    plain, within its limit, of the size and hash in the manifest, and holds a network of known operators whose tensors
    fit together.
    """
    module, kept, text = network.load(directory, device=device)
    with naming(Path(directory) / REPORT):
        try:
            report = Report.from_json(text)
        except InputError as error:
            raise LoadError(str(error)) from error
    return Pruned(module, report, kept)
