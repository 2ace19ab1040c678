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
from functools import reduce
from operator import or_
from types import MappingProxyType

import torch
from torch import Tensor, nn
from torch.fx import Node

from passes.analysis.program import Program
from passes.graph.constants import constant_values
from passes.graph.layout import collapse
from passes.graph.modes import SWITCHED
from passes.graph.nodes import attribute, is_tensor
from passes.graph.ranges import Range
from passes.rules.base import Site, SiteFacts


@dataclass(frozen=True, eq=False)
class Facts:
    """The liveness of every tensor of a program.

    `zero[t]`: the labels of tensor t that are zero for every input. `ranges[t]`: bounds of its elements, where any are
    known. `needed[t]`: the labels that some output depends
    on. `asked[c]`: for each input of call c, the labels that its own live results depend on; `needed` is the union over
    all readers.
    """

    zero: Mapping[Node, Tensor]
    ranges: Mapping[Node, Range]
    needed: Mapping[Node, Tensor]
    asked: Mapping[Node, tuple[Tensor, ...]]

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


def channel_facts(program: Program, assumed: Mapping[Node, Tensor] = MappingProxyType({})) -> Facts:
    """The liveness of a program, from the zeros in its weights.

    `assumed` marks additional result elements as zero, as masks that broadcast to the shape of the result: the facts
    are then those of a network in which these elements are zero.
    """
    zero, ranges = _forward(program, assumed)
    return Facts(zero, ranges, *_needed(program, zero, {}))


def facts_without(program: Program, facts: Facts, cuts: Cuts) -> Facts:
    """The facts of a program whose calls do not need the labels of `cuts`; what is zero stays so."""
    return Facts(facts.zero, facts.ranges, *_needed(program, facts.zero, cuts))


def _forward(program: Program, assumed: Mapping[Node, Tensor]) -> tuple[dict[Node, Tensor], dict[Node, Range]]:
    """What is zero and between which bounds the labels of each tensor lie."""
    zero: dict[Node, Tensor] = {}
    ranges: dict[Node, Range] = {}
    firm: dict[Node, Tensor] = {}
    constants = _made_of_parameters(program)
    for node in program.module.graph.nodes:
        if node.op == "placeholder" and is_tensor(node):
            zero[node] = _input_zero(program, node)
        elif node.op == "get_attr" and is_tensor(node):
            if any(node in site.inputs for site in map(program.at_call, node.users) if site is not None):
                zero[node] = _constant_zero(program, node)
                if node.meta["val"].is_floating_point():
                    ranges[node] = Range.constant(program.tensor(node))
        elif (site := program.at_call(node)) is not None:
            incoming = [zero[n] for n in site.inputs]
            found = site.rule.zero(site, incoming)
            known = [ranges.get(n) for n in site.inputs]
            bounds = site.rule.range(site, incoming, known)
            if (fixed := site.rule.firm(site, incoming)) is not None:
                firm[node] = fixed
            for out, mask, bound in zip(site.outputs, found, bounds, strict=True):
                if out is not None:
                    more = [masks[out] for masks in (constants, assumed) if out in masks]
                    mask = reduce(or_, (collapse(each, mask.shape, every=True) for each in more), mask)
                    if bound is not None:
                        bound = bound.fitted(mask.shape)
                    if out is node and (vanished := site.rule.vanishes(site, incoming, known, firm)) is not None:
                        wide = torch.broadcast_shapes(vanished.shape, mask.shape)
                        mask = mask | collapse(vanished.expand(wide), mask.shape, every=True)
                    zero[out] = mask
                    if bool(mask.any()):
                        bound = (bound or Range.unknown(mask.shape)).met(mask)
                    if bound is not None and not bound.says_nothing:
                        ranges[out] = bound
    return zero, ranges


def _made_of_parameters(program: Program) -> dict[Node, Tensor]:
    """The zeros of values that are computed from parameters alone, such as the ReLU of a negative weight.

    Only values that are the same in training and in evaluation, and only those that have a zero.
    """
    found: dict[Node, Tensor] = {}
    trained: dict[Node, bool] = {}  # of values alike in both modes: is a parameter a source?
    for node, value in constant_values(program.module).items():
        if node.op == "get_attr":
            trained[node] = isinstance(attribute(program.module, str(node.target)), nn.Parameter)
        elif node.target not in SWITCHED and all(argument in trained for argument in node.all_input_nodes):
            trained[node] = any(trained[argument] for argument in node.all_input_nodes)
            if trained[node] and isinstance(value, Tensor) and value.is_floating_point():
                if bool((zero := value == 0).any()):
                    found[node] = zero.cpu()
    return found


def _input_zero(program: Program, node: Node) -> Tensor:
    """No element of a network input is zero. Its channels (axis 1; of a sequence also the last axis) are labelled,
    because some of them may be unread."""
    shape = program.shape(node)
    labelled = {1} if len(shape) != 3 else {1, 2}
    if not node.meta["val"].is_floating_point():
        labelled = set()
    return torch.zeros(
        [n if a in labelled and program.is_static(node, a) else 1 for a, n in enumerate(shape)], dtype=torch.bool
    )


def _constant_zero(program: Program, node: Node) -> Tensor:
    value = program.tensor(node)
    if not value.is_floating_point() and value.dtype is not torch.bool:
        return torch.zeros((1,) * value.dim(), dtype=torch.bool)
    return (value == 0).cpu()


def _needed(
    program: Program, zero: Mapping[Node, Tensor], cuts: Cuts
) -> tuple[dict[Node, Tensor], dict[Node, tuple[Tensor, ...]]]:
    asked: dict[Node, tuple[Tensor, ...]] = {}
    needed = {node: torch.zeros_like(mask) for node, mask in zero.items()}
    for node in program.output_tensors:
        if node in needed:
            needed[node] = torch.ones_like(zero[node])
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
