"""A backend of torch.compile that prunes what Dynamo captured and hands it to the next backend.

    fast = torch.compile(model, backend="l1rr_fx", options={"then": "inductor"})
    with torch.no_grad():
        fast(image)

Of each graph, where the model's code breaks it into several, the zeroed channels are removed; what crosses from one to
the next is kept. Where gradients are recorded, where nothing can be removed or a graph cannot be followed, the next
backend gets the graph as it was.
"""

from __future__ import annotations

import logging
import operator
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch._dynamo import list_backends, lookup_backend
from torch.fx import GraphModule

from l1rr_fx.integrations import torch_tensorrt
from l1rr_fx.integrations.traced import DynamoGraph, copied_graph
from l1rr_fx.machines.by_name import machine
from l1rr_fx.support.packages import required
from passes.assignment.options import Options
from passes.compile import remove_zero_channels
from passes.errors import InputError, L1RRError, first_line
from passes.graph.isolation import collection_paused

log = logging.getLogger(__name__)

Compiled = Callable[..., Any]
Next = str | Callable[..., Compiled]

MOST_VERSIONS = 64
"""How often one graph is pruned for other weights before it is left as it is."""
TENSORRT = ("torch_tensorrt", "tensorrt")
OWN = ("then", "mode", "channel_multiple", "target")
VERSION = operator.attrgetter("_version")
_live: weakref.WeakSet[_PrunedGraph] = weakref.WeakSet()


def backend(
    module: GraphModule,
    inputs: Sequence[Any],
    *,
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Compiled:
    """What torch.compile calls with a graph of Dynamo and the inputs of its first call.

    `options` may hold `then`, the next backend, a name or a callable (default: inductor); `mode`, `channel_multiple`
    and `target`, which are those of `l1rr_fx.prune`; and whatever else the next backend takes. `mode` of torch.compile
    is the next backend's.

    Weights are looked at on every call: once they have changed in place, or others have taken their places, the graph
    is pruned and compiled again. What is written through `.data` is not noticed: call `refresh()` then.

    Raises InputError for options that make no sense and for a next backend that does not exist.
    """
    choice = _Choice.of(mode, options)
    graph = DynamoGraph.of(module)
    tensors = graph.tensors(inputs)
    if not any(tensor.is_floating_point() and tensor.dim() > 1 for tensor in tensors):
        return choice.compiled(module, inputs)
    if torch.is_grad_enabled() and any(_records(value) for value in (*tensors, *inputs)):
        log.warning("not pruned: gradients are recorded here; call the compiled model under torch.no_grad()")
        return choice.compiled(module, inputs)
    return _PrunedGraph(graph, choice, inputs)


def refresh() -> None:
    """Let every graph that was compiled look at its weights again at its next call."""
    for each in _live:
        each.forget()


@dataclass(frozen=True, eq=False)
class _Choice:
    """The options of a compilation: ours, and the next backend with its own."""

    options: Options
    then: Next
    given: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, mode: str | None, options: Mapping[str, Any] | None) -> _Choice:
        values = dict(options or {})
        then = values.get("then", "inductor")
        ours = Options(
            values.get("mode", "recombine"), values.get("channel_multiple"), machine(values.get("target", "none"))
        )
        rest = {name: value for name, value in values.items() if name not in OWN}
        given = {**({"mode": mode} if mode else {}), **({"options": rest} if rest else {})}
        if then in TENSORRT:
            required(torch_tensorrt.PACKAGE, torch_tensorrt.OLDEST)  # it registers itself
        if not callable(then) and then not in list_backends(exclude_tags=()):
            known = ", ".join(list_backends())
            raise InputError(f"then is {then!r}; expected a callable or one of {known} (is its package installed?)")
        return cls(ours, then, given)

    def compiled(self, module: GraphModule, inputs: Sequence[Any]) -> Compiled:
        """What the next backend makes of a graph while Dynamo compiles."""
        if self.then == "inductor":
            mode, options = self.given.get("mode"), self.given.get("options", {})
            patches = {**(torch._inductor.list_mode_options(mode) if mode else {}), **options}
            return self._next(module, list(inputs), config_patches=patches)
        return self._next(module, list(inputs), **self.given)

    @property
    def _next(self) -> Callable[..., Compiled]:
        """The next backend, which takes more than its protocol says."""
        return lookup_backend(self.then)

    def compiled_later(self, module: GraphModule, *, dynamic: bool) -> Compiled:
        """The same at a call, when Dynamo is done: it compiles the module by itself."""
        return torch.compile(module, backend=self.then, dynamic=dynamic or None, **self.given)


