"""Constants times a live gate: channels that depend on the input, but not on the place.

    y = W x      where x = c g in some channels, c is constant, and g is (N, C, 1, 1), as in squeeze and excitation
    y = W' x + V (c g)                  W' and V are the other columns of W, and these

The second product is on 1 x 1 maps, and is added at every place. So the constant channels are not needed any more at
full size. That holds for all channels that are the same at every place, whatever computes them from constants and 1 x 1
maps, element by element.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from passes.absorption.columns import are_private
from passes.absorption.edits import Edits, tensor_readers
from passes.accounts import Constant
from passes.analysis.liveness import Facts
from passes.analysis.program import Program
from passes.graph.layout import along, fitted
from passes.graph.modes import DROPOUTS
from passes.graph.nodes import ADDED
from passes.rules.base import Site
from passes.rules.intervals import is_random
from passes.rules.probe import stand_ins
from passes.rules.weights import Columns, weight_of

aten = torch.ops.aten


class Prices(Protocol):
    """What the split needs to know of a machine; a cost model (`passes.assignment`) is one."""

    @property
    def multiple(self) -> int:
        """Channel counts are rounded up to a multiple of this where that costs less."""
        ...

    def contraction(self, macs: float, inputs: int, outputs: int) -> float:
        """The cost of a contraction."""
        ...

    def traffic(self, size: float) -> float:
        """The cost of one kernel that reads and writes `size` bytes."""
        ...


@dataclass(frozen=True, eq=False)
class Split:
    """A convolution without a window, and the input channels that are the same at every place but no constants."""

    site: Site
    columns: Columns
    even: Tensor


def split_gates(program: Program, facts: Facts, edits: Edits, prices: Prices) -> tuple[Constant, ...]:
    """Compute even channels on 1 x 1 maps, in place, where that pays; says which."""
    found = list[Constant]()
    for split in list(_splits(program, facts)):
        if not _pays(facts, split, prices):
            continue
        small = _Small(program, facts, edits, split.site.node)
        if small.reaches(split.site.inputs[0], split.even):
            _write(edits, split, small.written(split.site.inputs[0], split.even))
            site = split.site
            found.append(Constant(site.inputs[0].name, site.node.name, int(split.even.sum()), "gate"))
    return tuple(found)


def _splits(program: Program, facts: Facts) -> Iterator[Split]:
    even, readers = even_channels(program, facts), tensor_readers(program)
    for site in program.sites:
        columns = site.rule.columns(site)
        node = site.inputs[0] if site.inputs else None
        if columns is None or node not in even or columns.taps != 1 or not columns.even or columns.axis != 1:
            continue
        if columns.transposed or columns.widths.groups != 1 or not are_private([site], readers, biases=False):
            continue
        known = facts.ranges.get(node)
        mask = even[node] & ~facts.zero[node] & facts.asked[site.node][0]
        mask = mask if known is None else mask & ~known.is_constant
        if bool(mask.any()) and len(site.out_shape) > 2:
            yield Split(site, columns, columns.channels(mask))


def even_channels(program: Program, facts: Facts) -> dict[Node, Tensor]:
    """The channels of tensors (N, C, ...) that are the same at every place, and computed by element from such ones."""
    found: dict[Node, Tensor] = {}
    for site in program.sites:
        out = site.outputs[0]
        if out is None or not _has_places(facts.zero[out]):
            continue
        if _is_small(program, out, facts.zero[out].dim()):
            found[out] = torch.ones_like(facts.zero[out])
        elif _is_by_element(program, site) and site.inputs:
            masks = [_even_input(program, facts, found, node, facts.zero[out].dim()) for node in site.inputs]
            mask = fitted(torch.stack(torch.broadcast_tensors(*masks)).all(0), facts.zero[out].shape, every=True)
            if bool(mask.any()):
                found[out] = mask
    return found


def _has_places(mask: Tensor) -> bool:
    return mask.dim() > 2 and mask.numel() == mask.shape[1]


def _is_small(program: Program, node: Node, rank: int) -> bool:
    """Whether a tensor has one place only, for inputs of every size, beside tensors of this rank."""
    shape = program.shape(node)
    places = range(max(0, 2 - (rank - len(shape))), len(shape))
    return all(shape[axis] == 1 and program.is_static(node, axis) for axis in places)


def _is_by_element(program: Program, site: Site) -> bool:
    """Whether the call computes element by element, and would compute the same again."""
    drops = site.node.target in DROPOUTS and not program.inference
    return site.rule.is_pointwise and not drops and not is_random(site)


def _even_input(program: Program, facts: Facts, even: Mapping[Node, Tensor], node: Node, rank: int) -> Tensor:
    """The even channels of one input of a call by element, as a mask that broadcasts to the result's."""
    if _is_small(program, node, rank):
        return torch.ones((1,) * rank, dtype=torch.bool)
    mask = torch.zeros((1,) * rank, dtype=torch.bool)
    if len(program.shape(node)) != rank:
        return mask
    if node in even:
        mask = even[node]
    if (known := facts.ranges.get(node)) is not None and _has_places(known.low):
        mask = mask | known.is_constant
    return mask


