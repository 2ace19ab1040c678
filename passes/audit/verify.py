"""Verification: run the small network and the zeroed one, and find the first node whose value differs.

The networks are equal up to the reassociation of sums. Where their outputs deviate by more than `tolerance`, rounding
may still be the reason: a `topk` that takes another element, a deep network in half precision. `first_difference`
decides it. It runs both graphs side by side in float64, node by node. Rounding then stays far below the tolerance, and
a larger deviation is an error of the node that it is found at.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.node import map_aggregate
from torch.nn.modules.dropout import _DropoutNd
from torch.utils import _pytree as pytree

from passes.assignment.plan import LayoutPlan
from passes.audit.comparison import TOLERANCE, ComparedLeaf, Comparison, compare, compared_tensors
from passes.graph.layout import Layout
from passes.graph.modes import DROPOUTS
from passes.rewriting.rewriter import Rewritten


@dataclass(frozen=True)
class Difference:
    """A value that the small network computes wrongly.

    `node` is the node of the original graph, `operator` what it calls, `deviation` the relative deviation, `source` the
    line of the model (None if it was not recorded).
    """

    node: str
    operator: str
    deviation: float
    source: str | None = None

    def __str__(self) -> str:
        where = f"\n  {self.source}" if self.source else ""
        return f"{self.node} ({self.operator}), which deviates by {self.deviation:.3g}{where}"


def first_difference(
    plan: LayoutPlan, rewritten: Rewritten, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None
) -> Difference | None:
    """The first node whose value the small network computes wrongly, in float64; None if there is none.

    Compared are the elements that the small network holds and that some output depends on. Neither module is changed,
    and a value is kept only until its last reader ran. Raises RuntimeError where an operator does not accept float64.
    """
    inputs = (args, dict(kwargs or {}))
    old_of = {new: old for old, new in rewritten.values.items()}
    waiting: dict[str, Any] = {}
    original = _Run(plan.program.module, inputs).values()
    for node, value in _Run(rewritten.module, inputs).values():
        name = "output" if node.op == "output" else old_of.get(node.name)
        if name is None:
            continue
        while name not in waiting:
            old, found = next(original)
            if old.op == "output" or old.name in rewritten.values:
                waiting["output" if old.op == "output" else old.name] = (old, found)
        old, found = waiting.pop(name)
        held = compare(found, value) if name == "output" else _held(plan, old, found, value)
        if not held.within(TOLERANCE[torch.float64]):
            return Difference(old.name, str(old.target), held.deviation, source_line(old))
    return None


def _held(plan: LayoutPlan, old: Node, value: Any, held: Any) -> Comparison | ComparedLeaf:
    """Those elements of an original value compared that the small network holds and that are needed."""
    if not isinstance(value, Tensor) or not isinstance(held, Tensor):
        return ComparedLeaf(old.name, 0.0 if type(value) is type(held) else float("inf"))
    layout = plan.layout[old]
    expected = _elements(value, layout)
    needed = plan.facts.needed.get(old)
    if needed is None or expected.shape != held.shape:
        return compared_tensors(expected, held)
    compared = _elements(needed.to(value.device).expand(value.shape), layout)
    return compared_tensors(torch.where(compared, expected, 0), torch.where(compared, held, 0))


def _elements(value: Tensor, layout: Layout) -> Tensor:
    """The elements of an original value that a layout keeps, in the shape of the small network."""
    if not layout.axes:
        return value
    index = []
    for axis, size in enumerate(value.shape):
        if axis in layout.axes:
            index.append(layout.coordinate(axis).to(value.device))
        else:
            index.append(
                torch.arange(size, device=value.device).view([-1 if a == axis else 1 for a in range(value.dim())])
            )
    return value[tuple(index)]


def source_line(node: Node) -> str | None:
    """The line of the model's own code that made a node, and its module; None where neither was recorded."""
    trace = str(node.meta.get("stack_trace") or "")
    frames = re.findall(r'File "([^"]+)", line (\d+), in .*\n\s*(.*)', trace)
    own = [frame for frame in frames if not frame[0].startswith(str(torch.__path__[0]))] or frames
    modules = list((node.meta.get("nn_module_stack") or {}).values())
    parts = [f"in {modules[-1][0]}"] if modules and modules[-1][0] else []
    parts += ["at {}:{}: {}".format(*own[-1])] if own else []
    return " ".join(parts) or None


def run_graph(module: GraphModule, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, doubled: bool = False) -> Any:
    """The outputs of a graph, flat and without dropout, with `doubled` in float64. The module is not changed."""
    return [value for _, value in _Run(module, (args, dict(kwargs)), doubled=doubled).values()][-1]


def drops_out(module: GraphModule) -> bool:
    """Whether a captured graph calls dropout in training mode, so that no two runs of the model agree."""
    return any(node.target in DROPOUTS and node.args[2] for node in module.graph.nodes)


class _Run(Interpreter):
    """Runs a graph and yields the value of each node in turn; a value is kept only until its last reader ran.

    With `doubled` everything is computed in float64. Dropout is left out. Other random numbers are those that the graph
    would draw if it ran alone, so that two runs side by side draw the same.
    """

    def __init__(self, module: GraphModule, inputs: Any, *, doubled: bool = True) -> None:
        super().__init__(module)
        self.doubled = doubled
        self.random = torch.random.get_rng_state()
        self.args_iter = iter([self._copy(leaf) for leaf in _in_order(module, *inputs)])

    def values(self) -> Iterator[tuple[Node, Any]]:
        """Each node with its value, in the order of the graph."""
        for node in self.graph.nodes:
            with torch.no_grad():
                value = self.run_node(node)
            self.env[node] = value
            yield node, value
            for unread in self.user_to_last_uses.get(node, []):
                del self.env[unread]

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self._copy(super().get_attr(target, args, kwargs))  # a batch norm in training writes its statistics

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target in DROPOUTS:
            return args[0]
        default, random = torch.get_default_dtype(), torch.random.get_rng_state()
        torch.random.set_rng_state(self.random)
        if self.doubled:
            torch.set_default_dtype(torch.float64)
            args, kwargs = map_aggregate(args, _doubled), map_aggregate(kwargs, _doubled)
        try:
            return super().call_function(target, args, kwargs)
        finally:
            torch.set_default_dtype(default)
            self.random = torch.random.get_rng_state()
            torch.random.set_rng_state(random)

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        module = copy.deepcopy(self.fetch_attr(target))
        if isinstance(module, _DropoutNd):
            return args[0]
        return (module.double() if self.doubled else module)(*args, **kwargs)

    def _copy(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        return value.detach().to(_doubled(value.dtype) if self.doubled else value.dtype, copy=True)


def _in_order(module: GraphModule, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Any]:
    """The leaves of a call in the order of the graph's inputs, which is that of the keywords at its capture."""
    info = getattr(module.graph._codegen, "pytree_info", None)
    names = list(info.in_spec.child(1).context or ()) if kwargs and info is not None else []
    ordered = {name: kwargs[name] for name in names} if set(names) == set(kwargs) else kwargs
    return pytree.tree_leaves((args, dict(ordered)))


def _doubled(argument: Any) -> Any:
    """An argument of a call; any floating-point dtype becomes float64."""
    is_float = isinstance(argument, torch.dtype) and argument.is_floating_point
    return torch.float64 if is_float else argument
