"""The call that a network was captured for as JSON, and back: the sizes and dtypes of its tensors, without values."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from l1rr_fx.archive.arguments import decode_argument, encode_argument
from l1rr_fx.support.checks import expect, fields, short
from passes.errors import InputError, LoadError

Call = tuple[tuple[Any, ...], Mapping[str, Any]]
"""Arguments and keyword arguments."""
MOST = 2**48
"""A tensor of a call has at most so many elements."""


def encode_call(call: Call | None, module: GraphModule) -> list[Any] | None:
    """The leaves of a call in the order of the network's inputs; None if it is unknown or not that of the network."""
    if call is None:
        return None
    leaves, spec = pytree.tree_flatten((tuple(call[0]), dict(call[1])))
    if spec != _spec(module):
        return None
    try:
        return [_leaf_document(leaf) for leaf in leaves]
    except InputError:  # a leaf that JSON does not hold
        return None


def decode_call(document: Any, module: GraphModule) -> Call:
    """The call that `encode_call` wrote, with tensors on the device "meta", which take no memory."""
    spec = _spec(module)
    found = expect(document, list, '"example"')
    if spec is None or spec.num_leaves != len(found):
        raise LoadError(f'"example" has {len(found)} inputs, the network {spec and spec.num_leaves}')
    args, kwargs = pytree.tree_unflatten([_leaf(each) for each in found], spec)
    return args, kwargs


def _spec(module: GraphModule) -> Any:
    info = getattr(module.graph._codegen, "pytree_info", None)
    return None if info is None else info.in_spec


def _leaf_document(leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return {"sizes": [int(size) for size in leaf.shape], "dtype": encode_argument(leaf.dtype)}
    return {"value": encode_argument(leaf)}


def _leaf(document: Any) -> Any:
    if isinstance(document, dict) and "value" in document:
        return decode_argument(fields(document, {"value"}, "an input")["value"], {}, torch.device("cpu"))
    found = fields(document, {"sizes", "dtype"}, "an input")
    sizes = expect(found["sizes"], list, "sizes")
    if not all(type(size) is int and 0 <= size for size in sizes) or math.prod(sizes) > MOST:
        raise LoadError(f"{short(sizes)} are not the sizes of a tensor")
    dtype = decode_argument(found["dtype"], {}, torch.device("cpu"))
    if not isinstance(dtype, torch.dtype):
        raise LoadError(f"{short(found['dtype'])} is not a dtype")
    return torch.empty(sizes, dtype=dtype, device="meta")
