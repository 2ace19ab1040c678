"""Capture: a model becomes a functional graph of ATen operators that computes the same.

It uses `torch.export` without decompositions, so that `chunk`, `batch_norm` and the names of parameters are kept.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import traceback
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from passes.errors import CaptureError, InputError, first_line
from passes.frontend.constant_buffers import ConstantBuffers, NumbersRead, buffers_read
from passes.frontend.frozen_norms import write_out_frozen
from passes.frontend.functionalise import functionalise_graph
from passes.frontend.limits import LimitError, Limits
from passes.frontend.regions import inline_regions
from passes.frontend.unlift import keep_whole, unlifted
from passes.graph.isolation import attributes_kept, run_aside
from passes.graph.nodes import attribute, hint

log = logging.getLogger(__name__)

aten = torch.ops.aten

OURS = str(Path(__file__).parent.parent) + os.sep
"""The folder of the compiler's own frames in a traceback."""

ASSERTIONS = {
    aten._assert_tensor_metadata.default,
    aten._assert_async.msg,
    aten._assert_scalar.default,
    aten.sym_constrain_range_for_size.default,
    aten.sym_constrain_range.default,
    torch.sym_not,
}
"""Operators that only check something, and those that compute what is checked."""


def capture(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    seconds: float | None = None,
) -> GraphModule:
    """A graph module of ATen operators without in-place writes, which shares its parameters with `model`.

    `args` and `kwargs` are one example input. Numbers that the model's code reads out of its own buffers are constants.
    Raises InputError where the model does not accept the inputs, and CaptureError where its code cannot be traced, or
    not in these `seconds` (None: they are not limited); both name the line of the model at fault.
    """
    program = exported_program(model, args, kwargs, dynamic_shapes=dynamic_shapes, seconds=seconds)
    root, graph = unlifted(program)
    for node in graph.find_nodes(op="get_attr"):
        if node.users and isinstance(held := attribute(root, str(node.target)), Tensor):
            _check_dense(str(node.target), held)
    inline_regions(root, graph)
    _strip(graph)
    _refuse_untraceable(graph)
    functionalise_graph(graph)
    write_out_frozen(graph, root, model, args, kwargs or {})
    module = GraphModule(root, graph)
    keep_whole(root, module)
    module.training = model.training
    return module


def exported_program(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    seconds: float | None = None,
    constants: NumbersRead | None = None,
) -> ExportedProgram:
    """What `torch.export.export` makes of a model, without decompositions. Raises the errors of `capture`.

    `constants` says out of which buffers the code reads numbers; this is found where the capture fails without.
    """
    _check_call(model, args, kwargs)
    given = (args, dict(kwargs or {}))
    args, kwargs = apart(model, *given)
    known = ConstantBuffers(model, constants) if constants else contextlib.nullcontext()
    try:
        with _torch_silenced(), attributes_kept(model), _marks_removed((args, kwargs)), Limits(seconds), known:
            return torch.export.export(model, args, kwargs, dynamic_shapes=dynamic_shapes, strict=False)
    except (KeyboardInterrupt, MemoryError):
        raise
    except LimitError as error:
        raise LimitError(
            f"{type(model).__name__} cannot be turned into a graph: {error}{_guilty_line(error)}"
        ) from None
    except Exception as error:  # torch.export has no error tree of its own: any error is about the code of the model
        if torch.is_grad_enabled() and "modified inplace" in str(error):  # code that runs only without gradients
            with torch.no_grad():
                return exported_program(model, *given, dynamic_shapes=dynamic_shapes, seconds=seconds)
        failure = _explained(model, args, kwargs, error)
        if isinstance(failure, CaptureError) and not constants and (constants := buffers_read(model, args, kwargs)):
            log.info("%s: numbers are read out of the buffers %s", type(model).__name__, ", ".join(constants.buffers))
            return exported_program(model, *given, dynamic_shapes=dynamic_shapes, seconds=seconds, constants=constants)
        if dynamic_shapes is not None:
            exported_program(model, *given)  # raises first an error that has nothing to do with the sizes
            raise InputError(f"dynamic_shapes does not fit {type(model).__name__}: {_violations(error)}") from error
        raise failure from error


