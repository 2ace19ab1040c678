"""A captured graph as the analysis reads it: one `Site` an operator call, with its rule, its inputs and its outputs."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from passes.graph.nodes import attribute, hint

if TYPE_CHECKING:
    from passes.rules.base import Rule


def is_tensor(node: Node) -> bool:
    """Whether the node's value is one tensor (not a list of them, not a size)."""
    return isinstance(node.meta.get("val"), Tensor)


def is_projection(node: Node) -> bool:
    """Whether the node takes one tensor out of an operator's list of results."""
    return node.target is operator.getitem and is_tensor(node)


def reads_elements(node: Node) -> bool:
    """Whether the node makes a number out of a tensor's elements (not of its shape)."""
    value = node.meta.get("val")
    return not isinstance(value, (Tensor, list, tuple)) and node.target is not torch.ops.aten.sym_size.int


def flat_inputs(node: Node) -> tuple[Node, ...]:
    """Every tensor that the call reads, in the order of its arguments, repeated where it is read twice."""
    found: list[Node] = []

    def visit(argument: Node) -> Node:
        if is_tensor(argument):
            found.append(argument)
        return argument

    map_arg((node.args, node.kwargs), visit)
    return tuple(found)


@dataclass(eq=False)
class Site:
    """One operator call. `inputs` are the tensors that carry facts; `parameters` those that the rule slices itself."""

    program: Program
    node: Node
    rule: Rule
    inputs: tuple[Node, ...]
    outputs: tuple[Node | None, ...]
    parameters: tuple[Node, ...]
    memo: dict[str, Any] = field(default_factory=dict)

    def shape(self, node: Node) -> tuple[int, ...]:
        """The original full shape of a tensor."""
        return self.program.shape(node)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """The original full shape of the first result that is used."""
        return self.program.shape(next(out for out in self.outputs if out is not None))

    def argument(self, index: int, name: str, default: Any = None) -> Any:
        """An argument of the call, given by position or by name; sizes are read at the example input."""
        node = self.node
        value = node.args[index] if index < len(node.args) else node.kwargs.get(name, default)
        return self.program.concrete(value)

    def __str__(self) -> str:
        return f"{self.node.name} = {self.node.target}({', '.join(a.name for a in self.node.all_input_nodes)})"


