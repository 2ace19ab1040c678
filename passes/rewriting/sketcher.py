"""The sketch: the graph of the small network with the shapes of all values, and without its parameters.

It is what `passes.capture` and `normalise` make of the written network, as far as shapes tell, in a twentieth of the
time: nothing is selected from a weight and nothing is traced. Values are tensors on the device "meta". Sizes that may
change have their value at the example input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.fx import Graph, Node
from torch.fx.node import map_aggregate, map_arg

from passes.accounts import Recombination
from passes.assignment.cost_model import Target
from passes.assignment.plan import LayoutPlan
from passes.canonical.normalise import normalise_graph
from passes.graph.nodes import attribute, hint, is_tensor, place_tensor
from passes.graph.selection import Selection
from passes.rewriting.rewriter import Rewriter

aten = torch.ops.aten

META = torch.device("meta")
SIZES = {aten.sym_size.int, aten.sym_numel.default, aten.sym_stride.int, aten.sym_storage_offset.default}
STAND_INS: Mapping[type, Any] = {torch.SymInt: 1, torch.SymFloat: 1.0, torch.SymBool: True}
"""In the place of a number that is read from the elements of a tensor, by its type."""


@dataclass(frozen=True, eq=False)
class Sketch:
    """The graph of the network that `plan` describes, in canonical form and not to be run, and its recombinations."""

    plan: LayoutPlan
    graph: Graph
    recombinations: tuple[Recombination, ...]

    @property
    def copies(self) -> int:
        """The number of recombinations that are calls."""
        return sum(each.kind != "folded" for each in self.recombinations)


@runtime_checkable
class Machine(Target, Protocol):
    """A cost model of a machine that also predicts how long whole networks take there."""

    def predict_sketch(self, sketch: Sketch) -> float:
        """The seconds of one forward pass of the network of a sketch."""
        ...


def sketch(plan: LayoutPlan) -> Sketch:
    """The graph of the small network that a layout plan describes, without its parameters."""
    sketcher = _Sketcher(plan)
    sketcher.write()
    graph = sketcher.graph
    graph.owning_module = sketcher.root  # type: ignore[assignment]  # no more is asked of it than that it has attributes
    for old, new in sketcher.new.items():
        if old.op == "placeholder":
            new.meta["val"] = _like(old.meta.get("val"))
    for node in list(graph.nodes):
        if (known := sketcher.given.get(node)) is not None:
            old, layout = known
            node.meta["val"] = _empty(layout.shrunk(plan.program.shape(old)), old.meta["val"].dtype)
        elif node.op == "call_function":
            _evaluate(graph, node)
    normalise_graph(graph)
    return Sketch(plan, graph, tuple(sketcher.recombinations))


class _Sketcher(Rewriter):
    def __init__(self, plan: LayoutPlan) -> None:
        super().__init__(plan)
        self.root = nn.Module()

    def attribute(self, name: str, selection: Selection) -> Node:
        return self._valued(name, selection.new_shape, attribute(self.old, name).dtype)

    def constant(self, tensor: Tensor) -> Node:
        return self._valued("_recombine", tensor.shape, tensor.dtype)

    def _valued(self, name: str, shape: Sequence[int], dtype: torch.dtype) -> Node:
        node = self.graph.get_attr(name)
        node.meta["val"] = _empty(shape, dtype)
        place_tensor(self.root, name, node.meta["val"])
        return node


def _evaluate(graph: Graph, node: Node) -> None:
    """Give a call its value. A call whose result is a size is replaced by it, as in a capture with fixed sizes."""
    if _reads_elements(node):
        node.meta["val"] = STAND_INS[type(node.meta["val"])]
        return
    args, kwargs = map_arg((node.args, node.kwargs), lambda n: n.meta["val"])
    args, kwargs = map_aggregate((args, kwargs), lambda each: META if isinstance(each, torch.device) else each)
    value = node.meta["val"] = node.target(*args, **kwargs)  # type: ignore[operator]  # of a call
    if isinstance(value, (int, float)):
        for user in list(node.users):
            user.args, user.kwargs = map_arg((user.args, user.kwargs), lambda n: value if n is node else n)
        graph.erase_node(node)


def _reads_elements(node: Node) -> bool:
    """Whether the result is a number that depends on the elements of a tensor."""
    value = node.meta.get("val")
    return type(value) in STAND_INS and any(map(is_tensor, node.all_input_nodes)) and node.target not in SIZES


def _like(value: Any) -> Any:
    """A tensor on the device "meta" for a tensor; the size at the example input for a size that may change."""
    if isinstance(value, Tensor):
        return _empty([hint(n) for n in value.shape], value.dtype)
    return hint(value) if isinstance(value, torch.SymInt) else value


def _empty(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=META)
