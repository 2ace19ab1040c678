"""The weight of a contraction: its tensors in a call, and how it connects input and output channels."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from passes.graph.layout import Layout, collapse
from passes.graph.ranges import Range
from passes.graph.selection import Selection


@dataclass(frozen=True, eq=False)
class Widths:
    """The channels of one contraction: sizes, and which connections of the weight are not zero."""

    groups: int
    outputs: int
    inputs: int
    connected: Tensor | None  # bool, (groups, out per group, in per group); None: all are

    @property
    def is_depthwise(self) -> bool:
        """Whether each input channel has one output channel of its own."""
        return self.groups == self.inputs == self.outputs

    def feed(self, alive: Tensor) -> Tensor:
        """Which outputs some input of `alive` reaches."""
        grouped = alive.reshape(self.groups, 1, -1)
        if self.connected is None:
            return grouped.any(-1).expand(self.groups, self.outputs // self.groups).reshape(-1)
        return (self.connected & grouped).any(-1).view(-1)

    def reads(self, live: Tensor) -> Tensor:
        """Which inputs some output of `live` reads."""
        grouped = live.reshape(self.groups, -1, 1)
        if self.connected is None:
            return grouped.any(1).expand(self.groups, self.inputs // self.groups).reshape(-1)
        return (self.connected & grouped).any(1).view(-1)

    def present(self, rows: Tensor) -> Tensor:
        """The groups that keep some row, in the order of their rows."""
        groups: Tensor = self.groups_of(rows, outputs=True).unique_consecutive()
        return groups

    def groups_of(self, channels: Tensor, *, outputs: bool) -> Tensor:
        """The group of each channel."""
        return channels // ((self.outputs if outputs else self.inputs) // self.groups)


@dataclass(frozen=True, eq=False)
class Columns:
    """How a call whose weight is a parameter reads the channels of its input, which lie along `axis`.

    `even`: nothing is padded, so that each element of the result is the same function of its surroundings.
    """

    axis: int
    widths: Widths
    weight: Tensor
    transposed: bool
    even: bool

    @property
    def is_depthwise(self) -> bool:
        """Whether each of several input channels has one output channel of its own."""
        return self.widths.groups > 1 and self.widths.is_depthwise

    @property
    def taps(self) -> int:
        """The elements of the kernel's window."""
        return math.prod(self.weight.shape[2:])

    def parts(self) -> Iterator[slice]:
        """The input channels of each group."""
        size = self.widths.inputs // self.widths.groups
        return (slice(start, start + size) for start in range(0, self.widths.inputs, size))

    def channels(self, mask: Tensor, *, every: bool = False) -> Tensor:
        """A mask of the input's labels as one bool a channel."""
        return by_channel(mask, self.axis, self.widths.inputs, every=every)

    def constants(self, zero: Tensor, known: Range | None) -> tuple[Tensor, Tensor]:
        """Which input channels are constant, and their values (0 for others)."""
        each = (Range.unknown(zero.shape).met(zero) if known is None else known.expand(zero.shape)).fitted(
            [n if a == self.axis else 1 for a, n in enumerate(zero.shape)]
        )
        constant, inputs = each.is_constant, self.widths.inputs
        return constant.view(-1).expand(inputs), each.low.masked_fill(~constant, 0.0).view(-1).expand(inputs)

    def response(self, values: Tensor) -> Tensor:
        """What constant input channels of these values add to each output channel, away from borders."""
        widths, weight = self.widths, self.weight.cpu().double()
        weight = weight.flatten(2).sum(-1) if weight.dim() > 2 else weight
        inside, outside = widths.inputs // widths.groups, widths.outputs // widths.groups
        if self.transposed:
            weight = weight.reshape(widths.groups, inside, outside).transpose(1, 2)
        return (weight.reshape(widths.groups, outside, inside) @ values.view(widths.groups, inside, 1)).view(-1)


def by_channel(mask: Tensor, axis: int, size: int, *, every: bool = False) -> Tensor:
    """A mask reduced to one bool a channel."""
    return collapse(mask, [n if a == axis else 1 for a, n in enumerate(mask.shape)], every=every).view(-1).expand(size)


def weight_of(node: Node) -> Node:
    weight = node.args[1] if len(node.args) > 1 else node.kwargs["weight"]
    assert isinstance(weight, Node)
    return weight


def bias_of(node: Node) -> Any:
    return node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")


def kept_or_all(layout: Layout, axis: int, size: int) -> Tensor:
    """The kept indices of an axis."""
    if layout.compact[axis] == 1:
        return torch.arange(size)
    kept = layout.kept(axis)
    assert kept is not None
    return kept


def equal_groups(live: Tensor, groups: int, present: Tensor) -> Tensor:
    """Channels with every present group as wide as the widest, dead channels filling up; groups in order."""
    rows = live.view(groups, -1) & present.view(-1, 1)
    width = max(1, int(rows.sum(1).max()))
    order = (~rows).to(torch.uint8).sort(dim=1, stable=True).indices[:, :width].sort(dim=1).values
    channels = order + torch.arange(groups).view(-1, 1) * rows.shape[1]
    kept = present if bool(present.any()) else torch.arange(groups) == 0
    return channels[kept].reshape(-1)


def weight_part(
    shape: tuple[int, ...], widths: Widths, rows: Tensor, columns: Tensor, *, transposed: bool
) -> Selection:
    """The part of a weight of this shape for the output channels `rows` and the input channels `columns`."""
    window = (None,) * (len(shape) - 2)
    first, second = (columns, rows) if transposed else (rows, columns)
    if widths.groups == 1 or not len(columns):
        return Selection(shape, (first, second % shape[1], *window)).simplified()
    groups = len(widths.present(rows))
    local = (second % ((widths.outputs if transposed else widths.inputs) // widths.groups)).view(groups, -1)
    if bool((local == local[:1]).all()):
        return Selection(shape, (first, local[0], *window)).simplified()
    mine = local.repeat_interleave(len(first) // groups, dim=0)  # (first axis, second axis per group)
    area = math.prod(shape[2:])
    pairs = first.view(-1, 1) * shape[1] + mine
    flat = pairs.view(*pairs.shape, 1) * area + torch.arange(area)
    return Selection(shape, (None,) * len(shape), flat.view(*pairs.shape, *shape[2:]))
