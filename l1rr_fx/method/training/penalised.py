"""The parameters that a penalty on channels acts on: found by name, refused if frozen, measured by channel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from l1rr_fx.method.sites.zeroing import ChannelSite
from l1rr_fx.method.training.decay import few
from passes.errors import InputError

SOURCE = "; l1rr_fx.channel_sites(model, args) finds them"


def row_norms(weight: Tensor, axis: int) -> Tensor:
    """The L2 norm of each row of a weight along `axis`; of a scale, its magnitude. Shape (channels,)."""
    if weight.dim() == 1:
        return weight.abs()
    norms: Tensor = torch.linalg.vector_norm(weight, dim=[a for a in range(weight.dim()) if a != axis])
    return norms


def squared_changes(
    sites: Sequence[ChannelSite], weights: Sequence[Tensor], besides: Sequence[Tensor] | None = None
) -> Tensor:
    """What a loss would change by, to first order and squared, if each gamma or row were zero; all sites in a row.

    (gamma * its gradient)^2: Molchanov et al. 2019, Importance estimation for neural network pruning. `besides` is what
    of each gradient is another term's, and does not count."""
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
    """What is left of each size after `amounts` are taken away, as a factor; exactly 0 where nothing is."""
    return (1 - amounts / sizes.clamp(min=torch.finfo(sizes.dtype).tiny)).clamp(min=0)


class Remainder:
    """What rounding has kept back of the pushes on parameters of 16 bits, a number for each channel.

    A 1,000th of a bfloat16 cannot be taken from it: it rounds to nothing, however often. So what a push did is
    measured, and what it did not is added to the next. Parameters of 32 and 64 bits are pushed as they are.
    """

    def __init__(self, parameters: Sequence[Tensor], sizes: Sequence[int]) -> None:
        bits = torch.tensor([torch.finfo(each.dtype).bits for each in parameters])
        self._coarse = (bits < 32).repeat_interleave(torch.tensor(sizes, dtype=torch.int64))
        self.is_kept = bool(self._coarse.any())
        self.owed: Tensor | None = None

    def due(self, amounts: Tensor) -> Tensor:
        """What is to be taken when `amounts` are the next push."""
        return amounts if self.owed is None else (amounts + self.owed.to(amounts)).clamp(min=0)

    def keep(self, amounts: Tensor, before: Tensor, after: Tensor) -> None:
        """Note that this push has made sizes of `before` sizes of `after`."""
        owed = amounts - (before - after) if self.owed is None else amounts + self.owed.to(amounts) - (before - after)
        self.owed = owed.masked_fill((after == 0) | ~self._coarse.to(after.device), 0)


def along(site: ChannelSite, weight: Tensor, values: Tensor) -> Tensor:
    """One value a channel, in the shape in which it multiplies the site's weight."""
    return values.to(weight).view([-1 if a == site.axis else 1 for a in range(weight.dim())])


def parameter(model: nn.Module, name: str) -> nn.Parameter:
    """The model's parameter of that name; InputError if there is none."""
    try:
        return model.get_parameter(name)
    except AttributeError as error:
        raise InputError(f"the sites name a parameter {name} that this {type(model).__name__} has not") from error


def scaled_by(model: nn.Module, sites: Sequence[ChannelSite]) -> dict[nn.Parameter, ChannelSite]:
    """The parameter of each site. A parameter that several sites share is there once, with the first of them.

    InputError where the model has no such parameter, or one of another shape."""
    found: dict[nn.Parameter, ChannelSite] = {}
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
    """InputError if parameters of sites are frozen, by name, or if there are none."""
    if frozen := [name for name, parameter in named if not parameter.requires_grad]:
        raise InputError(
            f"{len(frozen)} parameters of the sites are frozen: {few(frozen)}; let them train, or leave their sites "
            "out: sites=[s for s in channel_sites(model) if all(model.get_parameter(n).requires_grad for n in "
            "(s.weight, s.bias) if n)]"
        )
    if not named:
        raise InputError("no sites: there is nothing to make sparse")


def importance(sites: Sequence[ChannelSite], *, cost_aware: bool) -> Tensor:
    """a_l for each channel: 1, or the MACs of its layer a channel, of mean 1 over all channels."""
    if not cost_aware:
        return torch.ones(sum(site.channels for site in sites), dtype=torch.float64)
    costs = torch.cat([torch.full((site.channels,), site.macs / site.channels, dtype=torch.float64) for site in sites])
    if not bool(costs.any()):
        raise InputError("cost_aware needs to know what layers cost: give an example input as args=(image,)")
    return costs / costs.mean()
