"""What could be removed from a model before anything is trained or zeroed: channels, groups, and what blocks them."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text
from torch import nn

WIDTH = 110


@dataclass(frozen=True)
class InspectedLayer:
    """One operator that makes channels.

    `group` numbers the channels that must share a mask if nothing is recombined; `blocked` says why none of them can
    go, and is None where they can.
    """

    node: str
    operator: str
    channels: int
    group: int
    blocked: str | None = None


@dataclass(frozen=True)
class Inspection:
    """The channels of a model by layer; prints as a table."""

    model: str
    layers: tuple[InspectedLayer, ...]

    @property
    def channels(self) -> int:
        return sum(layer.channels for layer in self.layers)

    @property
    def free_channels(self) -> int:
        """The channels that could go."""
        return sum(layer.channels for layer in self.layers if layer.blocked is None)

    @property
    def groups(self) -> int:
        return len({layer.group for layer in self.layers})

    @property
    def blocked_channels(self) -> Mapping[str, int]:
        """The channels that must stay, by reason, the most first."""
        reasons = Counter[str]()
        for layer in self.layers:
            if layer.blocked is not None:
                reasons[layer.blocked] += layer.channels
        return dict(reasons.most_common())

    def __str__(self) -> str:
        out = io.StringIO()
        Console(file=out, width=WIDTH, color_system=None).print(self)
        return "\n".join(line.rstrip() for line in out.getvalue().splitlines())

    def __rich__(self) -> RenderableType:
        share = f", {self.free_channels / self.channels:.1%}" if self.channels else ""
        headline = (
            f"{self.model}: {self.channels:,} channels of {len(self.layers):,} layers in {self.groups:,} groups; "
            f"{self.free_channels:,} could go{share}"
        )
        return Group(Text(headline), self._layer_table(), *self._blocked_table())

    def _layer_table(self) -> Table:
        table = Table("layer", "operator")
        table.add_column("channels", justify="right")
        table.add_column("group", justify="right")
        table.add_column("could go")
        for layer in self.layers:
            verdict = "yes" if layer.blocked is None else f"no: {layer.blocked}"
            table.add_row(
                Text(layer.node), Text(layer.operator), f"{layer.channels:,}", str(layer.group), Text(verdict)
            )
        return table

    def _blocked_table(self) -> tuple[Table, ...]:
        if not self.blocked_channels:
            return ()
        table = Table("what blocks channels")
        table.add_column("channels", justify="right")
        for reason, channels in self.blocked_channels.items():
            table.add_row(Text(reason), f"{channels:,}")
        return (table,)


def inspect(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None, *, dynamic_shapes: Any = None
) -> Inspection:
    """What of `model` could be removed, from one example input; the weights do not matter and nothing is changed.

    Raises InputError and CaptureError as `prune` does.
    """
    # The lead fills this in from passes.groups.channel_groups; until then no layer is listed.
    return Inspection(type(model).__name__, ())
