"""Small readings of graphs and modules that every stage needs."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def hint(size: Any) -> int:
    """A size as a number: itself, or a symbol's value at the example input."""
    return int(size.node.hint) if isinstance(size, torch.SymInt) else int(size)


def attribute(module: nn.Module, name: str) -> Any:
    """The parameter, buffer or submodule with a dotted name."""
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part)
    return value
