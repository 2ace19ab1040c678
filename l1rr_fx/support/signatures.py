"""The structure and sizes of a call's arguments, to compare calls by."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

PLAIN = (bool, int, float, complex, str, type(None), torch.dtype, torch.device)
"""The types of arguments that are no tensors and can be compared: a graph has them as constants."""


def signature(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, tuple[Any, ...]]:
    """The structure of a call's arguments, and the shapes of its tensors or the values that are no tensors.

    Two calls with equal signatures can be served by one graph with fixed sizes.
    """
    leaves, spec = pytree.tree_flatten((args, dict(kwargs)))
    return spec, tuple(tuple(leaf.shape) if isinstance(leaf, Tensor) else leaf for leaf in leaves)
