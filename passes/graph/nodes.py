"""Small readings of graphs and modules that every stage needs, and where tensors are put."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from passes.errors import CaptureError


def hint(size: Any) -> int:
    """A size as a number: itself, or a symbol's value at the example input.

    Raises CaptureError for a size that only the values of a tensor tell.
    """
    if not isinstance(size, torch.SymInt):
        return int(size)
    if size.node.hint is None:
        raise CaptureError(
            "the size of a tensor depends on the values of another (nonzero, where of a condition alone, a mask as an "
            "index). Move that code out of forward, or prune the part before it."
        )
    return int(size.node.hint)


def attribute(module: nn.Module, name: str) -> Any:
    """The parameter, buffer or submodule with a dotted name."""
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part)
    return value


def place_tensor(root: nn.Module, name: str, tensor: Tensor, *, persistent: bool = True) -> None:
    """Put a parameter or a buffer under a dotted name, making the modules on the way."""
    *path, leaf = name.split(".")
    for part in path:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    if isinstance(tensor, nn.Parameter):
        root.register_parameter(leaf, tensor)
    else:
        root.register_buffer(leaf, tensor, persistent=persistent)
