"""Frozen batch norms: those that use fixed statistics in training, too, become a product and a sum.

Capture sees one mode. A batch norm in evaluation is a module that `.train()` switches (`passes.graph.modes`). One that
code of its own calls with `training=False` (the frozen batch norm of detectors) is not to be switched. A forward pass
in training mode tells them apart, where a model has such code.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.nn.modules.batchnorm import _BatchNorm
from torch.overrides import TorchFunctionMode

from passes.graph.isolation import attributes_kept, buffers_restored
from passes.graph.nodes import attribute

log = logging.getLogger(__name__)

aten = torch.ops.aten


def write_out_frozen(
    graph: Graph, root: nn.Module, model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    """Replace the batch norms that `model` does not switch with its mode by x * scale + shift, in place."""
    suspects = {node: mean for node in graph.nodes if (mean := _own_statistics(node, root)) is not None}
    if not suspects:
        return
    switched = _switched(model, args, kwargs)
    for node, mean in suspects.items():
        if switched.get(mean.data_ptr()) is False:
            with graph.inserting_before(node):
                node.replace_all_uses_with(_written_out(graph, node))
            graph.erase_node(node)


def _own_statistics(node: Node, root: nn.Module) -> Tensor | None:
    """The running mean of a batch norm in evaluation that is no module of torch; None for any other node."""
    if node.target is not aten.batch_norm.default or node.args[5]:
        return None
    mean = node.args[3]
    if not isinstance(mean, Node) or mean.op != "get_attr":
        return None
    owner = attribute(root, str(mean.target).rpartition(".")[0]) if "." in str(mean.target) else root
    return None if isinstance(owner, _BatchNorm) else attribute(root, str(mean.target))


class _Modes(TorchFunctionMode):
    """Records in which mode each batch norm is called, by the memory of its running mean."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[int, bool] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.batch_norm:
            mean = args[1] if len(args) > 1 else kwargs.get("running_mean")
            training = args[5] if len(args) > 5 else kwargs.get("training", False)
            if isinstance(mean, Tensor):
                self.seen[mean.data_ptr()] = self.seen.get(mean.data_ptr(), False) or bool(training)
        return func(*args, **kwargs)


def _switched(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[int, bool]:
    """Whether each batch norm uses the batch's statistics in training; those not known are left out."""
    random = torch.random.get_rng_state()
    modes = _Modes()
    try:
        with attributes_kept(model), buffers_restored(model), _in_training(model), torch.no_grad(), modes:
            model(*args, **kwargs)
    except Exception as error:  # any error of the user's own forward in training: what was seen until then counts
        log.debug("%s does not run in training: %s", type(model).__name__, error)
    finally:
        torch.random.set_rng_state(random)
    return modes.seen


@contextmanager
def _in_training(model: nn.Module) -> Iterator[None]:
    """Training mode inside the block; each module's own mode is restored after it."""
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = True
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _written_out(graph: Graph, node: Node) -> Node:
    """x * scale + shift, computed from the tensors of a batch norm."""
    x, weight, bias, mean, variance, _, _, eps, _ = node.args
    line = [-1, *[1] * (node.meta["val"].dim() - 2)]
    scale = _call(graph, aten.rsqrt.default, _call(graph, aten.add.Tensor, variance, eps))
    if weight is not None:
        scale = _call(graph, aten.mul.Tensor, weight, scale)
    shift = _call(graph, aten.neg.default, _call(graph, aten.mul.Tensor, mean, scale))
    if bias is not None:
        shift = _call(graph, aten.add.Tensor, bias, shift)
    scaled = _call(graph, aten.mul.Tensor, x, _call(graph, aten.view.default, scale, line))
    return _call(graph, aten.add.Tensor, scaled, _call(graph, aten.view.default, shift, line))


def _call(graph: Graph, target: Any, *args: Any) -> Node:
    """A new call with its example value."""
    node = graph.call_function(target, args)
    node.meta["val"] = target(*(each.meta["val"] if isinstance(each, Node) else each for each in args))
    return node
