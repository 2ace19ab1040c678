"""What `l1rr_fx.prune` returns: the small network, its report, and what of every parameter lives on."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from l1rr_fx.pruning.report import Report
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
        from l1rr_fx.archive import save  # the archive knows this class

        save(self, directory, overwrite=overwrite)

    def __str__(self) -> str:
        return str(self.report)
