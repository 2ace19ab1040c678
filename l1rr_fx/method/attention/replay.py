"""Incremental evaluation: a captured network, run node by node; a change recomputes only what depends on it."""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Mapping, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate, map_arg
from torch.utils import _pytree as pytree

from passes.graph.nodes import attribute

aten = torch.ops.aten

MOST_MOVED = 1e4
"""The variance of a batch norm's input grows at most so many times: in a batch where it was 0 its growth is unknown."""

Values = Mapping[str, Tensor]
"""Other values for some parameters and buffers, by name."""


class Replay:
    """The part of a captured graph on which some of its tensors, the `ends`, depend; it can be run and rerun."""

    def __init__(self, module: GraphModule, ends: Sequence[Node]) -> None:
        self.module = module
        self.ends = tuple(ends)
        read = set(ends)
        for node in reversed(module.graph.nodes):
            if node in read:
                read.update(node.all_input_nodes)
        self.inputs = [node for node in module.graph.nodes if node.op == "placeholder"]
        self.calls = [node for node in module.graph.nodes if node in read and node.op == "call_function"]
        self.tensors = {n: str(n.target) for n in module.graph.nodes if n in read and n.op == "get_attr"}

    def run(self, args: Sequence[Any], values: Values) -> Mapping[Node, Any]:
        """The value of every node. Parameters not in `values` have their own value and take part in autograd."""
        found: dict[Node, Any] = dict(zip(self.inputs, pytree.tree_leaves(tuple(args)), strict=True))
        found.update((n, values[name] if name in values else attribute(self.module, name)) for n, name in self._items())
        _compute(found, self.calls)
        return found

    @torch.no_grad()
    def rerun(self, before: Mapping[Node, Any], change: Values, *, recalibrated: bool = False) -> Mapping[Node, Any]:
        """The new values of the nodes that depend on the changed parameters; `before` is what `run` returned.

        `recalibrated`: batch norms use statistics that have moved as those of these inputs have."""
        changed: dict[Node, Any] = {node: change[name] for node, name in self._items() if name in change}
        found = ChainMap(changed, dict(before))
        for node in self._reached(changed):
            args, kwargs = map_arg((node.args, node.kwargs), found.__getitem__)
            if recalibrated and node.target is aten.batch_norm.default and node.all_input_nodes[0] in changed:
                args = _with_moved_statistics(args, before[node.all_input_nodes[0]])
            found[node] = node.target(*args, **kwargs)  # type: ignore[operator]  # a call_function's target is callable
        return changed

    def reached_ends(self, parameters: Sequence[str]) -> tuple[Node, ...]:
        """The ends that depend on any of the parameters."""
        start = {node: None for node, name in self._items() if name in parameters}
        reached = set(self._reached(start))
        return tuple(end for end in self.ends if end in reached)

    @property
    def text(self) -> str:
        """The calls up to the ends as text, independent of the values of parameters and of the device."""
        calls = [(n.name, str(n.target), map_aggregate((n.args, n.kwargs), _without_device)) for n in self.calls]
        return str((self.inputs, list(self.tensors.items()), calls, self.ends))

    def _items(self) -> Sequence[tuple[Node, str]]:
        return tuple(self.tensors.items())

    def _reached(self, start: Mapping[Node, Any]) -> Sequence[Node]:
        reached = set(start)
        calls = []
        for node in self.calls:
            if not reached.isdisjoint(node.all_input_nodes):
                reached.add(node)
                calls.append(node)
        return calls


def _with_moved_statistics(args: Sequence[Any], before: Tensor) -> tuple[Any, ...]:
    """The arguments of a batch norm in evaluation mode, with the mean and the variance that its input has now: those
    of the network, moved as those of the batch have moved. So without a change they are those of the network."""
    now, scale, shift, mean, variance, _, momentum, eps, *rest = args
    axes = [axis for axis in range(now.dim()) if axis != 1]
    (new, new_mean), (old, old_mean) = (torch.var_mean(x, axes, correction=0) for x in (now, before))
    moved = variance * ((new + eps) / (old + eps)).clamp(max=MOST_MOVED)
    return (now, scale, shift, mean + (new_mean - old_mean), moved, False, momentum, eps, *rest)


def _without_device(value: Any) -> Any:
    return None if isinstance(value, torch.device) else value


def _compute(found: MutableMapping[Node, Any], calls: Sequence[Node]) -> None:
    for node in calls:
        args, kwargs = map_arg((node.args, node.kwargs), found.__getitem__)
        found[node] = node.target(*args, **kwargs)  # type: ignore[operator]  # a call_function's target is callable
