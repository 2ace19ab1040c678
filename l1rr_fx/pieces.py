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
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import sympy
import torch
from torch import Tensor, nn
from torch.export import Dim, ShapesCollection
from torch.fx import Graph, GraphModule
from torch.fx.experimental import _config as symbolic_config
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from passes.accounts import Accounts, Cost, Kept
from passes.bill import bill
from passes.capture import capture
from passes.compile import Phase, Removed, remove_zero_channels
from passes.errors import CaptureError, InputError, VanishedError
from passes.selection import Selection

log = logging.getLogger(__name__)

CROSSES = "crosses between pieces: all its channels are kept"
LONGEST_NOTE = 240
PLAIN = (bool, int, float, complex, str, type(None), torch.dtype, torch.device)
OPERATORS_INSIDE = ("_ops.py", "_subclasses/", "_prims", "_refs/", "_meta_registrations.py", "_decomp/")  # in torch
INTERNALS = frozenset(vars(nn.Module())) | {"training"}

# What may be read of a parameter without its channels mattering.
HARMLESS = frozenset(
    descriptor.__get__  # type: ignore[union-attr]  # the class has descriptors where its stub has values
    for descriptor in (Tensor.device, Tensor.dtype, Tensor.requires_grad, Tensor.is_cuda, Tensor.layout, Tensor.is_leaf)
)


@dataclass(frozen=True, eq=False)
class Pieces:
    """A copy of the model with its pieces pruned; `names` are theirs, `notes` say what was left whole and why."""

    module: nn.Module
    accounts: Accounts
    kept: Mapping[str, Selection]
    names: tuple[str, ...]
    notes: tuple[str, ...]


def prune_pieces(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    failure: CaptureError,
    *,
    mode: str,
    channel_multiple: int,
    clock: Phase,
) -> Pieces:
    """The model with every part pruned that can be captured by itself; `failure` says why the whole cannot.

    Raises CaptureError where no part can be captured.
    """
    work = copy.deepcopy(model)
    with clock("record"):
        calls = recorded_calls(work, args, kwargs)
    search = _Search(work, calls, mode, channel_multiple, clock)
    search.descend("", work)
    if not search.found and not search.left_whole:
        raise CaptureError(f"{failure}\n  Nor can any submodule of it be captured by itself.") from failure
    notes = [f"not captured whole: {_first_line(failure)}", *search.notes]
    if idle := _never_called(work, calls):
        notes.append(f"not called on the example and left whole: {', '.join(idle)}")
    for found in search.found:
        if found.piece is not None:
            _put_back(work, found.module, found.piece)
    dense = sum(parameter.numel() for parameter in model.parameters())
    small = sum(parameter.numel() for parameter in work.parameters())
    names = tuple(found.name for found in search.found if found.piece is not None)
    return Pieces(work, _sum(search.found, dense, small), _kept(work, search.found), names, tuple(notes))


