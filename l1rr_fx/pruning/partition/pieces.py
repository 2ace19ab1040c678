"""Models that cannot be captured whole: their largest submodules that can be are pruned and put back in a copy.

    record     one forward pass on the example: what every submodule was called with, and who reads whose parameters
    capture    top-down, the largest submodules whose calls are tensors and plain values; sizes stay free where they can
    assemble   a deep copy of the model with each of them replaced by a `Piece`

What crosses between pieces keeps all its channels, for a piece's inputs and outputs are the network's own. A submodule
whose parameters are read from outside its own calls (shared, tied, or used by hand) is no piece; its children may be.
"""

from __future__ import annotations

import copy
import logging
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from torch import nn
from torch.fx import GraphModule

from l1rr_fx.pruning.partition.calls import Calls, never_called, recorded_calls, refuse_calls
from l1rr_fx.pruning.partition.capturing import captured_part, noted, own_copies
from l1rr_fx.pruning.partition.crossing import joined_facts
from l1rr_fx.pruning.partition.piece import Contract, Piece, copy_plain_attributes, hide_new_buffers
from l1rr_fx.pruning.partition.runs import Joined, Run, runs_of
from passes.accounts import Accounts, Cost, Kept, Opaque
from passes.assignment.options import Options
from passes.audit.accounting import accounts_of, limited
from passes.compile import Phase, Removed, remove_zero_channels
from passes.errors import CaptureError, InputError, VanishedError
from passes.frontend.capture import capture
from passes.graph.isolation import buffers_restored
from passes.graph.selection import Selection

log = logging.getLogger(__name__)

MODEL_CODE = "the model's code between pieces"
CROSSES = "crosses between pieces: all its channels are kept"


@dataclass(frozen=True, eq=False)
class Part:
    """A piece, what was removed, and `paths`: the submodules of the model in whose place it is, in their order."""

    name: str
    paths: tuple[str, ...]
    piece: Piece
    removed: Removed

    def original(self, model: nn.Module) -> nn.Module:
        """What the piece replaces, in the model."""
        modules = [model.get_submodule(path) for path in self.paths]
        names = [path.rpartition(".")[2] for path in self.paths]
        return modules[0] if len(modules) == 1 else nn.Sequential(OrderedDict(zip(names, modules, strict=True)))


@dataclass(frozen=True, eq=False)
class Pieces:
    """A copy of the model with its pieces pruned; `notes` say what was left whole and why."""

    module: nn.Module
    accounts: Accounts
    kept: Mapping[str, Selection]
    parts: tuple[Part, ...]
    notes: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(part.name for part in self.parts)

    @property
    def removed(self) -> Mapping[str, Removed]:
        """For each piece, by its name, the layout plan and the small network."""
        return {part.name: part.removed for part in self.parts}


def prune_pieces(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    failure: CaptureError,
    *,
    options: Options,
    clock: Phase,
) -> Pieces:
    """The model with every part pruned that can be captured by itself; `failure` says why the whole cannot.

    Raises CaptureError where no part can be captured.
    """
    work = copy.deepcopy(model)
    with clock("record"):
        calls = recorded_calls(work, args, kwargs)
    search = _Search(work, calls, options, clock)
    search.join("", work, times=1)
    search.descend("", work)
    if not search.found and not search.left_whole:
        raise CaptureError(f"{failure}\n  Nor can any submodule of it be captured by itself.") from failure
    notes = [f"not captured whole: {noted(failure)}", *search.notes]
    if idle := never_called(work, calls):
        notes.append(f"not called on the example and left whole: {', '.join(idle)}")
    parts = tuple(
        Part(found.name, found.paths, found.piece, found.removed) for found in search.found if found.piece is not None
    )
    with clock("analysis"):
        found = _joined(work, search.found, args, kwargs)
    work = _assembled(work, found)
    dense = sum(parameter.numel() for parameter in model.parameters())
    small = sum(parameter.numel() for parameter in work.parameters())
    return Pieces(work, _sum(found, dense, small), _kept(work, found), parts, tuple(notes))


# --- capture ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Found:
    """A submodule that was captured; `piece` is None where there was nothing to remove."""

    name: str
    module: nn.Module
    piece: Piece | None
    removed: Removed
    accounts: Accounts
    run: Run | None = None

    @property
    def ends(self) -> tuple[nn.Module, nn.Module]:
        """The modules that are called first and last in it."""
        if self.run is None:
            return self.module, self.module
        children = list(self.run.body.children())
        return children[0], children[-1]

    @property
    def paths(self) -> tuple[str, ...]:
        """The dotted names of the submodules that it is in the place of."""
        if self.run is None:
            return (self.name,)
        prefix, dot, _ = self.name.rpartition(".")
        return tuple(f"{prefix}{dot}{name}" for name in self.run.names)


