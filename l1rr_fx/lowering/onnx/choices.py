"""The comparison of networks that choose (top-k, sort, argmax): rounding may change a choice and all that follows.

Torch runs again with the choices that ONNX Runtime made. Each must be as good as torch's own, and the results that
follow from them must agree.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from l1rr_fx.lowering.onnx.lowered import Lowered
from l1rr_fx.lowering.onnx.runtime import Trial, run_onnx
from l1rr_fx.support.packages import required
from passes.audit.comparison import relative_deviation

aten = torch.ops.aten

ALONG = {
    aten.topk.default: 2,
    aten.sort.default: 1,
    aten.sort.stable: 2,
    aten.max.dim: 1,
    aten.min.dim: 1,
    aten.argmax.default: 1,
    aten.argmin.default: 1,
}
"""Operators that choose, with the position of the argument that names the axis."""


def deviation_given_choices(model: Any, lowered: Lowered, graph: GraphModule, trial: Trial) -> float | None:
    """The deviation of a model from a graph that chooses as it did; None if it makes no choices."""
    made = {
        call.origin.name: call.outputs[-1]
        for call in lowered.calls
        if call.origin is not None and call.origin.target in ALONG and call.kind in ("TopK", "ArgMax", "ArgMin")
    }
    if not made:
        return None
    onnx = required("onnx", extra="onnx")
    wider = onnx.ModelProto()
    wider.CopyFrom(model)
    known = {port.name for port in lowered.outputs}
    extra = [name for name in made.values() if name not in known]
    for name in extra:
        wider.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None))
    found = run_onnx(wider.SerializeToString(), trial.tensors())
    named = dict(zip([*(port.name for port in lowered.outputs), *extra], found, strict=True))
    run = _Forced(graph, {node: named[name] for node, name in made.items()})
    with torch.no_grad():
        results = run.run(*trial.leaves(), enable_io_processing=False)
    return max(run.worst, relative_deviation(trial.chosen(results), found[: len(lowered.outputs)]))


class _Forced(Interpreter):
    """Runs a graph with given choices; `worst` is by how much the worst of them misses the graph's own choice."""

    def __init__(self, module: GraphModule, choices: Mapping[str, Tensor]) -> None:
        super().__init__(module)
        self.choices = choices
        self.worst = 0.0

    def run_node(self, n: Node) -> Any:
        own = super().run_node(n)
        if n.name not in self.choices:
            return own
        args, _ = self.fetch_args_kwargs_from_env(n)
        position = ALONG[n.target]  # type: ignore[index]
        axis = args[position] if len(args) > position and args[position] is not None else -1
        index = self.choices[n.name].long()
        chosen = isinstance(own, Tensor)  # argmax gives the places alone
        places = own if chosen else own[1]
        value: Tensor = args[0]
        here, best = (_taken(value, axis, where, value.dim()) for where in (index, places))
        self.worst = max(self.worst, relative_deviation(best, here))
        return index if chosen else (here, index)


def _taken(value: Tensor, axis: int, index: Tensor, rank: int) -> Tensor:
    """The elements at places along an axis, whether or not the axis was kept."""
    if index.dim() == rank:
        return value.gather(axis, index)
    return value.gather(axis, index.unsqueeze(axis)).squeeze(axis)
