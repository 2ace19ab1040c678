"""Paths: the states of a network on the way down in cost, each with the widths of its families.

The moves are steps of the machine: as many channels of a family as bring its width to the next multiple of the target,
to the next tile of a kernel's rows, or a few of these at once. The next move is the one with the least loss for what it
saves, with all costs predicted again after each move. A move across a tile may save much more than a budget asks for.
So between the states before and after it there are others, in which other families get back what fits.

With one limit on cost neither the moves nor the states between them depend on it, but for where they begin and end. The
states that others beat, with less cost at less loss, are left out. So a smaller budget never has a smaller loss, nor a
larger cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from l1rr_fx.latency import model
from l1rr_fx.machines.jetson_tx2 import JetsonTX2
from l1rr_fx.method.planning.curves import Unit
from l1rr_fx.method.planning.explain import Move
from l1rr_fx.method.planning.moves import Shapes, costs
from l1rr_fx.method.planning.search import LastStep
from l1rr_fx.method.sites.zeroing import Zeroing

STEPS = (1, 2, 4, 8)
"""Multiples of the target's multiple that a move removes, besides those up to the next tiles."""
GRID = 0.002
"""Where a move saves more than this share of the dense network's cost, states are put in between, so far apart."""
AROUND = 0.03
"""How far from the limit there are states between moves, as a share of the limit."""


@dataclass(frozen=True, eq=False)
class Allocatable:
    """A family with the loss of removing its first n channels, `losses`, shape (removable + 1,), which never falls.

    It may be a block. Then `inner` are the numbers of the families that go with it, and come back in its place: nothing
    reads them any more, and nothing computes them."""

    family: Unit
    losses: Tensor
    inner: tuple[int, ...] = ()

    @property
    def least(self) -> int:
        """The width that stays at least."""
        return self.family.channels - (len(self.losses) - 1)


@dataclass(frozen=True, eq=False)
class State:
    """Widths of all families, shape (families,), with the predicted shares of the dense network's costs, the loss, and
    how far the costs are from their limits: the largest share over its limit, at most 1 where all are met."""

    widths: Tensor
    shares: Mapping[str, float]
    loss: float
    excess: float


@dataclass(frozen=True, eq=False)
class Path:
    """States in the order of falling cost and rising loss, the dense network first."""

    families: tuple[Allocatable, ...]
    states: tuple[State, ...]

    def __len__(self) -> int:
        """The number of states after that of the dense network."""
        return len(self.states) - 1

    def time(self, count: int) -> float:
        """The loss of a state."""
        return self.states[count].loss

    def zeroing(self, count: int) -> Zeroing:
        """The masks of a state."""
        found: dict[str, Tensor] = {}
        for each, width in zip(self.families, self.states[count].widths.tolist(), strict=True):
            if gone := each.family.channels - int(width):
                for name, mask in each.family.zeroing(gone).items():
                    found[name] = found[name] | mask if name in found else mask  # families may share a site
        return found

    def step(self, count: int) -> LastStep:
        """The move that leads to a state."""
        move = self.moves[count - 1]
        return LastStep(move.family, move.channels, move.back)

    def first(self, most: float = 1.0) -> int:
        """The first state whose excess is at most this, or the last of all."""
        return next((n for n, state in enumerate(self.states) if state.excess <= most), len(self))

    @cached_property
    def moves(self) -> tuple[Move, ...]:
        """What leads to each state from the one before it: the family that loses most by it is named."""
        found = []
        for before, after in zip(self.states, self.states[1:], strict=False):
            gone = before.widths - after.widths
            lost = [
                float(_loss(each, now) - _loss(each, was)) if now < was else -1.0
                for each, was, now in zip(self.families, before.widths.tolist(), after.widths.tolist(), strict=True)
            ]
            most = max(range(len(lost)), key=lost.__getitem__)
            back = int(-gone.clamp(max=0).sum())
            found.append(
                Move(self.families[most].family.name, int(gone[most]), after.loss, after.shares["latency"], back)
            )
        return tuple(found)


