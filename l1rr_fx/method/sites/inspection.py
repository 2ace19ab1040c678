"""What could be removed from a model before anything is trained or zeroed: channels, groups, and what blocks them.

The compiler itself is asked: half of the channels of every layer are declared zero, as if training had zeroed them, and
a plan is made. A layer whose dead half the plan drops is free; of the others, the plan says what keeps them.
"""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import networkx as nx
import torch
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from passes.analysis.coupling import channel_groups, is_meeting
from passes.analysis.liveness import channel_facts
from passes.analysis.program import Program, Site
from passes.assignment.assign import Plan, SitePlan, plan_layouts
from passes.canonical.normalise import normalise_graph
from passes.frontend.capture import capture, check_arguments
from passes.rules import rule_for
from passes.rules.base import Rule

NETWORK_OUTPUT = "network output"
ONLY_CHANNEL = "its only channel"
WIDTH = 110


@dataclass(frozen=True)
class InspectedLayer:
    """One operator that makes channels.

    `group` numbers the channels that must share a mask if nothing is recombined; `blocked` says why none of them can
    go, and is None where they can.
    """

    node: str
    operator: str
    channels: int
    group: int
    blocked: str | None = None
    refilled: str | None = None


@dataclass(frozen=True)
class Inspection:
    """The channels of a model by layer; prints as a table."""

    model: str
    layers: tuple[InspectedLayer, ...]

    @property
    def channels(self) -> int:
        return sum(layer.channels for layer in self.layers)

    @property
    def free_channels(self) -> int:
        """The channels that could go."""
        return sum(layer.channels for layer in self.layers if layer.blocked is None)

    @property
    def groups(self) -> int:
        return len({layer.group for layer in self.layers})

    @property
    def blocked_channels(self) -> Mapping[str, int]:
        """The channels that must stay, by reason, the most first."""
        reasons = Counter[str]()
        for layer in self.layers:
            if layer.blocked is not None:
                reasons[layer.blocked] += layer.channels
        return dict(reasons.most_common())

    def __str__(self) -> str:
        out = io.StringIO()
        Console(file=out, width=WIDTH, color_system=None).print(self)
        return "\n".join(line.rstrip() for line in out.getvalue().splitlines())

    def __rich__(self) -> RenderableType:
        share = f", {self.free_channels / self.channels:.1%}" if self.channels else ""
        headline = (
            f"{self.model}: {self.channels:,} channels of {len(self.layers):,} layers in {self.groups:,} groups; "
            f"{self.free_channels:,} could go{share}"
        )
        return Group(Text(headline), self._layer_table(), *self._blocked_table())

    def _layer_table(self) -> Table:
        table = Table("layer", "operator")
        table.add_column("channels", justify="right")
        table.add_column("group", justify="right")
        table.add_column("could go")
        for layer in self.layers:
            verdict = "yes" if layer.blocked is None else f"no: {layer.blocked}"
            if layer.refilled is not None:
                verdict += f" (zeros filled in for {layer.refilled})"
            table.add_row(
                Text(layer.node), Text(layer.operator), f"{layer.channels:,}", str(layer.group), Text(verdict)
            )
        return table

    def _blocked_table(self) -> tuple[Table, ...]:
        if not self.blocked_channels:
            return ()
        table = Table("what blocks channels")
        table.add_column("channels", justify="right")
        for reason, channels in self.blocked_channels.items():
            table.add_row(Text(reason), f"{channels:,}")
        return (table,)


def inspect(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None, *, dynamic_shapes: Any = None
) -> Inspection:
    """What of `model` could be removed, from one example input; the weights do not matter and nothing is changed.

    Listed is every convolution and linear layer with a weight of its own. Raises InputError and CaptureError as `prune`
    does.
    """
    check_arguments(model, args, kwargs)
    captured = capture(model, args, kwargs, dynamic_shapes=dynamic_shapes)
    normalise_graph(captured.graph)
    program = Program(captured, rule_for)
    layers = [site for site in program.sites if site.rule.family == "contraction" and site.parameters]
    groups = _group_numbers(program, layers)
    followers = {site: _followers(program, site) for site in layers}
    plans = [_plan(captured, dead) for dead in (_second_half, _every_second)]
    rows = []
    for site in layers:
        reasons = [_blocked(plan, site, followers[site]) for plan in plans]
        blocked = None if None in reasons else reasons[-1]
        refilled = _refilled(plans[-1], followers[site]) if blocked is None else None
        rows.append(
            InspectedLayer(site.node.name, _operator(site), _channels(site), groups[site.node], blocked, refilled)
        )
    return Inspection(type(model).__name__, tuple(rows))


