"""What a rule writes its call with."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch.fx import Graph, Node

from passes.graph.layout import Layout


@dataclass(frozen=True, eq=False)
class Emitter:
    """The new graph, and one original call with its new inputs and parameters filled in.

    `inputs` are the new nodes of the call's inputs (None for one that is left out), `args` and `kwargs` the call's
    arguments with them filled in, `results` counts its results. `followed` says whether the rule follows the call;
    otherwise the inputs are whole. `zeros(node, layout)` writes a tensor of zeros in place of an original value.
    """

    graph: Graph
    target: Any
    results: int
    inputs: Sequence[Node | None]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    followed: bool
    zeros: Callable[[Node, Layout], Node]

    def call(self, target: Any, args: Sequence[Any], kwargs: Mapping[str, Any] | None = None) -> Node:
        """A call in the new graph."""
        return self.graph.call_function(target, tuple(args), dict(kwargs or {}))

    def copy(self) -> Node:
        """The original call on the new inputs."""
        return self.call(self.target, self.args, self.kwargs)

    def first_input(self) -> Node:
        """The first new input."""
        node = self.inputs[0]
        assert node is not None
        return node

    def projected(self, node: Node, count: int | None = None) -> list[Node]:
        """The results of a call that returns several tensors."""
        return [self.graph.call_function(operator.getitem, (node, i)) for i in range(count or self.results)]
