"""Where sparsity acts: the batch norms that scale channels, and the rows of layers without one.

With an example input the captured graph is asked which layers these are, which of them share channels, and where zeroed
channels could not be removed. Without one, they are the model's batch norms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import networkx as nx
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.modules.batchnorm import _BatchNorm

from l1rr_fx.method.sites.zeroing import (
    ChannelSite,
    ZeroedProgram,
    evaluation_graph,
    every_second,
    second_half,
    unwrapped,
    zeroed_values,
)
from l1rr_fx.support.arguments import of_kind
from passes.analysis.coupling import channel_groups, couples, is_meeting
from passes.analysis.liveness import channel_facts
from passes.analysis.program import Program, Site
from passes.assignment.assign import Plan, plan_layouts
from passes.errors import InputError
from passes.graph.layout import Layout
from passes.graph.nodes import attribute
from passes.rules import rule_for
from passes.rules.affine import ChannelAffine
from passes.rules.convolution import Weighted, weight_of

ONLY_CHANNEL = "its only channel"
RETURNED = "network output"
NOT_ZERO = "the function after it makes another value of zero"


def channel_sites(
    model: nn.Module, args: tuple[Any, ...] | None = None, kwargs: Mapping[str, Any] | None = None
) -> tuple[ChannelSite, ...]:
    """The sites of a model. `args` and `kwargs` are one example input, without which only batch norms are found, and
    their groups are unknown (0). A scale that several batch norms share is one site; one that is computed at each call
    (a mask, a parametrization) is none.

    Raises InputError where there are none, and with an example also what `passes.capture` raises.
    """
    of_kind("model", model, nn.Module)
    if args is not None:
        return sites_of(Program(evaluation_graph(model, args, kwargs), rule_for))
    norms: dict[Tensor, tuple[str, _BatchNorm]] = {}
    for name, module in unwrapped(model).named_modules():
        if isinstance(module, _BatchNorm) and _scales(module):
            norms.setdefault(module.weight, (name, module))
    if not norms:
        raise InputError(
            f"{type(model).__name__} has no batch norm with scales of its own; give an example input, so that the "
            "layers without one are found: sites=channel_sites(model, args)"
        )
    return tuple(
        ChannelSite(
            name,
            "scale",
            _joined(name, "weight"),
            None if norm.bias is None else _joined(name, "bias"),
            norm.num_features,
            unit=name,
        )
        for name, norm in norms.values()
    )


def _scales(norm: nn.Module) -> bool:
    """Whether a norm has scales, and they and its shifts are parameters that nothing computes at each call."""
    return norm._parameters.get("weight") is not None and "bias" in norm._parameters


def sites_of(program: Program) -> tuple[ChannelSite, ...]:
    """The sites of a captured and normalised graph, in the order of the network; InputError if there are none."""
    calls: dict[str, list[_Call]] = {}
    for site in program.sites:
        if (call := _call(program, site)) is not None:
            calls.setdefault(call.weight, []).append(call)
    if not calls:
        raise InputError("the network has no convolution, linear layer or batch norm with parameters of its own")
    units = _units(program, calls)
    groups = _groups(program, calls)
    found = tuple(
        replace(_site(program, uses), unit=units[weight], group=groups[weight]) for weight, uses in calls.items()
    )
    reasons = _blocked(program, found, calls)
    return tuple(replace(site, blocked=reasons.get(site.name)) for site in found)


@dataclass(frozen=True, eq=False)
class _Call:
    """A call that scales or makes channels; `maker` is the contraction whose rows they are, if there is one."""

    site: Site
    weight: str
    bias: str | None
    maker: Site | None

    @property
    def channel_axis(self) -> int:
        """The axis of the result along which the channels lie."""
        return len(self.site.out_shape) - 1 if isinstance(self.site.rule, Weighted) and self.site.rule.linear else 1


def _call(program: Program, site: Site) -> _Call | None:
    """The call as a place where channels can be zeroed; None where its parameters are not its own."""
    if isinstance(site.rule, ChannelAffine):
        weight, bias = site.node.args[1], site.node.args[2]
        if not site.rule.is_plain(site) or not _is_parameter(program, weight):
            return None
        maker = program.at.get(site.inputs[0])
        return _Call(site, _name(weight), _name(bias), maker if maker and isinstance(maker.rule, Weighted) else None)
    if not isinstance(site.rule, Weighted) or not site.rule.is_plain(site):
        return None
    if not _is_parameter(program, weight := weight_of(site.node)) or _is_scaled(program, site):
        return None
    if site.rule.transposed and site.rule.groups(site) > 1:
        return None
    bias = site.node.args[2] if len(site.node.args) > 2 else None
    return _Call(site, _name(weight), _name(bias), site)


def _name(argument: Any) -> str:
    return str(argument.target) if isinstance(argument, Node) else ""


def _is_parameter(program: Program, argument: Any) -> bool:
    return isinstance(argument, Node) and isinstance(attribute(program.module, str(argument.target)), nn.Parameter)


def _is_scaled(program: Program, site: Site) -> bool:
    """Whether all that reads a layer is a normalisation that scales its channels."""
    readers = [program.at_call(user) for user in site.node.users]
    return bool(readers) and all(
        reader is not None
        and isinstance(reader.rule, ChannelAffine)
        and reader.rule.is_plain(reader)
        and _is_parameter(program, reader.node.args[1])
        for reader in readers
    )


def _site(program: Program, uses: Sequence[_Call]) -> ChannelSite:
    first = uses[0]
    weight = None if first.maker is None else weight_of(first.maker.node)
    kind = "scale" if isinstance(first.site.rule, ChannelAffine) else "rows"
    transposed = isinstance(first.site.rule, Weighted) and first.site.rule.transposed
    return ChannelSite(
        first.weight.removesuffix(".weight"),
        kind,
        first.weight,
        first.bias or None,
        first.site.out_shape[first.channel_axis],
        axis=1 if transposed else 0,
        filters=_name(weight) if weight is not None and weight.op == "get_attr" else None,
        macs=sum(_macs(use.maker) for use in uses if use.maker is not None),
    )


def _macs(maker: Site) -> int:
    whole = [Layout.whole(len(maker.shape(n))) for n in maker.inputs]
    cost = maker.rule.cost(maker, whole, [Layout.whole(len(maker.out_shape))])
    return 0 if cost is None else cost.macs


def _units(program: Program, calls: Mapping[str, Sequence[_Call]]) -> Mapping[str, str]:
    """For each weight the name of its unit: what a depthwise convolution reads and what it makes are one."""
    results = {use.site.node: weight for weight, uses in calls.items() for use in uses}
    joined = nx.Graph()
    joined.add_nodes_from(calls)
    for weight, uses in calls.items():
        for maker in (use.maker for use in uses if use.maker is not None):
            rule = maker.rule
            if isinstance(rule, Weighted) and not rule.linear and rule.is_depthwise(rule.widths(maker)):
                if (source := _upstream(program, maker.inputs[0], results)) is not None:
                    joined.add_edge(source, weight)
    return {
        weight: next(w for w in calls if w in unit).removesuffix(".weight")
        for unit in nx.connected_components(joined)
        for weight in unit
    }


def _upstream(program: Program, node: Node, results: Mapping[Node, str]) -> str | None:
    """The weight whose channels arrive at `node` one by one, each in its place and from nowhere else."""
    while node not in results:
        site = program.at.get(node)
        if site is None or not couples(site):
            return None
        computed = {n for n in site.inputs if n.op != "get_attr"}
        if len(computed) != 1:
            return None
        (node,) = computed
    return results[node]


def _groups(program: Program, calls: Mapping[str, Sequence[_Call]]) -> Mapping[str, int]:
    """For each weight the number of its group, counted from 1 in the order of the network."""
    components = list(nx.connected_components(channel_groups(program)))
    component = {node: index for index, found in enumerate(components) for node in found}
    numbers: dict[int, int] = {}
    return {
        weight: numbers.setdefault(component[uses[0].site.node], len(numbers) + 1) for weight, uses in calls.items()
    }


def _blocked(program: Program, sites: Sequence[ChannelSite], calls: Mapping[str, Sequence[_Call]]) -> Mapping[str, str]:
    """Why zeroing gains nothing, by the name of the site.

    The compiler is asked: half of the channels of every site are declared zero, first every second one, then the second
    half. A site is blocked if its own are kept both times, or if the function after it makes something else of zeros.
    """
    plans = [_plan(program, sites, half) for half in (every_second, second_half)]
    reasons: dict[str, str] = {}
    for site in sites:
        uses = calls[site.weight]
        if site.channels == 1:
            reasons[site.name] = ONLY_CHANNEL
        elif any(_is_returned(program, use.site.node) for use in uses):
            reasons[site.name] = RETURNED
        elif all(_stays(plan, site, uses) for plan in plans):
            reasons[site.name] = _growth(plans[-1], uses)
        elif any(_is_refilled(plans[0], use.site.node) for use in uses):
            reasons[site.name] = NOT_ZERO
    return reasons


def _is_refilled(plan: Plan, node: Node) -> bool:
    """Whether all that reads the channels are functions that make another value of zeros, such as a gate's sigmoid."""
    sites = [plan.program.at_call(user) for user in node.users]
    functions = [site for site in sites if site is not None and couples(site) and set(site.inputs) == {node}]
    if not functions or len(functions) < len(sites):
        return False
    outs = [out for site in functions for out in site.outputs if out is not None]
    return all(not bool(plan.facts.zero[out].any()) or _is_refilled(plan, out) for out in outs)


