"""Recomposition: operators of core ATen (`ExportedProgram.run_decompositions`) become those that they were made of.

Rules exist for `conv2d`, `batch_norm`, `layer_norm` and `group_norm`. Core ATen has `convolution` and `native_...` in
their place, which compute the same from other arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.fx import Graph, Node

from passes.graph.nodes import is_projection

aten = torch.ops.aten

CONVOLUTIONS = {
    False: (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default),
    True: (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input),
}
"""By whether they are transposed, then by the number of spatial axes."""


def _convolution(graph: Graph, node: Node) -> None:
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = node.args
    target = CONVOLUTIONS[bool(transposed)][len(stride) - 1]  # type: ignore[arg-type]  # a list
    middle = (output_padding, groups, dilation) if transposed else (dilation, groups)
    _replace(node, graph.call_function(target, (x, weight, bias, stride, padding, *middle)))


def _normalisation(graph: Graph, node: Node) -> None:
    """Replace the first result; the others are statistics, which only training reads."""
    target, arguments = NORMALISATIONS[node.target](*node.args)
    for user in list(node.users):
        if is_projection(user) and user.args[1] == 0:
            _replace(user, graph.call_function(target, arguments))


def _replace(node: Node, new: Node) -> None:
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)


NORMALISATIONS: Mapping[Any, Callable[..., tuple[Any, tuple[Any, ...]]]] = {
    aten._native_batch_norm_legit_no_training.default: lambda x, weight, bias, mean, variance, momentum, eps: (
        aten.batch_norm.default,
        (x, weight, bias, mean, variance, False, momentum, eps, True),
    ),
    aten.native_layer_norm.default: lambda x, shape, weight, bias, eps: (
        aten.layer_norm.default,
        (x, shape, weight, bias, eps),
    ),
    aten.native_group_norm.default: lambda x, weight, bias, batch, channels, area, groups, eps: (
        aten.group_norm.default,
        (x, groups, weight, bias, eps),
    ),
}
"""The operator and the arguments that compute the first result, by operator, from the arguments of a call."""

RECOMPOSED: Mapping[Any, Callable[[Graph, Node], None]] = {
    aten.convolution.default: _convolution,
    **dict.fromkeys(NORMALISATIONS, _normalisation),
}
"""The rewrite of a call, by its operator."""
