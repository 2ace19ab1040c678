"""The norm of all that a channel is: its scale, the filter that makes it, and the columns that read it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from l1rr_fx.method.planning.families import FIXED, cells
from l1rr_fx.method.planning.scores import filters_of
from l1rr_fx.method.sites.channel_sites import sites_of
from l1rr_fx.method.sites.zeroing import ChannelSite, evaluation_graph, unwrapped
from l1rr_fx.method.training.penalised import row_norms
from l1rr_fx.support.arguments import of_kind
from passes.analysis.program import Program
from passes.errors import InputError
from passes.graph.nodes import attribute
from passes.rules import rule_for
from passes.rules.base import Site
from passes.rules.weights import weight_of

GROUP_NORM = "group-norm"
"""The name of this score in `choose`."""


@dataclass(frozen=True, eq=False)
class _Reader:
    """A layer that reads channels: its weight by name, and the class of each of its input channels."""

    weight: str
    classes: Tensor
    groups: int
    transposed: bool

    def energies(self, model: nn.Module) -> Tensor:
        """The squared norm of each column, shape (input channels,)."""
        weight: Tensor = model.get_parameter(self.weight).detach().double()
        if self.transposed:  # (inputs, outputs of a group, window)
            return row_norms(weight, 0).square()
        return row_norms(weight.unflatten(0, (self.groups, -1)).transpose(1, 2).flatten(0, 1), 0).square()


class GroupNorm:
    """The squared norm of a channel over all layers that share it, over the mean of its site.

    It counts the scale, the filter that makes the channel, and the columns of the layers that read it; with `coupled`
    also those of the channels that sums, gates and depthwise convolutions join with it. This is what Fang et al. 2023
    (DepGraph) call the importance of a group. As a global threshold it takes about the same share of every layer, and
    more where the norms of a layer differ more.

    `model`, `args`, `kwargs`: the model, and one example input, by which the graph is captured once. The norms are
    those of the model that is scored. InputError for a site of another model.
    """

    def __init__(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any] | None = None,
        *,
        coupled: bool = True,
    ) -> None:
        of_kind("model", model, nn.Module)
        program = Program(evaluation_graph(model, args, kwargs), rule_for)
        self.coupled = coupled
        self._set(program, sites_of(program))

    @classmethod
    def of_program(cls, program: Program, sites: Sequence[ChannelSite]) -> GroupNorm:
        """The score for a network that is captured already."""
        made = cls.__new__(cls)
        made.coupled = True
        made._set(program, sites)
        return made

    def _set(self, program: Program, sites: Sequence[ChannelSite]) -> None:
        found = cells(program, sites)
        self.sites = {site.name: site for site in sites}
        self._classes = {name: classes.reshape(-1) for name, classes in found.classes.items()}
        self._readers = []
        for call in program.sites:
            form = call.rule.weight
            if form is None or not call.parameters or not isinstance(_value(program, call), nn.Parameter):
                continue  # a weight that is computed, or that the compiler has made
            read = found.of[call.inputs[0]].reshape(-1)
            groups = call.rule.groups(call)
            weight = program.tensor(weight_of(call.node))
            columns = weight.shape[0] if form.transposed else weight.shape[1] * groups
            if len(read) == columns and not call.rule.keeps_channels(call):
                self._readers.append(_Reader(str(weight_of(call.node).target), read, groups, form.transposed))
        self._size = 1 + max(int(each.max()) for each in (*self._classes.values(), *(r.classes for r in self._readers)))

    def __call__(self, model: nn.Module, site: ChannelSite) -> Tensor:
        if site.name not in self.sites:
            raise InputError(f"{site.name} is not a site of the model that the score was made for")
        model = unwrapped(model)
        classes, mine = self._classes[site.name], self._own(model, site)
        total = mine.new_zeros(self._size)
        if self.coupled:
            for name, other in self._classes.items():
                if bool(torch.isin(other, classes).any()):
                    total.index_add_(0, other, self._own(model, self.sites[name]))
        for reader in self._readers:
            if bool(torch.isin(reader.classes, classes).any()):
                total.index_add_(0, reader.classes, reader.energies(model))
        shared = total[classes] if self.coupled else total[classes] + mine
        found = torch.where(classes == FIXED, mine, shared)
        return found / found.mean().clamp(min=1e-30)

    def _own(self, model: nn.Module, site: ChannelSite) -> Tensor:
        """The squared norms of a site's scale or rows, and of the filters that make them."""
        found = row_norms(model.get_parameter(site.weight).detach().double(), site.axis).square()
        if site.filters is None or site.filters == site.weight:
            return found
        return found + row_norms(filters_of(model, site, site.filters).double(), 0).square()


def _value(program: Program, call: Site) -> object:
    node = weight_of(call.node)
    return attribute(program.module, str(node.target)) if node.op == "get_attr" else None
