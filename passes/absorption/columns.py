"""The weights that read constant channels.

    y = W x + b      where x has the constant c in some channels

Without padding W c goes into the bias. With padding c is missing at the border, so one of the channels stays for all of
them: its column becomes the sum of theirs, each in proportion to its constant. Both are exact for every size of input.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from passes.absorption.edits import Edits
from passes.analysis.liveness import Facts
from passes.analysis.program import Program
from passes.graph.layout import along
from passes.graph.nodes import is_tensor
from passes.rules.base import Site, replaced
from passes.rules.convolution import Weighted
from passes.rules.weights import bias_of, weight_of


@dataclass(frozen=True, eq=False)
class Reader:
    """All calls of one weight, and the constant channels that they all read with the same values.

    `constant` masks these input channels, `value` holds their values (0 for others). `uniform`: none of the calls pads.
    """

    sites: tuple[Site, ...]
    constant: Tensor
    value: Tensor
    uniform: bool

    @property
    def rule(self) -> Weighted:
        rule = self.sites[0].rule
        assert isinstance(rule, Weighted)
        return rule

    def groups(self) -> Iterator[slice]:
        """The input channels of each group."""
        groups = self.rule.groups(self.sites[0])
        size = len(self.constant) // groups
        return (slice(start, start + size) for start in range(0, len(self.constant), size))

    def moved(self, anchored: Tensor) -> Tensor:
        """The channels that the calls need no more: all, or all but one of each group.

        Of several the one stays that something else needs (`anchored`), and of these the largest constant.
        """
        if self.uniform:
            return self.constant
        moved = self.constant.clone()
        for part in self.groups():
            size = torch.where(self.constant[part], self.value[part].abs(), 0.0)
            if bool((size != 0).any()):
                held = torch.where(anchored[part], size, 0.0)
                moved[part.start + int((held if bool((held != 0).any()) else size).argmax())] = False
        return moved

    def cuts(self, facts: Facts, moved: Tensor) -> Iterator[tuple[tuple[Node, int], Tensor]]:
        """The same as labels of each call's input."""
        for site in self.sites:
            axis, shape = self.rule.axis(site), facts.zero[site.inputs[0]].shape
            if shape[axis] != 1 or len(moved) == 1:
                yield (site.node, 0), along(moved, axis, len(shape)).expand(shape)

    def labels(self, mask: Tensor) -> Tensor:
        """A mask of the input's labels as one bool a channel."""
        return Weighted.channels(mask, self.rule.axis(self.sites[0]), len(self.constant))

    def absorb(self, edits: Edits, moved: Tensor) -> None:
        """Change the weight, and the biases."""
        if not bool(moved.any()):
            return
        site = self.sites[0]
        if self.uniform:
            added = self.rule.response(site, torch.where(moved, self.value, 0.0))
            for name in self._biases(edits, len(added)):
                bias = edits.value(name)
                bias.add_(added.to(bias))
        self._merge(edits.value(str(weight_of(site.node).target)), moved)

    def _biases(self, edits: Edits, size: int) -> set[str]:
        """The names of the biases; calls without one get one together."""
        if bias_of(self.sites[0].node) is None:
            bias = edits.new_bias(weight_of(self.sites[0].node), size)
            for site in self.sites:
                site.node.args = replaced(site.node.args, 2, bias)
                site.node.kwargs = {key: value for key, value in site.node.kwargs.items() if key != "bias"}
        return {str(bias_of(site.node).target) for site in self.sites}

    def _merge(self, weight: Tensor, moved: Tensor) -> None:
        """Clear the columns that are not needed; with padding the one that stays takes their part over."""
        transposed, groups = self.rule.form.transposed, list(self.groups())
        rows = weight.shape[0] // len(groups)
        for index, part in enumerate(groups):
            if transposed:
                block = weight[part].transpose(0, 1)
            else:
                block = weight[index * rows : (index + 1) * rows]
            gone = moved[part].to(weight.device)
            if not self.uniform and bool((gone & (self.value[part] != 0)).any()):
                kept = int((self.constant[part] & ~moved[part]).nonzero()[0])
                ratio = (self.value[part] / self.value[part][kept])[moved[part]].to(weight)
                merged = (block[:, gone].double() * ratio.double().view(1, -1, *[1] * (block.dim() - 2))).sum(1)
                block[:, kept] += merged.to(weight.dtype)
            block[:, gone] = 0


def constant_readers(program: Program, facts: Facts) -> list[Reader]:
    """The weights that read constant channels which are not zero, and of which something depends."""
    calls: dict[int, list[Site]] = {}
    for site in program.sites:
        if isinstance(site.rule, Weighted) and site.rule.owns_parameters(site):
            calls.setdefault(program.tensor(weight_of(site.node)).data_ptr(), []).append(site)
    users = tensor_users(program)
    found = [_reader(program, facts, sites, users) for sites in calls.values()]
    return [reader for reader in found if reader is not None]


def tensor_users(program: Program) -> dict[int, set[Node]]:
    """By the address of a parameter or buffer: the nodes that read it, under any of its names."""
    users: dict[int, set[Node]] = {}
    for node in program.module.graph.nodes:
        if node.op == "get_attr" and is_tensor(node):
            users.setdefault(program.tensor(node).data_ptr(), set()).update(node.users)
    return users


def _reader(program: Program, facts: Facts, sites: Sequence[Site], users: Mapping[int, set[Node]]) -> Reader | None:
    rule = sites[0].rule
    assert isinstance(rule, Weighted)
    if any(site.inputs[0] not in facts.ranges for site in sites):
        return None
    constant, values = _read_constants(facts, sites[0])
    for site in sites[1:]:
        others, other_values = _read_constants(facts, site)
        constant = constant & others & (values == other_values)
    widths = rule.widths(sites[0])
    if not bool(constant.any()) or (rule.is_depthwise(widths) and widths.groups > 1):
        return None
    uniform = all(rule.is_uniform(site) for site in sites)
    biases = [bias_of(site.node) for site in sites] if uniform else []
    if any(bias is None for bias in biases) and any(bias is not None for bias in biases):
        return None
    ours = {site.node for site in sites}
    tensors = [weight_of(sites[0].node), *(bias for bias in biases if bias is not None)]
    if any(not users[program.tensor(node).data_ptr()] <= ours for node in tensors):
        return None
    return Reader(tuple(sites), constant, values, uniform)


def _read_constants(facts: Facts, site: Site) -> tuple[Tensor, Tensor]:
    """The input channels that are constant, not known to be zero, and read; and their values."""
    rule, node = site.rule, site.inputs[0]
    assert isinstance(rule, Weighted)
    known, value = rule.channel_constants(site, facts.zero[node], facts.ranges[node])
    zero = Weighted.channels(facts.zero[node], rule.axis(site), len(known), every=True)
    return known & ~zero & Weighted.channels(facts.asked[site.node][0], rule.axis(site), len(known)), value
