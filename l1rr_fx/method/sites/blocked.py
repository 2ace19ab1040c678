"""What blocks a channel: two answers for every producer, from the compiler's own plan.

1. Why do its channels stay? Half of the channels of every producer are assumed zero, first every second channel, then
   the second half, and the compiler plans. A producer that computes all of its channels in both plans is blocked.
2. Why does zeroing a channel lose more than the channel? The function after it makes another value of zero, such as the
   0.5 of a sigmoid: the channel becomes a constant that the next layers read.

The network's predictions stay by decision: the compiler could compute fewer of them, but they are what the network
is for. A feature map that the network returns besides its predictions is one that a layer reads too. Its producer can
lose channels like any other: detectors return the maps that their heads read, and nothing could be pruned before a head
otherwise. The returned map keeps its shape, with zeros in place of the channels.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from l1rr_fx.method.sites.producers import Producer
from l1rr_fx.method.sites.zeroing import ZeroedProgram
from passes.analysis.coupling import is_meeting
from passes.analysis.liveness import channel_facts
from passes.analysis.program import Program
from passes.assignment.assign import plan_layouts
from passes.assignment.plan import LayoutPlan
from passes.graph.layout import along
from passes.graph.nodes import operator_label
from passes.rules.base import Site

NETWORK_OUTPUT = "network output"
ONLY_CHANNEL = "its only channel"
ALL_READ = "all of its channels are read"
NOT_ZERO = "the function after it makes another value of zero"
COMPUTED = "its weight is computed"
RETURNED = "the network's output"


@dataclass(frozen=True)
class Verdict:
    """What blocks the channels of a producer.

    `stays`: why all of its channels stay; None if they can go. `loses_more`: why zeroing a channel loses more than the
    channel; None if it does not. `filled`: the operators and outputs for which zeros are filled in at the places of
    dead channels; None if there are none.
    """

    stays: str | None = None
    loses_more: str | None = None
    filled: str | None = None

    @property
    def blocked(self) -> str | None:
        """Why a channel should not be zeroed: either reason, or None."""
        return self.stays or self.loses_more


def verdicts(program: Program, found: Sequence[Producer]) -> Mapping[str, Verdict]:
    """The verdict of each producer, by its key: calls that share a weight share their verdict."""
    plans = [_Halved(program, found, dead) for dead in (every_second, second_half)]
    uses: dict[str, list[Producer]] = defaultdict(list)
    for each in found:
        uses[each.key].append(each)
    return {key: _verdict(program, plans, calls) for key, calls in uses.items()}


def predictions(program: Program) -> tuple[Node, ...]:
    """The outputs of the network that no layer reads. An output that a layer reads too is a feature, shown besides."""
    return tuple(node for node in program.output_tensors if not any(map(_is_layer, map(program.at_call, node.users))))


def every_second(size: int) -> Tensor:
    """A mask of every second channel: some of every part of a chunk, of every head and of every group."""
    return torch.arange(size) % 2 == 1


def second_half(size: int) -> Tensor:
    """A mask of the second half of the channels: whole blocks, such as those of which a pixel shuffle makes one."""
    return torch.arange(size) >= (size + 1) // 2


class _Halved:
    """The compiler's plan for a network in which half of the channels of every producer are zero."""

    def __init__(self, program: Program, found: Sequence[Producer], dead: Callable[[int], Tensor]) -> None:
        copy = ZeroedProgram(program, {})  # rules remember what they have found of computed weights
        assumed = {each.site.node: along(dead(each.channels), each.axis, len(each.site.out_shape)) for each in found}
        self.plan: LayoutPlan = plan_layouts(copy, channel_facts(copy, assumed))
        self.calls = {item.site.node: item for item in self.plan.sites}

    def is_followed(self, node: Node) -> bool:
        """Whether the compiler follows a call; otherwise it gives it everything whole."""
        return node not in self.calls or self.calls[node].followed

    def is_whole(self, producer: Producer) -> bool:
        """Whether all channels of a producer are computed."""
        item = self.calls.get(producer.site.node)
        return item is not None and item.gives[0].size(producer.axis, producer.channels) == producer.channels