class PartSearch:
    """Goes through a model from the top; `take` gets the largest submodules, and runs of them, that can be captured.

    `take` raises CaptureError or InputError for a part that cannot, which is then searched in turn.
    """

    def __init__(self, model: nn.Module, calls: Mapping[nn.Module, Calls]) -> None:
        self.calls = calls
        self.notes: list[str] = []
        self.seen: set[nn.Module] = {model}

    def take(self, name: str, module: nn.Module, calls: Calls, run: Run | None = None) -> None:
        raise NotImplementedError

    def descend(self, prefix: str, module: nn.Module) -> None:
        for name, child in module.named_children():
            if child not in self.seen and any(True for _ in child.parameters()):
                self.seen.add(child)
                self._visit(f"{prefix}.{name}" if prefix else name, child)

    def _visit(self, name: str, module: nn.Module) -> None:
        calls = self.calls.get(module)
        if calls is None:  # a container whose children are called one by one
            self.descend(name, module)
            return
        try:
            refuse_calls(calls)
            self.take(name, module, calls)
        except (CaptureError, InputError) as error:
            self.notes.append(f"{name} not captured: {noted(error)}")
            self.join(name, module, len(calls.signatures))
            self.descend(name, module)

    def join(self, prefix: str, module: nn.Module, times: int) -> None:
        """Take the runs of a Sequential that can be captured together; `times` is how often it is called."""
        for run in runs_of(module, self.calls, times, self.is_captured):
            span = f"{run.names[0]}-{run.names[-1]}"
            name = f"{prefix}.{span}" if prefix else span
            try:
                self.take(name, run.body, run.calls, run)
            except (CaptureError, InputError) as error:
                self.notes.append(f"{name} not captured: {noted(error)}")
                continue
            self.seen.update(run.body.modules())

    def is_captured(self, run: Run) -> bool:
        """Whether a run can be captured."""
        try:
            refuse_calls(run.calls)
            with buffers_restored(run.body):
                capture(run.body, *own_copies(run.body, run.calls))
        except (CaptureError, InputError):
            return False
        return True


class _Search(PartSearch):
    """Prunes what it finds."""

    def __init__(self, model: nn.Module, calls: Mapping[nn.Module, Calls], options: Options, clock: Phase) -> None:
        super().__init__(model, calls)
        self.options = options
        self.clock = clock
        self.found: list[_Found] = []
        self.left_whole = False

    def is_captured(self, run: Run) -> bool:
        with self.clock("capture"):
            return super().is_captured(run)

    def take(self, name: str, module: nn.Module, calls: Calls, run: Run | None = None) -> None:
        with self.clock("capture"):
            captured, contract, fixed = captured_part(name, module, calls)
        if fixed is not None:
            self.notes.append(f"{name} serves the sizes of the example only: {fixed}")
        self._prune(name, module, calls, captured, contract, run)

    def _prune(
        self,
        name: str,
        module: nn.Module,
        calls: Calls,
        captured: GraphModule,
        contract: Contract,
        run: Run | None = None,
    ) -> None:
        try:
            removed = remove_zero_channels(captured, self.options, clock=self.clock)
        except VanishedError as error:
            self.left_whole = True
            self.notes.append(f"{name} left whole: {noted(error)}")
            return
        accounts = accounts_of(removed.plan, removed.rewritten, {}, removed.constants)
        if len(calls.signatures) > 1:
            self.notes.append(f"{name} is called {len(calls.signatures)} times; its costs are those of the first call")
        piece = None
        if accounts.after.macs < accounts.before.macs:
            piece = Piece.of(removed.module, contract)
            hide_new_buffers(piece, module.state_dict())
            for path, original in module.named_modules():
                copy_plain_attributes(original, piece, path)
        self.found.append(_Found(name, module, piece, removed, accounts, run))


