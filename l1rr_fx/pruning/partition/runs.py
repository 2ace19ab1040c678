"""Runs of a Sequential: neighbours that can be captured together where the whole cannot, as one piece."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from l1rr_fx.pruning.partition.calls import Calls
from l1rr_fx.pruning.partition.piece import Piece


@dataclass(frozen=True, eq=False)
class Run:
    """Children of a Sequential that follow one another: `names` are theirs, `body` runs them, `calls` are its calls."""

    parent: nn.Sequential
    names: tuple[str, ...]
    body: nn.Sequential
    calls: Calls


class Joined(nn.Sequential):
    """A Sequential of which some runs are pieces. Children keep their names, and hold what is left of their tensors.

    `steps` are the names of children to call, and pieces in the place of runs. A piece is no child: it reads the
    tensors of the children.
    """

    steps: tuple[str | Piece, ...]

    @classmethod
    def of(cls, parent: nn.Sequential, pieces: Mapping[tuple[str, ...], Piece]) -> Joined:
        """`parent` with these pieces, by the names of the children that each of them runs."""
        joined = cls()
        joined.training = parent.training
        inside = {name: piece for names, piece in pieces.items() for name in names}
        first = {names[0]: piece for names, piece in pieces.items()}
        for name, child in parent._modules.items():
            held = inside[name]._modules.get(name) if name in inside else child
            if held is not None:
                joined._modules[name] = held
            elif child is not None and not any(True for _ in child.parameters()):
                joined._modules[name] = child
        joined.steps = tuple(first.get(name, name) for name in parent._modules if name in first or name not in inside)
        return joined

    @property
    def pieces(self) -> Iterator[Piece]:
        return (step for step in self.steps if isinstance(step, Piece))

    def forward(self, input: Any) -> Any:
        for step in self.steps:
            input = step(input) if isinstance(step, Piece) else getattr(self, step)(input)
        return input

    def train(self, mode: bool = True) -> Joined:
        super().train(mode)
        for piece in self.pieces:
            piece.train(mode)
        return self

    def _apply(self, fn: Callable[[Any], Any], recurse: bool = True) -> Joined:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch has it so
        for piece in self.pieces:  # its own buffers; the others are the children's
            piece._apply(fn, recurse=False)  # type: ignore[no-untyped-call]  # torch has it so
        return self


def runs_of(
    parent: nn.Module, calls: Mapping[nn.Module, Calls], times: int, is_captured: Callable[[Run], bool]
) -> tuple[Run, ...]:
    """The longest runs of at least two layers that `is_captured` says can be captured; empty for other containers.

    `times` is how often `parent` is called: its children are to be called as often, or other code calls them, too.
    """
    if not isinstance(parent, nn.Sequential) or type(parent).forward is not nn.Sequential.forward:
        return ()
    names = list(parent._modules)
    found = _halves(parent, names, calls, times, is_captured)
    merged: list[Run] = []
    for run in found:
        if merged and _follows(names, merged[-1], run):
            both = _run(parent, _between(names, merged[-1].names[0], run.names[-1]), calls, times)
            if both is not None and is_captured(both):
                merged[-1] = both
                continue
        merged.append(run)
    return tuple(run for run in merged if sum(_has_parameters(parent, name) for name in run.names) > 1)


def _halves(
    parent: nn.Sequential,
    names: Sequence[str],
    calls: Mapping[nn.Module, Calls],
    times: int,
    is_captured: Callable[[Run], bool],
) -> list[Run]:
    """Runs found by halving what cannot be captured."""
    run = _run(parent, names, calls, times)
    if run is not None and is_captured(run):
        return [run]
    if len(names) < 2:
        return []
    middle = len(names) // 2
    halves = (names[:middle], names[middle:])
    return [each for half in halves for each in _halves(parent, half, calls, times, is_captured)]


def _run(parent: nn.Sequential, names: Sequence[str], calls: Mapping[nn.Module, Calls], times: int) -> Run | None:
    """The children from the first with parameters to the last; None if one is called at other times than the parent."""
    with_parameters = [i for i, name in enumerate(names) if _has_parameters(parent, name)]
    if not with_parameters:
        return None
    names = tuple(names[with_parameters[0] : with_parameters[-1] + 1])
    children = [parent._modules[name] for name in names]
    recorded = [calls.get(child) for child in children if child is not None and any(True for _ in child.parameters())]
    if any(each is None or each.read_from_outside or len(each.signatures) != times for each in recorded):
        return None
    first = recorded[0]
    assert first is not None
    body = nn.Sequential(OrderedDict((name, child) for name, child in zip(names, children, strict=True) if child))
    body.training = parent.training
    return Run(parent, names, body, Calls(first.args, first.kwargs, first.signatures))


def _has_parameters(parent: nn.Sequential, name: str) -> bool:
    child = parent._modules[name]
    return child is not None and any(True for _ in child.parameters())


def _follows(names: Sequence[str], one: Run, other: Run) -> bool:
    """Whether nothing with parameters lies between two runs."""
    between = names[names.index(one.names[-1]) + 1 : names.index(other.names[0])]
    return not any(_has_parameters(one.parent, name) for name in between)


def _between(names: Sequence[str], first: str, last: str) -> tuple[str, ...]:
    return tuple(names[names.index(first) : names.index(last) + 1])
