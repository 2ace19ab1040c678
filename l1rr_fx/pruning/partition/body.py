"""What can be planned of a model that cannot be captured whole: its capturable parts, side by side in one graph."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.fx import Graph, GraphModule, Node

from l1rr_fx.pruning.partition.calls import Calls, recorded_calls
from l1rr_fx.pruning.partition.capturing import noted, own_copies
from l1rr_fx.pruning.partition.pieces import PartSearch
from l1rr_fx.pruning.partition.runs import Run
from passes.errors import CaptureError
from passes.frontend.capture import capture
from passes.graph.isolation import buffers_restored
from passes.graph.nodes import attribute, place_tensor


@dataclass(frozen=True, eq=False)
class Body:
    """A captured graph with what each part of a model takes as its inputs and gives as its outputs.

    `pieces` names the parts; it is empty where the graph is that of the whole model. Tensors have the names that they
    have in the model. `notes` say what is left out.
    """

    module: GraphModule
    pieces: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def captured_body(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> Body:
    """The graph of a model, or of its capturable parts, for the sizes of the example.

    Raises InputError, and CaptureError where no part can be captured.
    """
    try:
        return Body(capture(model, args, kwargs))
    except CaptureError as error:
        failure = error
    work = copy.deepcopy(model)
    search = _Parts(work, recorded_calls(work, args, kwargs or {}))
    search.join("", work, times=1)
    search.descend("", work)
    if not search.parts:
        raise CaptureError(f"{failure}\n  Nor can any submodule of it be captured by itself.") from failure
    notes = (f"not captured whole: {noted(failure)}", *search.notes)
    return Body(_side_by_side(search.parts, model.training), tuple(part.name for part in search.parts), notes)


@dataclass(frozen=True, eq=False)
class _Part:
    """A captured submodule; `path` is the dotted name of the module that its tensors' names begin at."""

    name: str
    path: str
    module: GraphModule


class _Parts(PartSearch):
    """Captures the largest submodules that can be, with the sizes of the example."""

    def __init__(self, model: nn.Module, calls: Mapping[nn.Module, Calls]) -> None:
        super().__init__(model, calls)
        self.parts: list[_Part] = []

    def take(self, name: str, module: nn.Module, calls: Calls, run: Run | None = None) -> None:
        with buffers_restored(module):
            captured = capture(module, *own_copies(module, calls))
        path = name if run is None else name.rpartition(".")[0]
        self.parts.append(_Part(name, path, captured))
        if len(calls.signatures) > 1:
            self.notes.append(f"{name} is called {len(calls.signatures)} times; its costs are those of the first call")


def _side_by_side(parts: list[_Part], training: bool) -> GraphModule:
    """One graph that computes all parts, each from inputs of its own."""
    root, graph = nn.Module(), Graph()
    outputs: list[Any] = []
    for part in parts:
        prefix = f"{part.path}." if part.path else ""
        copies: dict[Node, Node] = {}
        outputs.append(graph.graph_copy(part.module.graph, copies))
        for node in copies.values():
            if node.op == "get_attr":
                name = f"{prefix}{node.target}"
                persistent = _is_persistent(part.module, str(node.target))
                place_tensor(root, name, attribute(part.module, str(node.target)), persistent=persistent)
                node.target = name
            elif node.op == "placeholder":
                node.target = node.name
    first = next((node for node in graph.nodes if node.op != "placeholder"), None)
    for node in [n for n in graph.nodes if n.op == "placeholder"]:
        if first is not None:
            first.prepend(node)
    graph.output(tuple(outputs))
    module = GraphModule(root, graph)
    module.training = training
    return module


def _is_persistent(module: nn.Module, name: str) -> bool:
    owner, _, leaf = name.rpartition(".")
    return leaf not in module.get_submodule(owner)._non_persistent_buffers_set
