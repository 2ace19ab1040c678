"""The sites of a model: where channels can be zeroed one by one.

With an example input they are found in the captured graph: normalisations that scale channels, and the rows of layers
without one. Each site then knows its unit, its group, its MACs, and what blocks its channels. Without an example they
are the model's batch norms.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from l1rr_fx.method.sites.blocked import verdicts
from l1rr_fx.method.sites.producers import Producer, group_numbers, producers, units
from l1rr_fx.method.sites.zeroing import ChannelSite, evaluation_body, unwrapped
from l1rr_fx.support.arguments import of_kind
from passes.analysis.program import Program
from passes.audit.costs import dense_cost
from passes.errors import InputError
from passes.rules import rule_for
from passes.rules.weights import weight_of


def channel_sites(
    model: nn.Module, args: tuple[Any, ...] | None = None, kwargs: Mapping[str, Any] | None = None
) -> tuple[ChannelSite, ...]:
    """The sites of a model, in the order of the network.

    `args` and `kwargs` are one example input. Without it only batch norms are found; their groups are 0 (unknown), and
    nothing is said of what blocks them. Batch norms that share one scale are one site. A scale that is computed at each
    call (a mask, a parametrization) is not a site.

    InputError if there are no sites; with an example also the errors of `passes.capture`.
    """
    of_kind("model", model, nn.Module)
    if args is not None:
        return sites_of(Program(evaluation_body(model, args, kwargs).module, rule_for))
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


def sites_of(program: Program) -> tuple[ChannelSite, ...]:
    """The sites of a captured and normalised graph, in the order of the network; InputError if there are none."""
    found = producers(program)
    uses: dict[str, list[Producer]] = defaultdict(list)
    for each in found:
        if each.weight is not None:
            uses[each.weight].append(each)
    if not uses:
        raise InputError("the network has no convolution, linear layer or batch norm with parameters of its own")
    blocked = verdicts(program, found)
    unit_of = units(program, [each for calls in uses.values() for each in calls])
    group_of = group_numbers(program, [calls[0].site.node for calls in uses.values()])
    return tuple(
        _site(weight, calls, unit_of[weight], group_of[calls[0].site.node], blocked[weight].blocked)
        for weight, calls in uses.items()
    )


def _site(weight: str, uses: Sequence[Producer], unit: str, group: int, blocked: str | None) -> ChannelSite:
    first = uses[0]
    form = first.site.rule.weight
    filters = None if first.maker is None else weight_of(first.maker.node)
    costs = [dense_cost(use.maker) for use in uses if use.maker is not None]
    return ChannelSite(
        weight.removesuffix(".weight"),
        "scale" if form is None else "rows",
        weight,
        first.bias,
        first.channels,
        axis=1 if form is not None and form.transposed else 0,
        filters=str(filters.target) if filters is not None and filters.op == "get_attr" else None,
        unit=unit.removesuffix(".weight"),
        group=group,
        macs=sum(cost.macs for cost in costs if cost is not None),
        blocked=blocked,
    )


def _scales(norm: nn.Module) -> bool:
    """Whether a norm has scales, and they and its shifts are parameters that nothing computes at each call."""
    return norm._parameters.get("weight") is not None and "bias" in norm._parameters


def _joined(module: str, parameter: str) -> str:
    return f"{module}.{parameter}" if module else parameter
