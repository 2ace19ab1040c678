"""What the compiler would make of a model if some of its channels were zero, without touching the model.

The model is captured once; each zeroing is then a set of other values for a few parameters of the same graph.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.parallel import DataParallel, DistributedDataParallel

from passes.analysis.program import Program
from passes.canonical.normalise import normalise
from passes.frontend.capture import capture, check_arguments
from passes.graph.nodes import attribute
from passes.rules import rule_for

Zeroing = Mapping[str, Tensor]
"""The channels to zero: a bool mask of shape (channels,) for the name of each site; sites left out stay as they are."""


@dataclass(frozen=True)
class ChannelSite:
    """A place where channels can be zeroed one by one.

    `kind` is "scale" where a normalisation layer scales and shifts each channel, "rows" where a layer without one makes
    them: then channel c is row c of `weight` along `axis`. A channel is dead when its scale or row and its entry of
    `bias` are zero. `filters` names the weight whose rows make the channels, if there is one. Sites of one `unit` are
    joined by depthwise convolutions and share one mask; sites of one `group` would if sums of branches were not
    recombined. `macs` are those of the layer that makes the channels. `blocked` says why zeroing gains nothing, or is
    None.
    """

    name: str
    kind: str
    weight: str
    bias: str | None
    channels: int
    axis: int = 0
    filters: str | None = None
    unit: str = ""
    group: int = 0
    macs: int = 0
    blocked: str | None = None

    def zeroed(self, values: Mapping[str, Tensor], mask: Tensor) -> dict[str, Tensor]:
        """Copies of the site's parameters with the masked channels zero; `values` has them by name."""
        weight = values[self.weight].detach()
        line = [-1 if a == self.axis else 1 for a in range(weight.dim())]
        found = {self.weight: weight.masked_fill(mask.to(weight.device).view(line), 0)}
        if self.bias is not None:
            bias = values[self.bias].detach()
            found[self.bias] = bias.masked_fill(mask.to(bias.device), 0)
        return found


def zeroed_values(sites: Sequence[ChannelSite], values: Mapping[str, Tensor], zeroing: Zeroing) -> dict[str, Tensor]:
    """New values for the parameters that a zeroing changes."""
    found: dict[str, Tensor] = {}
    for site in sites:
        if site.name in zeroing:
            found |= site.zeroed(values, zeroing[site.name])
    return found


def unwrapped(model: nn.Module) -> nn.Module:
    """The user's model inside the wrappers of data parallelism and `torch.compile`, which prefix parameter names."""
    while True:
        if isinstance(model, (DistributedDataParallel, DataParallel)):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for what runs inside; every module's own mode comes back. Exported modules are taken too."""
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def evaluation_graph(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> GraphModule:
    """The model's normalised graph in evaluation mode; it shares its parameters with the model."""
    model = unwrapped(model)
    with evaluation_mode(model):
        check_arguments(model, args, kwargs)
        return normalise(capture(model, args, kwargs))


class ZeroedProgram(Program):
    """A program with other values for some of its parameters, by name; all that does not depend on them is shared."""

    def __init__(self, base: Program, replaced: Mapping[str, Tensor]) -> None:
        self.base = base
        self._replaced = {attribute(base.module, name).data_ptr(): value for name, value in replaced.items()}
        super().__init__(base.module, rule_for)

    def tensor(self, node: Node) -> Tensor:
        value = self.base.tensor(node)
        return self._replaced.get(value.data_ptr(), value)

    def connections(self, weight: Node) -> Tensor | None:
        changed = self.base.tensor(weight).data_ptr() in self._replaced
        return super().connections(weight) if changed else self.base.connections(weight)

    def shape(self, node: Node) -> tuple[int, ...]:
        return self.base.shape(node)


def every_second(size: int) -> Tensor:
    """A mask of every second channel."""
    return torch.arange(size) % 2 == 1


def second_half(size: int) -> Tensor:
    """A mask of the second half of the channels."""
    return torch.arange(size) >= (size + 1) // 2
