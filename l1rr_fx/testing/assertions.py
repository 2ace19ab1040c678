"""Assertions about models: pruned exactly, pruned to the limit, still prunable."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from l1rr_fx.method.sites.channel_sites import channel_sites
from l1rr_fx.method.sites.zeroing import zeroed_values
from l1rr_fx.pruning.compiler import prune
from l1rr_fx.pruning.pruned import Pruned
from l1rr_fx.support.arguments import share
from l1rr_fx.testing.blame import find_fault
from l1rr_fx.testing.judging import differences, fresh
from l1rr_fx.testing.least_macs import executed_macs, numerical_limit
from passes.assignment.options import Options
from passes.choices import Mode
from passes.errors import CaptureError
from passes.frontend.capture import check_arguments
from passes.graph.isolation import detached_copy, in_float64

TOLERANCE = 1e-10  # float64: what is left is the reassociation of sums
LIMIT = 1.01
INPUTS = 3


def assert_prunes_exactly(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    at_limit: bool = True,
    mode: Mode = "recombine",
) -> Pruned:
    """Prune `model` with the zeros in its weights and return the result; AssertionError if it is not exactly the same.

    Compared in float64, on `args` and on two random inputs like it, number by number; outputs without a number are an
    AssertionError, too. The error names the first node that differs and the rule at fault. With `at_limit` the small
    network may make at most 1 % more multiplications than any exact channel-level method must; the error says what
    keeps more. `model` is not changed. Errors of `prune` (CaptureError, VanishedError, ...) pass through.
    """
    check_arguments(model, args, kwargs)
    exact, inputs, named = in_float64(model), in_float64(args), in_float64(dict(kwargs or {}))
    pruned = prune(exact, inputs, named, mode=mode, verify=False)
    compared = 0
    for seed in range(INPUTS):
        given = inputs if seed == 0 else fresh(inputs, seed)
        with torch.no_grad():
            expected = detached_copy(exact)(*copy.deepcopy(given), **copy.deepcopy(named))
            try:
                found = differences(copy.deepcopy(pruned.module)(*given, **named), expected)
            except (RuntimeError, IndexError) as error:
                blame = _blame(exact, given, named, mode)
                raise AssertionError(f"the pruned network does not run: {error}{blame}") from error
        compared += len(found)
        if not (deviation := max(found, default=0.0)) <= TOLERANCE:
            blame = _blame(exact, given, named, mode)
            raise AssertionError(f"the pruned network deviates by {deviation:.3g} from the zeroed one{blame}")
    if not compared:
        raise AssertionError("the outputs hold no number, so that nothing was compared: give another example")
    if at_limit and mode == "recombine" and pruned.report.macs_over_limit > LIMIT:
        raise AssertionError(f"pruned to {pruned.report.macs_over_limit:.3f} times the limit{_above(pruned)}")
    return pruned


def assert_at_limit(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    independent: bool = False,
    samples: int = 3,
) -> Pruned:
    """Prune `model` and return the result; AssertionError if it makes over 1 % more MACs than the limit.

    The limit is that of the report, which the compiler's rules count. With `independent` it is one that no rule has
    counted: a channel is live if it is not zero and changes an output, in `samples` runs with new inputs and with new
    weights that are zero where the old ones are (`numerical_limit`). That one counts the calls of convolutions and
    linear layers, of which it also counts what the pruned model executes; products of activations and recurrent layers
    are in neither. It takes two forward passes or more a layer and sample. `model` is not changed.
    """
    check_arguments(model, args, kwargs)
    exact, inputs, named = in_float64(model), in_float64(args), in_float64(dict(kwargs or {}))
    pruned = prune(exact, inputs, named, verify=False)
    if independent:
        after = executed_macs(pruned.module, inputs, named)
        least = numerical_limit(exact, inputs, named, samples=samples, strict=True).macs
    else:
        after, least = pruned.report.after.macs, pruned.report.limit.macs
    if after > LIMIT * least:
        whose = "activations and gradients" if independent else "the rules"
        raise AssertionError(
            f"{after:,} MACs, {after / max(1, least):.3f} times the {least:,} at the limit by {whose}{_above(pruned)}"
        )
    return pruned


def _above(pruned: Pruned) -> str:
    """What the report says about work above the limit, as the rest of a message."""
    accounts = pruned.report.accounts
    kept = "".join(f"\n  {each.node}: {each.macs:,} MACs, {each.reason}" for each in accounts.kept if each.macs)
    read = "".join(f"\n  {each.node}: {each.reason}" for each in accounts.kept if not each.macs)
    return f"; what keeps more:{kept}{read}" if kept or read else "; the rules call nothing dead that is left"


def assert_stays_prunable(
    model: nn.Module,
    args: tuple[Any, ...],
    *,
    at_least: float,
    ratio: float = 0.5,
    seed: int = 0,
) -> Pruned:
    """AssertionError unless at least this share of the MACs goes when `ratio` of the channels are zeroed.

    In every place where channels can be zeroed (`l1rr_fx.channel_sites`) some die at random, always the same for a
    seed: a regression test of a model's architecture, without training. The error names what blocks the most. `model`
    is not changed.
    """
    share("at_least", at_least, "a share between 0 and 1, such as 0.4,")
    share("ratio", ratio, "a share between 0 and 1")
    check_arguments(model, args, None)
    report = (pruned := prune(_sites_zeroed(model, args, ratio, seed), args, verify=False)).report
    gone = 1 - report.after.macs / max(1, report.before.macs)
    if gone >= at_least:
        return pruned
    kept = sorted(report.accounts.kept, key=lambda each: (-each.macs, -each.channels))[:5]
    blocks = "".join(f"\n  {each.node}: {each.channels} channels, {each.reason}" for each in kept)
    raise AssertionError(
        f"with {ratio:.0%} of the channels zeroed {gone:.1%} of the MACs can go, expected {at_least:.1%}"
        + (f"; what blocks the most:{blocks}" if blocks else "; nothing is blocked: the outputs need what is left")
    )


def _sites_zeroed(model: nn.Module, args: tuple[Any, ...], ratio: float, seed: int) -> nn.Module:
    """A copy of `model` with `ratio` of the channels of each site zero, at least one staying."""
    generator = torch.Generator().manual_seed(seed)
    result = detached_copy(model)
    values = {**dict(result.named_buffers()), **dict(result.named_parameters())}
    masks: dict[str, Tensor] = {}  # by unit: what depthwise convolutions join dies together
    for site in (sites := channel_sites(result, args)):
        order = torch.rand(site.channels, generator=generator).argsort()
        masks.setdefault(site.unit or site.name, order < min(round(ratio * site.channels), site.channels - 1))
    zeroing = {site.name: masks[site.unit or site.name] for site in sites}
    for name, value in zeroed_values(sites, values, zeroing).items():
        values[name].data.copy_(value)
    return result


def _blame(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], mode: Mode) -> str:
    """The first node that differs and the rule at fault, as the rest of a message."""
    try:
        fault = find_fault(model, args, kwargs, options=Options(mode))
    except CaptureError:
        return " (it is pruned in pieces: assert each of them alone)"
    return "" if fault is None else f"; the first difference is {fault}"
