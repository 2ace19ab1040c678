"""Folding for deployment: batch norms go into neighbouring weights, and constants are computed once.

    small = fold_constants(fold_batch_norm(pruned.module))

Both take a graph of ATen operators, such as `passes.capture` gives and `passes.rewrite` makes of it, and return a new
module that computes the same in eval mode. As passes of torch.fx they are `FoldBatchNorm` and `FoldConstants`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg
from torch.nn.modules.batchnorm import _BatchNorm

from passes.errors import InputError
from passes.graph.constants import constant_values, swept
from passes.graph.isolation import detached_copy
from passes.graph.modes import DROPOUTS, BatchNormCall, input_rank
from passes.graph.nodes import attribute, free_name, holder, place_tensor
from passes.rewriting.channel_sources import Sources, channel_sources, readers_through_copies
from passes.rewriting.halves import half_of
from passes.rules import rule_for
from passes.rules.base import WeightForm, replaced
from passes.rules.weights import bias_of, weight_of

aten = torch.ops.aten

PADDING, GROUPS = 4, 6  # where a convolution has them among its arguments


def fold_batch_norm(module: GraphModule) -> GraphModule:
    """The network with its batch norms folded into neighbouring weights, and without dropout.

    A product or a sum with a constant for each channel is a batch norm here, too: frozen batch norms are written so.
    A batch norm is folded into the convolution, transposed convolution or linear layer before it, or the two whose sum
    it reads, if they have no other reader; otherwise into all its readers, if they are linear layers or convolutions
    without padding. Slices, concatenations, padding and gathers of channels may lie in between. One that fits neither
    stays: it is one kernel, where a product and a sum of precomputed tensors are two. A batch norm without running
    statistics stays too.

    Folded weights are computed in float64 and keep their names, unless another call reads the same tensor. `module` is
    not changed. Raises InputError if a batch norm or a dropout is in training mode.
    """
    folded = detached_copy(module)
    folded.graph.eliminate_dead_code()  # a dead reader would be in the way
    return _Folder(folded).run()


def fold_constants(module: GraphModule) -> GraphModule:
    """The network with every value that depends on parameters and buffers alone computed and stored as a buffer.

    A constant that needs much more memory than its sources (`passes.graph.constants.MOST_GROWN`) stays computed at each
    call. No gradient reaches what was folded. `module` is not changed.
    """
    folded = detached_copy(module)
    constants = constant_values(folded)
    computed = [node for node in constants if node.op != "get_attr"]
    for index, node in enumerate(n for n in computed if any(user not in constants for user in n.users)):
        if isinstance(constants[node], Tensor):
            _store(folded, node, free_name(folded, f"_constant_{index}"), constants[node])
        elif isinstance(constants[node], (bool, int, float)):
            _write_out(node, constants[node])
    return swept(folded)


def _store(module: GraphModule, node: Node, name: str, value: Tensor) -> None:
    """Let a buffer stand for a node."""
    module.register_buffer(name, value.clone(memory_format=torch.contiguous_format))
    with node.graph.inserting_before(node):
        stored = node.graph.get_attr(name)
    stored.meta.update(node.meta)
    node.replace_all_uses_with(stored)


def _write_out(node: Node, value: float) -> None:
    """Let a number stand for a node."""
    for user in list(node.users):
        user.args = map_arg(user.args, lambda n: value if n is node else n)
        user.kwargs = map_arg(user.kwargs, lambda n: value if n is node else n)


@dataclass(frozen=True, eq=False)
class _Norm:
    """A batch norm in eval mode: `source * scale + shift` along axis 1 of a tensor of this rank (None: not known).

    So is a product or a sum with a constant for each channel, the two halves of a frozen batch norm.
    """

    source: Node
    scale: Tensor
    shift: Tensor
    rank: int | None
    broadcasts: bool = False  # its source may have one channel for all of them


class _Folder:
    """Folds batch norms in place."""

    def __init__(self, module: GraphModule) -> None:
        self.module = module
        self.constants = constant_values(module)
        self.readers = Counter(_names_read(module))

    def run(self) -> GraphModule:
        """Fold into producers from the first batch norm to the last, then into readers from the last to the first, so
        that two in a row are both folded."""
        nodes = list(self.module.graph.nodes)
        for node in nodes:
            if _is_dropout(self.module, node):
                self._drop(node, node.all_input_nodes[0])
        norms = {node: norm for node in nodes if (norm := self._norm(node) or self._half_of(node)) is not None}
        for fold, order in ((self._into_producers, list(norms)), (self._into_readers, list(reversed(norms)))):
            for node in order:
                if node in norms and fold(node, norms[node]):
                    folded = norms.pop(node)
                    self._drop(node, folded.source)
                    norms = {n: replace(m, source=folded.source) if m.source is node else m for n, m in norms.items()}
        return swept(self.module)

    def _drop(self, node: Node, source: Node) -> None:
        """Remove a node; its readers read `source` instead."""
        node.replace_all_uses_with(source)
        self.module.graph.erase_node(node)

    # Reader

    def _norm(self, node: Node) -> _Norm | None:
        """What a node does if it is a batch norm with fixed statistics."""
        owner: Any = attribute(self.module, str(node.target)) if node.op == "call_module" else None
        tensors: list[Any]
        eps: Any
        if node.target is aten.batch_norm.default:
            _, *tensors, training, _, eps, _ = node.args
        elif isinstance(owner, BatchNormCall):
            (_, *tensors), training, eps = node.args, owner.training, owner.eps
        elif isinstance(owner, _BatchNorm):
            training, eps = owner.training, owner.eps
            tensors = [owner.weight, owner.bias, owner.running_mean, owner.running_var]
        else:
            return None
        if any(isinstance(tensor, Node) and tensor not in self.constants for tensor in tensors):
            return None
        values: Iterator[Any] = (self.constants[tensor] if isinstance(tensor, Node) else tensor for tensor in tensors)
        weight, bias, mean, variance = (None if value is None else value.detach().double() for value in values)
        if mean is None or variance is None:
            return None
        if training:
            raise _in_training(node, "normalises with the batch's statistics")
        scale = (variance + eps).rsqrt() * (1.0 if weight is None else weight)
        shift = (0.0 if bias is None else bias) - mean * scale
        return _Norm(node.all_input_nodes[0], scale, shift, input_rank(node, type(owner)))

    def _half_of(self, node: Node) -> _Norm | None:
        """What a node does if it is one half of a frozen batch norm."""
        half = half_of(node, self.constants)
        return None if half is None else _Norm(*half, broadcasts=True)

    def _is_contraction(self, node: Node, rank: int | None) -> bool:
        """Whether the call has constant weights, and its channels are along axis 1 of tensors of this rank."""
        form = rule_for(node).weight
        if form is None:
            return False
        weight, bias = weight_of(node), bias_of(node)
        constant = weight in self.constants and (bias is None or bias in self.constants)
        return constant and rank == (2 if form.linear else self.constants[weight].dim())

    def _width(self, node: Node, rank: int | None) -> int | None:
        """The channels of the result of a contraction with constant weights; None for any other node."""
        if not self._is_contraction(node, rank):
            return None
        weight = self.constants[weight_of(node)]
        return int(weight.shape[1]) * _groups(node) if _form(node).transposed else len(weight)

    def _read(self, reader: Node, node: Node, norm: _Norm) -> tuple[Tensor, Tensor] | None:
        """Scale and shift of each input channel of a contraction that reads a batch norm; None if it cannot take them
        up."""
        if norm.rank is None or not self._is_contraction(reader, norm.rank) or _form(reader).transposed:
            return None
        ends = {node: len(norm.scale)}
        sources = channel_sources(reader.all_input_nodes[0], norm.rank, self.constants, ends.get)
        if sources is None:
            return None
        device = norm.scale.device
        known, channel = (sources.owner == 0).to(device), sources.channel.to(device)
        scale = torch.where(known, norm.scale[channel], 1.0)
        shift = torch.where(known, norm.shift[channel], 0.0)
        fits = _form(reader).linear or not bool(shift.any()) or not self._pads(reader)
        return (scale, shift) if fits else None

    def _pads(self, node: Node) -> bool:
        """Whether a convolution reads zeros around its input."""
        padding: Any = node.args[PADDING] if len(node.args) > PADDING else node.kwargs.get("padding", 0)
        if padding == "same":
            return bool(self.constants[weight_of(node)][0, 0].numel() > 1)
        return padding != "valid" and any(padding if isinstance(padding, (list, tuple)) else (padding,))

    def _tensors(self, node: Node) -> tuple[Tensor, Tensor]:
        """Weight and bias in float64; a missing bias is zero."""
        bias = bias_of(node)
        weight = self.constants[weight_of(node)].double()
        return weight, weight.new_zeros(()) if bias is None else self.constants[bias].double()

    # Writing

    def _into_producers(self, node: Node, norm: _Norm) -> bool:
        """Fold a batch norm into the contractions whose channels it alone reads, through copies and one sum; False, and
        nothing changes, if that cannot be done."""
        x = norm.source
        addends, reader = [x], node
        if x.target is aten.add.Tensor and not x.kwargs and len(x.all_input_nodes) == 2 and list(x.users) == [node]:
            addends, reader = x.all_input_nodes, x
        unshifted = replace(norm, shift=torch.zeros_like(norm.shift))
        for shifted in addends:  # either may take the shift
            found = [self._of_addend(each, reader, norm if each is shifted else unshifted) for each in addends]
            if all(each is not None for each in found):
                break
        else:
            return False
        parts = [part for each in found if each is not None for part in each]
        if len({producer for producer, _, _ in parts}) < len(parts):
            return False
        for producer, scale, shift in parts:
            weight, bias = self._tensors(producer)
            scaled = _scaled(weight, scale, _groups(producer), second=_form(producer).transposed)
            self._set(producer, scaled, bias * scale + shift)
        return True

    def _of_addend(self, x: Node, reader: Node, norm: _Norm) -> list[tuple[Node, Tensor, Tensor]] | None:
        """The contractions that a tensor is copied from, with scale and shift of each channel; None if it is another
        tensor, or something else reads it."""
        rank = norm.rank
        sources = None if rank is None else channel_sources(x, rank, self.constants, lambda n: self._width(n, rank))
        if sources is None or list(x.users) != [reader] or not sources.is_private:
            return None
        if len(sources.owner) != len(norm.scale) or bool(norm.shift[(sources.owner < 0).to(norm.shift.device)].any()):
            return None  # a channel for all, or zeros between the channels, which the batch norm shifts
        found = []
        for index, producer in enumerate(sources.nodes):
            if (each := self._of_producer(sources, index, norm)) is None:
                return None
            found.append((producer, *each))
        return found

    def _of_producer(self, sources: Sources, index: int, norm: _Norm) -> tuple[Tensor, Tensor] | None:
        """Scale and shift of each channel of one producer; None if one channel gets two of them."""
        own = (sources.owner == index).to(norm.scale.device)
        channel = sources.channel.to(norm.scale.device)[own]
        width = self._width(sources.nodes[index], norm.rank) or 0
        scale, shift = norm.scale.new_ones(width), norm.shift.new_zeros(width)
        scale[channel], shift[channel] = norm.scale[own], norm.shift[own]
        same = torch.equal(scale[channel], norm.scale[own]) and torch.equal(shift[channel], norm.shift[own])
        return (scale, shift) if same else None

    def _has_channels(self, norm: _Norm, rank: int) -> bool:
        """Whether the source of a norm has as many channels as the norm."""
        if not norm.broadcasts:
            return True
        value = norm.source.meta.get("val")
        if isinstance(value, Tensor):
            return value.dim() >= rank and value.shape[value.dim() - rank + 1] == len(norm.scale)
        sources = channel_sources(norm.source, rank, self.constants, lambda node: self._width(node, rank))
        return sources is not None and len(sources.owner) == len(norm.scale)

    def _into_readers(self, node: Node, norm: _Norm) -> bool:
        """Fold a batch norm into all its readers, through copies; False, and nothing changes, if one of them cannot
        take it."""
        if norm.rank is None or not self._has_channels(norm, norm.rank):
            return False
        readers = readers_through_copies(node, norm.rank, self.constants)
        found = {reader: self._read(reader, node, norm) for reader in readers}
        if not found or any(each is None for each in found.values()):
            return False
        for reader, each in found.items():
            assert each is not None
            scale, shift = each
            weight, bias = self._tensors(reader)
            moved = _scaled(weight, shift, _groups(reader), second=True).flatten(1).sum(1)
            self._set(reader, _scaled(weight, scale, _groups(reader), second=True), bias + moved)
        return True

    def _set(self, node: Node, weight: Tensor, bias: Tensor) -> None:
        """Give a call another weight and bias."""
        old = weight_of(node)
        dtype = self.constants[old].dtype
        name = str(old.target) if old.op == "get_attr" else f"{node.name}_weight"
        weight_node = self._stored(node, old, name, weight.to(dtype))
        bias_node = self._stored(node, bias_of(node), f"{name.removesuffix('weight')}bias", bias.to(dtype))
        node.args = replaced(replaced(node.args, 1, weight_node), 2, bias_node)
        node.kwargs = {key: value for key, value in node.kwargs.items() if key not in ("weight", "bias")}

    def _stored(self, node: Node, old: Node | None, name: str, tensor: Tensor) -> Node:
        """A node that holds the tensor: under the name of `old` if that has no other reader, else under a new one."""
        read = str(old.target) if old is not None and old.op == "get_attr" else None
        trained = read is not None and attribute(self.module, read).requires_grad
        if read is not None:
            self.readers[read] -= 1
            if not self.readers[read]:
                delattr(*holder(self.module, read))
        name = free_name(self.module, read or name)
        place_tensor(self.module, name, nn.Parameter(tensor, trained))
        with node.graph.inserting_before(node):
            found = node.graph.get_attr(name)
        self.readers[name] += 1
        self.constants[found] = tensor
        if "val" in node.meta:
            found.meta["val"] = tensor
        return found


def _names_read(module: GraphModule) -> Iterator[str]:
    """The names of parameters and buffers, once for each node that reads them."""
    for node in module.graph.nodes:
        if node.op == "get_attr":
            yield from [str(node.target)] * len(node.users)
        elif node.op == "call_module":
            owner = attribute(module, str(node.target))
            yield from (f"{node.target}.{name}" for name in owner.state_dict())


def _form(node: Node) -> WeightForm:
    form = rule_for(node).weight
    assert form is not None
    return form


def _groups(node: Node) -> int:
    groups: Any = node.args[GROUPS] if len(node.args) > GROUPS else node.kwargs.get("groups", 1)
    return 1 if _form(node).linear else int(groups)


def _scaled(weight: Tensor, scale: Tensor, groups: int, *, second: bool) -> Tensor:
    """A weight times a vector along the first of its axes, or along the second, which counts within a group."""
    grouped = weight.reshape(groups, len(weight) // groups, weight.shape[1], -1)
    return (grouped * scale.view((groups, 1, -1, 1) if second else (groups, -1, 1, 1))).reshape(weight.shape)


def _is_dropout(module: GraphModule, node: Node) -> bool:
    """Whether the node is a dropout; raises InputError if it drops anything."""
    if node.op == "call_module":
        owner = attribute(module, str(node.target))
        found, active = isinstance(owner, tuple(DROPOUTS.values())), bool(owner.training)
    else:
        found, active = node.target in DROPOUTS, len(node.args) > 2 and bool(node.args[2])
    if found and active:
        raise _in_training(node, "drops out at random")
    return found


def _in_training(node: Node, what: str) -> InputError:
    return InputError(
        f"{node.name} ({node.target}) {what}: only a network in eval mode can be folded. Call .eval() on it, or "
        "capture the model in eval mode."
    )
