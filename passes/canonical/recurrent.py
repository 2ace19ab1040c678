"""Recurrent layers in canonical form: one call for each layer, and cells written out.

Layers become a chain, so that each of them can keep other units; the dropout between them becomes a call. A cell is
two linear layers, a few products and sums, all of which have rules: its costs, zeros and ONNX form are theirs.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node

from passes.canonical.spellings import call
from passes.graph.nodes import is_projection

aten = torch.ops.aten


def _layers(graph: Graph, node: Node) -> None:
    """Write several layers as a chain of one each."""
    x, states, weights, biased, layers, dropout, train, both, batch_first = _arguments(node)
    if layers == 1 or not all(map(is_projection, node.users)):
        return
    target: Any = node.target
    count, each = 2 if both else 1, len(weights) // layers
    several = isinstance(states, Sequence)
    split = [_parts(graph, state, [count] * layers, 0) for state in (states if several else [states])]
    last: list[list[Node]] = []
    for index in range(layers):
        if index and dropout:
            x = call(graph, aten.dropout.default, x, dropout, train)
        first = [parts[index] for parts in split]
        own = list(weights[index * each : (index + 1) * each])
        options = (biased, 1, 0.0, train, both, batch_first)
        layer = graph.call_function(target, (x, first if several else first[0], own, *options))
        layer.meta["val"] = _shapes(x, first, count)
        x, *ended = _results(graph, layer)
        last.append(ended)
    for user in list(node.users):
        which = _arguments(user)[1]
        joined = x if which == 0 else call(graph, aten.cat.default, [ended[which - 1] for ended in last], 0)
        user.replace_all_uses_with(joined)
        graph.erase_node(user)
    graph.erase_node(node)  # torch tags it as random, so that it would not go as dead code


def _arguments(node: Node) -> tuple[Any, ...]:
    """The arguments given by position: all of them, in a captured graph."""
    return node.args


def _shapes(x: Any, states: Sequence[Node], count: int) -> tuple[Tensor, ...]:
    """What a layer returns, as fakes: torch cannot call the operator on sizes that are symbolic."""
    given, ended = x.meta["val"], [state.meta["val"] for state in states]
    return (given.new_empty((*given.shape[:2], count * ended[0].shape[-1])), *ended)


def _lstm_cell(graph: Graph, node: Node) -> None:
    x, (hidden, cell), *weights = _arguments(node)
    sums = call(graph, aten.add.Tensor, *_products(graph, x, hidden, weights))
    i, f, g, o = _gates(graph, sums, 4)
    sigmoid, tanh = aten.sigmoid.default, aten.tanh.default
    kept = call(graph, aten.mul.Tensor, call(graph, sigmoid, f), cell)
    added = call(graph, aten.mul.Tensor, call(graph, sigmoid, i), call(graph, tanh, g))
    cell = call(graph, aten.add.Tensor, kept, added)
    hidden = call(graph, aten.mul.Tensor, call(graph, sigmoid, o), call(graph, tanh, cell))
    for user in list(node.users):
        user.replace_all_uses_with((hidden, cell)[_arguments(user)[1]])
        graph.erase_node(user)


def _gru_cell(graph: Graph, node: Node) -> None:
    x, hidden, *weights = _arguments(node)
    given, carried = (_gates(graph, each, 3) for each in _products(graph, x, hidden, weights))
    reset, update = (
        call(graph, aten.sigmoid.default, call(graph, aten.add.Tensor, given[i], carried[i])) for i in (0, 1)
    )
    sums = call(graph, aten.add.Tensor, given[2], call(graph, aten.mul.Tensor, reset, carried[2]))
    new = call(graph, aten.tanh.default, sums)
    moved = call(graph, aten.mul.Tensor, call(graph, aten.sub.Tensor, hidden, new), update)
    node.replace_all_uses_with(call(graph, aten.add.Tensor, moved, new))


def _plain_cell(activation: Any) -> Callable[[Graph, Node], None]:
    def write(graph: Graph, node: Node) -> None:
        x, hidden, *weights = _arguments(node)
        sums = call(graph, aten.add.Tensor, *_products(graph, x, hidden, weights))
        node.replace_all_uses_with(call(graph, activation, sums))

    return write


def _products(graph: Graph, x: Any, hidden: Any, weights: Sequence[Any]) -> tuple[Node, Node]:
    """The two linear layers of a cell: of its input and of its state."""
    given, carried, *biases = weights
    first, second = (*biases, None, None)[:2]
    return call(graph, aten.linear.default, x, given, first), call(graph, aten.linear.default, hidden, carried, second)


def _gates(graph: Graph, sums: Node, count: int) -> list[Node]:
    width = int(sums.meta["val"].shape[-1])
    return _parts(graph, sums, [width // count] * count, 1)


def _parts(graph: Graph, node: Any, sizes: list[int], axis: int) -> list[Node]:
    return _results(graph, call(graph, aten.split_with_sizes.default, node, sizes, axis))


def _results(graph: Graph, several: Node) -> list[Node]:
    return [call(graph, operator.getitem, several, index) for index in range(len(several.meta["val"]))]


WRITTEN: Mapping[Any, Callable[[Graph, Node], None]] = {
    **dict.fromkeys((aten.lstm.input, aten.gru.input, aten.rnn_tanh.input, aten.rnn_relu.input), _layers),
    aten.lstm_cell.default: _lstm_cell,
    aten.gru_cell.default: _gru_cell,
    aten.rnn_tanh_cell.default: _plain_cell(aten.tanh.default),
    aten.rnn_relu_cell.default: _plain_cell(aten.relu.default),
}
"""The rewrite of a call, by its operator."""
