"""What could be removed from a model before anything is trained or zeroed: channels, groups, and what blocks them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.jupyter import JupyterMixin
from rich.table import Table
from rich.text import Text
from torch import nn

from l1rr_fx.latency.prediction import Latency
from l1rr_fx.machines.by_name import machine
from l1rr_fx.method.sites.blocked import Verdict, verdicts
from l1rr_fx.method.sites.producers import Producer, group_numbers, layers, producers, producers_of
from l1rr_fx.pruning.partition.body import Body, captured_body
from l1rr_fx.support.choices import TargetName
from l1rr_fx.support.tables import numeric, printed
from l1rr_fx.support.uncounted import at_least, uncounted
from passes.accounts import NotCounted
from passes.analysis.liveness import channel_facts
from passes.analysis.program import Program
from passes.assignment.cost_model import Target
from passes.assignment.whole import whole_layouts
from passes.audit.costs import not_counted
from passes.canonical.normalise import normalise_graph
from passes.frontend.capture import capture, check_arguments
from passes.graph.labels import labels
from passes.graph.nodes import operator_label
from passes.rewriting.sketcher import Machine, sketch
from passes.rules import rule_for
from passes.rules.base import Site


@dataclass(frozen=True)
class InspectedLayer:
    """One layer that makes channels.

    `group` numbers the channels that must share a mask if nothing is recombined. `stays` says why all of its channels
    stay, and is None if they can go. `loses_more` says why zeroing a channel loses more than the channel, and is None
    if it does not. `refilled` names the operators and outputs that get zeros in place of the dead channels.
    """

    node: str
    operator: str
    channels: int
    group: int
    stays: str | None = None
    loses_more: str | None = None
    refilled: str | None = None

    @property
    def blocked(self) -> str | None:
        """Why its channels should not be zeroed, as `ChannelSite.blocked` says it: either reason, or None."""
        return self.stays or self.loses_more

    def __str__(self) -> str:
        """The answer to "could go?": yes, no, or "yes, but", with the reason."""
        if self.stays is not None:
            return f"no: {self.stays}"
        filled = "" if self.refilled is None else f" (zeros filled in for {self.refilled})"
        return ("yes" if self.loses_more is None else f"yes, but: {self.loses_more}") + filled


@dataclass(frozen=True)
class Inspection(JupyterMixin):
    """The channels of a model by layer; prints as a table.

    `not_counted`: calls of operators without a rule. `target` is the machine that was named, `seconds` what it predicts
    for the whole model (None: it predicts none). `pieces`: the parts that were inspected, where the model cannot be
    captured whole.
    """

    model: str
    layers: tuple[InspectedLayer, ...]
    not_counted: tuple[NotCounted, ...] = ()
    target: str = "none"
    seconds: float | None = None
    pieces: tuple[str, ...] = ()

    @property
    def channels(self) -> int:
        """How many channels the layers make."""
        return sum(layer.channels for layer in self.layers)

    @property
    def free_channels(self) -> int:
        """How many channels could go, and lose nothing more when they are zeroed."""
        return sum(layer.channels for layer in self.layers if layer.blocked is None)

    @property
    def groups(self) -> int:
        """How many groups of channels must share masks if nothing is recombined."""
        return len({layer.group for layer in self.layers})

    @property
    def blocked_channels(self) -> Mapping[str, int]:
        """The number of blocked channels by reason, the largest first."""
        reasons = Counter[str]()
        for layer in self.layers:
            if layer.blocked is not None:
                reasons[layer.blocked] += layer.channels
        return dict(reasons.most_common())

    def __str__(self) -> str:
        return printed(self)

    def __rich__(self) -> RenderableType:
        return Group(Text(self._headline()), self._layer_table(), *self._blocked_table())

    def _headline(self) -> str:
        share = f", {self.free_channels / self.channels:.1%}" if self.channels else ""
        lossy = sum(layer.channels for layer in self.layers if layer.stays is None and layer.loses_more is not None)
        more = f"; {lossy:,} more could, at a further loss" if lossy else ""
        time = "" if self.seconds is None else f"; predicted {self.seconds * 1e3:.2f} ms on {self.target}"
        left_out = f"\n{uncounted(self.not_counted)}" if self.not_counted else ""
        left_out += f"\ninspected in pieces: {', '.join(self.pieces)}" if self.pieces else ""
        return (
            f"{self.model}: {at_least(f'{self.channels:,}', self.not_counted)} channels of {len(self.layers):,} layers "
            f"in {self.groups:,} groups; {self.free_channels:,} could go{share}{more}{time}{left_out}"
        )

    def _layer_table(self) -> Table:
        table = Table("layer", "operator")
        numeric(table, "channels")
        numeric(table, "group")
        table.add_column("could go")
        for layer in self.layers:
            cells = Text(layer.node), Text(layer.operator), f"{layer.channels:,}", str(layer.group), Text(str(layer))
            table.add_row(*cells)
        return table

    def _blocked_table(self) -> tuple[Table, ...]:
        if not self.blocked_channels:
            return ()
        table = Table("what blocks channels")
        numeric(table, "channels")
        for reason, channels in self.blocked_channels.items():
            table.add_row(Text(reason), f"{channels:,}")
        return (table,)


def inspect(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic_shapes: Any = None,
    target: TargetName | Target | Latency = "none",
) -> Inspection:
    """What could be removed from a model: its layers with their channels, their groups, and what blocks them.

    `args` and `kwargs` are one example input. The values of the weights do not matter, and the model is not changed.
    Listed are the convolutions and linear layers that have parameters of their own. A `target` that predicts whole
    networks, as for `prune`, says how long the model takes. Raises InputError and CaptureError as `prune` does.
    """
    check_arguments(model, args, kwargs)
    on = machine(target, args)
    if dynamic_shapes is None:
        body = captured_body(model, args, kwargs)
    else:
        body = Body(capture(model, args, kwargs, dynamic_shapes=dynamic_shapes))
    captured = body.module
    normalise_graph(captured.graph)
    program = Program(captured, rule_for)
    found = producers(program)
    by_key = verdicts(program, found)
    listed = layers(program)
    groups = group_numbers(program, [layer.node for layer in listed])
    names = labels(captured.graph)
    rows = [
        _row(layer, names[layer.node.name], groups[layer.node], _verdict(by_key, producers_of(layer, found)))
        for layer in listed
    ]
    seconds = None if body.pieces else _seconds(program, on)
    return Inspection(type(model).__name__, tuple(rows), not_counted(program), on.name, seconds, body.pieces)


def _seconds(program: Program, target: Target) -> float | None:
    """The predicted seconds of the network as it is."""
    if not isinstance(target, Machine):
        return None
    return target.predict_sketch(sketch(whole_layouts(program, channel_facts(program))))


def _verdict(by_key: Mapping[str, Verdict], found: Sequence[Producer]) -> Verdict:
    """The verdict of a layer: that of its producer; of several normalisations behind it, the first that is blocked."""
    answers = [by_key[each.key] for each in found]
    return next((each for each in answers if each.blocked is not None), answers[0])


def _row(layer: Site, name: str, group: int, verdict: Verdict) -> InspectedLayer:
    form = layer.rule.weight
    channels = layer.out_shape[-1 if form is not None and form.linear else 1]
    label = operator_label(layer.node)
    return InspectedLayer(name, label, channels, group, verdict.stays, verdict.loses_more, verdict.filled)
