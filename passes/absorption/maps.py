"""Fixed maps: channels that no input changes, though their elements differ.

Behind zero padding a constant c is c times a map that is 1 inside and 0 at the border. An average of it, padded too, is
c times another map. Which map that is depends on the size of the input, but not on c: channels that went through the
same calls are proportional, for every size.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from passes.analysis.liveness import Facts
from passes.analysis.program import Program
from passes.graph.ranges import Range
from passes.rules.base import Site

NONE, ONES = -1, 0
"""The kinds of channels that depend on an input, and of those that are constant."""


@dataclass(frozen=True, eq=False)
class FixedMaps:
    """For each label of a tensor the number of a map (`NONE` for no map), and how many times that map it is."""

    kind: Tensor
    factor: Tensor

    @property
    def is_known(self) -> Tensor:
        """Which labels no input changes, and are not zero."""
        return (self.kind != NONE) & (self.factor != 0)


def fixed_maps(program: Program, facts: Facts) -> dict[Node, FixedMaps]:
    """The fixed maps of every tensor that has channels of that kind (axis 1 of at least three)."""
    found: dict[Node, FixedMaps] = {}
    numbers: dict[tuple[int, str], int] = {}
    for site in program.sites:
        given = [found.get(node) for node in site.inputs]
        carried = _carried(program, facts, site, given, numbers) if any(each is not None for each in given) else {}
        for out in site.outputs:
            if out is None or out not in program.fed:
                continue
            known, maps = facts.ranges.get(out), carried.get(out)
            if known is not None and _has_channels(facts.zero[out]) and bool((constant := known.is_constant).any()):
                own = FixedMaps(torch.where(constant, ONES, NONE), torch.where(constant, known.low, 0.0))
                maps = own if maps is None else _merged(own, maps)
            if maps is not None and bool(maps.is_known.any()):
                found[out] = maps
    return found


def _has_channels(mask: Tensor) -> bool:
    """Whether a tensor is labelled along axis 1 alone, of at least three."""
    return mask.dim() > 2 and mask.numel() == mask.shape[1]


def _merged(first: FixedMaps, second: FixedMaps) -> FixedMaps:
    """The first where it knows something, else the second."""
    known = first.kind != NONE
    return FixedMaps(torch.where(known, first.kind, second.kind), torch.where(known, first.factor, second.factor))


def _carried(
    program: Program,
    facts: Facts,
    site: Site,
    given: Sequence[FixedMaps | None],
    numbers: dict[tuple[int, str], int],
) -> Mapping[Node, FixedMaps]:
    """The maps of the results, from those of the inputs."""
    outs = [out for out in site.outputs if out is not None and _has_channels(facts.zero[out])]
    if site.rule.moves_channels(site):
        return _moved(facts, site, given)
    key, maps, node = site.rule.spreads(site), given[0], site.inputs[0]
    if key is None or maps is None or len(outs) != 1 or facts.zero[outs[0]].shape != facts.zero[node].shape:
        return {}
    key = f"{key} {tuple(node.meta['val'].shape[2:])}"
    kind = maps.kind.clone()
    for number in kind[kind != NONE].unique().tolist():
        kind[maps.kind == number] = numbers.setdefault((number, key), len(numbers) + 1)
    return {outs[0]: FixedMaps(kind, maps.factor)}


def _moved(facts: Facts, site: Site, given: Sequence[FixedMaps | None]) -> Mapping[Node, FixedMaps]:
    """Where channels only change places: the rule moves numbers and factors as it moves bounds."""
    zeros = [facts.zero[node] for node in site.inputs]
    ends = []
    for name in ("kind", "factor"):
        values = [None if each is None else Range.constant(getattr(each, name).double()) for each in given]
        ends.append(site.rule.range(site, zeros, values))
    found: dict[Node, FixedMaps] = {}
    for out, kind, factor in zip(site.outputs, *ends, strict=True):
        if out is None or kind is None or factor is None or not _has_channels(facts.zero[out]):
            continue
        known = kind.is_constant & factor.is_constant
        kinds = torch.where(known, kind.low, float(NONE)).long()
        maps = FixedMaps(kinds, torch.where(known, factor.low, 0.0))
        if maps.kind.shape == facts.zero[out].shape:
            found[out] = maps
    return found
