"""Operators that behave differently in training: made modules again, so that `.train()` and `.eval()` switch them.

Capture freezes the mode into the call (`batch_norm(..., training=False)`). Where the tensors of a batch norm still lie
together under one name, that name becomes an `nn.BatchNorm` with the same parameters; any other becomes a small module
without parameters of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from passes.graph.nodes import attribute

aten = torch.ops.aten


class BatchNormCall(nn.Module):
    """Batch norm whose tensors are arguments; it uses the batch's statistics while it trains."""

    def __init__(self, momentum: float = 0.1, eps: float = 1e-5) -> None:
        super().__init__()
        self.momentum = momentum
        self.eps = eps

    def forward(
        self, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor | None, variance: Tensor | None
    ) -> Tensor:
        training = self.training or mean is None
        return F.batch_norm(x, mean, variance, weight, bias, training, self.momentum, self.eps)

    def extra_repr(self) -> str:
        return f"momentum={self.momentum}, eps={self.eps}"


MODULES: Mapping[str, type[nn.Module]] = {
    "BatchNormCall": BatchNormCall,
    "BatchNorm1d": nn.BatchNorm1d,
    "BatchNorm2d": nn.BatchNorm2d,
    "BatchNorm3d": nn.BatchNorm3d,
    "Dropout": nn.Dropout,
    "FeatureAlphaDropout": nn.FeatureAlphaDropout,
    "AlphaDropout": nn.AlphaDropout,
    "Dropout2d": nn.Dropout2d,
}
"""Every class that a call_module node of ours may name."""

BATCH_NORMS: Mapping[int, type[_BatchNorm]] = {
    2: nn.BatchNorm1d,
    3: nn.BatchNorm1d,
    4: nn.BatchNorm2d,
    5: nn.BatchNorm3d,
}

DROPOUTS: Mapping[Any, type[nn.Module]] = {
    aten.dropout.default: nn.Dropout,
    aten.alpha_dropout.default: nn.AlphaDropout,
    aten.feature_dropout.default: nn.Dropout2d,
    aten.feature_alpha_dropout.default: nn.FeatureAlphaDropout,
}

SWITCHED = {aten.batch_norm.default, *DROPOUTS}
"""Operators whose result depends on the mode."""

SLOTS = ("weight", "bias", "running_mean", "running_var")


def restore_modes(module: GraphModule, ranks: Mapping[str, int]) -> GraphModule:
    """Turn batch norm and dropout calls into modules, in place; `ranks` gives the rank of each batch norm's input."""
    restore_graph_modes(module, module.graph, ranks)
    module.recompile()
    return module


def restore_graph_modes(root: nn.Module, graph: Graph, ranks: Mapping[str, int]) -> None:
    """The same on a graph whose attributes lie in `root`."""
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is aten.batch_norm.default:
            _restore_batch_norm(root, node, ranks.get(node.name, 4))
        elif node.target in DROPOUTS:
            dropout = DROPOUTS[node.target](float(node.args[1])).train(bool(node.args[2]))
            _replace(root, node, _free_name(root, "_dropout"), dropout, node.args[:1])
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("placeholder", "output"):
            graph.erase_node(node)


def _free_name(root: nn.Module, prefix: str) -> str:
    return next(name for name in map(f"{prefix}_{{}}".format, count()) if not hasattr(root, name))


def _replace(root: nn.Module, node: Node, name: str, new: nn.Module, args: tuple[Any, ...]) -> None:
    place_module(root, name, new)
    with node.graph.inserting_before(node):
        call = node.graph.call_module(name, args)
    call.meta.update(node.meta)
    node.replace_all_uses_with(call)
    node.graph.erase_node(node)


def place_module(root: nn.Module, name: str, new: nn.Module) -> None:
    """Put a module under a dotted name."""
    owner, _, leaf = name.rpartition(".")
    parent = attribute(root, owner) if owner else root
    if getattr(parent, leaf, None) is not new:
        setattr(parent, leaf, new)


def _restore_batch_norm(root: nn.Module, node: Node, rank: int) -> None:
    node.meta["rank"] = rank  # a folded BatchNorm1d must know whether a linear layer or a convolution is before it
    x, *tensors, training, momentum, eps, _cudnn = node.args
    owner = _owner(root, tensors)
    if owner is None:
        norm = BatchNormCall(float(momentum), float(eps)).train(bool(training))  # type: ignore[arg-type]
        _replace(root, node, _free_name(root, "_batch_norm"), norm, (x, *tensors))
        return
    present = attribute(root, owner)
    if not isinstance(present, _BatchNorm):
        present = _batch_norm(present, BATCH_NORMS[rank], float(momentum), float(eps)).train(bool(training))  # type: ignore[arg-type]
    _replace(root, node, owner, present, (x,))


def _owner(root: nn.Module, tensors: list[Any]) -> str | None:
    """The common name under which weight, bias and statistics lie, if nothing else lies there."""
    names = [str(t.target) if isinstance(t, Node) and t.op == "get_attr" else None for t in tensors]
    if names[2] is None or names[3] is None or (names[0] is None) != (names[1] is None):
        return None
    owners = {n.rpartition(".")[0] for n in names if n is not None}
    leaves = [n.rpartition(".")[2] if n is not None else slot for n, slot in zip(names, SLOTS, strict=True)]
    if len(owners) != 1 or leaves != list(SLOTS) or not (owner := owners.pop()):
        return None
    found = attribute(root, owner)
    if isinstance(found, _BatchNorm):
        return owner
    held = {n for n, _ in (*found.named_parameters(recurse=False), *found.named_buffers(recurse=False))}
    extra = held - {*SLOTS, "num_batches_tracked"} or any(True for _ in found.children())
    return None if extra else owner


def _batch_norm(holder: nn.Module, kind: type[_BatchNorm], momentum: float, eps: float) -> nn.Module:
    tensors = {n: getattr(holder, n, None) for n in SLOTS}
    mean = tensors["running_mean"]
    assert isinstance(mean, Tensor)
    # made without tensors, which are only exchanged afterwards: making them takes longer than all the rest
    norm = kind(len(mean), eps=eps, momentum=momentum, affine=False, track_running_stats=False)
    norm.affine = tensors["weight"] is not None
    norm.track_running_stats = True
    for name, tensor in tensors.items():
        delattr(norm, name)
        if tensor is None or isinstance(tensor, nn.Parameter):
            norm.register_parameter(name, tensor)
        else:
            norm.register_buffer(name, tensor)
    norm.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.int64, device=mean.device))
    return norm
