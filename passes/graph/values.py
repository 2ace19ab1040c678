"""Values: shapes, sizes, parameters and constants of a canonical graph."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from passes.graph.nodes import attribute, hint, is_tensor


class Values:
    """What is known of the values of a graph module, whose nodes have example values in `meta["val"]`."""

    def __init__(self, module: GraphModule, *, inference: bool = False) -> None:
        self.module = module
        self.inference = inference
        """The network is for evaluation alone: batch norms use their running statistics, nothing is dropped."""
        self._shapes: dict[Node, tuple[int, ...]] = {}
        self._connections: dict[str, Tensor | None] = {}

    def connections(self, weight: Node) -> Tensor | None:
        """Which pairs (first axis, second axis) of a weight have a nonzero entry; bool. None if no entry is zero."""
        name = str(weight.target)
        if name not in self._connections:
            tensor = self.tensor(weight)
            if int(torch.count_nonzero(tensor)) == tensor.numel():  # three times faster than comparing first
                self._connections[name] = None
            else:
                nonzero = tensor != 0
                self._connections[name] = (nonzero.flatten(2).any(-1) if nonzero.dim() > 2 else nonzero).cpu()
        return self._connections[name]

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
        """For each axis its length, or the (input, axis) with the same symbolic length; None if an axis has neither."""
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
        """The (input, axis) at which each symbolic length can be read, by its expression."""
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

    def is_trained(self, node: Node) -> bool:
        """Whether the node is a parameter that has gradients."""
        value = attribute(self.module, str(node.target)) if node.op == "get_attr" else None
        return isinstance(value, torch.nn.Parameter) and value.requires_grad

    def constant(self, node: Node) -> Tensor | None:
        """The value of a node that depends on buffers and literals alone; None for any other node."""
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
        """An argument with the example value in the place of each size; tensors stay nodes."""

        def read(node: Node) -> Any:
            value = node.meta.get("val")
            return hint(value) if isinstance(value, (int, torch.SymInt)) else node

        return map_arg(argument, read)
