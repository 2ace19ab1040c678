"""What crosses between pieces: a limit for all of them together.

A piece keeps its inputs and outputs whole, so that it alone sees no channel that is dead at its ends. Here one more
forward pass on the example records which tensors go from piece to piece. A channel that one piece leaves at zero is
zero in the piece that reads it, and one that no reader needs is not needed in the piece that makes it.

What the model's own code does with a tensor is not known: then nothing of it counts as zero, all of it as needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn
from torch.fx import Node
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from l1rr_fx.pruning.partition.calls import HARMLESS
from passes.analysis.liveness import Facts, channel_facts
from passes.compile import Removed
from passes.graph.isolation import run_aside
from passes.graph.nodes import is_tensor

SIZES = frozenset({Tensor.size, Tensor.dim, Tensor.numel, Tensor.is_floating_point, Tensor.__len__}) | frozenset(
    descriptor.__get__  # type: ignore[union-attr]  # the class has descriptors where its stub has values
    for descriptor in (Tensor.shape, Tensor.ndim, Tensor.requires_grad, Tensor._version)
)
"""What reads no element of a tensor."""


class Captured(Protocol):
    """A part of a model that was captured: the modules that are called first and last in it, and its plan."""

    @property
    def name(self) -> str: ...

    @property
    def ends(self) -> tuple[nn.Module, nn.Module]: ...

    @property
    def removed(self) -> Removed: ...


@dataclass(eq=False)
class _Call:
    """One call of a part: the tensors that it got and gave, by their places among the leaves; None for other values."""

    part: Captured
    args: Any
    kwargs: Mapping[str, Any]
    inputs: list[tuple[Tensor, int]]
    outputs: list[Any] = field(default_factory=list)


class _Flow(TorchFunctionMode):
    """Records the calls of parts, and which tensors other code reads."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[_Call] = []
        self.open: list[_Call] = []
        self.made: dict[int, tuple[_Call, int, int]] = {}  # by identity: the call, which output, the version
        self.read: set[int] = set()
        self.returned: set[int] = set()

    def enter(self, part: Captured, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        leaves = pytree.tree_leaves((args, kwargs))
        given = [(leaf, leaf._version) for leaf in leaves if isinstance(leaf, Tensor)]
        self.open.append(_Call(part, args, kwargs, given))

    def leave(self, result: Any) -> None:
        call = self.open.pop()
        call.outputs = pytree.tree_leaves(result)
        for index, leaf in enumerate(call.outputs):
            if isinstance(leaf, Tensor):
                self.made[id(leaf)] = (call, index, leaf._version)
                self.read.discard(id(leaf))  # of a tensor that was there before
        self.calls.append(call)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self.open and func not in HARMLESS and func not in SIZES:
            self.reads((args, kwargs or {}))
        return func(*args, **(kwargs or {}))

    def reads(self, values: Any) -> None:
        """Note that other code reads these tensors."""
        self.read.update(id(leaf) for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor))

    def source(self, tensor: Tensor, version: int) -> tuple[_Call, int] | None:
        """The call that made a tensor, and which of its outputs it is; None where it was written since."""
        call, index, made = self.made.get(id(tensor), (None, 0, 0))
        return None if call is None or made != version else (call, index)


@dataclass(frozen=True, eq=False)
class Joined:
    """By the name of a part: its facts, given those of the others, and the outputs that the model's own code reads."""

    facts: Mapping[str, Facts]
    read_by_code: Mapping[str, tuple[str, ...]]


