"""Graphs that were decomposed to core ATen, in the operators that the compiler has rules for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.fx import GraphModule, Node

aten = torch.ops.aten

CONVOLUTIONS = {
    False: (aten.conv1d.default, aten.conv2d.default, aten.conv3d.default),
    True: (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input),
}


def recomposed(module: GraphModule) -> GraphModule:
    """The module, in place, with convolutions and batch norms for inference as one operator each, and without guards.

    For graphs such as `exported.run_decompositions().module()`.
    """
    for node in list(module.graph.nodes):
        if node.op == "call_module" and not node.users:  # torch.export's checks of the inputs
            module.graph.erase_node(node)
        elif (form := FORMS.get(node.target)) is not None:
            with module.graph.inserting_before(node):
                form(node)
    module.recompile()
    return module


def _convolution(node: Node) -> None:
    x, weight, bias, stride, padding, dilation, transposed, output_padding, groups = node.args
    target = CONVOLUTIONS[bool(transposed)][len(stride) - 1]  # type: ignore[arg-type]  # a list
    middle = (output_padding, groups, dilation) if transposed else (dilation, groups)
    _replace(node, node.graph.call_function(target, (x, weight, bias, stride, padding, *middle)), node.meta["val"])
    node.graph.erase_node(node)


def _batch_norm(node: Node) -> None:
    """Of its results only the first is more than a placeholder for training."""
    x, weight, bias, mean, variance, momentum, eps = node.args
    found = node.graph.call_function(
        aten.batch_norm.default, (x, weight, bias, mean, variance, False, momentum, eps, True)
    )
    for user in list(node.users):
        if user.args[1] == 0:
            _replace(user, found, node.meta["val"][0])
            node.graph.erase_node(user)


def _replace(node: Node, new: Node, value: Any) -> None:
    new.meta = {**node.meta, "val": value}
    node.replace_all_uses_with(new)


FORMS: dict[Any, Callable[[Node], None]] = {
    aten.convolution.default: _convolution,
    aten._native_batch_norm_legit_no_training.default: _batch_norm,
}
