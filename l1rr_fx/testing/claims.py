"""What a rule claims of one call, held against the values that the call computes.

A rule claims that elements of its results are zero for every input, or lie between bounds, and that elements of its
inputs are not needed. The compiler may drop what is zero, add what is constant elsewhere, and may leave the rule's
stand-in, or what the network computed, in place of what is not needed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from passes.analysis.liveness import Facts
from passes.graph.nodes import is_tensor
from passes.rules.base import Site

Values = Mapping[Node, Any]
TOLERANCE = 1e-9  # float64: what is left is the reassociation of sums


class _Recorder(Interpreter):
    """Runs a graph and keeps every value as it was when it was made."""

    def __init__(self, module: GraphModule) -> None:
        super().__init__(module, garbage_collect_values=False)
        self.values: dict[Node, Any] = {}

    def run_node(self, n: Node) -> Any:
        value = super().run_node(n)
        self.values[n] = pytree.tree_map_only(Tensor, torch.clone, value)
        return value

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = super().get_attr(target, args, kwargs)
        return value.detach().clone() if isinstance(value, Tensor) else value  # batch norm writes its statistics


def node_values(module: GraphModule, inputs: Any) -> Values:
    """Every value of a graph on these inputs (any nesting, in the order of its placeholders)."""
    recorder = _Recorder(module)
    with torch.no_grad():
        recorder.run(*pytree.tree_leaves(inputs))
    return recorder.values


def partial_values(module: GraphModule, inputs: Any) -> Values:
    """The values of a graph up to the first call that raises."""
    recorder = _Recorder(module)
    with torch.no_grad(), contextlib.suppress(RuntimeError, IndexError):
        recorder.run(*pytree.tree_leaves(inputs))
    return recorder.values


def false_zero(site: Site, facts: Facts, values: Values) -> str | None:
    """What the rule calls zero and is not; None if its claim holds for these values."""
    for index, out in enumerate(site.outputs):
        if out is None:
            continue
        wrong = (facts.zero[out] & (values[out] != 0)).nonzero()
        if len(wrong):
            place = tuple(wrong[0].tolist())
            found = values[out][place].item()
            return f"it calls element {place} of result {index} zero, which is {found:.6g}"
    return None


def false_bounds(site: Site, facts: Facts, values: Values) -> str | None:
    """A bound that the rule gives and that does not hold; None if all hold for these values."""
    for index, out in enumerate(site.outputs):
        bounds = None if out is None else facts.ranges.get(out)
        if out is None or bounds is None:
            continue
        value = values[out].double()
        slack = TOLERANCE * (1 + value.abs()).nan_to_num(posinf=0.0)
        wrong = ~((value >= bounds.low - slack) & (value <= bounds.high + slack)) & ~value.isnan()
        if bool(wrong.any()):
            place = tuple(wrong.nonzero()[0].tolist())
            low, high = (end.expand(value.shape)[place].item() for end in (bounds.low, bounds.high))
            found = value[place].item()
            return f"it says element {place} of result {index} lies in [{low:.6g}, {high:.6g}], and it is {found:.6g}"
    return None


def false_unneeded(site: Site, facts: Facts, values: Values, seed: int = 0) -> str | None:
    """What the rule calls unneeded and is not: elements of its inputs that change what is live of its results."""
    seen = facts.at(site)
    claimed = site.rule.needed(site, seen.lives, seen.zeros)
    needed: dict[Node, Tensor] = {}
    for node, mask in zip(site.inputs, claimed, strict=True):
        needed[node] = needed[node] | mask if node in needed else mask
    free = {node: ~mask & ~facts.zero[node] for node, mask in needed.items() if values[node].is_floating_point()}
    changed = {node: changed_where(values[node], mask, seed) for node, mask in free.items()}
    filled = {
        node: values[node].masked_fill(free[node], site.rule.stand_in(site, index))
        for index, node in enumerate(site.inputs)
        if node in free
    }
    before, after, bare = (called(site, {**values, **instead}) for instead in ({}, changed, filled))
    for index, (out, live, old, new, least) in enumerate(
        zip(site.outputs, seen.lives, before, after, bare, strict=True)
    ):
        if out is None:
            continue
        if (place := _first_difference(old, new, live)) is not None:
            return f"element {place} of result {index} changes with elements of the inputs that the rule calls unneeded"
        if len(infinite := (old.isfinite() & ~least.isfinite()).nonzero()):
            place = tuple(infinite[0].tolist())
            return f"element {place} of result {index} is {least[place]} with the stand-in for what it calls unneeded"
    return None


def changed_where(value: Tensor, free: Tensor, seed: int = 0) -> Tensor:
    """`value` with other numbers of its own kind where `free` (which broadcasts to it) is True."""
    generator = torch.Generator().manual_seed(seed)
    others = value.flatten()[torch.randperm(value.numel(), generator=generator)].view(value.shape)
    others = torch.where(others == value, others + 1, others)
    return torch.where(free, others, value)


def called(site: Site, values: Values) -> list[Any]:
    """The results of a call on these values of its arguments; nothing of them is written to."""

    def read(node: Node) -> Any:
        if not is_tensor(node):
            return site.values.concrete(node)
        return values[node].clone()

    torch.default_generator.manual_seed(0)  # the CPU's alone: the others' take longer than the call
    args, kwargs = map_arg(site.node.args, read), map_arg(site.node.kwargs, read)
    with torch.no_grad():
        result = site.node.target(*args, **kwargs)  # type: ignore[operator]
    return list(result) if isinstance(result, (list, tuple)) else [result]


def _first_difference(old: Tensor, new: Tensor, live: Tensor) -> tuple[int, ...] | None:
    """The first element of `live` (compact) whose value differs."""
    same = torch.isclose(old, new, rtol=TOLERANCE, atol=TOLERANCE, equal_nan=True)
    wrong = (live & ~same).nonzero()
    return tuple(wrong[0].tolist()) if len(wrong) else None
