"""Batch norm and dropout as modules, so that `.train()` and `.eval()` switch them.

Capture freezes the mode into the call (`batch_norm(..., training=False)`). Where one module holds the tensors of a
batch norm and nothing else, it becomes an `nn.BatchNorm` with the same parameters. Every other batch norm becomes a
`BatchNormCall`, which has no parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from passes.graph.nodes import attribute, free_names, holder

aten = torch.ops.aten


class BatchNormCall(nn.Module):
    """A batch norm that takes its tensors as arguments; in training it uses the statistics of the batch."""

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
    "SyncBatchNorm": nn.SyncBatchNorm,
    "Dropout": nn.Dropout,
    "FeatureAlphaDropout": nn.FeatureAlphaDropout,
    "AlphaDropout": nn.AlphaDropout,
    "Dropout2d": nn.Dropout2d,
}
"""The classes of all modules that rewritten graphs call."""

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

RANK = "rank"
"""The key of `node.meta` that holds the rank of a restored batch norm's input.

A rewritten graph has no example values, and neither `BatchNorm1d` nor `BatchNormCall` says whether axis 1, its
channels, is the last axis as well: folding into a linear layer is right then only (`input_rank`).
"""


def restore_modes(module: GraphModule, ranks: Mapping[str, int]) -> GraphModule:
    """Turn calls of batch norm and dropout into modules, in place; returns `module`.

    `ranks` gives the rank of the result of each batch norm by the name of its node; a missing one counts as 4.
    """
    restore_graph_modes(module, module.graph, ranks)
    module.recompile()
    return module


def restore_graph_modes(root: nn.Module, graph: Graph, ranks: Mapping[str, int]) -> dict[Node, Node]:
    """Turn calls of batch norm and dropout into modules of `root`, which holds the tensors of `graph`, in place.

    Nodes without readers are erased. Returns the new node for each replaced one.
    """
    replaced: dict[Node, Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is aten.batch_norm.default:
            replaced[node] = _restored_batch_norm(root, node, ranks.get(node.name, 4))
        elif node.target in DROPOUTS:
            dropout = DROPOUTS[node.target](float(node.args[1])).train(bool(node.args[2]))
            replaced[node] = _replace(root, node, next(free_names(root, "_dropout")), dropout, node.args[:1])
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op not in ("placeholder", "output"):
            graph.erase_node(node)
    return replaced


def input_rank(node: Node, kind: type[object]) -> int | None:
    """The rank of the input of a batch norm, a call or a module of class `kind`; None where the graph does not say."""
    if isinstance(node.meta.get("val"), Tensor):
        return int(node.meta["val"].dim())
    ranks = [rank for rank, batch_norm in BATCH_NORMS.items() if batch_norm is kind]
    return ranks[0] if len(ranks) == 1 else node.meta.get(RANK)


def place_module(root: nn.Module, name: str, new: nn.Module) -> None:
    """Put a module under a dotted name."""
    parent, leaf = holder(root, name)
    if getattr(parent, leaf, None) is not new:
        setattr(parent, leaf, new)


def _replace(root: nn.Module, node: Node, name: str, new: nn.Module, args: tuple[Any, ...]) -> Node:
    """Put a module under a name, and a call of it in the place of a node."""
    place_module(root, name, new)
    with node.graph.inserting_before(node):
        call = node.graph.call_module(name, args)
    call.meta.update(node.meta)
    node.replace_all_uses_with(call)
    node.graph.erase_node(node)
    return call


def _restored_batch_norm(root: nn.Module, node: Node, rank: int) -> Node:
    """The call of a module that replaces a call of batch norm."""
    node.meta[RANK] = rank
    x, *tensors, training, momentum, eps, _cudnn = node.args
    options: tuple[float, float] = (float(momentum), float(eps))  # type: ignore[arg-type]  # both are numbers
    owner = _owner(root, tensors)
    if owner is None:
        norm = BatchNormCall(*options).train(bool(training))
        return _replace(root, node, next(free_names(root, "_batch_norm")), norm, (x, *tensors))
    present = attribute(root, owner)
    if not isinstance(present, _BatchNorm):
        present = _batch_norm(present, BATCH_NORMS[rank], *options).train(bool(training))
    return _replace(root, node, owner, present, (x,))


def _owner(root: nn.Module, tensors: list[Any]) -> str | None:
    """The name of the module that holds weight, bias and statistics; None if they lie apart, or with other things."""
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


def _batch_norm(bare: nn.Module, kind: type[_BatchNorm], momentum: float, eps: float) -> nn.Module:
    """A batch norm with the tensors of a bare module."""
    tensors = {n: getattr(bare, n, None) for n in SLOTS}
    mean = tensors["running_mean"]
    assert isinstance(mean, Tensor)
    # made without tensors, because making those takes longer than everything else here
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