@contextlib.contextmanager
def _marks_removed(inputs: Any) -> Iterator[None]:
    """Remove from the inputs what torch.export notes on them for free sizes, and leaves there where it fails.

    The next capture with the same tensors would free these sizes again.
    """
    tensors = [leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
    before = [set(vars(tensor)) for tensor in tensors]
    try:
        yield
    finally:
        for tensor, names in zip(tensors, before, strict=True):
            for name in set(vars(tensor)) - names:
                if "dynamo" in name:
                    delattr(tensor, name)


def apart(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The inputs, with a copy in the place of each tensor that was given before or that belongs to the model.

    torch.export would make one input of both.
    """
    seen = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}

    def own(tensor: Tensor) -> Tensor:
        found = tensor.detach().clone().requires_grad_(tensor.requires_grad) if id(tensor) in seen else tensor
        seen.add(id(tensor))
        return found

    return pytree.tree_map_only(Tensor, own, (args, dict(kwargs)))  # type: ignore[no-any-return]


def check_arguments(model: object, args: object, kwargs: object) -> None:
    """Raise InputError unless `model` is a module with finite parameters, `args` a tuple and `kwargs` a mapping."""
    _check_call(model, args, kwargs)
    assert isinstance(model, nn.Module)
    if not any(True for _ in model.parameters()):
        if any(".quantized" in type(module).__module__ for module in model.modules()):
            raise InputError(f"{type(model).__name__} is quantized: prune the model first, and quantize what is left")
        raise InputError(f"{type(model).__name__} has no parameters: there is nothing to prune")


def _check_call(model: object, args: object, kwargs: object) -> None:
    if not isinstance(model, nn.Module):
        raise InputError(f"model is a {type(model).__name__}; expected a torch.nn.Module")
    if not isinstance(args, tuple):
        raise InputError(f"args is a {type(args).__name__}; expected a tuple of example inputs, such as (image,)")
    if kwargs is not None and not isinstance(kwargs, Mapping):
        raise InputError(f"kwargs is a {type(kwargs).__name__}; expected a mapping or None")
    if isinstance(model, torch.jit.ScriptModule):
        raise InputError(f"model is a ScriptModule ({type(model).__name__}); expected the model that it was made from")
    for name, parameter in model.named_parameters():
        if is_lazy(parameter) or parameter.is_meta:
            what = "has no values (device meta)" if parameter.is_meta else "is uninitialized"
            raise InputError(f"parameter {name} {what}; load weights, or run the model once, before pruning")
        _check_dense(f"parameter {name}", parameter)
    for leaf in pytree.tree_leaves((args, dict(kwargs or {}))):
        if isinstance(leaf, Tensor) and leaf.layout is not torch.sparse_coo:  # which torch.export takes
            _check_dense("an example input", leaf)
    for name, tensor in model.state_dict(keep_vars=True).items():
        if isinstance(tensor, Tensor) and tensor.is_floating_point() and not bool(tensor.detach().sum().isfinite()):
            bad = int((~tensor.detach().isfinite()).sum())
            if bad:
                raise InputError(f"{name} holds {bad} values of {tensor.numel()} that are NaN or infinite")


def _check_dense(what: str, tensor: Tensor) -> None:
    if tensor.layout is not torch.strided:
        layout = str(tensor.layout).removeprefix("torch.")
        raise InputError(f"{what} is stored as {layout}; expected a dense tensor, which its to_dense() gives")


def _explained(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None, error: Exception
) -> CaptureError | InputError:
    """The error to raise for one of `torch.export`: InputError if the model does not run either, else CaptureError."""
    line = _guilty_line(error)
    first = first_line(error)
    try:
        run_aside(model, args, kwargs or {})
    except Exception as plain:  # any error of the user's own forward
        reason = first_line(plain) if str(plain).strip() else ""
        if isinstance(plain, RecursionError):
            reason = "it calls itself without end"
        return InputError(
            f"{type(model).__name__} does not run on the example inputs "
            f"({_describe(args, kwargs)}): {type(plain).__name__}: {reason}{_guilty_line(plain)}"
        )
    return CaptureError(
        f"{type(model).__name__} cannot be turned into a graph: {first}{line}\n"
        "  Usual causes are a branch or a loop on the values of a tensor, .item(), numpy in forward, or a library "
        "call that torch.export does not know. Move that code out of forward, or prune the part before it."
    )


@contextlib.contextmanager
def _torch_silenced() -> Iterator[None]:
    """Suppress what torch logs, prints and warns of about a capture that fails.

    Its exception says the same. The log has the traceback of an operator, stderr thousands of lines of a graph.
    """
    loggers = (logging.getLogger(name) for name in logging.root.manager.loggerDict if name.startswith("torch"))
    handlers = [handler for logger in loggers for handler in logger.handlers]
    for handler in handlers:
        handler.addFilter(_is_no_error)
    try:
        with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(_is_no_error)


def _is_no_error(record: logging.LogRecord) -> bool:
    return record.levelno != logging.ERROR


def _violations(error: BaseException) -> str:
    """The reasons about sizes that an error of `torch.export` lists, or else its first line."""
    reasons = [line.strip(" -").split(". ")[0] for line in str(error).splitlines() if line.lstrip().startswith("- ")]
    hint = " (of an example of size 1 it cannot know that it may change: give one of 2 or more)"
    return "; ".join(each + hint * each.endswith("constant (1)") for each in reasons) or first_line(error)


def _guilty_line(error: BaseException) -> str:
    """The innermost line of user code in the traceback, as ' at file:line: code'; empty where there is none."""
    torch_home = str(torch.__path__[0]) + os.sep  # with the separator, or torchvision would count as torch
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith((torch_home, OURS, "<")):
            return f"\n  at {frame.filename}:{frame.lineno}: {frame.line}"
    return ""


def _describe(args: tuple[Any, ...], kwargs: Mapping[str, Any] | None) -> str:
    leaves = pytree.tree_leaves((args, dict(kwargs or {})))
    return ", ".join(_short(leaf) for leaf in leaves) or "none"


def _short(leaf: Any) -> str:
    if isinstance(leaf, Tensor):
        return str(tuple(leaf.shape))
    return repr(leaf) if isinstance(leaf, (bool, int, float, str, type(None))) else f"a {type(leaf).__name__}"


def _strip(graph: Graph) -> None:
    """Remove the nodes that only check something."""
    for node in reversed(graph.nodes):
        if node.op == "call_function" and node.target in ASSERTIONS and not node.users:
            graph.erase_node(node)


def _refuse_untraceable(graph: Graph) -> None:
    """Raise CaptureError for a size that depends on the values of a tensor, and for `torch.vmap` (it keeps a state)."""
    for node in graph.nodes:
        if str(getattr(node.target, "__module__", "")).startswith("torch._functorch"):
            raise CaptureError("forward calls torch.vmap or torch.func, whose graphs cannot be rewritten")
        for value in pytree.tree_leaves(node.meta.get("val")):
            for size in value.shape if isinstance(value, Tensor) else ():
                hint(size)
