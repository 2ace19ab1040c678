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
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

from torch import Tensor, nn
from torch.export import Dim, ShapesCollection
from torch.fx import GraphModule
from torch.fx.experimental import _config as symbolic_config
from torch.utils import _pytree as pytree

from l1rr_fx.pruning.partition.calls import Calls, never_called, recorded_calls, refuse_calls
from l1rr_fx.pruning.partition.piece import Contract, Piece, contract_of, copy_plain_attributes, hide_new_buffers
from passes.accounts import Accounts, Cost, Kept
from passes.assignment.options import Options
from passes.audit.accounting import accounts_of
from passes.compile import Phase, Removed, remove_zero_channels
from passes.errors import CaptureError, InputError, VanishedError, first_line
from passes.frontend.capture import apart, capture
from passes.graph.isolation import buffers_restored
from passes.graph.selection import Selection

log = logging.getLogger(__name__)

CROSSES = "crosses between pieces: all its channels are kept"
LONGEST_NOTE = 240
FREE_SECONDS, FREE_TIMES = 10.0, 10.0
"""How long a capture with free sizes may take: so many seconds, and so many times that with fixed ones."""

VARYING_SECONDS = 300.0
"""How long it may take where the sizes vary from call to call, so that there is no other."""


@dataclass(frozen=True, eq=False)
class Pieces:
    """A copy of the model with its pieces pruned; `notes` say what was left whole and why.

    `removed` has for each piece, by its name, the layout plan and the small network.
    """

    module: nn.Module
    accounts: Accounts
    kept: Mapping[str, Selection]
    removed: Mapping[str, Removed]
    notes: tuple[str, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.removed)


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
    search.descend("", work)
    if not search.found and not search.left_whole:
        raise CaptureError(f"{failure}\n  Nor can any submodule of it be captured by itself.") from failure
    notes = [f"not captured whole: {_noted(failure)}", *search.notes]
    if idle := never_called(work, calls):
        notes.append(f"not called on the example and left whole: {', '.join(idle)}")
    for found in search.found:
        if found.piece is not None:
            _put_back(work, found.module, found.piece)
    dense = sum(parameter.numel() for parameter in model.parameters())
    small = sum(parameter.numel() for parameter in work.parameters())
    removed = {found.name: found.removed for found in search.found if found.piece is not None}
    return Pieces(work, _sum(search.found, dense, small), _kept(work, search.found), removed, tuple(notes))


# --- capture ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Found:
    """A submodule that was captured; `piece` is None where there was nothing to remove."""

    name: str
    module: nn.Module
    piece: Piece | None
    removed: Removed
    accounts: Accounts


class _Search:
    """Goes through the model from the top and prunes the largest submodules that can be captured."""

    def __init__(self, model: nn.Module, calls: Mapping[nn.Module, Calls], options: Options, clock: Phase) -> None:
        self.calls = calls
        self.options = options
        self.clock = clock
        self.found: list[_Found] = []
        self.notes: list[str] = []
        self.left_whole = False
        self.seen: set[nn.Module] = {model}

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
            with self.clock("capture"):
                captured, contract, fixed = _captured(name, module, calls)
        except (CaptureError, InputError) as error:
            self.notes.append(f"{name} not captured: {_noted(error)}")
            self.descend(name, module)
            return
        if fixed is not None:
            self.notes.append(f"{name} serves the sizes of the example only: {fixed}")
        self._prune(name, module, calls, captured, contract)

    def _prune(self, name: str, module: nn.Module, calls: Calls, captured: GraphModule, contract: Contract) -> None:
        try:
            removed = remove_zero_channels(captured, self.options, clock=self.clock)
        except VanishedError as error:
            self.left_whole = True
            self.notes.append(f"{name} left whole: {_noted(error)}")
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
        self.found.append(_Found(name, module, piece, removed, accounts))


def _captured(name: str, module: nn.Module, calls: Calls) -> tuple[GraphModule, Contract, str | None]:
    """The graph of a submodule, and why its sizes are those of the example (None: they are free).

    It is captured with the sizes as recorded, if they do not vary, and then with free ones as far as its code allows;
    what that may take is measured by the first.
    """
    recorded, limit = None, VARYING_SECONDS
    if not calls.varies:
        started = time.monotonic()
        with buffers_restored(module):
            recorded = capture(module, *_copies(module, calls))
        limit = FREE_SECONDS + FREE_TIMES * (time.monotonic() - started)
    try:
        args, kwargs = _copies(module, calls)
        # sizes of 0 and 1 stay free too, unless the model's own code asks for them
        with buffers_restored(module), symbolic_config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]  # a config
            captured = capture(module, args, kwargs, dynamic_shapes=_free_sizes((args, kwargs)), seconds=limit)
        contract = contract_of(name, captured, calls)
        refusal = contract.refusal(calls.args, calls.kwargs)
        if refusal is None:
            return captured, contract, None
    except (CaptureError, InputError) as error:
        if recorded is None:
            raise
        refusal = _noted(error)
    if recorded is None:
        raise CaptureError(f"its graph does not serve its own calls: {refusal}")
    log.debug("%s is captured with fixed sizes: %s", name, refusal)
    return recorded, contract_of(name, recorded, calls), refusal


def _copies(module: nn.Module, calls: Calls) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the submodule was given, each tensor one of its own: free sizes are noted on the tensors."""
    args, kwargs = apart(module, calls.args, calls.kwargs)
    return pytree.tree_map_only(Tensor, lambda each: each.detach().clone(), (args, kwargs))  # type: ignore[no-any-return]


def _free_sizes(inputs: Any) -> ShapesCollection:
    """All sizes but that of channels are free, if the code allows it."""
    shapes = ShapesCollection()
    for leaf in pytree.tree_leaves(inputs):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() >= 2:
            shapes[leaf] = {axis: Dim.AUTO for axis in range(leaf.dim()) if axis != 1 or leaf.dim() == 3}
    return shapes


def _noted(error: Exception) -> str:
    """The first line of an error, cut where it is longer than a note may be."""
    line = first_line(error)
    return line if len(line) <= LONGEST_NOTE else f"{line[:LONGEST_NOTE]}..."


# --- assemble ---------------------------------------------------------------------------------------------------------


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
    )


def _crossing(found: _Found) -> Iterator[Kept]:
    facts = found.removed.plan.facts
    for node in found.removed.plan.program.output_tensors:
        zero = facts.zero.get(node)
        if zero is not None and (dead := int(zero.sum())):
            yield Kept(f"{found.name}.{node.name}", CROSSES, dead, 0)
