"""The calls that make or scale channels, and which of them have channels in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import Node

from l1rr_fx.method.sites.frozen_scales import scale_and_shift
from passes.analysis.coupling import channel_groups
from passes.analysis.program import Program
from passes.graph.nodes import attribute
from passes.rules.base import Site
from passes.rules.weights import bias_of, weight_of

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Producer:
    """A call whose result has channels of its own making.

    `maker`: the layer (convolution or linear) that makes the channels; None where no single layer does. `key`: the
    name of the weight, or of the call if the weight is computed; calls with one key share their channels. `weight` and
    `bias`: the parameters in which one channel can be zeroed; None where there are none.
    """

    site: Site
    maker: Site | None
    key: str
    weight: str | None = None
    bias: str | None = None

    @property
    def axis(self) -> int:
        """The axis of the result along which its channels lie."""
        weight = self.site.rule.weight
        return len(self.site.out_shape) - 1 if weight is not None and weight.linear else 1

    @property
    def channels(self) -> int:
        """The number of channels."""
        return self.site.out_shape[self.axis]


def producers(program: Program) -> tuple[Producer, ...]:
    """The producers of a network in its order.

    They are the normalisations with a scale of their own, and the layers with parameters of their own that do not feed
    such normalisations alone.
    """
    found = (_scaling(program, site) or _frozen(program, site) or _making(program, site) for site in program.sites)
    return tuple(each for each in found if each is not None)


def layers(program: Program) -> tuple[Site, ...]:
    """The convolutions and linear layers that have parameters of their own, in the order of the network."""
    return tuple(site for site in program.sites if site.rule.weight is not None and site.parameters)


def producers_of(layer: Site, found: Sequence[Producer]) -> tuple[Producer, ...]:
    """The producers that decide which channels a layer computes: itself, or the normalisations behind it."""
    own = tuple(each for each in found if each.site is layer)
    return own or tuple(each for each in found if each.maker is layer)


def units(program: Program, found: Sequence[Producer]) -> Mapping[str, str]:
    """For each key the first key of its unit: what a depthwise convolution reads and what it makes are one unit."""
    import networkx as nx  # late: a large part of the time that importing the package takes

    results = {each.site.node: each.key for each in found}
    joined = nx.Graph()
    joined.add_nodes_from(each.key for each in found)
    for each in found:
        if each.maker is not None and each.maker.rule.keeps_channels(each.maker):
            if (source := _upstream(program, each.maker.inputs[0], results)) is not None:
                joined.add_edge(source, each.key)
    return {key: next(k for k in joined if k in unit) for unit in nx.connected_components(joined) for key in unit}


def group_numbers(program: Program, nodes: Sequence[Node]) -> Mapping[Node, int]:
    """For each tensor the number of its group of coupled channels, counted from 1 in the order of `nodes`."""
    import networkx as nx  # late: a large part of the time that importing the package takes

    components = enumerate(nx.connected_components(channel_groups(program)))
    component = {node: index for index, found in components for node in found}
    numbers: dict[int, int] = {}
    return {node: numbers.setdefault(component[node], len(numbers) + 1) for node in nodes}


def _scaling(program: Program, site: Site) -> Producer | None:
    """A normalisation with a scale of its own; None for any other call."""
    if not site.rule.is_affine or not site.rule.owns_parameters(site) or not _is_parameter(program, site.node.args[1]):
        return None
    maker = program.at.get(site.inputs[0])
    weight, bias = map(_name, site.node.args[1:3])
    assert weight is not None
    return Producer(site, maker if maker is not None and maker.rule.weight is not None else None, weight, weight, bias)


def _making(program: Program, site: Site) -> Producer | None:
    """A layer that makes channels; None for any other call, and for a layer whose channels are scaled after it."""
    if site.rule.weight is None or not site.parameters or _is_scaled(program, site):
        return None
    weight = weight_of(site.node)
    key = _name(weight) if weight.op == "get_attr" else site.node.name
    assert key is not None
    mixed = site.rule.weight.transposed and site.rule.groups(site) > 1  # its rows are those of several channels
    if mixed or not site.rule.owns_parameters(site) or not _is_parameter(program, weight):
        return Producer(site, site, key)
    return Producer(site, site, key, key, _name(bias_of(site.node)))


def _is_scaled(program: Program, site: Site) -> bool:
    """Whether all that reads a layer is a normalisation with a scale of its own."""
    readers = [program.at_call(user) for user in site.node.users]
    return bool(readers) and all(
        reader is not None and (_scaling(program, reader) or _shifted(program, reader)) is not None
        for reader in readers
    )


def _frozen(program: Program, site: Site) -> Producer | None:
    """A normalisation that is written as x * c + d, where c and d are computed from tensors of the model.

    A channel is zero where its scale and its shift are: tensors of the model of which c and d are multiples.
    """
    halves = _halves(program, site)
    if halves is None:
        return None
    product, scale, shift = halves
    names = scale_and_shift(program, scale, shift, site.out_shape[1])
    if names is None:
        return None
    (x,) = [node for node in product.inputs if node not in (scale, shift)]
    maker = program.at.get(x)
    weight, bias = names
    return Producer(site, maker if maker is not None and maker.rule.weight is not None else None, weight, weight, bias)


def _shifted(program: Program, product: Site) -> Producer | None:
    """The frozen normalisation whose product a call is; None for any other call."""
    readers = [program.at_call(user) for user in product.node.users]
    found = _frozen(program, readers[0]) if len(readers) == 1 and readers[0] is not None else None
    return found if found is not None and product.node in found.site.inputs else None


def _halves(program: Program, site: Site) -> tuple[Site, Node, Node] | None:
    """The product, its constant and the constant that is added to it; None where a call is not that."""
    if not site.rule.is_sum or site.node.kwargs or len(site.inputs) != 2 or len(site.out_shape) < 2:
        return None
    for product, shift in (site.inputs, site.inputs[::-1]):
        call = program.at.get(product)
        if call is None or call.node.target is not aten.mul.Tensor or len(call.inputs) != 2 or shift in program.fed:
            continue
        constants = [node for node in call.inputs if node not in program.fed]
        if len(product.users) == 1 and len(constants) == 1 and product in program.fed:
            return call, constants[0], shift
    return None


def _upstream(program: Program, node: Node, results: Mapping[Node, str]) -> str | None:
    """The key of the producer whose channels arrive at `node` one by one, each in its place and from nowhere else."""
    while node not in results:
        site = program.at.get(node)
        if site is None or not site.rule.keeps_channels(site):
            return None
        computed = {n for n in site.inputs if n.op != "get_attr"}
        if len(computed) != 1:
            return None
        (node,) = computed
    return results[node]


def _name(argument: Any) -> str | None:
    return str(argument.target) if isinstance(argument, Node) else None


def _is_parameter(program: Program, argument: Any) -> bool:
    return (
        isinstance(argument, Node)
        and argument.op == "get_attr"
        and isinstance(attribute(program.module, str(argument.target)), nn.Parameter)
    )