# --- record ----------------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class Calls:
    """The first call of a submodule, the signatures of all of them, and whether anybody else reads its parameters."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    signatures: list[Any] = field(default_factory=list)
    read_from_outside: bool = False

    @property
    def varies(self) -> bool:
        """Whether the sizes of its inputs differ from call to call."""
        return any(signature != self.signatures[0] for signature in self.signatures)


def recorded_calls(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[nn.Module, Calls]:
    """How every submodule with parameters was called in one forward pass on the example."""
    recorder = _Recorder(model)
    args, kwargs = copy.deepcopy((args, dict(kwargs)))
    random = torch.random.get_rng_state()
    with _buffers_restored(model), torch.no_grad(), recorder.hooks(), recorder:
        model(*args, **kwargs)
    torch.random.set_rng_state(random)
    for module in recorder.open:
        if module in recorder.calls:
            recorder.calls[module].read_from_outside = True
    return recorder.calls


class _Recorder(TorchFunctionMode):
    """Sees every operator that reads a parameter or buffer, and which modules are being called at that moment."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.calls: dict[nn.Module, Calls] = {}
        self.open: set[nn.Module] = set()
        self.stack: list[nn.Module] = []
        self.holders: dict[int, list[nn.Module]] = {}
        self.modules = [m for m in model.modules() if m is not model and any(True for _ in m.parameters())]
        for module in self.modules:
            for tensor in chain(module.parameters(), module.buffers()):
                self.holders.setdefault(id(tensor), []).append(module)

    @contextmanager
    def hooks(self) -> Iterator[None]:
        handles = []
        for module in self.modules:
            handles.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
            handles.append(module.register_forward_hook(self._leave, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.stack.append(module)
        calls = self.calls.setdefault(module, Calls(args, kwargs))
        calls.signatures.append(_signature(args, kwargs))

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.stack.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in HARMLESS:
            for value in chain(args, (kwargs or {}).values()):
                for tensor in value if isinstance(value, (list, tuple)) else (value,):
                    if isinstance(tensor, Tensor) and id(tensor) in self.holders:
                        self.open.update(m for m in self.holders[id(tensor)] if m not in self.stack)
        return func(*args, **(kwargs or {}))


def _signature(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What two calls must have in common to be served by one graph with fixed sizes."""
    leaves, spec = pytree.tree_flatten((args, kwargs))
    return spec, [tuple(leaf.shape) if isinstance(leaf, Tensor) else leaf for leaf in leaves]


def _never_called(model: nn.Module, calls: Mapping[nn.Module, Calls]) -> list[str]:
    """The topmost submodules with parameters of which nothing was called."""
    found: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{above}.") for above in found)
        if name and not inside and any(True for _ in module.parameters()):
            if not any(each in calls for each in module.modules()):
                found.append(name)
    return found


# --- capture ---------------------------------------------------------------------------------------------------------


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

    def __init__(
        self, model: nn.Module, calls: Mapping[nn.Module, Calls], mode: str, channel_multiple: int, clock: Phase
    ) -> None:
        self.calls = calls
        self.mode = mode
        self.channel_multiple = channel_multiple
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
                captured = _captured(module, calls)
        except (CaptureError, InputError) as error:
            self.notes.append(f"{name} not captured: {_first_line(error)}")
            self.descend(name, module)
            return
        self._prune(name, module, calls, captured)

    def _prune(self, name: str, module: nn.Module, calls: Calls, captured: GraphModule) -> None:
        contract = contract_of(name, captured, calls)
        try:
            removed = remove_zero_channels(
                captured, mode=self.mode, channel_multiple=self.channel_multiple, clock=self.clock
            )
        except VanishedError as error:
            self.left_whole = True
            self.notes.append(f"{name} left whole: {_first_line(error)}")
            return
        accounts = bill(removed.plan, removed.rewritten, {})
        if len(calls.signatures) > 1:
            self.notes.append(f"{name} is called {len(calls.signatures)} times; its costs are those of the first call")
        piece = None
        if accounts.after.macs < accounts.before.macs:
            piece = Piece.of(removed.module, contract)
            for path, original in module.named_modules():
                _copy_plain_attributes(original, piece, path)
        self.found.append(_Found(name, module, piece, removed, accounts))


def refuse_calls(calls: Calls) -> None:
    """Raise CaptureError unless one graph could serve all these calls."""
    if calls.read_from_outside:
        raise CaptureError("its parameters are also read from outside its own calls")
    leaves, spec = pytree.tree_flatten((calls.args, calls.kwargs))
    if strangers := sorted({type(x).__name__ for x in leaves if not isinstance(x, (Tensor, *PLAIN))}):
        raise CaptureError(f"it is called with a {strangers[0]}")
    if not any(isinstance(leaf, Tensor) for leaf in leaves):
        raise CaptureError("it is called without a tensor")
    for other_spec, others in calls.signatures:
        if other_spec != spec or any(
            not isinstance(leaf, Tensor) and leaf != other for leaf, other in zip(leaves, others, strict=True)
        ):
            raise CaptureError("it is called in different ways")


def _captured(module: nn.Module, calls: Calls) -> GraphModule:
    """The graph of a submodule: sizes are free as far as its code allows, all fixed where that fails."""
    shapes = ShapesCollection()
    for leaf in pytree.tree_leaves((calls.args, calls.kwargs)):
        if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() >= 2:
            shapes[leaf] = {axis: Dim.AUTO for axis in range(leaf.dim()) if axis != 1 or leaf.dim() == 3}
    try:
        # sizes of 0 and 1 stay free too, unless the model's own code asks for them
        with _buffers_restored(module), symbolic_config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]  # a config module
            return capture(module, calls.args, calls.kwargs, dynamic_shapes=shapes)
    except CaptureError:
        if calls.varies:
            raise
        log.debug("no free sizes for %s", type(module).__name__)
    with _buffers_restored(module):
        return capture(module, calls.args, calls.kwargs)


@contextmanager
def _buffers_restored(module: nn.Module) -> Iterator[None]:
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def _first_line(error: Exception) -> str:
    line = str(error).splitlines()[0]
    return line if len(line) <= LONGEST_NOTE else f"{line[:LONGEST_NOTE]}..."


# --- pieces ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Contract:
    """The calls that a captured submodule can serve: structure, values that are no tensors, and sizes.

    `shapes` has for each tensor its sizes, numbers or symbols; `conditions` are what capture assumed of the symbols.
    """

    name: str
    spec: Any
    constants: tuple[Any, ...]
    shapes: tuple[tuple[Any, ...] | None, ...]
    conditions: tuple[Any, ...]

    def refusal(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
        """Why the graph must not be used for this call; None if it may."""
        leaves, spec = pytree.tree_flatten((args, dict(sorted(kwargs.items()))))
        if spec != self.spec:
            return "its arguments have another structure"
        known: dict[Any, int] = {}
        sizes: list[tuple[Any, int]] = []
        for leaf, example, shape in zip(leaves, self.constants, self.shapes, strict=True):
            if shape is None:
                if type(leaf) is not type(example) or leaf != example:
                    return f"{leaf!r} is given where {example!r} was"
            elif not isinstance(leaf, Tensor) or leaf.dim() != len(shape):
                return f"{getattr(leaf, 'shape', leaf)} is given where a tensor of {len(shape)} axes was"
            else:
                sizes += zip(shape, leaf.shape, strict=True)
        for size, number in sizes:
            if getattr(size, "is_Symbol", False):
                known.setdefault(size, number)
        for size, number in sizes:
            if (size if isinstance(size, int) else int(size.subs(known))) != number:
                return f"a size is {number} where {size} is needed"
        for condition in self.conditions:
            if not bool(condition.subs(known)):
                return f"its sizes do not meet {condition}"
        return None

    def __str__(self) -> str:
        return ", ".join(str(shape) for shape in self.shapes if shape is not None)


def contract_of(name: str, captured: GraphModule, calls: Calls) -> Contract:
    """What the capture of a submodule assumed of its inputs."""
    leaves, spec = pytree.tree_flatten((calls.args, dict(sorted(calls.kwargs.items()))))
    order = pytree.tree_leaves((calls.args, _in_order(captured, calls.kwargs)))
    places = [node for node in captured.graph.nodes if node.op == "placeholder"]
    assert len(places) == len(order), f"{name} has {len(places)} inputs where {len(order)} were given"
    by_leaf = {id(leaf): node.meta.get("val") for leaf, node in zip(order, places, strict=True)}
    shapes: list[tuple[Any, ...] | None] = []
    conditions: dict[Any, None] = {}
    for leaf in leaves:
        value = by_leaf[id(leaf)]
        if not isinstance(leaf, Tensor):
            shapes.append(None)
            continue
        shapes.append(tuple(n.node.expr if isinstance(n, torch.SymInt) else n for n in value.shape))
        for size in value.shape:
            if isinstance(size, torch.SymInt):
                conditions.update(dict.fromkeys(_assumptions(size.node.shape_env)))
    constants = tuple(None if isinstance(leaf, Tensor) else leaf for leaf in leaves)
    return Contract(name, spec, constants, tuple(shapes), tuple(conditions))


def _assumptions(environment: Any) -> Iterator[Any]:
    """What capture assumed of free sizes, as sympy conditions.

    Operators ask of themselves whether a size is 1 to choose strides; where it is not, the general way that they take
    serves a size of 1 as well. What the model's code asks counts in every case.
    """
    for guard in environment.guards:
        condition = environment.replace(guard.expr)
        inside = str(guard.sloc.framework_loc).startswith(OPERATORS_INSIDE)
        if not (inside and isinstance(condition, (sympy.Ne, sympy.StrictLessThan)) and 1 in condition.args):
            yield condition


def _in_order(captured: GraphModule, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments in the order of the graph's inputs."""
    spec = captured.graph._codegen.pytree_info.in_spec  # type: ignore[attr-defined]  # set by torch.export
    return {key: kwargs[key] for key in spec.child(1).context}


class Piece(GraphModule):
    """A pruned submodule in its place in the model: a graph module that refuses calls that its graph cannot serve.

    It has the plain attributes (numbers, strings, tuples of them) of the module that it replaces.
    """

    contract: Contract
    accepted: set[Any]

    @classmethod
    def of(cls, module: GraphModule, contract: Contract) -> Piece:
        """`module` as a piece; the tensors are taken, not copied."""
        return cls._made(module.graph, vars(module), contract)

    @classmethod
    def _made(cls, graph: Graph, state: Mapping[str, Any], contract: Contract) -> Piece:
        piece = cls(nn.Module(), Graph(), "Piece")
        for name in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "training"):
            piece.__dict__[name] = state[name]
        piece.contract, piece.accepted = contract, set()
        piece.graph = graph
        return piece

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        leaves = pytree.tree_leaves((args, kwargs))
        key = tuple(tuple(leaf.shape) if isinstance(leaf, Tensor) else (type(leaf), leaf) for leaf in leaves)
        if key not in self.accepted:
            if (refusal := self.contract.refusal(args, kwargs)) is not None:
                raise InputError(
                    f"the pruned {self.contract.name} cannot serve this call: {refusal}. It was captured for inputs "
                    f"({self.contract}); prune the model again with an example like this one."
                )
            self.accepted.add(key)
        return super().__call__(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Piece:
        state = {name: copy.deepcopy(value, memo) for name, value in vars(self).items() if name in INTERNALS}
        new = memo[id(self)] = Piece._made(copy.deepcopy(self.graph, memo), state, self.contract)
        _copy_plain_attributes(self, new, "")
        return new


def _copy_plain_attributes(source: nn.Module, piece: nn.Module, path: str) -> None:
    """Let the module at `path` of the piece, if there is one, have the plain attributes of `source`."""
    target: Any = piece
    for part in path.split(".") if path else ():
        target = target._modules.get(part)
        if target is None:
            return
    for name, value in vars(source).items():
        if name not in INTERNALS and _is_plain(value) and not hasattr(target, name):
            setattr(target, name, copy.deepcopy(value))


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(map(_is_plain, chain(value, value.values())))
    if isinstance(value, (tuple, list, set, frozenset)):
        return all(map(_is_plain, value))
    return isinstance(value, PLAIN)


# --- assemble --------------------------------------------------------------------------------------------------------


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
    )


def _crossing(found: _Found) -> Iterator[Kept]:
    facts = found.removed.plan.facts
    for node in found.removed.plan.program.output_tensors:
        zero = facts.zero.get(node)
        if zero is not None and (dead := int(zero.sum())):
            yield Kept(f"{found.name}.{node.name}", CROSSES, dead, 0)
