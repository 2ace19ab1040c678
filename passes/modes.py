"""Operators that behave differently in training: made modules again, so that `.train()` and `.eval()` switch them.

Capture freezes the mode into the call (`batch_norm(..., training=False)`). Where the tensors of a batch norm still lie
together under one name, that name becomes an `nn.BatchNorm` with the same parameters; any other becomes a small module
without parameters of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from passes.capture import attribute

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

BATCH_NORMS: Mapping[int, type[nn.Module]] = {
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

SLOTS = ("weight", "bias", "running_mean", "running_var")


def restore_modes(module: GraphModule, ranks: Mapping[str, int]) -> GraphModule:
    """Turn batch norm and dropout calls into modules, in place; `ranks` gives the rank of each batch norm's input."""
    count = 0
    for node in list(module.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is aten.batch_norm.default:
            _restore_batch_norm(module, node, ranks.get(node.name, 4))
        elif node.target in DROPOUTS:
            count += 1
            name = f"_dropout_{count}"
            dropout = DROPOUTS[node.target](float(node.args[1]))
            _replace(module, node, name, dropout.train(bool(node.args[2])), node.args[:1])
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def _replace(module: GraphModule, node: Node, name: str, new: nn.Module, args: tuple[Any, ...]) -> None:
    if not isinstance(attribute_or_none(module, name), type(new)):
        module.add_submodule(name, new)
    with module.graph.inserting_before(node):
        call = module.graph.call_module(name, args)
    call.meta.update(node.meta)
    node.replace_all_uses_with(call)
    module.graph.erase_node(node)


def attribute_or_none(module: nn.Module, name: str) -> Any:
    """What lies under a dotted name, if anything does."""
    value: Any = module
    for part in name.split("."):
        value = getattr(value, part, None)
    return value


def _restore_batch_norm(module: GraphModule, node: Node, rank: int) -> None:
    x, *tensors, training, momentum, eps, _cudnn = node.args
    owner = _owner(module, tensors)
    if owner is None:
        name = f"_batch_norm_{sum(1 for n, _ in module.named_modules() if n.startswith('_batch_norm_'))}"
        _replace(module, node, name, BatchNormCall(float(momentum), float(eps)).train(bool(training)), (x, *tensors))  # type: ignore[arg-type]
        return
    present = attribute(module, owner)
    if type(present) is nn.Module:
        module.add_submodule(owner, _batch_norm(present, BATCH_NORMS[rank], float(momentum), float(eps)).train(bool(training)))  # type: ignore[arg-type]
    _replace(module, node, owner, attribute(module, owner), (x,))


def _owner(module: GraphModule, tensors: list[Any]) -> str | None:
    """The common name under which weight, bias and statistics lie, if nothing else lies there."""
    names = [str(t.target) if isinstance(t, Node) and t.op == "get_attr" else None for t in tensors]
    if names[2] is None or names[3] is None or (names[0] is None) != (names[1] is None):
        return None
    owners = {n.rpartition(".")[0] for n in names if n is not None}
    leaves = [n.rpartition(".")[2] if n is not None else slot for n, slot in zip(names, SLOTS, strict=True)]
    if len(owners) != 1 or leaves != list(SLOTS) or not (owner := owners.pop()):
        return None
    found = attribute(module, owner)
    if isinstance(found, nn.modules.batchnorm._BatchNorm):
        return owner
    held = {n for n, _ in (*found.named_parameters(recurse=False), *found.named_buffers(recurse=False))}
    extra = held - {*SLOTS, "num_batches_tracked"} or any(True for _ in found.children())
    return None if extra else owner


def _batch_norm(holder: nn.Module, kind: type[nn.Module], momentum: float, eps: float) -> nn.Module:
    tensors = {n: getattr(holder, n, None) for n in SLOTS}
    mean = tensors["running_mean"]
    assert isinstance(mean, Tensor)
    affine = tensors["weight"] is not None
    norm = kind(len(mean), eps=eps, momentum=momentum, affine=affine, device="meta")
    for name, tensor in tensors.items():
        setattr(norm, name, tensor)
    norm.num_batches_tracked = torch.zeros((), dtype=torch.int64, device=mean.device)
    return norm
