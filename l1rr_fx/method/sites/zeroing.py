"""A model with some of its channels zero, without changing the model.

The model is captured once. Each zeroing is then a program over the same graph with other values for a few parameters.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn.parallel import DataParallel, DistributedDataParallel

from l1rr_fx.pruning.partition.body import Body, captured_body
from l1rr_fx.support.arguments import one_of
from l1rr_fx.support.choices import Shift as Shift
from passes.analysis.program import Program
from passes.canonical.normalise import normalise
from passes.errors import InputError
from passes.frontend.capture import capture, check_arguments
from passes.graph.nodes import attribute
from passes.rules import rule_for

Zeroing = Mapping[str, Tensor]
"""The channels to zero: by the name of the site a bool mask of shape (channels,). Other sites stay as they are."""

"""What becomes of the shift (bias) of a channel whose scale (row) is zeroed."""
SHIFTS: tuple[Shift, ...] = ("keep", "zero")


@dataclass(frozen=True)
class ChannelSite:
    """A place in a model where channels can be zeroed one by one.

    `kind`: "scale" where a normalisation scales and shifts each channel, "rows" where a layer without a
    normalisation makes them. A frozen normalisation has its scale and shift in buffers: it can be zeroed, not
    trained. `weight`, `axis`, `bias`: channel c is zero when entry (or row) c of `weight` along `axis` and entry c
    of `bias` are zero. `filters`: the weight of the layer that makes the channels, if one does. `unit`: sites of
    one unit are joined by depthwise convolutions and share one mask. `group`: sites of one group would share one
    mask if sums of branches were not recombined. `macs`: the multiply-accumulates of the layer that makes the
    channels. `blocked`: why zeroing a channel gains nothing or loses more than the channel, as
    `InspectedLayer.blocked` says it; None if it does neither.
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
        """Copies of the site's parameters with the masked channels zero, by name; `values` are the parameters now."""
        weight = values[self.weight].detach()
        line = [-1 if a == self.axis else 1 for a in range(weight.dim())]
        found = {self.weight: weight.masked_fill(mask.to(weight.device).view(line), 0)}
        if self.bias is not None:
            bias = values[self.bias].detach()
            found[self.bias] = bias.masked_fill(along_bias(mask, bias), 0)
        return found


def along_bias(mask: Tensor, bias: Tensor) -> Tensor:
    """A mask of channels in the shape of a shift, which has them along its first axis."""
    return mask.to(bias.device).view([-1, *[1] * (bias.dim() - 1)])


def stored_shapes(model: nn.Module, names: Iterable[str | None]) -> dict[str, tuple[int, ...]]:
    """The shapes of all parameters of a model, and of those of its tensors that are named."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.named_parameters(remove_duplicate=False)}
    buffers = dict(model.named_buffers(remove_duplicate=False))
    return shapes | {name: tuple(buffers[name].shape) for name in names if name is not None and name in buffers}


def zeroed_values(sites: Sequence[ChannelSite], values: Mapping[str, Tensor], zeroing: Zeroing) -> dict[str, Tensor]:
    """The new values of the parameters that a zeroing changes, by name."""
    found: dict[str, Tensor] = {}
    for site in sites:
        if site.name in zeroing:
            found |= site.zeroed(values, zeroing[site.name])
    return found


def check_names(sites: Sequence[ChannelSite], names: Sequence[str] | None) -> None:
    """InputError if one of the names is no site's."""
    known = {site.name for site in sites}
    if unknown := sorted({*(names or ())} - known):
        raise InputError(f"sites: {unknown[0]!r} is not a site; the sites are {', '.join(sorted(known))}")


def blocked_units(sites: Sequence[ChannelSite], reasons: Mapping[str, str]) -> Mapping[str, str]:
    """Why sites lose no channels, by name: their own reasons, or that of another site of the unit, whose mask they
    share."""
    first = {site.unit: site.name for site in reversed(sites) if site.name in reasons}
    shared = {s.name: f"one with {first[s.unit]}: {reasons[first[s.unit]]}" for s in sites if s.unit in first}
    return {**shared, **reasons}


def keeps_shift(shift: Shift) -> bool:
    """Whether shifts stay. InputError for a value that is no `Shift`."""
    return one_of("shift", shift, SHIFTS) == "keep"


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
    """Evaluation mode inside the block; each module's own mode is restored after it. Exported modules work too."""
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def evaluation_body(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> Body:
    """As `evaluation_graph`; of the parts that can be captured where the whole cannot, with copies of their tensors."""
    model = unwrapped(model)
    with evaluation_mode(model):
        check_arguments(model, args, kwargs)
        body = captured_body(model, args, kwargs)
        normalise(body.module)
    return body


def evaluation_graph(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> GraphModule:
    """The model's normalised graph in evaluation mode; it shares its parameters with the model."""
    model = unwrapped(model)
    with evaluation_mode(model):
        check_arguments(model, args, kwargs)
        return normalise(capture(model, args, kwargs))


class ZeroedProgram(Program):
    """A program with other values for some parameters, by name. What does not depend on them is shared with `base`."""

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
