"""Recurrent layers: LSTM, GRU, RNN, one ONNX node for each layer.

ONNX orders the gates of a weight otherwise than torch, and has the direction as an axis of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from l1rr_fx.lowering.onnx.operators.base import Form
from l1rr_fx.lowering.onnx.writer import Operand, Symbol, Writer

aten = torch.ops.aten


@dataclass(frozen=True)
class Kind:
    """An ONNX operator for a recurrent layer.

    `order`: for each gate of ONNX the number of torch's. `states`: how many it has. `activation`: one that is not the
    operator's default.
    """

    name: str
    order: tuple[int, ...]
    states: int = 1
    activation: str | None = None

    def attributes(self, directions: int) -> dict[str, Any]:
        """The attributes of a node, its size and direction aside."""
        found: dict[str, Any] = {} if self.activation is None else {"activations": [self.activation] * directions}
        return found | ({"linear_before_reset": 1} if self.name == "GRU" else {})

    def ordered(self, weight: Tensor) -> Tensor:
        """A weight or bias with its gates in ONNX's order."""
        return torch.cat([weight.chunk(len(self.order))[gate] for gate in self.order])


def _form(kind: Kind) -> Form:
    def form(
        w: Writer,
        out: Sequence[Tensor],
        x: Symbol,
        states: Any,
        weights: Sequence[Any],
        biased: bool,
        layers: int,
        dropout: float,
        train: bool,
        both: bool,
        batch_first: bool,
    ) -> Any:
        count, given = 2 if both else 1, list(states) if kind.states > 1 else [states]
        projected = len(weights) // (count * layers) % 2 == 1
        if projected or not all(isinstance(each, Tensor) for each in weights):
            return NotImplemented  # ONNX has no projection, and readers want weights that are constants
        value: Operand = w.op("Transpose", x, perm=(1, 0, 2)) if batch_first else x
        each, last = len(weights) // layers, list[tuple[str, ...]]()
        for layer in range(layers):
            if layer:
                value = _side_by_side(w, value, out[0], batch_first=False, steps_first=batch_first)
            own = weights[layer * each : (layer + 1) * each]
            first = [_part(w, state, layer, count, layers) for state in given]
            value, *ended = _layer(w, kind, value, own, first, count, biased=biased)
            last.append(tuple(ended))
        result = _side_by_side(w, value, out[0], batch_first=batch_first)
        joined = [ends[0] if layers == 1 else w.op("Concat", *ends, axis=0) for ends in zip(*last, strict=True)]
        return [result, *joined]

    return form


def _layer(
    w: Writer,
    kind: Kind,
    x: Operand,
    weights: Sequence[Tensor],
    states: Sequence[Operand],
    count: int,
    *,
    biased: bool,
) -> tuple[str, ...]:
    """One layer: its outputs (steps, directions, batch, units), and its last states."""
    parts = [weights[i * len(weights) // count : (i + 1) * len(weights) // count] for i in range(count)]
    inputs, outputs = (torch.stack([kind.ordered(part[i]) for part in parts]) for i in (0, 1))
    bias: Operand = ""
    if biased:
        bias = torch.stack([torch.cat([kind.ordered(part[2]), kind.ordered(part[3])]) for part in parts])
    return w.ops(
        kind.name, 1 + kind.states, x, inputs, outputs, bias, "", *states,
        hidden_size=outputs.shape[2], direction="bidirectional" if count == 2 else "forward", **kind.attributes(count),
    )  # fmt: skip


def _side_by_side(w: Writer, value: Operand, out: Tensor, *, batch_first: bool, steps_first: bool = False) -> Operand:
    """Outputs (steps, directions, batch, units) as torch has them: the directions side by side.

    `out` has the shape of the result; `steps_first`: it has the batch first, and this result has the steps first.
    """
    sizes = [int(n) for n in out.shape]
    if steps_first:
        sizes[:2] = sizes[1], sizes[0]
    return w.reshape(w.op("Transpose", value, perm=(2, 0, 1, 3) if batch_first else (0, 2, 1, 3)), sizes)


def _part(w: Writer, state: Any, layer: int, count: int, layers: int) -> Operand:
    """The first state of one layer; "" where it is zero, which is ONNX's default."""
    if isinstance(state, Tensor):
        own = state[layer * count : (layer + 1) * count]
        return own if bool(own.any()) else ""
    return state if layers == 1 else w.slice(state, 0, layer * count, (layer + 1) * count)


FORMS: Mapping[Any, Form] = {
    aten.lstm.input: _form(Kind("LSTM", (0, 3, 1, 2), states=2)),
    aten.gru.input: _form(Kind("GRU", (1, 0, 2))),
    aten.rnn_tanh.input: _form(Kind("RNN", (0,))),
    aten.rnn_relu.input: _form(Kind("RNN", (0,), activation="Relu")),
}
