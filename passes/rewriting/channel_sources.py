"""Where the channels of a value come from, through copies: slices, concatenations, padding and gathers along axis 1.

A batch norm folds through such copies, because what it does to a channel can be done to the channel that was copied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

aten = torch.ops.aten

CHANNEL = 1


@dataclass(frozen=True, eq=False)
class Sources:
    """The channels of a value: `owner[c]` is an index into `nodes` (-1: zeros), `channel[c]` the channel there.

    `copies` are the nodes from which the value is copied together, itself included if it is a copy.
    """

    value: Node
    nodes: tuple[Node, ...]
    owner: Tensor
    channel: Tensor
    copies: frozenset[Node]

    @property
    def is_private(self) -> bool:
        """Whether nothing else reads what the value is copied from."""
        below = {*self.nodes, *self.copies} - {self.value}
        return all(user in self.copies for node in below for user in node.users)


Width = Callable[[Node], int | None]
"""The channels of a node at which the search ends; None for any other node."""


def channel_sources(value: Node, rank: int, constants: Mapping[Node, Any], width: Width) -> Sources | None:
    """The sources of a value of this rank; None where something else than a copy is in between."""
    nodes: list[Node] = []
    copies: set[Node] = set()

    def found(node: Node) -> tuple[Tensor, Tensor] | None:
        if (channels := width(node)) is not None:
            if node not in nodes:
                nodes.append(node)
            return torch.full((channels,), nodes.index(node)), torch.arange(channels)
        copies.add(node)
        if node.op != "call_function":
            return None
        if node.target is aten.cat.default and _axis(node, 1, rank) == CHANNEL:
            parts = [found(part) for part in node.args[0]]  # type: ignore[union-attr, arg-type]
            known = [part for part in parts if part is not None]
            if len(known) < len(parts):
                return None
            return torch.cat([owner for owner, _ in known]), torch.cat([channel for _, channel in known])
        first = node.args[0] if node.args else None
        if not isinstance(first, Node) or (place := _places(node, rank, constants)) is None:
            return None
        below = found(first)
        return None if below is None else _taken(*below, place)

    result = found(value)
    return None if result is None else Sources(value, tuple(nodes), *result, frozenset(copies))


def readers_through_copies(value: Node, rank: int, constants: Mapping[Node, Any]) -> tuple[Node, ...]:
    """The nodes that read a value or a copy of it, and are no copies."""
    readers: dict[Node, None] = {}
    waiting, seen = [value], {value}
    while waiting:
        for user in waiting.pop().users:
            joined = user.target is aten.cat.default and _axis(user, 1, rank) == CHANNEL
            if not joined and (user.op != "call_function" or _places(user, rank, constants) is None):
                readers[user] = None
            elif user not in seen:
                seen.add(user)
                waiting.append(user)
    return tuple(readers)


Places = Callable[[int], Tensor]
"""For each channel of a copy its place among this many channels of what is copied; -1 for zeros."""


def _taken(owner: Tensor, channel: Tensor, place: Places) -> tuple[Tensor, Tensor]:
    index = place(len(owner))
    inside = index.clamp(min=0)
    return torch.where(index < 0, -1, owner[inside]), torch.where(index < 0, 0, channel[inside])


def _places(node: Node, rank: int, constants: Mapping[Node, Any]) -> Places | None:
    """What a slice, a padding with zeros or a gather along the channels takes."""
    args: Any = node.args
    if node.target is aten.slice.Tensor and _axis(node, 1, rank) == CHANNEL:
        if not all(isinstance(each, (int, type(None))) for each in args[2:]):
            return None
        return lambda count: torch.arange(count)[slice(*args[2:])]
    if node.target is aten.index_select.default and _axis(node, 1, rank) == CHANNEL and args[2] in constants:
        return lambda count: constants[args[2]].cpu()
    if node.target is aten.constant_pad_nd.default and not any(args[2:]):
        pads = {rank - 1 - i // 2: (args[1][i], args[1][i + 1]) for i in range(0, len(args[1]), 2)}
        if all(not any(pair) for axis, pair in pads.items() if axis != CHANNEL):
            before, after = pads.get(CHANNEL, (0, 0))
            zeros = torch.full((max(before, after),), -1)
            if min(before, after) >= 0:
                return lambda count: torch.cat([zeros[:before], torch.arange(count), zeros[:after]])
    return None


def _axis(node: Node, index: int, rank: int) -> int | None:
    axis = node.args[index] if len(node.args) > index else node.kwargs.get("dim", 0)
    return axis % rank if isinstance(axis, int) else None