def joined_facts(
    model: nn.Module, parts: Sequence[Captured], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Joined:
    """The facts of the parts of a model, joined over what goes from one to the other on the example.

    A part that is called several times is joined to none.
    """
    flow = _recorded(model, parts, args, kwargs)
    count: dict[str, int] = {}
    for call in flow.calls:
        count[call.part.name] = count.get(call.part.name, 0) + 1
    calls = [call for call in flow.calls if count[call.part.name] == 1]
    facts: dict[str, Facts] = {}
    assumed: dict[str, dict[Node, Tensor]] = {}
    for call in calls:
        known: dict[Node, Tensor] = {}
        for node, source in _sources(flow, call):
            made = None if source is None or source[0].part.name not in facts else _output(source[0], source[1])
            if made is not None and source is not None:
                known[node] = facts[source[0].part.name].zero[made]
        assumed[call.part.name] = known
        facts[call.part.name] = channel_facts(call.part.removed.plan.program, known)
    wanted = {call.part.name: dict[Node, Tensor]() for call in calls}
    read: dict[str, tuple[str, ...]] = {}
    for call in reversed(calls):
        program = call.part.removed.plan.program
        whole = _read_whole(flow, call, calls)
        read[call.part.name] = tuple(node.name for node in _read_whole(flow, call, calls, returned=False))
        needs = {node: mask for node, mask in wanted[call.part.name].items() if node not in whole}
        found = facts[call.part.name] = channel_facts(program, assumed[call.part.name], needs)
        for node, source in _sources(flow, call):
            made = None if source is None or source[0].part.name not in wanted else _output(*source)
            if made is not None and source is not None:
                into = wanted[source[0].part.name]
                into[made] = into[made] | found.needed[node] if made in into else found.needed[node]
    return Joined(facts, read)


def _recorded(model: nn.Module, parts: Sequence[Captured], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> _Flow:
    """One forward pass of the model, seen from outside of its parts."""
    flow, handles = _Flow(), []
    for part in parts:

        def before(_: Any, args: Any, kwargs: Any, part: Captured = part) -> None:
            flow.enter(part, args, kwargs)

        def after(_: Any, args: Any, result: Any) -> None:
            flow.leave(result)

        first, last = part.ends
        handles.append(first.register_forward_pre_hook(before, with_kwargs=True))
        handles.append(last.register_forward_hook(after))
    try:
        with flow:
            result = run_aside(model, args, kwargs)
    finally:
        for handle in handles:
            handle.remove()
    flow.returned = {id(leaf) for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)}
    return flow


def _sources(flow: _Flow, call: _Call) -> list[tuple[Node, tuple[_Call, int] | None]]:
    """For each tensor that a call gets the input of the graph, and the call and output that it comes from."""
    graph = call.part.removed.plan.program.module.graph
    names = graph._codegen.pytree_info.in_spec.child(1).context  # type: ignore[attr-defined]  # set by export
    leaves = [
        *pytree.tree_leaves(call.args),
        *(leaf for name in names for leaf in pytree.tree_leaves(call.kwargs[name])),
    ]
    versions = {id(leaf): version for leaf, version in call.inputs}
    places = graph.find_nodes(op="placeholder")
    if len(places) != len(leaves):
        return []
    return [
        (node, flow.source(leaf, versions[id(leaf)]))
        for node, leaf in zip(places, leaves, strict=True)
        if isinstance(leaf, Tensor) and is_tensor(node)
    ]


def _output(call: _Call, index: int) -> Node | None:
    """The node of the graph that gives an output of a call."""
    leaves = pytree.tree_leaves(call.part.removed.plan.program.output.args[0])
    node = leaves[index] if len(leaves) == len(call.outputs) else None
    return node if isinstance(node, Node) and node in call.part.removed.plan.program.output_tensors else None


def _read_whole(flow: _Flow, call: _Call, joined: Sequence[_Call], *, returned: bool = True) -> list[Node]:
    """The outputs of a call that other code reads, or a part that is called several times, or that are `returned`."""
    others = [other for other in flow.calls if other not in joined]
    read = (
        flow.read | (flow.returned if returned else set()) | {id(leaf) for other in others for leaf, _ in other.inputs}
    )
    whole = []
    for index, leaf in enumerate(call.outputs):
        changed = isinstance(leaf, Tensor) and leaf._version != flow.made[id(leaf)][2]
        if id(leaf) in read or changed:
            node = _output(call, index)
            whole += [] if node is None else [node]
    return whole
