"""Decomposition: torch's composite implementation replaces an operator without a rule, if all of its calls have one.

`x.tile(1, 2)` becomes a `repeat`, `expand_as` an `expand`, `__and__` a `bitwise_and`. An operator stays whole if it
would unroll into many calls (recurrent layers), or if it does something else in training.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._decomp import decomposition_table
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import Graph, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext
from torch.fx.node import map_arg

from passes.graph.nodes import hint, is_tensor

aten = torch.ops.aten

MAX_CALLS = 12
"""An implementation with more calls is not put in the place of one."""

NOT_COMPOSITE = (aten.addmm, aten.addmv, aten.addcmul, aten.addcdiv, aten.baddbmm, aten.rsub)
"""Operators with a kernel of their own that sums and products can replace."""


def take_apart(graph: Graph, node: Node, is_known: Callable[[Node], bool]) -> None:
    """Replace a call that is not known by the calls of its composite implementation, if all of these are known."""
    implementation = _implementation(node, is_known)
    parts = None if implementation is None else _traced(node, implementation)
    if parts is None:
        return
    calls = [each for each in parts.nodes if each.op not in ("placeholder", "output")]
    result = parts.output_node().args[0]
    if len(calls) <= MAX_CALLS and isinstance(result, Node) and all(_is_plain(each, is_known) for each in calls):
        _inline(graph, node, parts, calls, result)


def _traced(node: Node, implementation: Callable[..., Any]) -> Graph | None:
    """The graph of an implementation for the arguments of a call; its placeholders are the inputs of the call.

    None where torch cannot trace it, and where it holds only for the sizes of the example.
    """
    inputs = node.all_input_nodes
    stand_ins = _stand_ins([n.meta["val"] for n in inputs])
    if stand_ins is None:
        return None
    values, environment = stand_ins

    def composite(*values: Any) -> Any:
        given = dict(zip(inputs, values, strict=True))
        args, kwargs = map_arg((node.args, node.kwargs), lambda n: given[n])
        return implementation(*args, **kwargs)

    try:
        with _quiet():
            traced: Graph = make_fx(composite)(*values).graph
    except (RuntimeError, NotImplementedError, TypeError, ValueError, AssertionError):  # torch cannot take it apart
        return None
    return None if environment.replacements else traced


def _inline(graph: Graph, node: Node, parts: Graph, calls: Sequence[Node], result: Node) -> None:
    """Replace a call by copies of `calls`, the calls of `parts`, without those that multiply by 1."""
    placeholders = parts.find_nodes(op="placeholder")
    outer = dict(zip(placeholders, node.all_input_nodes, strict=True))
    for each in calls:
        if _is_idle(each):
            outer[each] = outer[each.args[0]]
            continue
        outer[each] = graph.node_copy(each, lambda inner: outer[inner])
        args, kwargs = map_arg((outer[each].args, outer[each].kwargs), lambda n: n.meta["val"])
        outer[each].meta = {**node.meta, "val": outer[each].target(*args, **kwargs)}
    node.replace_all_uses_with(outer[result])
    graph.erase_node(node)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the log of fake tensors, which has a traceback for every operator without a shape function."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


def _stand_ins(values: Sequence[Any]) -> tuple[list[Any], ShapeEnv] | None:
    """Fake tensors like the given ones, with symbolic sizes of their own, and the environment of these sizes.

    The environment alone records what an implementation assumes of a size. None where a value is a symbolic size.
    """
    environment = ShapeEnv()
    mode = FakeTensorMode(shape_env=environment)
    found: list[Any] = []
    for value in values:
        if isinstance(value, torch.SymInt):
            return None
        if not isinstance(value, Tensor):
            found.append(value)
            continue
        sizes: Sequence[Any] = value.shape
        kinds = [DimDynamic.DUCK if isinstance(n, torch.SymInt) else DimDynamic.STATIC for n in sizes]
        like = torch.empty([hint(n) for n in sizes], dtype=value.dtype, device=value.device)
        found.append(mode.from_tensor(like, symbolic_context=StatelessSymbolicContext(dynamic_sizes=kinds)))
    return found, environment


def _implementation(node: Node, is_known: Callable[[Node], bool]) -> Callable[..., Any] | None:
    """A function that computes the result of a call with other operators; None where the call stays as it is."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or target.namespace != "aten" or not is_tensor(node):
        return None
    if target.overloadpacket in NOT_COMPOSITE:
        return decomposition_table.get(target)
    if is_known(node) or any(argument.name in ("train", "training") for argument in target._schema.arguments):
        return None
    return target.decompose if target._can_decompose() else None


def _is_plain(node: Node, is_known: Callable[[Node], bool]) -> bool:
    """Whether the node calls a known operator or reads a size."""
    return node.op == "call_function" and (is_known(node) or node.target is aten.sym_size.int)


def _is_idle(node: Node) -> bool:
    """Whether the call is x * 1: implementations multiply by `alpha` and `beta` even where these are 1."""
    if node.target is not aten.mul.Tensor or node.args[1] not in (1, 1.0):
        return False
    factor = node.args[0]
    return isinstance(factor, Node) and bool(factor.meta["val"].dtype == node.meta["val"].dtype)