class _Small:
    """Writes what a tensor is in its even channels as a tensor with one place. In other channels it is any number."""

    def __init__(self, program: Program, facts: Facts, edits: Edits, before: Node) -> None:
        self.program, self.facts, self.edits, self.before = program, facts, edits, before
        self.rank = len(program.shape(before))
        self._written: dict[Node, Node] = {}

    def reaches(self, node: Node, channels: Tensor) -> bool:
        """Whether these channels can be written, and the others are finite."""
        if _is_small(self.program, node, self.rank) or self._constant(node, channels) is not None:
            return True
        site = self.program.at.get(node)
        if site is None or site.node is not node or not _is_by_element(self.program, site):
            return False
        for each, finite in zip(site.inputs, stand_ins(site), strict=True):
            replaced = not _is_small(self.program, each, self.rank)
            if not self.reaches(each, channels) or (replaced and finite != 0):
                return False
        return True

    def written(self, node: Node, channels: Tensor) -> Node:
        """A node that has these channels, at one place."""
        if _is_small(self.program, node, self.rank):
            return node
        if node not in self._written:
            self._written[node] = self._write(node, channels)
        return self._written[node]

    def _constant(self, node: Node, channels: Tensor) -> Tensor | None:
        """The value of a tensor that is constant in all of these channels (0 in others)."""
        known = self.facts.ranges.get(node)
        if known is None or not _has_places(known.low) or known.low.dim() != self.rank:
            return None
        mask = along(channels, 1, known.low.dim())
        if known.low.shape[1] not in (1, len(channels)) or not bool((known.is_constant | ~mask).all()):
            return None
        return torch.where(mask, known.low, 0.0)

    def _write(self, node: Node, channels: Tensor) -> Node:
        value = self._constant(node, channels)
        if value is not None:
            return self.edits.new_buffer(node, value, before=self.before)
        small = {each: self.written(each, channels) for each in self.program.at[node].inputs}

        def place(argument: Node) -> Any:
            return small.get(argument, argument)

        def example(argument: Node) -> Any:
            return argument.meta["val"]

        target: Any = node.target
        with node.graph.inserting_before(self.before):
            call = node.graph.call_function(target, map_arg(node.args, place), map_arg(node.kwargs, place))
        call.meta["val"] = target(*map_arg(call.args, example), **map_arg(call.kwargs, example))
        return call


def _pays(facts: Facts, split: Split, prices: Prices) -> bool:
    """Whether the columns at full size cost more than those at one place, and one addition."""
    site, columns = split.site, split.columns
    places, batch = math.prod(site.out_shape[2:]), site.out_shape[0]
    read = columns.channels(facts.asked[site.node][0] & ~facts.zero[site.inputs[0]])
    inputs, moved, outputs = int(read.sum()), int(split.even.sum()), int(facts.live(site.node).sum())

    def cost(width: int, area: int) -> float:
        ways = ((w, o) for w in _widths(width, prices) for o in _widths(outputs, prices))
        return min(prices.contraction(batch * area * w * o, w, o) for w, o in ways) if width else 0.0

    added = prices.traffic(2 * batch * places * outputs * site.node.meta["val"].element_size())
    return cost(inputs, places) > cost(inputs - moved, places) + cost(moved, 1) + added


def _widths(channels: int, prices: Prices) -> tuple[int, int]:
    """A channel count, and the same rounded up as layouts are."""
    return channels, -(-channels // prices.multiple) * prices.multiple


def _write(edits: Edits, split: Split, small: Node) -> None:
    """Give the even columns to a convolution of the small tensor, and add its result to that of the other columns."""
    call, weight = split.site.node, weight_of(split.site.node)
    target: Any = call.target
    even = split.even.to(edits.tensor(str(weight.target)).device)
    columns = edits.new_columns(weight, even)
    edits.value(str(weight.target))[:, even] = 0
    with call.graph.inserting_after(call):
        term = call.graph.call_function(target, (small, columns))
    with call.graph.inserting_after(term):
        total = call.graph.call_function(aten.add.Tensor, (call,))
    term.meta[ADDED] = True
    term.meta["val"] = target(small.meta["val"], columns.meta["val"])
    total.meta["val"] = call.meta["val"]
    call.replace_all_uses_with(total)
    total.args = (call, term)