def _joined(
    model: nn.Module, found: Sequence[_Found], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> list[_Found]:
    """The parts with the limit of all of them together."""
    if len(found) < 2:
        return list(found)
    joined = joined_facts(model, found, args, kwargs)
    result = []
    for each in found:
        accounts = each.accounts
        if each.name in joined.facts:
            accounts = limited(each.removed.plan, each.removed.rewritten, accounts, joined.facts[each.name], CROSSES)
        read = tuple(Opaque(node, MODEL_CODE) for node in joined.read_by_code.get(each.name, ()))
        result.append(replace(each, accounts=replace(accounts, opaque=(*accounts.opaque, *read))))
    return result


# --- assemble ---------------------------------------------------------------------------------------------------------


def _assembled(model: nn.Module, found: Iterable[_Found]) -> nn.Module:
    """The model with its pieces in their places; another module where the model itself is a Sequential with runs."""
    joined: dict[nn.Sequential, dict[tuple[str, ...], Piece]] = {}
    for each in found:
        if each.piece is not None and each.run is not None:
            joined.setdefault(each.run.parent, {})[each.run.names] = each.piece
        elif each.piece is not None:
            _put_back(model, each.module, each.piece)
    for parent, pieces in joined.items():
        new = Joined.of(parent, pieces)
        if parent is model:
            model = new
        else:
            _put_back(model, parent, new)
    return model


def _put_back(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Replace a submodule under every name that it has."""
    for parent in list(model.modules()):
        for name, child in parent._modules.items():
            if child is old:
                parent._modules[name] = new


def _kept(model: nn.Module, found: Iterable[_Found]) -> dict[str, Selection]:
    """What is left of every parameter and buffer of the copy, by each of its names."""
    inside: dict[int, Selection] = {}
    pieces = [(each.piece, each.removed.rewritten.kept) for each in found if each.piece is not None]
    for piece, kept in pieces:
        tensors = chain(piece.named_parameters(remove_duplicate=False), piece.named_buffers())
        inside.update({id(tensor): kept[name] for name, tensor in tensors if name in kept})
    everything = chain(model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False))
    ours = {id(tensor) for piece, _ in pieces for tensor in chain(piece.parameters(), piece.buffers())}
    return {
        name: inside.get(id(tensor)) or Selection.whole(tensor.shape)
        for name, tensor in everything
        if id(tensor) in inside or id(tensor) not in ours
    }


def _sum(found: Iterable[_Found], dense: int, small: int) -> Accounts:
    """One bill for all pieces; parameters count the whole model, MACs, channels and activations the pieces alone."""
    bills = [_prefixed(each) for each in found]
    before, after, limit = (
        Cost(0, sum(c.macs for c in costs), sum(c.channels for c in costs), sum(c.activation_bytes for c in costs))
        for costs in ([b.before for b in bills], [b.after for b in bills], [b.limit for b in bills])
    )
    saved_at_limit = sum(b.before.parameters - b.limit.parameters for b in bills)
    return Accounts(
        before=replace(before, parameters=dense),
        after=replace(after, parameters=small),
        limit=replace(limit, parameters=dense - saved_at_limit),
        layers=tuple(chain.from_iterable(b.layers for b in bills)),
        recombinations=tuple(chain.from_iterable(b.recombinations for b in bills)),
        kept=tuple(chain.from_iterable(b.kept for b in bills)),
        not_counted=tuple(chain.from_iterable(b.not_counted for b in bills)),
        constants=tuple(chain.from_iterable(b.constants for b in bills)),
        opaque=tuple(chain.from_iterable(b.opaque for b in bills)),
    )


def _prefixed(found: _Found) -> Accounts:
    """The bill of a piece with its dotted name before every node's, and what it keeps for whoever reads its outputs."""
    name, bill_ = found.name, found.accounts
    return replace(
        bill_,
        layers=tuple(replace(each, node=f"{name}.{each.node}") for each in bill_.layers),
        recombinations=tuple(
            replace(each, value=f"{name}.{each.value}", reader=f"{name}.{each.reader}") for each in bill_.recombinations
        ),
        kept=(*(replace(each, node=f"{name}.{each.node}") for each in bill_.kept), *_crossing(found)),
        not_counted=tuple(replace(each, node=f"{name}.{each.node}") for each in bill_.not_counted),
        constants=tuple(
            replace(each, tensor=f"{name}.{each.tensor}", reader=f"{name}.{each.reader}") for each in bill_.constants
        ),
        opaque=tuple(replace(each, node=f"{name}.{each.node}") for each in bill_.opaque),
    )


def _crossing(found: _Found) -> Iterator[Kept]:
    facts = found.removed.plan.facts
    for node in found.removed.plan.program.output_tensors:
        zero = facts.zero.get(node)
        if zero is not None and (dead := int(zero.sum())):
            yield Kept(f"{found.name}.{node.name}", CROSSES, dead, 0)