def greedy(
    kernels: Shapes,
    families: Sequence[Allocatable],
    target: JetsonTX2,
    limits: Mapping[str, float],
    *,
    exponent: float = 1.0,
    beyond: float = 0.9,
) -> Path:
    """The path on which each move has the least loss for what it saves ** `exponent`, to `beyond` times the limits.

    Moves of channels alone make a path too, and of both the states that are not beaten stay: a block is a large move.
    With several limits, what is saved below `beyond` times a limit does not count.
    """
    walker = _Walker(kernels, families, target, limits, exponent, beyond)
    channels = [number for number, each in enumerate(families) if each.family.channels > 1]
    found = []
    for units in (channels, range(len(families))) if len(channels) < len(families) else (channels,):
        states = walker.walk(units)
        found += [*states, *walker.between(states)]
    return Path(tuple(families), tuple(_unbeaten(found)))


def _unbeaten(states: Sequence[State]) -> list[State]:
    """The states than which no other has at most the cost at at most the loss, in the order of falling cost."""
    found: list[State] = []
    for state in sorted(states, key=lambda each: (each.excess, each.loss)):
        if not found or state.loss < found[-1].loss:
            found.append(state)
    return found[::-1]


@dataclass(frozen=True, eq=False)
class _Walker:
    kernels: Shapes
    families: Sequence[Allocatable]
    target: JetsonTX2
    limits: Mapping[str, float]
    exponent: float
    beyond: float

    @cached_property
    def full(self) -> Tensor:
        return torch.tensor([float(each.family.channels) for each in self.families], dtype=torch.float64)

    @cached_property
    def dense(self) -> Tensor:
        """The limited costs of the dense network, shape (limits,)."""
        found = costs(self.kernels, self.full[None], self.target)
        return torch.stack([found.named[name][0] for name in self.limits])

    def walk(self, units: Sequence[int]) -> list[State]:
        """The moves of some units one after the other, each the one with the least loss for what it saves."""
        mine = torch.tensor(units)
        states = [self._state(self.full)]
        now, losses = float(self._counted(self._parts(self.full[None]))[0]), torch.zeros(len(self.families))
        losses = losses.double()
        while states[-1].excess > self.beyond:
            widths = states[-1].widths
            index, after = candidates(self.kernels, self.families, widths, self.target.multiple)
            chosen = torch.isin(index, mine)
            index, after = index[chosen], after[chosen]
            if not len(index):
                break
            counted = self._counted(self._parts(_changed(widths, index, after)))
            saved = now - counted
            lost = self._losses(index, after)
            price = (lost - losses[index]) / saved.clamp(min=1e-30) ** self.exponent
            best = int(price.where(saved > 0, torch.inf).argmin())
            if float(saved[best]) <= 0:
                break
            now, losses[index[best]] = float(counted[best]), lost[best]
            widths = _changed(widths, index, after)[best]
            for inner in self.families[int(index[best])].inner:
                widths[inner], losses[inner] = self.full[inner], 0.0
            states.append(self._state(widths))
        return states

    def between(self, states: Sequence[State]) -> list[State]:
        """States between those of moves that save more than GRID, near the limit: from the state after the move,
        families get back what has the largest loss for its cost, as long as the cost is below a line of the grid."""
        grid, found = GRID / min(self.limits.values()), list[State]()
        for before, after in zip(states, states[1:], strict=False):
            low, high = max(after.excess, 1 - AROUND), min(before.excess, 1 + AROUND)
            for line in range(int(low / grid) + 1, int(high / grid) + 2):
                if after.excess < (bound := min(line * grid, before.excess)):
                    found += self._filled(after, bound)
        return found

    def _filled(self, state: State, bound: float) -> list[State]:
        found: list[State] = []
        while True:
            index, after = returns(self.families, state.widths, self.target.multiple)
            if not len(index):
                return found
            tried = _changed(state.widths, index, after)
            excess = self._parts(tried).amax(1)
            gain = self._losses(index, state.widths[index]) - self._losses(index, after)
            price = gain / (excess - state.excess).clamp(min=1e-9)
            best = int(price.where((excess < bound) & (gain > 0), -torch.inf).argmax())
            if not (float(excess[best]) < bound and float(gain[best]) > 0):
                return found
            state = self._state(tried[best])
            found.append(state)

    def _state(self, widths: Tensor) -> State:
        found = costs(self.kernels, torch.stack([self.full, widths]), self.target)
        shares = {name: float(cost[1] / cost[0]) for name, cost in found.named.items()}
        excess = max(shares[name] / limit for name, limit in self.limits.items())
        loss = sum(float(_loss(each, width)) for each, width in zip(self.families, widths.tolist(), strict=True))
        return State(widths, shares, loss, excess)

    def _parts(self, widths: Tensor) -> Tensor:
        """Each limited cost over its limit, shape (sets, limits)."""
        found = costs(self.kernels, widths, self.target)
        limits = torch.tensor(list(self.limits.values()), dtype=torch.float64)
        return torch.stack([found.named[name] for name in self.limits], 1) / self.dense / limits

    def _counted(self, parts: Tensor) -> Tensor:
        """What moves try to lower, shape (sets,): the sum of the parts; of several each counts `beyond` at least."""
        return parts.sum(1) if parts.shape[1] == 1 else parts.clamp(min=self.beyond).sum(1)

    def _losses(self, index: Tensor, widths: Tensor) -> Tensor:
        pairs = zip(index.tolist(), widths.tolist(), strict=True)
        return torch.stack([_loss(self.families[number], width) for number, width in pairs])


