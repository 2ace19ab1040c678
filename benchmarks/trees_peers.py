"""Torch-Pruning's own recipes (Fang et al. 2023, DepGraph) as rows of `benchmarks.trees`.

Its `regularize` adds a subgradient to the gradients before each step of the optimiser, as its documentation shows, and
its pruner removes whole groups of coupled channels over the whole network, at most 95 % of a layer. The ratio that
leaves the wanted MACs is found by bisection. The library cannot follow the chunk of a `SplitBlock` (IndexError while it
prunes); as in its own example for YOLOv8, the layer before it is first written as two, which compute the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
import torch_pruning
from torch import Tensor, nn

from benchmarks.trees_study import Recipe, Smaller, Start
from l1rr_fx.demo.detector import ConvBlock, Head, SplitBlock, TreeDetector
from l1rr_fx.demo.measure import macs
from l1rr_fx.demo.training import Training

TRIES = 10


class Separated(nn.Module):
    """A `SplitBlock` whose chunk is two layers."""

    def __init__(self, block: SplitBlock) -> None:
        super().__init__()
        self.enter = nn.ModuleList(_half(block.enter, number) for number in range(2))
        self.blocks, self.leave = block.blocks, block.leave

    def forward(self, x: Tensor) -> Tensor:
        parts = [enter(x) for enter in self.enter]
        for block in self.blocks:
            parts.append(block(parts[-1]))
        left: Tensor = self.leave(torch.cat(parts, 1))
        return left


def _half(block: ConvBlock, number: int) -> ConvBlock:
    convolution = block[0]
    half = ConvBlock(convolution.in_channels, convolution.out_channels // 2, 1)
    with torch.no_grad():
        for name, value in half.state_dict().items():
            whole = block.state_dict()[name]
            value.copy_(whole.chunk(2)[number] if whole.dim() else whole)
    return half


def separated(detector: TreeDetector) -> nn.Module:
    """The detector with its chunks written as layers, in place."""
    for stage in (detector.stage8, detector.stage16):
        stage[1] = Separated(stage[1])
    return detector


@dataclass(frozen=True)
class Peer:
    """A pruner of Torch-Pruning: how it is made of a model and an example, and the strength of its penalty.

    The library's defaults, 1e-5 and 1e-4, are for SGD and hundreds of epochs; see docs/results.md for `reg`."""

    pruner: Callable[..., Any]
    importance: Callable[[], Any]
    reg: float

    def made(self, model: nn.Module, example: Any, ratio: float = 0.5) -> Any:
        """The pruner of a model. The prediction layers keep their channels."""
        last = [layer for head in model.modules() if isinstance(head, Head) for layer in (head.score, head.sides)]
        return self.pruner(
            model,
            example,
            importance=self.importance(),
            reg=self.reg,
            global_pruning=True,
            pruning_ratio=ratio,
            max_pruning_ratio=0.95,
            ignored_layers=last,
        )

    def recipe(self, example: Any) -> Recipe:
        """Its regulariser, called between backward and the optimiser's step."""

        def attach(training: Training, steps: int) -> object:
            pruner = self.made(training.model, example)
            training.between = pruner.regularize
            return pruner

        return Recipe(attach, separated)

    def smaller(self, start: Start, recipe: str, share: float) -> Smaller:
        """The network with so much of the dense network's MACs."""
        image = start.example[0][:1]
        model = start.network(recipe)
        wanted = share * macs(model, image)
        low, high, best = 0.0, 0.95, None
        for _ in range(TRIES):
            ratio = (low + high) / 2
            small = deepcopy(model)
            self.made(small, image, ratio).step()
            if macs(small, image) <= wanted:
                high, best = ratio, small
            else:
                low = ratio
        if best is None:
            raise ValueError(f"{recipe}: no ratio leaves {share:.0%} of the MACs")
        return Smaller(best)


PEERS: Mapping[str, Peer] = {
    "bn-scale": Peer(torch_pruning.pruner.BNScalePruner, torch_pruning.importance.BNScaleImportance, 1e-3),
    "group-norm": Peer(torch_pruning.pruner.GroupNormPruner, torch_pruning.importance.GroupMagnitudeImportance, 1e-3),
}
