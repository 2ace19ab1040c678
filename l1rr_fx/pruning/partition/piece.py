"""A pruned submodule in its place in the model, and the calls that it may serve."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import sympy  # type: ignore[import-untyped]  # comes with torch, without types
import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule
from torch.utils import _pytree as pytree

from l1rr_fx.pruning.partition.calls import Calls
from l1rr_fx.pruning.size_guards import assumptions
from l1rr_fx.support.signatures import PLAIN
from passes.errors import InputError

INTERNALS = frozenset(vars(nn.Module())) | {"training"}


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
            if (size if isinstance(size, int) else size.subs(known)) != number:
                return f"a size is {number} where {size} is needed"
        for condition in self.conditions:
            if condition.subs(known) != sympy.true:
                return f"its sizes do not meet {condition}"
        return None

    def __str__(self) -> str:
        return ", ".join(str(shape) for shape in self.shapes if shape is not None)


def contract_of(name: str, captured: GraphModule, calls: Calls) -> Contract:
    """What the capture of a submodule assumed of its inputs."""
    leaves, spec = pytree.tree_flatten((calls.args, dict(sorted(calls.kwargs.items()))))
    shapes: list[tuple[Any, ...] | None] = []
    conditions: dict[Any, None] = {}
    for leaf, value in zip(leaves, _inputs(captured, calls), strict=True):
        if not isinstance(leaf, Tensor):
            shapes.append(None)
            continue
        shapes.append(tuple(n.node.expr if isinstance(n, torch.SymInt) else n for n in value.shape))
        for size in value.shape:
            if isinstance(size, torch.SymInt):
                conditions.update(dict.fromkeys(assumptions(size.node.shape_env)))
    constants = tuple(None if isinstance(leaf, Tensor) else leaf for leaf in leaves)
    return Contract(name, spec, constants, tuple(shapes), tuple(conditions))


def _inputs(captured: GraphModule, calls: Calls) -> Iterator[Any]:
    """The graph's inputs as it sees them, in the order of the arguments, then of the keywords' names."""
    places = iter([node.meta.get("val") for node in captured.graph.nodes if node.op == "placeholder"])
    yield from (next(places) for _ in pytree.tree_leaves(calls.args))
    names = captured.graph._codegen.pytree_info.in_spec.child(1).context  # type: ignore[attr-defined]  # set by export
    values = {name: [next(places) for _ in pytree.tree_leaves(calls.kwargs[name])] for name in names}
    yield from chain.from_iterable(values[name] for name in sorted(values))


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
        copy_plain_attributes(self, new, "")
        return new


def hide_new_buffers(piece: nn.Module, state: Mapping[str, Any]) -> None:
    """Keep buffers that the model's state has not, such as indices of recombinations, out of the piece's state."""
    for path, module in piece.named_modules():
        new = {name for name in module._buffers if (f"{path}.{name}" if path else name) not in state}
        module._non_persistent_buffers_set |= new


def copy_plain_attributes(source: nn.Module, piece: nn.Module, path: str) -> None:
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