def candidates(
    kernels: Shapes, families: Sequence[Allocatable], widths: Tensor, multiple: int
) -> tuple[Tensor, Tensor]:
    """The next moves from some widths: the index of the family and its width after each."""
    full = torch.cat([torch.ones(1, dtype=torch.float64), widths])
    over = (kernels.rows @ full).round() - 1
    over = over.remainder(model.ROW_TILE) + 1  # rows above the tile below
    index, after = [], []
    for number, each in enumerate(families):
        width, share = int(widths[number]), kernels.rows[:, 1 + number]
        takes = share > 0
        found = {width - step * multiple for step in STEPS}
        for extra in (0, model.ROW_TILE):
            found |= {int(width - n) for n in ((over[takes] + extra) / share[takes]).ceil().unique().tolist()}
        aligned = {-(-w // multiple) * multiple if each.family.channels % multiple == 0 else w for w in found}
        possible = sorted({max(w, each.least) for w in (*found, *aligned)})
        possible = [w for w in possible if each.least <= w < width and (w % multiple == 0 or w == each.least)]
        index += [number] * len(possible)
        after += possible
    return torch.tensor(index, dtype=torch.int64), torch.tensor(after, dtype=torch.float64)


def returns(families: Sequence[Allocatable], widths: Tensor, multiple: int) -> tuple[Tensor, Tensor]:
    """The ways to give a family channels back: the index of the family and its width after each."""
    index, after = [], []
    for number, each in enumerate(families):
        width, most = int(widths[number]), each.family.channels
        steps = (width // multiple + step for step in STEPS)
        possible = sorted({min(step * multiple, most) for step in steps}) if width < most else []
        index += [number] * len(possible)
        after += possible
    return torch.tensor(index, dtype=torch.int64), torch.tensor(after, dtype=torch.float64)


def _changed(widths: Tensor, index: Tensor, after: Tensor) -> Tensor:
    """The widths after each of several moves, shape (moves, families)."""
    found = widths.repeat(len(index), 1)
    found[torch.arange(len(index)), index] = after
    return found


def _loss(each: Allocatable, width: float) -> Tensor:
    return each.losses[each.family.channels - int(width)]
