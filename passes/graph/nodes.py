"""Questions about single nodes of a graph, and access to what a module holds under dotted names."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import Node
from torch.fx.node import map_arg

from passes.errors import CaptureError

FIXED = "fixed"
"""The key of `node.meta` of a buffer that the compiler made: nothing changes its value."""

ADDED = "added"
"""The key of `node.meta` of a call or a tensor that the compiler added: the original network has none like it."""


def is_tensor(node: Node) -> bool:
    """Whether the node's value is one tensor (not a list of them, not a size)."""
    return isinstance(node.meta.get("val"), Tensor)


def is_projection(node: Node) -> bool:
    """Whether the node takes one tensor out of an operator's list of results."""
    return node.target is operator.getitem and is_tensor(node)


def reads_elements(node: Node) -> bool:
    """Whether the node computes a number from the elements of a tensor, not from its shape."""
    value = node.meta.get("val")
    return not isinstance(value, (Tensor, list, tuple)) and node.target is not torch.ops.aten.sym_size.int


def flat_inputs(node: Node) -> tuple[Node, ...]:
    """The tensors that a call reads, in the order of its arguments; one that is read twice is there twice."""
    found: list[Node] = []

    def visit(argument: Node) -> Node:
        if is_tensor(argument):
            found.append(argument)
        return argument

    map_arg((node.args, node.kwargs), visit)
    return tuple(found)


def operator_name(node: Node) -> str:
    """The operator of ATen that a node calls, without its overload ("conv2d"); "" for any other node."""
    target = node.target
    if not isinstance(target, OpOverload) or target.namespace != "aten":
        return ""  # an operator of another library may have the same name and do something else
    return target._schema.name.removeprefix("aten::")


def operator_label(node: Node) -> str:
    """The operator that a node calls, as reports print it: "conv2d", or with its overload "conv2d.padding"."""
    return str(node.target).removeprefix("aten.").removesuffix(".default")


def hint(size: Any) -> int:
    """A size as a number; of a symbolic size the value at the example input.

    Raises CaptureError for a size that depends on the values of a tensor.
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


def holder(module: nn.Module, name: str) -> tuple[nn.Module, str]:
    """The submodule that holds a dotted name, and the last part of the name."""
    owner, _, leaf = name.rpartition(".")
    return (attribute(module, owner) if owner else module), leaf


def free_names(module: nn.Module, stem: str) -> Iterator[str]:
    """The names `stem_0`, `stem_1`, ... under which the module holds nothing."""
    return (name for name in map(f"{stem}_{{}}".format, count()) if not hasattr(*holder(module, name)))


def free_name(module: nn.Module, name: str) -> str:
    """The dotted name itself, or the first of `free_names` where the module holds something under it."""
    return next(free_names(module, name)) if hasattr(*holder(module, name)) else name


def place_tensor(root: nn.Module, name: str, tensor: Tensor, *, persistent: bool = True) -> None:
    """Put a parameter or a buffer under a dotted name; modules that the name needs are added."""
    *path, leaf = name.split(".")
    for part in path:
        if not hasattr(root, part):
            root.add_module(part, nn.Module())
        root = getattr(root, part)
    if isinstance(tensor, nn.Parameter):
        root.register_parameter(leaf, tensor)
    else:
        root.register_buffer(leaf, tensor, persistent=persistent)