@dataclass(frozen=True, eq=False)
class _Reach:
    """How far channels get before a layer mixes them or another branch is added: the calls that read them, in order,
    and the tensors that hold them."""

    calls: tuple[Site, ...]
    tensors: frozenset[Node]


def _reach(program: Program, uses: Sequence[Producer]) -> _Reach:
    """The reach of the channels that some calls make."""
    calls: dict[Site, None] = {}
    tensors = {use.site.node for use in uses}
    waiting = list(tensors)
    while waiting:
        for user in waiting.pop().users:
            site = program.at_call(user)
            if site is None or site in calls:
                continue
            calls[site] = None
            if not site.rule.makes_channels and not is_meeting(site):
                new = [out for out in site.outputs if out is not None and out not in tensors]
                tensors.update(new)
                waiting += new
    return _Reach(tuple(calls), frozenset(tensors))


def _verdict(program: Program, plans: Sequence[_Halved], uses: Sequence[Producer]) -> Verdict:
    reach = _reach(program, uses)
    if not reach.tensors.isdisjoint(predictions(program)):
        return Verdict(stays=NETWORK_OUTPUT)
    if uses[0].channels == 1:
        return Verdict(stays=ONLY_CHANNEL)
    kept = [next((use for use in uses if plan.is_whole(use)), None) for plan in plans]
    if kept[-1] is not None and None not in kept:
        return Verdict(stays=_why_kept(plans[-1], kept[-1], reach))
    loses_more = NOT_ZERO if any(_is_refilled(plans[0].plan, use.site.node) for use in uses) else None
    return Verdict(None, loses_more, _filled(program, plans[0], uses, reach))


def _why_kept(halved: _Halved, use: Producer, reach: _Reach) -> str:
    """Why the plan keeps all channels of a call."""
    node = use.site.node
    if not halved.is_followed(node):
        return COMPUTED
    if node in halved.plan.growth:
        return halved.plan.growth[node]
    readers = dict.fromkeys(operator_label(site.node) for site in reach.calls if not _is_layer(site))
    return f"read as one by {', '.join(readers)}" if readers else ALL_READ


def _is_refilled(plan: LayoutPlan, node: Node) -> bool:
    """Whether all that reads a tensor are functions that make another value of zero, such as the sigmoid of a gate."""
    readers = [plan.program.at_call(user) for user in node.users]
    functions = [
        site for site in readers if site is not None and site.rule.keeps_channels(site) and set(site.inputs) == {node}
    ]
    if not functions or len(functions) < len(readers):
        return False
    return all(_makes_other(plan, site) for site in functions)


def _makes_other(plan: LayoutPlan, function: Site) -> bool:
    """Whether a function, or all that read its results, make another value of zero.

    A reduction over channels that is zero for zeros, such as a sum, does not: a dead channel adds nothing to it.
    """
    outs = [out for out in function.outputs if out is not None]
    if all(bool(plan.facts.zero[out].any()) for out in outs):
        return all(_is_refilled(plan, out) for out in outs)
    of_zeros = function.rule.zero(function, [torch.ones_like(plan.facts.zero[node]) for node in function.inputs])
    used = [mask for mask, out in zip(of_zeros, function.outputs, strict=True) if out is not None]
    return not all(bool(mask.all()) for mask in used)


def _filled(program: Program, halved: _Halved, uses: Sequence[Producer], reach: _Reach) -> str | None:
    """The operators that read the channels and are given them whole, and the output if they are returned besides."""
    calls = [use.maker for use in uses if use.maker is not None]
    whole = [site for site in (*calls, *reach.calls) if not halved.is_followed(site.node)]
    names = [f"{operator_label(site.node)}, {_why_whole(site)}" for site in whole]
    if not reach.tensors.isdisjoint(program.output_tensors):
        names.append(RETURNED)
    return ", ".join(dict.fromkeys(names)) or None


def _why_whole(site: Site) -> str:
    return COMPUTED if _is_layer(site) else site.rule.reason or site.rule.family


def _is_layer(site: Site | None) -> bool:
    return site is not None and site.rule.weight is not None
