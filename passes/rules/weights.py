"""The weight of a contraction: its tensors in a call, and how it connects input and output channels."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from passes.graph.layout import Layout
from passes.graph.selection import Selection


@dataclass(frozen=True, eq=False)
class Widths:
    """The channels of one contraction: sizes, and which connections of the weight are not zero."""

    groups: int
    outputs: int
    inputs: int
    connected: Tensor | None  # bool, (groups, out per group, in per group); None: all are

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
