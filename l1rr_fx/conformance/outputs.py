"""Which layers make the outputs of a network: a pruner must leave these their width."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from l1rr_fx.testing.zeros import CONTRACTIONS
from passes.audit.leaves import leaves_of


def output_layers(model: nn.Module, args: tuple[Any, ...]) -> frozenset[str]:
    """The names of the convolutions and linear layers that outputs are made by, with no other such layer in between."""
    model = copy.deepcopy(model)
    nodes: dict[Any, str] = {}
    kept: list[Tensor] = []

    def remember(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            kept.append(output)  # its autograd node must not be freed, or another may get its identity
            nodes[output.grad_fn] = name

        return hook

    for name, module in model.named_modules():
        if isinstance(module, CONTRACTIONS):
            module.register_forward_hook(remember(name))
    with torch.enable_grad():
        outputs = model(*copy.deepcopy(args))
    return frozenset(first_met(outputs, nodes))


def first_met(outputs: Any, nodes: Mapping[Any, str]) -> Iterator[str]:
    """The named autograd nodes reached first when the graph is walked from the outputs towards the inputs."""
    tensors = [leaf.value for leaf in leaves_of(outputs) if isinstance(leaf.value, Tensor)]
    stack = [tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None]
    seen = set(stack)
    while stack:
        node = stack.pop()
        if node in nodes:
            yield nodes[node]
            continue
        new = {parent for parent, _ in node.next_functions if parent is not None} - seen
        seen |= new
        stack.extend(new)
