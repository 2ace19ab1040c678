"""The kernels of a recurrent layer: TensorRT runs it as a loop over the steps.

Its parser writes two products a step, of the input and of the state, and the gates, which are point-wise; both
directions are computed together. A projection is one more product.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch.fx import Node

from l1rr_fx.latency.geometry import Geometry, shape
from passes.graph.labels import owner
from passes.graph.nodes import operator_name

GATES = {"lstm": 4, "gru": 3, "rnn_tanh": 1, "rnn_relu": 1}


@dataclass(frozen=True)
class Launch:
    """One launch of a step: what it multiplies (None: nothing), and the elements of activations it reads and writes."""

    geometry: Geometry | None
    elements: int


def is_recurrent(node: Node) -> bool:
    """Whether a call is a recurrent layer on tensors whose steps are known."""
    return operator_name(node) in GATES and str(node.target).endswith(".input")


def layer_name(node: Node) -> str:
    """The name of a layer: that of the module whose weights it reads."""
    return owner(node) or node.name


def launches(node: Node) -> Iterator[Launch]:
    """The launches of one layer, step by step."""
    x, states, weights, _, layers, _, _, both, batch_first = _arguments(node)
    first = states[0] if isinstance(states, (list, tuple)) else states
    gates, count = GATES[operator_name(node)], 2 if both else 1
    batch, steps = shape(x)[:2] if batch_first else shape(x)[1::-1]
    outputs = shape(first)[-1]
    for layer in range(layers):
        own = weights[layer * len(weights) // layers :]
        rows, channels = shape(own[0])
        units = rows // gates
        step = [
            _product(rows, channels, batch, count, batch * channels),
            _product(rows, outputs, batch, count, count * batch * outputs),
            Launch(None, count * batch * (2 * rows + 3 * units)),  # both products, the states before and after
        ]
        if outputs != units:
            step.append(_product(outputs, units, batch, count, count * batch * units))
        yield from steps * step


def _product(rows: int, depth: int, batch: int, count: int, read: int) -> Launch:
    size = Geometry("matrix", rows, depth, batch, count, weights=count * rows * depth)
    return Launch(size, read + math.prod((count, batch, rows)))


def _arguments(node: Node) -> tuple[Any, ...]:
    """The arguments given by position: all of them, in a captured graph."""
    return node.args