class _PrunedGraph:
    """A graph of Dynamo, compiled once for each state of the weights that it is called with."""

    def __init__(self, graph: DynamoGraph, choice: _Choice, inputs: Sequence[Any]) -> None:
        self.graph = graph
        self.choice = choice
        self.dynamic = any(isinstance(value, torch.SymInt) for value in inputs)
        self.versions: list[_Version] = []
        self.made = 0
        self.whole: Compiled | None = None
        self._add(inputs)
        _live.add(self)

    def __call__(self, *inputs: Any) -> Any:
        tensors, values = self.graph.tensors(inputs), self.graph.values(inputs)
        for version in self.versions:
            if version.serves(tensors, values):
                break
        else:
            version = self._add(inputs)
        return version.run(*inputs) if version.whole else version.run(*[inputs[n] for n in self.graph.others])

    def forget(self) -> None:
        """Prune and compile again at the next call."""
        self.versions.clear()

    def _add(self, inputs: Sequence[Any]) -> _Version:
        """The graph pruned for the weights of these inputs, and compiled."""
        tensors = self.graph.tensors(inputs)
        small = self._small(inputs) if self.made < MOST_VERSIONS else None
        if self.made == 0:  # called by Dynamo
            given = inputs if small is None else [inputs[n] for n in self.graph.others]
            run = self.choice.compiled(small or self.graph.module, given)
            self.whole = run if small is None else None
        else:
            log.warning("other weights than before: a graph is compiled again (%d)", self.made)
            run = self._whole() if small is None else self.choice.compiled_later(small, dynamic=self.dynamic)
        self.made += 1
        self.versions = [v for v in self.versions if not v.replaced_by(tensors)]
        self.versions.append(_Version(run, small is None, tensors, self.graph.values(inputs)))
        return self.versions[-1]

    def _small(self, inputs: Sequence[Any]) -> GraphModule | None:
        """The graph without its zeroed channels; None if it has none, or cannot be followed."""
        try:
            with collection_paused():
                captured = self.graph.captured(inputs)
                removed = remove_zero_channels(captured, self.choice.options)
        except L1RRError as error:
            log.warning("a graph is not pruned: %s", first_line(error))
            return None
        shapes = {name: tuple(tensor.shape) for name, tensor in zip(self.graph.names, self.graph.tensors(inputs))}
        smaller = [name for name, part in removed.rewritten.kept.items() if part.new_shape != shapes.get(name)]
        log.info("%d of %d weights became smaller", len(smaller), len(shapes))
        removed.module.meta.update(self.graph.module.meta)
        return removed.module if smaller else None

    def _whole(self) -> Compiled:
        """The graph as it was, compiled when it is first needed after Dynamo is done."""
        if self.whole is None:
            self.whole = self.choice.compiled_later(copied_graph(self.graph.module), dynamic=self.dynamic)
        return self.whole


class _Version:
    """A compiled graph, and the state of the weights that it was made for."""

    def __init__(self, run: Compiled, whole: bool, tensors: Sequence[Tensor], values: tuple[float, ...]) -> None:
        self.run, self.whole, self.values = run, whole, values
        self.references = tuple(map(weakref.ref, tensors))
        self.state = _state(tensors)

    def serves(self, tensors: Sequence[Tensor], values: tuple[float, ...]) -> bool:
        """Whether these are the same weights in the same state."""
        same = all(reference() is tensor for reference, tensor in zip(self.references, tensors, strict=True))
        return same and self.state == _state(tensors) and self.values == values

    def replaced_by(self, tensors: Sequence[Tensor]) -> bool:
        """Whether these are the same weights in whatever state, or the weights are gone."""
        present = [reference() for reference in self.references]
        return None in present or all(map(operator.is_, present, tensors))


def _state(tensors: Sequence[Tensor]) -> tuple[list[int], list[int]]:
    """Where the tensors are, and how often each was written."""
    try:
        versions = list(map(VERSION, tensors))
    except RuntimeError:  # made under inference_mode: torch does not count
        versions = [0 if tensor.is_inference() else VERSION(tensor) for tensor in tensors]
    return list(map(Tensor.data_ptr, tensors)), versions


def _records(value: object) -> bool:
    return isinstance(value, Tensor) and value.requires_grad
