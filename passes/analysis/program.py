"""A canonical graph as the analysis reads it: its call sites in order, each with its rule, inputs and outputs."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from torch import Tensor
from torch.fx import GraphModule, Node

from passes.graph.nodes import flat_inputs, is_projection, is_tensor, reads_elements
from passes.graph.values import Values
from passes.rules.base import Rule, Site


class Program(Values):
    """A functional graph module as a sequence of call sites.

    `rule_for` is the table of rules (`passes.rules.rule_for`).
    """

    def __init__(self, module: GraphModule, rule_for: Callable[[Node], Rule], *, inference: bool = False) -> None:
        super().__init__(module, inference=inference)
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

    @cached_property
    def fed(self) -> frozenset[Node]:
        """The nodes that are computed from elements of an input; the others are constants by construction."""
        found: set[Node] = set()
        for node in self.module.graph.nodes:
            made = node in self._calls and self._calls[node].rule.makes_constant
            if node.op == "placeholder" or (not made and not found.isdisjoint(node.all_input_nodes)):
                found.add(node)
        return frozenset(found)

    @cached_property
    def tensors(self) -> tuple[Node, ...]:
        """Every node that holds one tensor, in order."""
        return tuple(node for node in self.module.graph.nodes if is_tensor(node))