class Program:
    """A functional graph module with its sites in order, its shapes, and the values of its constants.

    `rule_for` is the table of rules (`passes.rules.rule_for`).
    """

    def __init__(self, module: GraphModule, rule_for: Callable[[Node], Rule]) -> None:
        self.module = module
        self._shapes: dict[Node, tuple[int, ...]] = {}
        self._connections: dict[str, Tensor | None] = {}
        self.sites: list[Site] = []
        self.at: dict[Node, Site] = {}
        self._calls: dict[Node, Site] = {}
        for node in module.graph.nodes:
            if node.op == "call_function" and not is_projection(node) and self._carries_tensors(node):
                self._add(node, rule_for(node))
        self.output = next(node for node in module.graph.nodes if node.op == "output")

    @staticmethod
    def _carries_tensors(node: Node) -> bool:
        value = node.meta.get("val")
        return isinstance(value, Tensor) or (
            isinstance(value, (list, tuple)) and any(isinstance(part, Tensor) for part in value)
        )

    def _add(self, node: Node, rule: Rule) -> None:
        parameters = tuple(p for p in rule.parameters(node) if p is not None and p.op == "get_attr")
        sliced = set(parameters)
        inputs = tuple(n for n in flat_inputs(node) if n not in sliced)
        site = Site(self, node, rule, inputs, self._outputs(node), parameters)
        self.sites.append(site)
        self._calls[node] = site
        for out in site.outputs:
            if out is not None:
                self.at[out] = site

    @staticmethod
    def _outputs(node: Node) -> tuple[Node | None, ...]:
        value = node.meta["val"]
        if isinstance(value, Tensor):
            return (node,)
        found: list[Node | None] = [None] * len(value)
        for user in node.users:
            if is_projection(user):
                index = user.args[1]
                assert isinstance(index, int)
                found[index] = user
        return tuple(found)

    def at_call(self, node: Node) -> Site | None:
        """The site of an operator call."""
        return self._calls.get(node)

    @cached_property
    def output_tensors(self) -> tuple[Node, ...]:
        """The tensors that the network returns."""
        return tuple(dict.fromkeys(flat_inputs(self.output)))

    @cached_property
    def read_as_numbers(self) -> tuple[Node, ...]:
        """The tensors whose elements become numbers of the program (`item`)."""
        return tuple(
            argument
            for node in self.module.graph.nodes
            if node.op == "call_function" and reads_elements(node)
            for argument in node.all_input_nodes
            if is_tensor(argument)
        )

    def connections(self, weight: Node) -> Tensor | None:
        """Which pairs (first axis, second axis) of a weight have an entry that is not zero; bool. None if all have."""
        name = str(weight.target)
        if name not in self._connections:
            tensor = self.tensor(weight)
            if int(torch.count_nonzero(tensor)) == tensor.numel():  # three times faster than comparing first
                self._connections[name] = None
            else:
                nonzero = tensor != 0
                self._connections[name] = (nonzero.flatten(2).any(-1) if nonzero.dim() > 2 else nonzero).cpu()
        return self._connections[name]

    @cached_property
    def values(self) -> tuple[Node, ...]:
        """Every node that holds one tensor, in order."""
        return tuple(node for node in self.module.graph.nodes if is_tensor(node))

    def shape(self, node: Node) -> tuple[int, ...]:
        """The original full shape of a node's tensor."""
        shape = self._shapes.get(node)
        if shape is None:
            shape = self._shapes[node] = tuple(hint(n) for n in node.meta["val"].shape)
        return shape

    def is_static(self, node: Node, axis: int) -> bool:
        """Whether the length of the axis is the same for every input."""
        return not isinstance(node.meta["val"].shape[axis], torch.SymInt)

    def size_sources(self, node: Node) -> list[int | tuple[Node, int]] | None:
        """For each axis of a tensor its length, or the (input, axis) that it always equals; None if it is neither."""
        found: list[int | tuple[Node, int]] = []
        for size in node.meta["val"].shape:
            if not isinstance(size, torch.SymInt):
                found.append(int(size))
                continue
            source = self._symbols.get(str(size.node.expr))
            if source is None:
                return None
            found.append(source)
        return found

    @cached_property
    def _symbols(self) -> dict[str, tuple[Node, int]]:
        """Where each symbolic length of the inputs can be read."""
        found: dict[str, tuple[Node, int]] = {}
        for node in self.module.graph.nodes:
            if node.op == "placeholder" and is_tensor(node):
                for axis, size in enumerate(node.meta["val"].shape):
                    if isinstance(size, torch.SymInt):
                        found.setdefault(str(size.node.expr), (node, axis))
        return found

    def tensor(self, node: Node) -> Tensor:
        """The value of a parameter or buffer."""
        value = attribute(self.module, str(node.target))
        assert isinstance(value, Tensor)
        return value.detach()

    def constant(self, node: Node) -> Tensor | None:
        """The value of a node that depends on buffers alone, computed now; None if it depends on anything else."""
        if node.op == "get_attr":
            value = attribute(self.module, str(node.target))
            return None if isinstance(value, torch.nn.Parameter) else value.detach()
        if node.op != "call_function" or not is_tensor(node):
            return None
        known: dict[Node, Any] = {}
        for argument in node.all_input_nodes:
            value = self.constant(argument) if is_tensor(argument) else self._size(argument)
            if value is None:
                return None
            known[argument] = value
        if any(isinstance(n, torch.SymInt) for n in node.meta["val"].shape):
            return None
        result = node.target(*map_arg(node.args, known.__getitem__), **map_arg(node.kwargs, known.__getitem__))  # type: ignore[operator]
        return result if isinstance(result, Tensor) else None

    def _size(self, node: Node) -> Any:
        value = node.meta.get("val")
        return value if isinstance(value, (bool, int, float)) else None

    def concrete(self, argument: Any) -> Any:
        """An argument with every symbolic size replaced by its value at the example input; tensors stay nodes."""

        def read(node: Node) -> Any:
            value = node.meta.get("val")
            return hint(value) if isinstance(value, (int, torch.SymInt)) else node

        return map_arg(argument, read)
