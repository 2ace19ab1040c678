"""A machine of the user's: a cost model with a predictor that is given each network as it is written."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol, SupportsFloat, runtime_checkable

from torch.fx import GraphModule

from l1rr_fx.machines.priced import Priced
from passes.assignment.cost_model import Target
from passes.errors import InputError
from passes.rewriting.rewriter import rewrite
from passes.rewriting.sketcher import Sketch


@runtime_checkable
class LatencyPredictor(Protocol):
    """Predicts how long a network takes. Only ratios of its predictions are used, so that the unit does not matter."""

    def predict(self, module: GraphModule, args: tuple[Any, ...]) -> float:
        """The duration of one forward pass of `module`, a graph as `passes.rewrite` gives it, on `args`; any unit."""
        ...


@dataclass(frozen=True, eq=False)
class OwnMachine(Priced):
    """A cost model `prices` that is a `LatencyPredictor` as well, for networks that are called with `args`."""

    predictor: LatencyPredictor
    args: tuple[Any, ...]

    def predict_sketch(self, sketch: Sketch) -> float:
        """What the predictor says of the network, written for it."""
        return predicted(self.predictor, rewrite(sketch.plan).module, self.args)


def predicting(target: Target, args: tuple[Any, ...]) -> Target:
    """The target as a machine for networks that are called with `args`, if it predicts their latency; else itself."""
    predictor: object = target
    return OwnMachine(target, predictor, args) if isinstance(predictor, LatencyPredictor) else target


def predicted(predictor: LatencyPredictor, module: GraphModule, args: tuple[Any, ...]) -> float:
    """What a predictor says. InputError unless it is a positive number."""
    says: object = predictor.predict(module, args)
    seconds = float(says) if isinstance(says, SupportsFloat) else math.nan
    if not 0 < seconds < math.inf:
        raise InputError(f"the latency predictor says {says!r:.60}; expected a positive number")
    return seconds
