"""New values of parameters and new parameters, in a module that shares the old ones with the user's model."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from passes.analysis.program import Program
from passes.graph.nodes import ADDED, FIXED, attribute, free_name, free_names, is_tensor, place_tensor

EVEN = "_even"
"""What the name of a weight ends in that has columns of the weight with the rest of the name."""


class Edits:
    """Changes of a graph module's tensors. The old tensors, which the user's model holds too, are left alone."""

    def __init__(self, module: GraphModule) -> None:
        self.module = module
        self.created: dict[str, str] = {}
        self._own: set[int] = set()
        self._twins: dict[int, list[str]] = {}
        tensors = (*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False))
        for name, tensor in tensors:
            self._twins.setdefault(id(tensor), []).append(name)
        self._buffers = free_names(module, "_constant")

    def names(self, name: str) -> list[str]:
        """All names of a tensor."""
        return self._twins.get(id(attribute(self.module, name)), [name])

    def tensor(self, name: str) -> Tensor:
        """A parameter or buffer as it is now, to be read."""
        value: Tensor = attribute(self.module, name).detach()
        return value

    def value(self, name: str) -> Tensor:
        """A parameter or buffer as a tensor that may be changed in place."""
        old = attribute(self.module, name)
        if id(old) not in self._own:
            data = old.detach().clone()
            new = nn.Parameter(data, old.requires_grad) if isinstance(old, nn.Parameter) else data
            names = self.names(name)
            for each in names:
                place_tensor(self.module, each, new)
            self._own.add(id(new))
            self._twins[id(new)] = names
            old = new
        value: Tensor = old.detach()
        return value

    def new_bias(self, weight: Node, size: int) -> Node:
        """A bias of zeros beside a weight, as a node before the weight's first reader."""
        name = free_name(self.module, ".".join((*str(weight.target).split(".")[:-1], "bias")))
        like = attribute(self.module, str(weight.target))
        zeros = torch.zeros(size, dtype=like.dtype, device=like.device)
        trained = isinstance(like, nn.Parameter)  # beside a constant weight the bias is a constant
        place_tensor(self.module, name, nn.Parameter(zeros, like.requires_grad) if trained else zeros)
        self.created[name] = str(weight.target)
        self._own.add(id(attribute(self.module, name)))
        return self._node(weight, name, weight.meta["val"].new_empty((size,)))

    def new_columns(self, weight: Node, columns: Tensor) -> Node:
        """A weight that has these columns of another one and zeros elsewhere, as a node before its first reader."""
        old = attribute(self.module, str(weight.target))
        name = free_name(self.module, f"{weight.target}{EVEN}")
        data = torch.where(columns.view(1, -1, *[1] * (old.dim() - 2)), old.detach(), 0.0)
        place_tensor(
            self.module, name, nn.Parameter(data, old.requires_grad) if isinstance(old, nn.Parameter) else data
        )
        self._own.add(id(attribute(self.module, name)))
        return self._node(weight, name, weight.meta["val"].new_empty(tuple(data.shape)))

    def new_buffer(self, like: Node, value: Tensor, *, before: Node) -> Node:
        """A constant in the dtype and on the device of a node's value, as a node before another."""
        example = like.meta["val"]
        name = next(self._buffers)
        place_tensor(self.module, name, value.to(example.device, example.dtype))
        node = self._node(before, name, example.new_empty(tuple(value.shape)))
        node.meta[FIXED] = True
        return node

    @staticmethod
    def _node(before: Node, name: str, example: Tensor) -> Node:
        with before.graph.inserting_before(before):
            node = before.graph.get_attr(name)
        node.meta["val"], node.meta[ADDED] = example, True
        return node


def tensor_readers(program: Program) -> dict[str, frozenset[Node]]:
    """By the name of a parameter or buffer: the nodes that read it, under any of its names."""
    users: dict[int, set[Node]] = {}
    address: dict[str, int] = {}
    for node in program.module.graph.nodes:
        if node.op == "get_attr" and is_tensor(node):
            place = address[str(node.target)] = program.tensor(node).data_ptr()
            users.setdefault(place, set()).update(node.users)
    return {name: frozenset(users[place]) for name, place in address.items()}
