"""Frozen normalisations: which tensors of a model, not trained, scale and shift the channels of x * c + d."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from passes.analysis.program import Program
from passes.graph.nodes import holder, is_tensor


def scale_and_shift(program: Program, scale: Node, shift: Node, channels: int) -> tuple[str, str | None] | None:
    """The names of the tensors w and b such that zeros of w make c zero, and zeros of both d; None if there are none.

    b is None where d is zero without it. Both have their channels along the first axis.
    """
    if not _varies_by_channel(program.shape(scale), channels):
        return None
    of_scale, of_shift = (_leaves(program, node, channels) for node in (scale, shift))
    if of_scale is None or of_shift is None:
        return None
    for weight in of_scale:
        if not _is_zero(program, scale, (weight,)):
            continue
        others = [None, *(node for node in of_shift if node not in of_scale)]
        for bias in others:
            if _is_zero(program, shift, (weight, bias)):
                return str(weight.target), None if bias is None else str(bias.target)
    return None


def _varies_by_channel(shape: tuple[int, ...], channels: int) -> bool:
    """Whether a constant has one value a channel and nothing else."""
    return [n for n in shape if n != 1] == [channels]


def _leaves(program: Program, node: Node, channels: int) -> list[Node] | None:
    """The tensors with a value a channel that a value is computed from; None where it depends on an input."""
    found: dict[Node, None] = {}
    waiting = [node]
    while waiting:
        each = waiting.pop()
        if each.op == "get_attr":
            value = program.tensor(each)
            fits = value.is_floating_point() and value.dim() and value.numel() == value.shape[0] == channels
            if fits and _is_frozen(program, str(each.target)):
                found[each] = None
        elif each.op == "call_function" and is_tensor(each):
            waiting += each.all_input_nodes
        else:
            return None
    return list(found)


def _is_frozen(program: Program, name: str) -> bool:
    """Whether a name is that of a tensor of the model that is not trained: constants of its code have none there."""
    owner, leaf = holder(program.module, name)
    parameter = owner._parameters.get(leaf)
    return not parameter.requires_grad if parameter is not None else leaf not in owner._non_persistent_buffers_set


@torch.no_grad()
def _is_zero(program: Program, node: Node, zeroed: tuple[Node | None, ...]) -> bool:
    """Whether a constant is zero where some of the tensors that it is computed from are, whatever the others hold."""
    generator = torch.Generator().manual_seed(0)
    values: dict[Node, Tensor] = {}
    names = {str(each.target) for each in zeroed if each is not None}

    def value(each: Node) -> Tensor:
        if each not in values:
            if each.op == "get_attr":
                own = program.tensor(each)
                values[each] = torch.zeros_like(own) if str(each.target) in names else own
                if str(each.target) not in names and own.is_floating_point():
                    values[each] = torch.rand(own.shape, generator=generator, dtype=torch.float64).to(own) + 0.5
            else:
                known: Mapping[Node, Tensor] = {argument: value(argument) for argument in each.all_input_nodes}
                args, kwargs = map_arg((each.args, each.kwargs), known.__getitem__)
                values[each] = each.target(*args, **kwargs)  # type: ignore[operator]  # a call
        return values[each]

    return bool((value(node) == 0).all())
