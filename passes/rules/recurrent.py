"""Recurrent layers: one layer of LSTM, GRU or RNN, in one direction or in both (`passes.canonical.recurrent`).

Each unit has a row in every gate. At step t, with the source gate s (the cell gate of an LSTM, the new gate of a GRU,
the only one of an RNN):

    LSTM    c' = f * c + i * tanh(s)      h' = o * tanh(c')
    GRU     h' = (1 - z) * tanh(s) + z * h
    RNN     h' = tanh(s), or relu(s)

A unit is zero at every step if its source gate is, and the state that it carries over (c of an LSTM, h of a GRU)
starts at zero (`passes.rules.units`). A unit stays where a reader of the results needs it, or another unit that stays.
It goes in every gate.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from passes.graph.layout import Layout, along, collapse, grown
from passes.graph.selection import Selection
from passes.rules.base import ANY_LAYOUT, Contraction, LayoutRequest, Request, Rule, Site, SiteFacts
from passes.rules.emitter import Emitter
from passes.rules.units import Connections, Needs, Silence
from passes.rules.weights import kept_or_all

aten = torch.ops.aten

CHANNELS = 2
"""The axis of the channels of input and result, and of the units of a state."""
DIRECTIONS = "both directions of a recurrent layer made equally wide"
READ_AGAIN = "units of a recurrent layer that its other units read"
PROJECTED = "a recurrent layer with more units than outputs of its projection"


@dataclass(frozen=True)
class Gates:
    """The gates of a kind of layer.

    `count`: of a weight. `source`: the one without which a unit stays at zero. `carried`: which of the states a unit
    carries over from step to step, None if none. `adds_biases`: the source gate reads the sum of both biases, and not
    each of them by itself. `clips`: a negative source gate gives zero, too.
    """

    count: int
    source: int
    carried: int | None
    adds_biases: bool = True
    clips: bool = False


@dataclass(frozen=True, eq=False)
class Direction:
    """The weights of one direction, as the nodes of a call; biases and the projection of the outputs may be missing."""

    inputs: Node
    outputs: Node
    biases: tuple[Node, ...]
    projection: Node | None


class Recurrent(Rule):
    """One recurrent layer on (steps, batch, channels), or (batch, steps, channels)."""

    family = "recurrent"
    reason = None

    def __init__(self, gates: Gates) -> None:
        self.gates = gates

    def takes_any_order(self, site: Site, zeros: Sequence[Tensor], *, cut: bool) -> bool:
        return cut and self.is_followed(site)

    def parameters(self, node: Node) -> tuple[Node | None, ...]:
        """All weights of the layer, or none if one of them is computed or is there twice."""
        weights: Any = node.args[2]
        own = len(set(weights)) == len(weights) and all(weight.op == "get_attr" for weight in weights)
        return tuple(weights) if own else ()

    def is_followed(self, site: Site) -> bool:
        """Whether the call can be made smaller: it is one layer whose weights are parameters of its own."""
        return bool(site.parameters) and site.argument(4, "num_layers") == 1

    def directions(self, site: Site) -> list[Direction]:
        """The weights of the call by direction; of several layers, those of one after the other."""
        weights, biased = site.argument(2, "params"), site.argument(3, "has_biases")
        each = len(weights) // (self.count(site) * site.argument(4, "num_layers"))
        parts = [weights[i : i + each] for i in range(0, len(weights), each)]
        last = 4 if biased else 2
        return [Direction(p[0], p[1], tuple(p[2:last]), p[last] if len(p) > last else None) for p in parts]

    def count(self, site: Site) -> int:
        """The number of directions."""
        return 2 if site.argument(7, "bidirectional") else 1

    def widths(self, site: Site) -> tuple[int, int]:
        """The number of units of a direction, and of its outputs, which may be a projection of the units."""
        first = self.directions(site)[0]
        return site.shape(first.inputs)[0] // self.gates.count, site.shape(first.outputs)[1]

    def connections(self, site: Site) -> list[Connections]:
        """Which weights are not zero, by direction."""
        return [self._connections(site, each) for each in self.directions(site)]

    def _connections(self, site: Site, direction: Direction) -> Connections:
        count, (units, _) = self.gates.count, self.widths(site)
        inputs, outputs = (
            _nonzero(site, node).view(count, units, -1) for node in (direction.inputs, direction.outputs)
        )
        projection = None if direction.projection is None else _nonzero(site, direction.projection)
        return Connections(self.gates.source, inputs, outputs, self._biased(site, direction, units), projection)

    def _biased(self, site: Site, direction: Direction, units: int) -> Tensor:
        values = [site.values.tensor(bias).cpu().view(-1, units)[self.gates.source] for bias in direction.biases]
        if not values:
            return torch.zeros(units, dtype=torch.bool)
        if self.gates.clips:
            return sum(values[1:], values[0]) > 0
        return sum(values[1:], values[0]) != 0 if self.gates.adds_biases else torch.stack(values).ne(0).any(0)

    # --- Liveness

    def silences(self, site: Site, zeros: Sequence[Tensor]) -> list[Silence]:
        """What is zero, by direction."""
        alive, (units, outputs) = ~_line(zeros[0], site.shape(site.inputs[0])[CHANNELS], every=True), self.widths(site)
        count, carried = self.count(site), self.gates.carried
        given = ~_rows(zeros[1], count, outputs, every=True)
        kept = torch.zeros(count, units, dtype=torch.bool)
        if carried is not None:
            kept = ~_rows(zeros[1 + carried], count, units, every=True)
        return [each.silence(alive, *rows) for each, *rows in zip(self.connections(site), kept, given, strict=True)]

    def zero(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor]:
        if not self.is_followed(site):
            return super().zero(site, zeros)
        found = self.silences(site, zeros)
        outputs, units = (torch.stack(each) for each in ([s.outputs for s in found], [s.units for s in found]))
        masks = [along(outputs.view(-1), CHANNELS, 3), outputs.unsqueeze(1), units.unsqueeze(1)]
        return masks[: len(site.outputs)]

    def needs(self, site: Site, lives: Sequence[Tensor], zeros: Sequence[Tensor]) -> list[Needs]:
        """What the live labels of the results need, by direction."""
        count, (units, outputs) = self.count(site), self.widths(site)
        read = _line(lives[0], count * outputs).view(count, -1) | _rows(lives[1], count, outputs)
        computed = torch.zeros(count, units, dtype=torch.bool)
        if len(lives) > 2:
            computed = _rows(lives[2], count, units)
        pairs = zip(self.connections(site), self.silences(site, zeros), strict=True)
        return [Needs(*each.kept(computed[i], read[i], silent), each) for i, (each, silent) in enumerate(pairs)]

    def needed(self, site: Site, lives: Sequence[Tensor], zeros: Sequence[Tensor]) -> list[Tensor]:
        if not self.is_followed(site):
            return super().needed(site, lives, zeros)
        found = self.needs(site, lives, zeros)
        channels = torch.stack([each.channels for each in found]).any(0)
        masks = [along(channels, CHANNELS, 3), *self.states(found)]
        return [collapse(mask, zero.shape).expand(zero.shape) for mask, zero in zip(masks, zeros, strict=True)]

    def states(self, found: Sequence[Needs]) -> list[Tensor]:
        """Which units of the first states are needed, each of shape (directions, 1, units)."""
        outputs, units = (torch.stack(each) for each in ([n.outputs for n in found], [n.units for n in found]))
        both = [outputs if self.gates.carried != 0 else outputs | units, units]
        return [each.unsqueeze(1) for each in (both if self.gates.carried == 1 else both[:1])]

    # --- Layouts

    def legalise(self, site: Site, requested: Sequence[Layout], facts: SiteFacts) -> list[Layout]:
        """The units that compute or are read: equally many in both directions, unless one of them has none."""
        if not self.is_followed(site):
            return list(requested)
        needs, (units, outputs) = self.needs(site, facts.lives, facts.zeros), self.widths(site)
        asked = self._asked(site, requested[0], len(needs) * outputs)
        first = [asked[asked // outputs == i] % outputs for i in range(len(needs))]
        here = [i for i, each in enumerate(needs) if len(first[i]) or bool(each.outputs.any() | each.units.any())] or [
            0
        ]
        found, first = [needs[i] for i in here], [first[i] for i in here]
        kept = inner = _equal([each.stored[1] for each in found], first, facts.multiple)
        if found[0].connections.projection is not None:
            least = kept.shape[1] + 1  # torch sees by the widths that there is a projection, cuDNN needs it narrower
            inner = _equal([each.stored[0] for each in found], [asked[:0] for _ in found], facts.multiple, least)
        begin, count = torch.tensor(here).view(-1, 1), len(needs)
        layouts = [
            Layout.along(3, CHANNELS, count * outputs, (kept + outputs * begin).view(-1)),
            Layout((count, 1, outputs), (kept + outputs * begin).unsqueeze(1)),
            Layout((count, 1, units), (inner + units * begin).unsqueeze(1)),
        ]
        return layouts[: len(site.outputs)]

    @staticmethod
    def _asked(site: Site, layout: Layout, size: int) -> Tensor:
        """The channels of the result in the order in which they are requested."""
        if site.outputs[0] is None or layout.axes != (CHANNELS,):
            return torch.zeros(0, dtype=torch.int64)
        return kept_or_all(layout, CHANNELS, size)

    def growth(self, site: Site) -> str | None:
        if self.count(site) > 1:
            return DIRECTIONS
        return READ_AGAIN if self.directions(site)[0].projection is None else PROJECTED

    def requests(self, site: Site, outs: Sequence[Layout], facts: SiteFacts) -> list[Request] | None:
        if not self.is_followed(site):
            return None
        layouts, masks = list(outs[1:]), self.states(self.needs(site, facts.lives, facts.zeros))
        return [ANY_LAYOUT, *(LayoutRequest(to, to.of(mask)) for to, mask in zip(layouts, masks, strict=True))]

    def accept(self, site: Site, index: int, have: Layout) -> Layout:
        """The layout as it is where only the channels lost labels."""
        if set(have.axes) <= {CHANNELS}:
            return have
        size = site.shape(site.inputs[index])[CHANNELS]
        kept = have.coordinate(CHANNELS).unique() if have.compact[CHANNELS] != 1 else torch.arange(size)
        return Layout.along(have.rank, CHANNELS, size, kept)

    def narrowed(self, site: Site, have: Layout, facts: SiteFacts) -> Layout | None:
        """The layout without the channels that no unit reads: they exist for other readers."""
        if have.axes != (CHANNELS,):
            return None
        kept = have.coordinate(CHANNELS).view(-1)
        columns = grown(_line(facts.reads(0), have.compact[CHANNELS])[kept], facts.multiple)
        if len(columns) == len(kept):
            return None
        return Layout.along(have.rank, CHANNELS, have.compact[CHANNELS], kept[columns])

    def select(self, site: Site, ins: Sequence[Layout], outs: Sequence[Layout]) -> list[Selection]:
        columns = kept_or_all(ins[0], CHANNELS, site.shape(site.inputs[0])[CHANNELS])
        (units, outputs), nothing = self.widths(site), columns[:0]
        kept, inner = _units(outs[1], outputs), _units(outs[-1], units)
        steps = units * torch.arange(self.gates.count).view(-1, 1)
        found: dict[Node, tuple[Tensor, ...]] = {}
        for i, direction in enumerate(self.directions(site)):
            mine, own = kept.get(i, nothing), inner.get(i, nothing)
            rows = (steps + own).view(-1)
            found |= {direction.inputs: (rows, columns), direction.outputs: (rows, mine)}
            found |= dict.fromkeys(direction.biases, (rows,))
            if direction.projection is not None:
                found[direction.projection] = (mine, own)
        return [Selection(site.shape(p), found[p]).simplified() for p in site.parameters]

    def emit(self, site: Site, to: Emitter, ins: Sequence[Layout], outs: Sequence[Layout]) -> list[Node]:
        """The same call, or that of the one direction that is left, which of two may be the one back in time."""
        x, here = to.first_input(), list(_units(outs[1], self.widths(site)[1]))
        states = [self._contiguous(to, node) for node in to.inputs[1:] if node is not None]
        weights, each = list(to.args[2]), len(to.args[2]) // self.count(site)
        given = [weight for i in here for weight in weights[i * each : (i + 1) * each]]
        back, steps = here == [1], 1 if site.argument(8, "batch_first") else 0
        first = to.call(aten.flip.default, (x, [steps])) if back else x
        state = states if self.gates.carried == 1 else states[0]
        args = (first, state, given, *to.args[3:7], len(here) == 2, *to.args[8:])
        results = to.projected(to.call(to.target, args, to.kwargs))
        return [to.call(aten.flip.default, (results[0], [steps])), *results[1:]] if back else results

    @staticmethod
    def _contiguous(to: Emitter, node: Node) -> Node:
        """A state as a GPU takes it: a slice is not contiguous."""
        return to.call(aten.contiguous.default, (node,)) if node.target is aten.slice.Tensor else node

    # --- Costs

    def cost(self, site: Site, ins: Sequence[Layout], outs: Sequence[Layout]) -> Contraction | None:
        size, (units, outputs) = site.shape(site.inputs[0])[CHANNELS], self.widths(site)
        kept, inner = _width(outs[1], outputs), _width(outs[-1], units)
        count, channels = _width(outs[1], self.count(site), 0), _width(ins[0], size)
        inputs = [channels, *[count * kept] * (site.argument(4, "num_layers") - 1)]
        return Contraction(
            channels + kept, count * kept, count * sum(self.macs(site, each, inner, kept) for each in inputs)
        )

    def macs(self, site: Site, channels: int, units: int, outputs: int) -> int:
        """The multiply-accumulates of one direction."""
        steps = math.prod(site.shape(site.inputs[0])[:CHANNELS])
        projected = outputs if self.directions(site)[0].projection is not None else 0
        return steps * units * (self.gates.count * (channels + outputs) + projected)

    def limit(self, site: Site, facts: SiteFacts) -> Contraction | None:
        if not self.is_followed(site):
            return self.cost(site, [Layout.whole(3)] * len(site.inputs), [Layout.whole(3)] * len(site.outputs))
        channels = int(_line(facts.reads(0), site.shape(site.inputs[0])[CHANNELS]).sum())
        found, macs, kept = self.needs(site, facts.lives, facts.zeros), 0, 0
        for each in found:
            units, outputs = (int(mask.sum()) for mask in each.stored)
            macs, kept = macs + self.macs(site, channels, units, outputs), kept + outputs
        return Contraction(channels + kept // len(found), kept, macs)


def _nonzero(site: Site, weight: Node) -> Tensor:
    found = site.values.connections(weight)
    return torch.ones(site.shape(weight), dtype=torch.bool) if found is None else found


def _line(mask: Tensor, size: int, *, every: bool = False) -> Tensor:
    """A mask of (steps, batch, channels) reduced to the channels."""
    return collapse(mask, (1, 1, mask.shape[CHANNELS]), every=every).view(-1).expand(size)


def _rows(mask: Tensor, count: int, size: int, *, every: bool = False) -> Tensor:
    """A mask of a state (directions, batch, units) reduced to directions and units."""
    return collapse(mask, (mask.shape[0], 1, mask.shape[2]), every=every).expand(count, 1, size)[:, 0]


def _equal(masks: Sequence[Tensor], first: Sequence[Tensor], multiple: int, least: int = 1) -> Tensor:
    """What each mask keeps, as rows of one length: those of `first`, then the others, then what fills a row."""
    rows = []
    for mask, begin in zip(masks, first, strict=True):
        rest = mask.clone()
        rest[begin] = False
        free = ~mask
        free[begin] = False
        rows.append((torch.cat([begin, rest.nonzero().view(-1)]), free.nonzero().view(-1)))
    width = max(least, *(len(kept) for kept, _ in rows))
    width = min(len(masks[0]), -(-width // multiple) * multiple)
    return torch.stack([torch.cat([kept, free[: width - len(kept)]]) for kept, free in rows])


def _width(layout: Layout, size: int, axis: int = CHANNELS) -> int:
    """How much of `size` along an axis a layout keeps."""
    return layout.size(axis, size) if layout.rank else size


def _units(layout: Layout, size: int) -> dict[int, Tensor]:
    """The units of each direction that the layout of a state keeps, by the number of the direction."""
    return {int(row[0]) // size: row % size for row in layout.labels[:, 0]}


LSTM = Recurrent(Gates(4, source=2, carried=1))
GRU = Recurrent(Gates(3, source=2, carried=0, adds_biases=False))
RNN_TANH = Recurrent(Gates(1, source=0, carried=None))
RNN_RELU = Recurrent(Gates(1, source=0, carried=None, clips=True))

RULES: dict[str, Rule] = {"lstm": LSTM, "gru": GRU, "rnn_tanh": RNN_TANH, "rnn_relu": RNN_RELU}
