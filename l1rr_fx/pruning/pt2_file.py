"""A network as a `.pt2` file, which torch loads without this package."""

from __future__ import annotations

import io
import operator
import os
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule, Node
from torch.utils import _pytree as pytree

from l1rr_fx.support.arguments import path_of
from l1rr_fx.support.files import blamed, write_file
from passes.errors import CaptureError, InputError, first_line
from passes.frontend.capture import exported_program

aten = torch.ops.aten

SUFFIX = ".pt2"
BUILT_IN = (tuple, list, dict, OrderedDict)
"""The containers of inputs and outputs that torch rebuilds by itself, in any process."""


@dataclass(frozen=True, eq=False)
class Example:
    """The call that a network was captured for: its arguments, the sizes that may change, and its parameters' dtype.

    `sizes_by_guards`: the network's size guards, not `dynamic_shapes`, say which sizes may change, as those of a loaded
    network do.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    dynamic_shapes: Any = None
    dtype: torch.dtype | None = None
    sizes_by_guards: bool = False

    def without_values(self) -> Example:
        """The same with tensors that have sizes and a dtype alone, so that no batch stays in memory."""

        def emptied(tensor: Tensor) -> Tensor:
            return tensor.detach().to("meta") if tensor.layout is torch.strided else tensor

        args, kwargs = pytree.tree_map_only(Tensor, emptied, (self.args, dict(self.kwargs)))
        return replace(self, args=args, kwargs=kwargs)

    def for_module(self, module: nn.Module) -> Example:
        """The same with zeros in the place of tensors without values: an export does not depend on them.

        They are on the module's device. Those that had the dtype of its parameters have the dtype that these have now.
        """
        device = next((tensor.device for tensor in (*module.parameters(), *module.buffers())), torch.device("cpu"))
        dtype = float_type(module)

        def filled(tensor: Tensor) -> Tensor:
            if not tensor.is_meta:
                return tensor
            return torch.zeros_like(tensor, device=device, dtype=dtype if tensor.dtype is self.dtype else tensor.dtype)

        args, kwargs = pytree.tree_map_only(Tensor, filled, (self.args, dict(self.kwargs)))
        return replace(self, args=args, kwargs=kwargs)


def float_type(module: nn.Module) -> torch.dtype | None:
    """The dtype of a module's first floating-point parameter."""
    return next((parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()), None)


def write_pt2(module: nn.Module, example: Example, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Write what `torch.export` makes of a network in eval mode: the whole file or, on any failure, nothing.

    Raises InputError for a path that cannot be written, a module in training mode, or a network that cannot be exported
    or that torch alone could not load.
    """
    target = _checked_path(path, overwrite=overwrite)
    if module.training:
        raise InputError(
            "the module is in training mode, in which networks compute something else; "
            "expected one in eval mode: call pruned.module.eval() first"
        )
    call = example.for_module(module)
    shapes = call.dynamic_shapes
    if shapes is None:
        shapes = _free_sizes(module, call.args, call.kwargs)
    try:
        program = exported_program(module, call.args, call.kwargs, dynamic_shapes=shapes)
    except CaptureError as error:
        raise InputError(f"this network cannot be exported: {error}") from error
    _refuse_foreign_containers(program)
    _write(program, target)


def _checked_path(path: str | os.PathLike[str], *, overwrite: bool) -> Path:
    target = path_of("path", path, "a file")
    if target.suffix != SUFFIX:
        raise InputError(f"{target} is no name of an exported program; expected one that ends in {SUFFIX}")
    with blamed(target):
        if target.is_dir():
            raise InputError(f"{target} is a directory; expected the name of a file")
        if target.exists() and not overwrite:
            raise InputError(f"{target} exists; overwrite=True replaces it")
    return target


def _write(program: ExportedProgram, target: Path) -> None:
    """Save a program in memory, load it back, and write the file; torch ends the process where a disk is full."""
    content = io.BytesIO()
    try:
        torch.export.save(program, content)
        content.seek(0)
        torch.export.load(content)  # what is saved can be loaded
    except Exception as error:  # torch has no error tree for this: any error is about what it cannot save
        raise InputError(
            f"this network cannot be saved by torch.export: {type(error).__name__}: {first_line(error)}; "
            "Pruned.save and torch.jit.trace write other files"
        ) from error
    with blamed(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    write_file(target, content.getvalue())


def _refuse_foreign_containers(program: ExportedProgram) -> None:
    """Raise InputError for inputs or outputs in a class of Python that the loading process may not have."""
    for what, spec in (("inputs", program.call_spec.in_spec), ("outputs", program.call_spec.out_spec)):
        for kind in _containers(spec):
            if kind not in BUILT_IN:
                raise InputError(
                    f"the {what} of this network are in a {getattr(kind, '__name__', kind)}, which torch alone cannot "
                    "load; expected tensors in tuples, lists and dicts: prune a module that wraps the network so"
                )


def _containers(spec: Any) -> Iterator[Any]:
    if spec is None or spec.is_leaf():
        return
    yield spec.type
    for child in spec.children():
        yield from _containers(child)


def _free_sizes(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The sizes that may change by the size guards of a network, for `torch.export`; None if all are fixed.

    A saved network keeps its guards, not the `dynamic_shapes` that it was pruned with.
    """
    if not isinstance(module, GraphModule):
        return None
    inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
    leaves = pytree.tree_leaves((args, dict(kwargs)))
    if len(inputs) != len(leaves) or not any(_fixed_axes(node) for node in inputs):
        return None
    collection = torch.export.ShapesCollection()
    found = False
    for node, leaf in zip(inputs, leaves, strict=True):
        if isinstance(leaf, Tensor) and (free := set(range(leaf.dim())) - _fixed_axes(node)):
            collection[leaf] = dict.fromkeys(free, Dim.DYNAMIC)
            found = True
    return collection.dynamic_shapes(module, args, dict(kwargs)) if found else None


def _fixed_axes(node: Node) -> set[int]:
    """The axes of an input whose size a guard compares with a number."""
    sizes = [user for user in node.users if user.target is aten.sym_size.int]
    return {
        int(size.args[1])  # type: ignore[arg-type]  # an axis
        for size in sizes
        for check in size.users
        if check.target is operator.eq and isinstance(check.args[1], int) and _is_asserted(check)
    }


def _is_asserted(check: Node) -> bool:
    return any(user.target is aten._assert_scalar.default for user in check.users)
