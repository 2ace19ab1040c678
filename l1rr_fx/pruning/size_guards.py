"""Size guards: what capture assumed of the sizes of inputs, checked at the start of the small network."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterator
from functools import reduce
from typing import Any

import sympy  # type: ignore[import-untyped]  # comes with torch, without types
import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node

aten = torch.ops.aten

OPERATORS_INSIDE = tuple(
    os.path.join(torch.__path__[0], part)
    for part in ("_ops.py", "_subclasses", "_prims", "_refs", "_meta_registrations.py", "_decomp")
)

OPERATORS: dict[str, Callable[..., Any]] = {
    "Add": operator.add,
    "Mul": operator.mul,
    "Mod": operator.mod,
    "PythonMod": operator.mod,
    "FloorDiv": operator.floordiv,
    "CleanDiv": operator.floordiv,
    "Equality": operator.eq,
    "Unequality": operator.ne,
    "StrictLessThan": operator.lt,
    "LessThan": operator.le,
    "StrictGreaterThan": operator.gt,
    "GreaterThan": operator.ge,
    "And": operator.and_,
    "Or": operator.or_,
}
"""The function that stands in a graph for a class of sympy or of torch's size arithmetic, for two arguments each."""


def assumptions(environment: Any) -> Iterator[Any]:
    """What capture assumed of free sizes, as sympy conditions.

    Operators ask whether a size is 1 to choose strides; the general way that they take otherwise serves a size of 1 as
    well, so such a condition is left out. A condition that the model's own code asks is always returned.
    """
    for guard in environment.guards:
        condition = environment.replace(guard.expr)
        inside = str(getattr(guard.sloc.framework_loc, "filename", "")).startswith(OPERATORS_INSIDE)
        if not (inside and isinstance(condition, (sympy.Ne, sympy.StrictLessThan)) and 1 in condition.args):
            yield condition


def check_sizes(module: GraphModule, captured: GraphModule) -> tuple[str, ...]:
    """Add guards to `module`, in place: it raises RuntimeError for sizes of inputs that `captured` does not serve.

    `captured` is the graph that `module` was compiled from. Returns the conditions that cannot be written as a graph
    and are not checked.
    """
    given = [node for node in module.graph.nodes if node.op == "placeholder"]
    values = [node.meta.get("val") for node in captured.graph.nodes if node.op == "placeholder"]
    checks = _Checks(module.graph)
    if not given:
        return ()
    with module.graph.inserting_before(given[-1].next):
        for node, value in zip(given, values, strict=True):
            if isinstance(value, Tensor):
                checks.read(node, value)
        checks.write()
    module.graph.eliminate_dead_code()
    module.recompile()
    return tuple(checks.unwritten)


class _Checks:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.known: dict[Any, Node] = {}  # the symbols, each where it is read first
        self.names: dict[Any, Any] = {}
        self.fixed: list[tuple[Node, str, Any]] = []
        self.conditions: dict[Any, None] = {}
        self.unwritten: list[str] = []

    def read(self, node: Node, value: Tensor) -> None:
        """The sizes of an input."""
        sizes: tuple[Any, ...] = tuple(value.shape)
        for axis, size in enumerate(sizes):
            found = self.graph.call_function(aten.sym_size.int, (node, axis))
            expression = size.node.expr if isinstance(size, torch.SymInt) else sympy.Integer(size)
            name = f"{node.name}.shape[{axis}]"
            if not isinstance(expression, sympy.Symbol) or expression in self.known:
                self.fixed.append((found, name, expression))
                continue
            self.known[expression], self.names[expression] = found, sympy.Symbol(name)
            environment = size.node.shape_env
            limits = environment.var_to_range[expression]
            if isinstance(limits.upper, sympy.Integer):
                self.conditions[sympy.Le(expression, limits.upper)] = None
            if limits.lower > 2:  # 0 and 1 are distinguished where it matters
                self.conditions[sympy.Ge(expression, limits.lower)] = None
            self.conditions.update(dict.fromkeys(assumptions(environment)))

    def write(self) -> None:
        for found, name, expression in self.fixed:
            wanted = f"{name} is not {expression.subs(self.names)}, which the network was captured for"
            self._assert(expression, f"{wanted}; dynamic_shapes names what may change", equal_to=found)
        for condition in self.conditions:
            if condition not in (sympy.true, True):
                wanted = f"the network was captured for inputs with {condition.subs(self.names)}"
                self._assert(condition, f"{wanted}; prune it with an example like these")

    def _assert(self, expression: Any, message: str, equal_to: Node | None = None) -> None:
        try:
            condition = self._written(expression)
        except KeyError:
            self.unwritten.append(message)
            return
        if equal_to is not None:
            condition = self._call(operator.eq, equal_to, condition)
        self._call(aten._assert_scalar.default, condition, message)

    def _written(self, expression: Any) -> Any:
        """A sympy expression as nodes; KeyError if it holds what cannot be written."""
        if isinstance(expression, sympy.Integer):
            return int(expression)
        if isinstance(expression, sympy.Symbol):
            return self.known[expression]
        if isinstance(expression, sympy.Not):
            return self._call(operator.not_, self._written(expression.args[0]))
        if isinstance(expression, sympy.Pow) and expression.exp.is_Integer and expression.exp > 0:
            return self._call(operator.pow, self._written(expression.base), int(expression.exp))
        target = OPERATORS[type(expression).__name__]
        return reduce(lambda a, b: self._call(target, a, b), map(self._written, expression.args))

    def _call(self, target: Any, *args: Any) -> Node:
        return self.graph.call_function(target, args)
