"""Networks with channels zeroed, and for each its ideal: the dense network that it would be if nothing were copied.

The ideal has the width of the zeroed network in every layer but those whose channels meet in sums. There widths that
differ cannot be added, so that all members of such a family get one width, between the mean of its members and their
union, at which the whole network has as many MACs as the limit of the zeroed one (live inputs x live outputs). It
keeps the first channels of each, so that sums are plain additions and nothing is recombined. It is what a pruner with
one mask for a family makes of the same budget.

What was not taken, and why: replacing each recombined value by one that is already there (an input of the network)
keeps every weight's exact shape, but cuts the fusion of convolution and addition and the blocked memory layout of ONNX
Runtime: on a ResNet-50 of half width at 224, where nothing has to be recombined, it took 1.19 to 1.26 times the time
of the uncut network (one thread), and 1.01 to 1.04 in eager mode. It would have been no lower bound.

Bias: MACs move from the layers that read a family to those that write it. A family's width is a multiple of 8 where it
can be (`MULTIPLE`), which is in the ideal's favour. How near the MACs come is in the table.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import networkx as nx
import torch
from torch import Tensor, nn
from torch.fx import Node

from l1rr_fx.method.sites.channel_sites import sites_of
from l1rr_fx.method.sites.zeroing import ChannelSite, ZeroedProgram, evaluation_graph, zeroed_values
from passes.analysis.coupling import is_meeting
from passes.analysis.liveness import channel_facts
from passes.analysis.program import Program
from passes.assignment.assign import plan_layouts
from passes.assignment.options import Options
from passes.graph.layout import Layout
from passes.rules import rule_for
from passes.rules.base import Site
from tests.oracle import Case, calibrate, prepare
from tests.zoo import by_name

MULTIPLE = 8
LEAST, LEAST_SHARE = 4, 0.05  # channels of a layer that survive
SPREAD = 0.5  # of the logarithms of the layers' typical scales
STEPS = 8  # of the bisection: the widths of a family to 1/256 of their range

Masks = Mapping[str, Tensor]
Channel = tuple[str, int]
"""The name of a site, and an index."""
Class = Sequence[Channel]
"""Channels that are one because sums add them."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A network in float32 with zeroed channels, its ideal, and the MACs of the ideal over those of the limit."""

    model: nn.Module
    ideal: nn.Module
    args: tuple[Any, ...]
    ideal_over_limit: float


