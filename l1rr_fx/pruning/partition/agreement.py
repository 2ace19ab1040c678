"""Whether a model in pieces computes what the zeroed model computes: piece by piece, the rest, and the whole.

pieces     each is run on the inputs of every call that the zeroed model makes of the original, and compared
the whole  both are run on the example, and compared
the rest   where the whole deviates: the copy is run with the zeroed model's own results in the place of its pieces'.
           If it then computes the same, the model's own code magnifies rounding: NMS decides between equal scores
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from l1rr_fx.pruning.partition.pieces import Pieces
from l1rr_fx.pruning.verification import Verified, check
from passes.audit.comparison import Comparison, compare, places, tolerance
from passes.audit.sets import match_rows
from passes.errors import InputError, VerifyError
from passes.graph.isolation import run_aside

FAILURES = (AttributeError, KeyError, TypeError, RuntimeError, IndexError, InputError)
"""What a network raises that does not fit its own example."""


@dataclass(frozen=True, eq=False)
class _Call:
    """One call of a submodule: copies of what it was given and of its result, and the random state after it."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    result: Any
    random: torch.Tensor


def check_pieces(model: nn.Module, pieces: Pieces, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Verified:
    """As `check`, for a model in pieces. Raises VerifyError, which names the piece or says that it is the rest."""
    each = _EachCall(model, pieces)
    with _hooked(_ends(model, pieces), each.enter, each.leave):
        zeroed = run_aside(model, args, kwargs)
    found = [*each.agreeing, *map(each.examined, each.doubtful)]
    pruned = _outputs(pieces.module, args, kwargs)
    allowed = tolerance(zeroed, model.parameters())
    whole = compare(zeroed, pruned)
    if whole.within(allowed):
        found.append(Verified.by(whole))
    else:
        found.append(_of_the_rest(model, pieces, (args, kwargs), (zeroed, pruned), whole))
    deviations = [one.deviation for one in found if one.deviation is not None]
    return Verified(max(deviations, default=None), sum(one.compared for one in found), found[-1].notes)


def _outputs(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    problem = ""
    try:
        return run_aside(module, args, kwargs)
    except FAILURES as error:
        problem = f"the model's own code reaches into a pruned submodule: {error}"
    raise VerifyError(problem)  # here, or the error would carry the other's traceback


Ends = list[tuple[str, nn.Module, nn.Module]]
"""The names of parts, with the modules that are called first and last in them."""


def _ends(model: nn.Module, pieces: Pieces) -> Ends:
    """Those of the model."""
    return [
        (part.name, model.get_submodule(part.paths[0]), model.get_submodule(part.paths[-1])) for part in pieces.parts
    ]


@contextmanager
def _hooked(
    ends: Ends, enter: Callable[[str, tuple[Any, ...], dict[str, Any]], None], leave: Callable[[str, Any], Any]
) -> Iterator[None]:
    """Let `enter` see what each part is given, and `leave` what it returns; what `leave` returns takes its place."""
    handles = []
    for name, first, last in ends:

        def before(_: Any, args: Any, kwargs: Any, name: str = name) -> None:
            enter(name, args, kwargs)

        def after(_: Any, args: Any, result: Any, name: str = name) -> Any:
            return leave(name, result)

        handles.append(first.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(last.register_forward_hook(after))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _EachCall:
    """Runs each piece on what the original is given, at every call, and compares the results."""

    def __init__(self, model: nn.Module, pieces: Pieces) -> None:
        self.parts = {part.name: part for part in pieces.parts}
        self.by_name = {part.name: part.original(model) for part in pieces.parts}
        self.agreeing: list[Verified] = []
        self.doubtful: list[_Call] = []
        self.stack: list[tuple[Any, Any, Any]] = []

    def enter(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        args, kwargs = copy.deepcopy((args, kwargs))
        try:
            result = run_aside(self.parts[name].piece, args, kwargs)
        except FAILURES as error:  # the call is examined later
            result = error
        self.stack.append((args, kwargs, result))

    def leave(self, name: str, result: Any) -> None:
        args, kwargs, found = self.stack.pop()
        comparison = compare(result, found)
        if comparison.within(tolerance(result, self.by_name[name].parameters())):
            self.agreeing.append(Verified.by(comparison))
        else:
            self.doubtful.append(_Call(name, args, kwargs, copy.deepcopy(result), torch.random.get_rng_state()))

    def examined(self, call: _Call) -> Verified:
        """What `check` says of a call that deviates too much: rounding, or an error that names the node."""
        problem = ""
        part = self.parts[call.name]
        try:
            return check(self.by_name[call.name], part.piece, call.args, call.kwargs, call.result, part.removed)
        except VerifyError as error:
            problem = f"in the piece {call.name} {error}"
        raise VerifyError(problem)


# --- the rest ---------------------------------------------------------------------------------------------------------


class _Record:
    """The calls of all originals in one run of the zeroed model."""

    def __init__(self) -> None:
        self.calls: list[_Call] = []
        self.stack: list[tuple[Any, Any]] = []

    def enter(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.stack.append(copy.deepcopy((args, kwargs)))

    def leave(self, name: str, result: Any) -> None:
        args, kwargs = self.stack.pop()
        self.calls.append(_Call(name, args, kwargs, copy.deepcopy(result), torch.random.get_rng_state()))


class _Replay:
    """Puts the recorded results in the place of the pieces' results; `problem` says where a call is another one."""

    def __init__(self, calls: list[_Call]) -> None:
        self.calls = iter(calls)
        self.problem: str | None = None

    def enter(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.call = next(self.calls, None)
        if self.call is None or self.call.name != name:
            self.problem = self.problem or f"it calls {name} where the zeroed model does not"
            return
        given = compare((self.call.args, self.call.kwargs), (args, kwargs))
        if not given.within(tolerance(self.call.args)):
            self.problem = self.problem or f"what it gives to {name} {given}"

    def leave(self, name: str, result: Any) -> Any:
        if self.problem or self.call is None:
            return None
        torch.random.set_rng_state(self.call.random)
        return self.call.result


def _of_the_rest(
    model: nn.Module,
    pieces: Pieces,
    given: tuple[tuple[Any, ...], Mapping[str, Any]],
    outputs: tuple[Any, Any],
    whole: Comparison,
) -> Verified:
    """What explains outputs that deviate although each piece agrees; VerifyError if the rest of the code does not."""
    (zeroed, pruned), allowed = outputs, tolerance(outputs[0], model.parameters())
    record = _Record()
    with _hooked(_ends(model, pieces), record.enter, record.leave):
        again = run_aside(model, *given)
    unstable = [leaf.path for leaf in compare(zeroed, again).leaves if not leaf.within(allowed)]
    notes = (f"not compared: {places(unstable)}, which differs between two runs of the model",) if unstable else ()
    if (stable := whole.without(unstable)).within(allowed):
        return Verified.by(stable, notes)
    replay = _Replay(record.calls)
    with _hooked([(part.name, part.piece, part.piece) for part in pieces.parts], replay.enter, replay.leave):
        rest = compare(again, _outputs(pieces.module, *given)).without(unstable)
    if replay.problem or not rest.within(allowed):
        raise VerifyError(
            f"the pruned network {whole} from the zeroed one (allowed: {allowed:.0e}); each piece agrees, but with the "
            f"same results of its pieces the rest of the code differs: {replay.problem or f'it {rest}'}"
        )
    return _magnified(zeroed, pruned, whole, allowed, notes)


def _magnified(zeroed: Any, pruned: Any, whole: Comparison, allowed: float, notes: tuple[str, ...]) -> Verified:
    """Outputs that deviate because the model's own code magnifies rounding: compared as sets, if they are rows."""
    reason = f"the model's own code magnifies rounding (NMS between equal scores, a threshold): the whole {whole}, "
    match = match_rows(zeroed, pruned, allowed)
    if match is not None and match.matched == match.rows:
        line = f"{reason}and by {match.deviation:.3g} when the {match.rows:,} rows are compared as sets"
        return Verified(match.deviation, match.numbers, (*notes, line))
    agreeing = "" if match is None else f" ({match.matched:,} of {match.rows:,} rows agree, compared as sets)"
    line = f"{reason}but each piece agrees, and the rest computes the same from the same results{agreeing}"
    return Verified(None, 0, (*notes, line))
