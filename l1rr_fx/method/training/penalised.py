"""The parameters that a penalty on channels acts on: found by name, checked, and measured by channel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from l1rr_fx.method.sites.zeroing import ChannelSite
from l1rr_fx.method.training.decay import few
from passes.errors import InputError
from passes.graph.nodes import attribute

SOURCE = "; l1rr_fx.channel_sites(model, args) finds them"


def row_norms(weight: Tensor, axis: int) -> Tensor:
    """The L2 norm of each row of a weight along `axis`; the magnitudes of a scale. Shape (channels,)."""
    if weight.dim() == 1:
        return weight.abs()
    norms: Tensor = torch.linalg.vector_norm(weight, dim=[a for a in range(weight.dim()) if a != axis])
    return norms


def squared_changes(
    sites: Sequence[ChannelSite], weights: Sequence[Tensor], besides: Sequence[Tensor] | None = None
) -> Tensor:
    """The change of the loss, to first order and squared, if each gamma or row were zero: one number a channel.

    (gamma * its gradient)^2: Molchanov et al. 2019, Importance estimation for neural network pruning. Sites come one
    after another. `besides` is the part of each gradient that belongs to another term; it is subtracted."""
    gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
    if besides is not None:
        gradients = list(torch._foreach_sub(gradients, list(besides)))
    products = torch._foreach_mul(list(weights), gradients)
    sums = [
        product if product.dim() == 1 else product.sum([a for a in range(product.dim()) if a != site.axis])
        for product, site in zip(products, sites, strict=True)
    ]
    return torch.cat([each.to(sums[0].device, torch.float32) for each in sums]).square()


def shrunk(sizes: Tensor, amounts: Tensor) -> Tensor:
    """The factors that take `amounts` from `sizes`; exactly 0 where an amount is at least the size."""
    return (1 - amounts / sizes.clamp(min=torch.finfo(sizes.dtype).tiny)).clamp(min=0)


class Remainder:
    """The part of the pushes on parameters of 16 bits that rounding has undone, one number a channel.

    A bfloat16 less a 1,000th of itself rounds to the same number, however often. So the effect of each push is
    measured, and what is missing is added to the next. Parameters of 32 and 64 bits need no remainder.
    """

    def __init__(self, parameters: Sequence[Tensor], sizes: Sequence[int]) -> None:
        bits = torch.tensor([torch.finfo(each.dtype).bits for each in parameters])
        self._coarse = (bits < 32).repeat_interleave(torch.tensor(sizes, dtype=torch.int64))
        self.is_kept = bool(self._coarse.any())
        self.owed: Tensor | None = None

    def due(self, amounts: Tensor) -> Tensor:
        """The next push: `amounts`, and the remainder of the last."""
        return amounts if self.owed is None else (amounts + self.owed.to(amounts)).clamp(min=0)

    def keep(self, amounts: Tensor, before: Tensor, after: Tensor) -> None:
        """Keep the remainder of a push by `amounts` that turned the sizes `before` into `after`."""
        owed = amounts - (before - after) if self.owed is None else amounts + self.owed.to(amounts) - (before - after)
        self.owed = owed.masked_fill((after == 0) | ~self._coarse.to(after.device), 0)


def along(site: ChannelSite, weight: Tensor, values: Tensor) -> Tensor:
    """One value a channel, in the shape in which it multiplies the site's weight."""
    return values.to(weight).view([-1 if a == site.axis else 1 for a in range(weight.dim())])


def parameter(model: nn.Module, name: str) -> Tensor:
    """The model's parameter, or buffer of a frozen normalisation, with a dotted name; InputError if it is missing."""
    try:
        return attribute(model, name)  # type: ignore[no-any-return]
    except AttributeError as error:
        raise InputError(f"the sites name a parameter {name} that this {type(model).__name__} has not") from error


def scaled_by(model: nn.Module, sites: Sequence[ChannelSite]) -> dict[Tensor, ChannelSite]:
    """The sites by their parameters; of sites that share a parameter, the first.

    InputError if the model has no such parameter, or one of another shape."""
    found: dict[Tensor, ChannelSite] = {}
    for site in sites:
        weight = parameter(model, site.weight)
        if not site.axis < weight.dim() or weight.shape[site.axis] != site.channels:
            raise InputError(
                f"{site.name} has {site.channels} channels along axis {site.axis}, this {type(model).__name__}'s "
                f"{site.weight} shape {(*weight.shape,)}: are the sites of another model?"
            )
        found.setdefault(weight, site)
    return found


def refuse_frozen(named: Sequence[tuple[str, Tensor]]) -> None:
    """InputError if some of the named parameters are frozen, or if there are no parameters."""
    if frozen := [name for name, parameter in named if not parameter.requires_grad]:
        raise InputError(
            f"{len(frozen)} parameters of the sites are frozen: {few(frozen)}; let them train, or leave their sites "
            "out: sites=[s for s in channel_sites(model) if all(model.get_parameter(n).requires_grad for n in "
            "(s.weight, s.bias) if n)]"
        )
    if not named:
        raise InputError("no sites: there is nothing to make sparse")


def importance(sites: Sequence[ChannelSite], *, cost_aware: bool) -> Tensor:
    """a_l for each channel, in float64: 1, or the MACs of its layer by channel over their mean over all channels."""
    if not cost_aware:
        return torch.ones(sum(site.channels for site in sites), dtype=torch.float64)
    costs = torch.cat([torch.full((site.channels,), site.macs / site.channels, dtype=torch.float64) for site in sites])
    if not bool(costs.any()):
        raise InputError("cost_aware needs to know what layers cost: give an example input as args=(image,)")
    return costs / costs.mean()
