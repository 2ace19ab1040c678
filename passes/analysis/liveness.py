"""Liveness of channels: which labels of every tensor are zero, and which are needed.

Two facts for each tensor, as bool masks in its compact shape, with an entry for each label (`passes.graph.layout`):

- `zero`: every element of the label is zero for every input of the network. Forward: a label of a result is zero if the
  rule of its operator derives it from zero inputs and from the zeros in its weights. LLVM calls the same on bits *known
  bits*.
- `needed`: some output of the network depends on an element of the label. Backward: all labels of outputs are needed,
  and of tensors whose elements the program reads as numbers (`.item()`); a label of an input is needed if a live label
  of a result depends on it. LLVM: *demanded bits*.

A label is live if it is needed and not zero. Both sweeps run once: a canonical graph has no cycles. What a rule does
not know it reports as "not zero" and "needed", so with an unknown operator the compiler removes less but stays correct.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor
from torch.fx import Node

from passes.analysis.program import Program
from passes.analysis.zeros import Zeros
from passes.graph.layout import fitted
from passes.graph.ranges import Ranges
from passes.rules.base import Site, SiteFacts


@dataclass(frozen=True, eq=False)
class Facts:
    """The liveness of every tensor of a program.

    `zero[t]`: the labels of tensor t that are zero for every input. `ranges[t]`: bounds of its elements, where any are
    known. `needed[t]`: the labels that some output depends on. `asked[c]`: for each input of call c, the labels that
    its own live results depend on; `needed` is the union over all readers. `merged`: inputs and parameters whose
    positions have one label for all of them, because tensors would have too many (`passes.analysis.zeros`).
    """

    zero: Mapping[Node, Tensor]
    ranges: Ranges
    needed: Mapping[Node, Tensor]
    asked: Mapping[Node, tuple[Tensor, ...]]
    merged: frozenset[Node] = frozenset()

    def live(self, node: Node) -> Tensor:
        """The labels that are needed and not zero."""
        return self.needed[node] & ~self.zero[node]

    def at(self, site: Site, multiple: int = 1) -> SiteFacts:
        """The facts at one call site, as rules read them; channel counts are to be rounded up to `multiple`."""
        return SiteFacts(
            tuple(self.live(out) if out is not None else _unread(site, i) for i, out in enumerate(site.outputs)),
            tuple(self.zero[node] for node in site.inputs),
            tuple(self.live(node) for node in site.inputs),
            self.asked[site.node],
            multiple,
        )


Cuts = Mapping[tuple[Node, int], Tensor]
"""By call and input: labels that the call no longer depends on."""


def channel_facts(
    program: Program,
    assumed: Mapping[Node, Tensor] = MappingProxyType({}),
    wanted: Mapping[Node, Tensor] = MappingProxyType({}),
) -> Facts:
    """The liveness of a program, from the zeros in its weights.

    `assumed` marks additional elements of inputs and results as zero, as masks that broadcast to their shape: the facts
    are then those of a network in which these elements are zero. `wanted` marks the elements of outputs that are read,
    where these are not all.
    """
    found = Zeros.of(program, assumed)
    return Facts(found.zero, found.ranges, *_needed(program, found.zero, {}, wanted), frozenset(found.merged))


def facts_without(program: Program, facts: Facts, cuts: Cuts) -> Facts:
    """The facts of a program whose calls do not need the labels of `cuts`; what is zero stays so."""
    return Facts(facts.zero, facts.ranges, *_needed(program, facts.zero, cuts), facts.merged)


def _needed(
    program: Program,
    zero: Mapping[Node, Tensor],
    cuts: Cuts,
    wanted: Mapping[Node, Tensor] = MappingProxyType({}),
) -> tuple[dict[Node, Tensor], dict[Node, tuple[Tensor, ...]]]:
    asked: dict[Node, tuple[Tensor, ...]] = {}
    needed = {node: torch.zeros_like(mask) for node, mask in zero.items()}
    for node in program.output_tensors:
        if node in needed:
            needed[node] = torch.ones_like(zero[node])
            if node in wanted:
                needed[node] = fitted(wanted[node], zero[node].shape)
    for node in program.read_as_numbers:
        needed[node] = torch.ones_like(zero[node])
    for site in reversed(program.sites):
        lives = [
            needed[out] & ~zero[out] if out is not None else _unread(site, i) for i, out in enumerate(site.outputs)
        ]
        found = tuple(site.rule.needed(site, lives, [zero[n] for n in site.inputs]))
        if cuts:
            found = tuple(m & ~cuts[site.node, i] if (site.node, i) in cuts else m for i, m in enumerate(found))
        asked[site.node] = found
        for node, mask in zip(site.inputs, found, strict=True):
            needed[node] = needed[node] | mask
    return needed, asked


def _unread(site: Site, index: int) -> Tensor:
    """The liveness of a result without readers: no label is live."""
    value = site.node.meta["val"]
    part = value if isinstance(value, Tensor) else value[index]
    return torch.zeros((1,) * part.dim() if isinstance(part, Tensor) else (), dtype=torch.bool)