def _plan(program: Program, sites: Sequence[ChannelSite], half: Callable[[int], Tensor]) -> Plan:
    """The compiler's plan if half of the channels of every site were zero."""
    names = [name for site in sites for name in (site.weight, site.bias) if name is not None]
    values: dict[str, Tensor] = {name: attribute(program.module, name) for name in names}
    zeroed = ZeroedProgram(program, zeroed_values(sites, values, {site.name: half(site.channels) for site in sites}))
    return plan_layouts(zeroed, channel_facts(zeroed))


def _stays(plan: Plan, site: ChannelSite, uses: Sequence[_Call]) -> bool:
    """Whether all channels of a site are kept in one of its calls."""
    return any(
        use.site.node in plan.layout
        and plan.layout[use.site.node].size(use.channel_axis, site.channels) == site.channels
        for use in uses
    )


def _growth(plan: Plan, uses: Sequence[_Call]) -> str:
    return next((plan.growth[use.site.node] for use in uses if use.site.node in plan.growth), "all of it is read")


def predictions(program: Program) -> tuple[Node, ...]:
    """The outputs of the network that no layer reads: what a layer reads too is a feature that is shown besides."""
    return tuple(node for node in program.output_tensors if not any(map(_is_layer, map(program.at_call, node.users))))


def _is_layer(site: Site | None) -> bool:
    return site is not None and site.rule.family == "contraction"


def _is_returned(program: Program, start: Node) -> bool:
    """Whether channels reach a prediction before a layer mixes them or another branch is added."""
    ends = predictions(program)
    seen, waiting = {start}, [start]
    while waiting:
        node = waiting.pop()
        if node in ends:
            return True
        for user in node.users:
            site = program.at_call(user)
            if site is None or site.rule.family in ("contraction", "product", "unknown") or is_meeting(site):
                continue
            new = [out for out in site.outputs if out is not None and out not in seen]
            seen.update(new)
            waiting += new
    return False


def _joined(module: str, parameter: str) -> str:
    return f"{module}.{parameter}" if module else parameter