def _group_numbers(program: Program, layers: Sequence[Site]) -> Mapping[Node, int]:
    """The number of the group of each layer's result, counted from 1 in the order of the layers."""
    component = {
        node: index for index, found in enumerate(nx.connected_components(channel_groups(program))) for node in found
    }
    numbers: dict[int, int] = {}
    return {site.node: numbers.setdefault(component[site.node], len(numbers) + 1) for site in layers}


@dataclass(frozen=True)
class _Followers:
    """What reads the channels of a layer before another layer mixes them, and whether the network returns them."""

    sites: tuple[Site, ...]
    returned: bool


def _followers(program: Program, layer: Site) -> _Followers:
    """The operators after a layer, up to the next product, the next sum of branches or an operator that is unknown."""
    sites: dict[Site, None] = {}
    seen, waiting = {layer.node}, [layer.node]
    while waiting:
        node = waiting.pop()
        for user in node.users:
            site = program.at_call(user)
            if site is None or site in sites:
                continue
            sites[site] = None
            if site.rule.family in ("contraction", "product", "unknown") or is_meeting(site):
                continue
            waiting += [out for out in site.outputs if out is not None and out not in seen]
            seen |= {*waiting}
    return _Followers(tuple(sites), not seen.isdisjoint(program.output_tensors))


class _Halved:
    """A rule to which half of the channels that it makes are zero; in all else the rule itself."""

    def __init__(self, rule: Rule, dead: Callable[[int], Tensor]) -> None:
        self.rule = rule
        self.dead = dead

    def __getattr__(self, name: str) -> Any:
        return getattr(self.rule, name)

    def zero(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor]:
        """The zeros that the rule finds, and half of the channels."""
        (mask,) = self.rule.zero(site, zeros)
        axis = _channel_axis(site)
        dead = self.dead(mask.shape[axis])
        return [mask | dead.view([-1 if a == axis else 1 for a in range(mask.dim())])]


def _second_half(size: int) -> Tensor:
    """Frees whole blocks, such as the r * r channels that a pixel shuffle makes one of."""
    return torch.arange(size) >= (size + 1) // 2


def _every_second(size: int) -> Tensor:
    """Frees some channels of every part of a chunk, of every head and of every group."""
    return torch.arange(size) % 2 == 1


def _plan(captured: GraphModule, dead: Callable[[int], Tensor]) -> Plan:
    """The plan that the compiler would make if half of the channels of every layer and batch norm were zero."""
    program = Program(captured, rule_for)
    for site in program.sites:
        if site.rule.family in ("contraction", "channel affine") and site.parameters:
            site.rule = cast(Rule, _Halved(site.rule, dead))
    return plan_layouts(program, channel_facts(program))


def _blocked(plan: Plan, layer: Site, followers: _Followers) -> str | None:
    """Why the plan keeps the dead half of a layer; None where it does not."""
    item = next((item for item in plan.sites if item.site.node is layer.node), None)
    if followers.returned:
        return NETWORK_OUTPUT
    if _channels(layer) == 1:
        return ONLY_CHANNEL
    if item is None or _kept(item) < _channels(layer):
        return None
    if not item.native:
        return f"{_operator(layer)} with a weight that is computed"
    readers = [site for site in followers.sites if site.rule.family != "contraction"]
    names = dict.fromkeys(map(_operator, readers))
    return f"read as one by {', '.join(names)}" if names else "all of its channels are read"


def _kept(item: SitePlan) -> int:
    """The channels that the small network computes in a layer."""
    axis = _channel_axis(item.site)
    return item.gives[0].size(axis, item.site.out_shape[axis])


def _refilled(plan: Plan, followers: _Followers) -> str | None:
    """The operators after a layer that are given its channels whole."""
    after = {site.node for site in followers.sites}
    whole = [item.site for item in plan.sites if not item.native and item.site.node in after]
    return (
        ", ".join(dict.fromkeys(f"{_operator(site)}, {site.rule.reason or site.rule.family}" for site in whole)) or None
    )


def _channel_axis(site: Site) -> int:
    """The axis of a layer's or a batch norm's result along which its channels lie."""
    return len(site.out_shape) - 1 if getattr(site.rule, "linear", False) else 1


def _channels(site: Site) -> int:
    return site.out_shape[_channel_axis(site)]


def _operator(site: Site) -> str:
    return str(site.node.target).removeprefix("aten.").removesuffix(".default")
