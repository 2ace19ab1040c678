"""The forward sweep of the analysis: what is zero for every input, and between which bounds the labels lie.

A label is a position and a channel where learned positions, or an input with an axis of positions, meet channels. That
is what finds tokens that no output needs; but with thousands of tokens a tensor would have millions of labels, and
attention written out one for each pair of tokens. Where a tensor would have more than MOST_LABELS, or all together
more than MOST_IN_ALL, the inputs and parameters that it is computed from get one label for all their positions, and the
sweep goes on again from the first of their readers: channels stay distinct, positions do not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import reduce
from operator import or_

import torch
from torch import Tensor, nn
from torch.fx import Node

from passes.analysis.program import Program
from passes.graph.constants import constant_values
from passes.graph.layout import collapse, fitted
from passes.graph.modes import SWITCHED
from passes.graph.nodes import attribute, is_tensor
from passes.graph.ranges import Range, Ranges
from passes.rules.base import Site

MOST_LABELS = 1 << 21
"""More than a vision transformer has for images of 384 pixels: 577 tokens of 3,072 channels."""
MOST_IN_ALL = 1 << 26
"""Each takes about 20 bytes until all layouts are chosen."""
FEW_LABELS = 1 << 16
"""A tensor with fewer is no reason to merge anything."""


class Zeros:
    """The result of the sweep, by node: `zero`, `ranges` where any are known, and the sources that are `merged`."""

    def __init__(self, program: Program, assumed: Mapping[Node, Tensor]) -> None:
        self.program = program
        self.zero: dict[Node, Tensor] = {}
        self.ranges = Ranges(self.zero)
        self.merged: set[Node] = set()
        self._firm: dict[Node, Tensor | None] = {}
        self._labels: dict[Node, int] = {}
        self._more = (_made_of_parameters(program), assumed)

    @classmethod
    def of(cls, program: Program, assumed: Mapping[Node, Tensor]) -> Zeros:
        """`assumed` marks additional elements of inputs and results as zero."""
        found = cls(program, assumed)
        nodes = list(program.module.graph.nodes)
        i = 0
        while i < len(nodes):
            if found._visit(nodes[i]):
                i += 1
            else:
                merged = found._merge_positions(nodes[i])
                i = min(nodes.index(user) for each in merged for user in each.users)
                for node in nodes[i:]:
                    found._labels.pop(node, None)
        return found

    def _visit(self, node: Node) -> bool:
        """Whether the node is done; if not, its results have too many labels, and there are sources to merge."""
        if node.op == "placeholder" and is_tensor(node):
            zero = _input_zero(self.program, node)
            if (more := self._more[-1].get(node)) is not None:
                zero = zero | fitted(more, zero.shape, every=True)
            self.zero[node] = self._source(node, zero)
        elif node.op == "get_attr" and is_tensor(node):
            if any(node in site.inputs for site in map(self.program.at_call, node.users) if site is not None):
                self.zero[node] = self._source(node, _constant_zero(self.program, node))
                if node.meta["val"].is_floating_point():
                    self.ranges.beyond[node] = Range.constant(self.program.tensor(node)).fitted(self.zero[node].shape)
        elif (site := self.program.at_call(node)) is not None:
            return self._visit_call(site)
        return True

    def _visit_call(self, site: Site) -> bool:
        zeros = [self.zero[node] for node in site.inputs]
        site.memo.rest_on(tuple(mask.shape for mask in zeros))
        found = site.rule.zero(site, zeros)
        if self._too_many(site, found) and self._mergeable(site.node):
            return False
        look_up = self.ranges.find if site.rule.ranges_hold_zeros else self.ranges.beyond.get
        known = [look_up(node) for node in site.inputs]
        bounds = site.rule.range(site, zeros, known)
        self._firm.pop(site.node, None)
        for out, mask, bound in zip(site.outputs, found, bounds, strict=True):
            if out is None:
                continue
            more = [masks[out] for masks in self._more if out in masks]
            mask = reduce(or_, (collapse(each, mask.shape, every=True) for each in more), mask)
            if bound is not None:
                bound = bound.fitted(mask.shape)
            if out is site.node and (gone := site.rule.vanishes(site, zeros, known, bounds[0], self.firm)) is not None:
                wide = torch.broadcast_shapes(gone.shape, mask.shape)
                mask = mask | collapse(gone.expand(wide), mask.shape, every=True)
            self.zero[out] = mask
            self.ranges.put(out, bound, mask)
        return True

    def firm(self, node: Node) -> Tensor | None:
        """The firm labels of the first result of a call (`Rule.firm`), when asked (None: not known)."""
        site = self.program.at.get(node)
        if site is None or node is not site.node:
            return None
        if node not in self._firm:
            self._firm[node] = site.rule.firm(site, [self.zero[each] for each in site.inputs])
        return self._firm[node]

    # --- positions

    def _too_many(self, site: Site, found: Sequence[Tensor]) -> bool:
        """Whether these results have too many labels, alone or with all others; they are counted."""
        most = max((mask.numel() for mask in found), default=0)
        self._labels[site.node] = sum(mask.numel() for mask in found)
        return most > MOST_LABELS or (most > FEW_LABELS and sum(self._labels.values()) > MOST_IN_ALL)

    def _source(self, node: Node, mask: Tensor) -> Tensor:
        """Its zeros, in one label for all positions if the node is merged."""
        return collapse(mask, self._without_positions(node, mask.shape), every=True) if node in self.merged else mask

    def _without_positions(self, node: Node, compact: Iterable[int]) -> list[int]:
        """The compact shape without positions: what is left of an image are channels; of the rest, the last axis.

        The input of a sequence has no axis that is known to be that of its channels: it keeps no labels.
        """
        rank = len(self.program.shape(node))
        channels = 1 if rank > 3 else rank - 1
        if node.op == "placeholder" and rank == 3:
            channels = rank
        return [size if axis == channels else 1 for axis, size in enumerate(compact)]

    def _mergeable(self, node: Node) -> list[Node]:
        """The sources from which a call is computed and whose positions have labels, if it does not contract them."""
        sources = [each for each in _ancestors(node) if each.op in ("placeholder", "get_attr") and each in self.zero]
        return [
            each
            for each in sources
            if each not in self.merged
            and self._without_positions(each, self.zero[each].shape) != list(self.zero[each].shape)
            and not any(site.rule.contracts for site in map(self.program.at_call, each.users) if site is not None)
        ]

    def _merge_positions(self, node: Node) -> list[Node]:
        found = self._mergeable(node)
        self.merged.update(found)
        for each in found:
            self._visit(each)
        return found


def _ancestors(node: Node) -> set[Node]:
    """The nodes from which a node is computed."""
    found: set[Node] = set()
    left = [node]
    while left:
        for each in left.pop().all_input_nodes:
            if each not in found:
                found.add(each)
                left.append(each)
    return found


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
