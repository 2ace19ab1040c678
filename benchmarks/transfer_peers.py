"""Torch-Pruning's own recipes (Fang et al. 2023, DepGraph) as rows of `benchmarks.transfer`.

Its `regularize` adds a subgradient to the gradients before each step of the optimiser, and its pruner removes whole
groups of coupled channels over the whole network, at most 95 % of a layer. The ratio that leaves the wanted MACs is
found by bisection. The prediction layers keep their channels.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning
from torch import nn

from benchmarks.transfer_rows import EXAMPLE, Chosen, Extra, Start
from benchmarks.trees_peers import separated
from l1rr_fx.demo.detector import TreeDetector
from l1rr_fx.demo.measure import macs

TRIES = 10


@dataclass(frozen=True)
class Peer:
    """A pruner of Torch-Pruning, its importance, and the strength of its penalty (its defaults, 1e-5 and 1e-4, are for
    SGD and hundreds of epochs; docs/results.md says how 1e-3 was chosen)."""

    pruner: Callable[..., Any]
    importance: Callable[[], Any]
    reg: float = 1e-3

    def made(self, model: nn.Module, ratio: float = 0.5) -> Any:
        """The pruner of a model."""
        last = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.bias is not None]
        return self.pruner(
            model,
            EXAMPLE[:1],
            importance=self.importance(),
            reg=self.reg,
            global_pruning=True,
            pruning_ratio=ratio,
            max_pruning_ratio=0.95,
            ignored_layers=last,
        )

    def recipe(self, start: Start, model: nn.Module, optimizer: torch.optim.Optimizer, share: float) -> Extra:
        """Its regulariser, called between backward and the optimiser's step."""
        return Extra(between=self.made(model).regularize)

    def choose(self, start: Start, model: nn.Module, share: float, recipe: str) -> Chosen:
        """The network with so much of the dense network's MACs."""
        wanted = share * macs(start.new(), EXAMPLE)
        model = separated(model) if isinstance(model, TreeDetector) else model
        low, high, best = 0.0, 0.95, None
        for _ in range(TRIES):
            ratio = (low + high) / 2
            small = deepcopy(model)
            self.made(small, ratio).step()
            if macs(small, EXAMPLE) <= wanted:
                high, best = ratio, small
            else:
                low = ratio
        if best is None:
            raise ValueError(f"{recipe}: no ratio leaves {share:.0%} of the MACs")
        return Chosen(best)


PEERS: Mapping[str, Peer] = {
    "bn-scale": Peer(torch_pruning.pruner.BNScalePruner, torch_pruning.importance.BNScaleImportance),
    "group-norm": Peer(torch_pruning.pruner.GroupNormPruner, torch_pruning.importance.GroupMagnitudeImportance),
}
