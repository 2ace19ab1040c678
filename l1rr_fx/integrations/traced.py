"""Graphs that Dynamo made, as the compiler reads them: ATen operators, and weights as attributes."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx import Graph, GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.node import map_arg

from passes.errors import CaptureError
from passes.frontend.functionalise import functionalise_graph, viewed, writes
from passes.graph.nodes import attribute, place_tensor

aten = torch.ops.aten

STATISTICS = {aten.batch_norm.default: 5, aten.instance_norm.default: 5}
"""Operators that update running statistics without saying so in their schema, and where they have the switch."""

STATIC, NUMBER = "_dynamo_static_input_type", "pass_arg_as_tensor"
"""What Dynamo notes at a placeholder for a tensor that a module holds, and for a float that comes in as a tensor."""


@dataclass(frozen=True, eq=False)
class DynamoGraph:
    """A graph module that Dynamo made, and what its inputs are.

    Weights (parameters, buffers, tensors that a module holds) come as attributes or as inputs, by Dynamo's settings:
    `attributes` names the former, `weights` are the positions of the latter. `numbers` are the positions of floats
    that may change, which Dynamo passes as tensors. All other inputs are those of the call.
    """

    module: GraphModule
    attributes: tuple[str, ...]
    weights: tuple[int, ...]
    numbers: tuple[int, ...]

    @classmethod
    def of(cls, module: GraphModule) -> DynamoGraph:
        """What Dynamo noted at the graph's placeholders."""
        inputs = module.graph.find_nodes(op="placeholder")
        static = [n for n, node in enumerate(inputs) if node.meta.get("tensor_dict", {}).get(STATIC)]
        numbers = [n for n, node in enumerate(inputs) if getattr(node.meta.get("grapharg"), NUMBER, False)]
        held = dict([*module.named_parameters(), *module.named_buffers()])
        return cls(module, tuple(held), tuple(static), tuple(numbers))

    def tensors(self, inputs: Sequence[Any]) -> list[Tensor]:
        """The weights at a call."""
        held = [attribute(self.module, name) for name in self.attributes]
        return [*held, *(inputs[n] for n in self.weights)] if held else [inputs[n] for n in self.weights]

    def values(self, inputs: Sequence[Any]) -> tuple[float, ...]:
        """The floats at a call."""
        return tuple(float(inputs[n]) for n in self.numbers)

    @functools.cached_property
    def others(self) -> tuple[int, ...]:
        """The positions of the inputs that are no weights."""
        weights = {*self.weights}
        return tuple(n for n in range(len(self.module.graph.find_nodes(op="placeholder"))) if n not in weights)

    @functools.cached_property
    def names(self) -> tuple[str, ...]:
        """A name for each weight, in the order of `tensors`."""
        inputs = self.module.graph.find_nodes(op="placeholder")
        return (*self.attributes, *(inputs[n].name for n in self.weights))

    def captured(self, inputs: Sequence[Any]) -> GraphModule:
        """The graph as `passes.capture` would give it, with the weights of these inputs, and their floats written out.

        Its placeholders are the inputs that are no weights. Dynamo has followed the model's own code already, so this
        takes a quarter of the time of a capture; and sizes that may change keep Dynamo's symbols, so that its guards
        hold for the result. Raises CaptureError for a graph that writes into one of its inputs or switches autocast on.
        """
        tensors = dict(zip(self.names, self.tensors(inputs), strict=True))
        return with_weights(self._traced(self.values(inputs)), tensors)

    def _traced(self, values: tuple[float, ...]) -> GraphModule:
        nodes = self.module.graph.find_nodes(op="placeholder")
        fakes = [node.meta.get("example_value") for node in nodes]
        mode = torch._guards.detect_fake_mode(fakes)
        if mode is None or None in fakes:
            raise CaptureError("its inputs have no example values: it was not made by torch.compile")
        module = copied_graph(self.module, dict(zip((nodes[n] for n in self.numbers), values, strict=True)))
        held = [mode.from_tensor(attribute(self.module, name), static_shapes=True) for name in self.attributes]
        order = (*self.weights, *self.others)

        def run(*given: Any) -> Any:
            inputs = dict(zip(order, given[len(held) :], strict=True))
            attributes = dict(zip(self.attributes, given, strict=False))
            return functional_call(module, attributes, tuple(inputs[n] for n in range(len(order))))

        with mode, torch.no_grad():
            # pre-dispatch, so that batch norms, chunks and products stay whole
            traced = make_fx(run, pre_dispatch=True, tracing_mode="fake")(*held, *(fakes[n] for n in order))
        refuse_effects(traced)
        functionalise_graph(traced.graph)
        return traced


def copied_graph(module: GraphModule, numbers: Mapping[Node, float] | None = None) -> GraphModule:
    """A module with a copy of the graph and the same tensors, with floats that come in as tensors written out.

    It is a plain one: torch.compile does not look into the lazy ones that Dynamo makes.
    """
    known = numbers or {}
    graph = Graph()
    new: dict[Node, Any] = {}
    for node in module.graph.nodes:
        read = node.op == "call_method" and node.target == "item" and node.args[0] in known
        new[node] = known[node.args[0]] if read else graph.node_copy(node, new.__getitem__)
    return GraphModule(module, graph)


def refuse_effects(traced: GraphModule) -> None:
    """Raise CaptureError for what a pruned copy could not do: write into an input, switch autocast on."""
    for node in traced.graph.nodes:
        switch = STATISTICS.get(node.target)
        if switch is not None and node.args[switch] and isinstance(node.args[3], Node):
            raise CaptureError(f"{node.name} updates its running statistics: the module is in training mode")
        if writes(node) and _owner(node.args[0]).op in ("placeholder", "get_attr"):
            raise CaptureError(f"{node.target} writes into an input or a buffer (is the module in training mode?)")
        if node.target is torch.amp.autocast_mode._enter_autocast:
            raise CaptureError("forward switches autocast on: put it around the call instead")


def _owner(node: Any) -> Node:
    """The node that owns the memory that this one looks at."""
    while (base := node.args[0] if writes(node) else viewed(node)) is not None:
        node = base
    assert isinstance(node, Node)
    return node


def with_weights(traced: GraphModule, tensors: Mapping[str, Tensor]) -> GraphModule:
    """The module with its first placeholders made attributes under these names."""
    root = nn.Module()
    for name, tensor in (*traced.named_parameters(), *traced.named_buffers()):
        place_tensor(root, name, tensor)
    for name, child in traced.named_children():
        root.add_module(name, child)
    graph = Graph()
    new: dict[Node, Node] = {}
    names = iter(tensors)
    for node in traced.graph.nodes:
        held = next(names, None) if node.op == "placeholder" else None
        if held is not None:
            place_tensor(root, held, tensors[held])
            new[node] = graph.get_attr(held)
            new[node].meta = dict(node.meta)
        elif node.op == "output":
            graph.output(map_arg(node.args[0], new.__getitem__))
        else:
            new[node] = graph.node_copy(node, new.__getitem__)
    return GraphModule(root, graph)