class Predictions(nn.Module):
    """A detector without the feature maps that it returns beside its predictions in eval mode."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Any:
        outputs = self.model(images)
        return outputs[0] if isinstance(outputs, tuple) else outputs


def subject(name: str, size: int, how: str, ratio: float = 0.5, seed: int = 0) -> Subject:
    """The network of the zoo with this name at this image size; `how` is "random" or "gamma".

    - "random": this share of each layer's channels, drawn one by one.
    - "gamma": over the whole network, this share of the batch norms' channels with the smallest |gamma|, as network
      slimming does (Liu et al. 2017). There being no trained weights here, gammas are half-normal, times a factor for
      each layer that is log-normal: layers keep different shares, and odd numbers. Layers without a batch norm stay.
    """
    entry = by_name(name)
    model, args, kwargs = entry.build()
    case = prepare(Case(Predictions(model).eval(), args, kwargs), seed)
    program = Program(evaluation_graph(case.model, case.args, case.kwargs), rule_for)
    sites = sites_of(program)
    free = [site for site in sites if site.blocked is None]
    generator = torch.Generator().manual_seed(seed + 1)
    masks = random_masks(free, ratio, generator) if how == "random" else gamma_masks(case.model, free, ratio, generator)
    ideal_case = Case(copy.deepcopy(case.model), case.args, case.kwargs)
    ideal_masks, over = _ideal_masks(program, sites, masks)
    for each, dead in ((case, masks), (ideal_case, ideal_masks)):
        _zero(each.model, sites, dead)
        calibrate(each, seed)
    args = replace(entry, size=size).build()[1]
    return Subject(case.model.float(), ideal_case.model.float(), args, over)


def random_masks(sites: Sequence[ChannelSite], ratio: float, generator: torch.Generator) -> Masks:
    """The share `ratio` of the channels of each site."""
    return {
        site.name: torch.randperm(site.channels, generator=generator) < _most(site, round(ratio * site.channels))
        for site in sites
    }


def gamma_masks(model: nn.Module, sites: Sequence[ChannelSite], ratio: float, generator: torch.Generator) -> Masks:
    """The channels with the smallest |gamma| of all; the gammas are drawn, and written into the model."""
    scales = [site for site in sites if site.kind == "scale"]
    gammas: dict[str, Tensor] = {}
    for site in scales:
        gamma = model.get_parameter(site.weight)
        factor = math.exp(SPREAD * float(torch.randn((), generator=generator)))
        gammas[site.name] = factor * torch.randn(site.channels, generator=generator, dtype=gamma.dtype).abs()
        gamma.data.copy_(gammas[site.name])
    threshold = torch.cat(list(gammas.values())).quantile(ratio)
    masks = {}
    for site in scales:
        smallest = gammas[site.name].argsort()
        count = _most(site, int((gammas[site.name] <= threshold).sum()))
        masks[site.name] = torch.zeros(site.channels, dtype=torch.bool).index_fill(0, smallest[:count], True)
    return masks


def _most(site: ChannelSite, count: int) -> int:
    return min(count, site.channels - min(site.channels, max(LEAST, math.ceil(LEAST_SHARE * site.channels))))


def _zero(model: nn.Module, sites: Sequence[ChannelSite], masks: Masks) -> None:
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, value in zeroed_values(sites, parameters, masks).items():
        parameters[name].data.copy_(value)


# --- the ideal -------------------------------------------------------------------------------------------------------


def _ideal_masks(program: Program, sites: Sequence[ChannelSite], masks: Masks) -> tuple[Masks, float]:
    """The masks of the ideal, and its MACs over the limit of the zeroed network."""
    families = _families(program, sites)
    limit, _ = _macs(program, sites, masks)
    low, high, best = 0.0, 1.0, (math.inf, masks)
    for _ in range(STEPS if families else 0):
        middle = (low + high) / 2
        found = _evened(families, masks, middle)
        _, macs = _macs(program, sites, found)
        best = min(best, (abs(macs / limit - 1), found), key=lambda each: each[0])
        low, high = (low, middle) if macs > limit else (middle, high)
    return best[1], _macs(program, sites, best[1])[1] / limit


def _evened(families: Sequence[Sequence[Class]], masks: Masks, share: float) -> Masks:
    """All members of a family with the same width: this share of the way from their mean to their union."""
    found = {name: mask.clone() for name, mask in masks.items()}
    for family in families:
        if not all(name in masks for name, _ in family[0]):
            continue  # one of them keeps all of its channels
        alive = [[not bool(masks[name][index]) for name, index in each] for each in family]
        union = sum(map(any, alive))
        mean = sum(map(sum, alive)) / len(alive[0])
        width = mean + share * (union - mean)
        width = min(len(family), max(1, round(width / MULTIPLE) * MULTIPLE if width > MULTIPLE else round(width)))
        for position, each in enumerate(family):
            for name, index in each:
                found[name][index] = position >= width
    return found


def _macs(program: Program, sites: Sequence[ChannelSite], masks: Masks) -> tuple[int, int]:
    """The MACs of the zeroed network at the limit, and of what the compiler makes of it with mode "union"."""
    values = dict(program.module.named_parameters(remove_duplicate=False))
    zeroed = ZeroedProgram(program, zeroed_values(sites, values, masks))
    plan = plan_layouts(zeroed, channel_facts(zeroed), Options("union"))
    limit = planned = 0
    for item in plan.sites:
        ins = [layout if layout is not None else Layout.whole(0) for layout in item.ins]
        cost, least = item.site.rule.cost(item.site, ins, item.gives), item.site.rule.limit(item.site, item.facts)
        if cost is not None and least is not None:
            limit, planned = limit + least.macs, planned + cost.macs
    return limit, planned


def _families(program: Program, sites: Sequence[ChannelSite]) -> list[list[Class]]:
    """Classes of channels that sums join, by the sites that they belong to; in natural order within a family."""
    names = {site.weight: site.name for site in sites}
    joined = nx.utils.UnionFind()
    channels: dict[Node, list[Channel]] = {}
    for site in program.sites:
        for out, found in zip(site.outputs, _channels(site, channels, joined, names), strict=True):
            if out is not None and len(found) == _width(program, out):
                channels[out] = found
    own = set(names.values())
    families: defaultdict[tuple[str, ...], list[Class]] = defaultdict(list)
    for members in joined.to_sets():
        those = sorted(each for each in members if each[0] in own)
        if len({name for name, _ in those}) > 1:
            families[tuple(name for name, _ in those)].append(those)
    return [sorted(family, key=lambda members: members[0][1]) for family in families.values()]


def _channels(
    site: Site, channels: Mapping[Node, list[Channel]], joined: Any, names: Mapping[str, str]
) -> list[list[Channel]]:
    """What the channels (axis 1) of each result are; those that a sum adds are joined."""
    weight = next((str(n.target) for n in site.node.all_input_nodes if str(n.target) in names), None)
    known = [channels[node] for node in site.inputs if node in channels]
    operator = str(site.node.target)
    if "split_with_sizes" in operator and known and site.argument(2, "dim", 0) == 1:
        rest = iter(known[0])
        return [[next(rest) for _ in range(size)] for size in site.argument(1, "split_sizes")]
    if "cat." in operator and len(known) == len(site.inputs) and site.argument(1, "dim", 0) == 1:
        return [[each for part in known for each in part]]
    if weight is None and known and (site.rule.keeps_channels(site) or is_meeting(site)):
        for other in (each for each in known[1:] if len(each) == len(known[0])):
            for pair in zip(known[0], other, strict=True):
                joined.union(*pair)
        return [known[0]] * len(site.outputs)
    name = site.node.name if weight is None else names[weight]
    return [[(name, index) for index in range(_width(site.values, out))] for out in site.outputs]


def _width(program: Program, node: Node | None) -> int:
    shape = program.shape(node) if node is not None else ()
    return shape[1] if len(shape) > 1 else 0
