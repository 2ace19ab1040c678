"""The range of an element-wise function: constants by calling it, intervals by what is listed in `bounds`."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Node

from passes.graph.nodes import is_tensor, operator_name
from passes.graph.ranges import Range
from passes.rules.base import Site
from passes.rules.bounds import BOUNDS
from passes.rules.probe import value_at

EVALUATE = ()
"""What `_of_unknown` says of calls that it does not know."""


def argument_range(site: Site, ranges: Sequence[Range | None], argument: Any) -> Range | None:
    """The range of one argument of a call, a tensor or a number; None where nothing is known."""
    if isinstance(argument, Node):
        return ranges[site.inputs.index(argument)] if argument in site.inputs else None
    if isinstance(argument, (bool, int, float)) and not math.isnan(argument):
        return Range.between((), float(argument), float(argument))
    return None


def bounded(site: Site, ranges: Sequence[Range | None]) -> Range | None:
    """The range of f(x, y, ...); None where nothing is known."""
    if not site.node.meta["val"].is_floating_point() or is_random(site):
        return None
    ranges = [None if _shared(site, node, ranges) else each for node, each in zip(site.inputs, ranges, strict=True)]
    between = _between(site, ranges)
    constant = _constant(site, ranges)
    if constant is None or between is None:
        return constant or between
    known = constant.is_constant
    return Range(torch.where(known, constant.low, between.low), torch.where(known, constant.high, between.high))


def is_random(site: Site) -> bool:
    """Whether the call draws numbers: such an operator with `training=False` draws none."""
    target = site.node.target
    if not isinstance(target, OpOverload) or torch.Tag.nondeterministic_seeded not in target.tags:
        return False
    names = [argument.name for argument in target._schema.arguments]
    return "training" not in names or bool(site.argument(names.index("training"), "training", False))


def _constant(site: Site, ranges: Sequence[Range | None]) -> Range | None:
    """The value where all inputs are constant. It is computed in the precision of the network."""
    if not ranges or any(each is None for each in ranges):
        return None
    known = torch.ones((), dtype=torch.bool)
    values: dict[Node, Tensor] = {}
    for node, each in zip(site.inputs, ranges, strict=True):
        assert each is not None
        known = known & each.is_constant
        values[node] = each.low.masked_fill(~each.is_constant, 0.0)
    if not bool(known.any()):
        return None
    result = value_at(site, values)
    if result is None or not result.is_floating_point():
        return None
    shape = torch.broadcast_shapes(result.shape, known.shape)
    return Range.constant(result.expand(shape), known.expand(shape))


def _number(argument: Any) -> float | str | None:
    """An argument as `_of_unknown` takes it: "x" stands for a tensor or a number that is computed."""
    if isinstance(argument, Node):
        return "x"
    return argument if argument is None or type(argument) in (int, float) else ""


@functools.cache
def _of_unknown(name: str, *arguments: float | str | None) -> tuple[float, float] | tuple[()] | None:
    """The interval of a listed function of tensors of which nothing is known; None if it is the whole line.

    EVALUATE for arguments of other kinds.
    """
    if "" in arguments or any(isinstance(each, float) and math.isnan(each) for each in arguments):
        return EVALUATE
    ranges = [
        None if each is None else Range.unknown(()) if isinstance(each, str) else Range.between((), each, each)
        for each in arguments
    ]
    try:
        low, high = (float(end) for end in BOUNDS[name](*ranges))
    except TypeError:  # more arguments than the list knows
        return None
    low, high = (-math.inf if math.isnan(low) else low), (math.inf if math.isnan(high) else high)
    return None if (low, high) == (-math.inf, math.inf) else (low, high)


def _shared(site: Site, node: Node, ranges: Sequence[Range | None]) -> bool:
    """Whether a parameter meets several channels in one entry.

    Its gradient sums over all of these channels: those that are constant are not left out while it trains.
    """
    if site.values.inference or node.op != "get_attr" or not site.values.is_trained(node):
        return False
    rank = len(site.out_shape)
    own = site.shape(node)
    for other, each in zip(site.inputs, ranges, strict=True):
        if other is node or each is None:
            continue
        for axis, size in enumerate(each.low.shape, start=rank - each.low.dim()):
            behind = axis - (rank - len(own))
            if size > 1 and (behind < 0 or own[behind] == 1):
                return True
    return False


def _between(site: Site, ranges: Sequence[Range | None]) -> Range | None:
    """The interval, where the function is listed and is called without options."""
    bound = BOUNDS.get(operator_name(site.node))
    if bound is None or site.node.kwargs:
        return None
    if all(each is None for each in ranges):
        ends = _of_unknown(operator_name(site.node), *(_number(argument) for argument in site.node.args))
        if ends is not EVALUATE and (len(site.node.args) < 2 or site.node.args[0] is not site.node.args[1]):
            return None if ends is None else Range.between((1,) * len(site.out_shape), *ends)
    given: list[Range | None] = []
    for argument in site.node.args:
        found = None if argument is None else argument_range(site, ranges, argument)
        if argument is not None and found is None:
            if not isinstance(argument, Node):
                return None
            found = Range.unknown((1,) * len(site.shape(argument)) if is_tensor(argument) else ())  # or a number
        given.append(found)
    if len(given) > 1 and site.node.args[0] is site.node.args[1] and operator_name(site.node) in ("mul", "multiply"):
        bound, given = BOUNDS["square"], given[:1]
    try:
        low, high = torch.broadcast_tensors(*bound(*given))
    except TypeError:  # more arguments than the list knows
        return None
    low, high = low.nan_to_num(-math.inf, math.inf, -math.inf), high.nan_to_num(math.inf, math.inf, -math.inf)
    found = Range(low, high)
    return None if found.says_nothing else found
