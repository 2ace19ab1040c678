"""The parameters that a penalty on channels acts on: found by name, refused if frozen, measured by channel."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from l1rr_fx.decay import few
from l1rr_fx.zeroing import ChannelSite
from passes.errors import InputError


def squared_changes(sites: Sequence[ChannelSite], weights: Sequence[Tensor]) -> Tensor:
    """What a loss would change by, to first order and squared, if each gamma or row were zero; all sites in a row.

    (gamma * its gradient)^2: Molchanov et al. 2019, Importance estimation for neural network pruning."""
    products = torch._foreach_mul(list(weights), [torch.zeros_like(w) if w.grad is None else w.grad for w in weights])
    sums = [
        product if product.dim() == 1 else product.sum([a for a in range(product.dim()) if a != site.axis])
        for product, site in zip(products, sites, strict=True)
    ]
    return torch.cat([each.to(sums[0].device, torch.float32) for each in sums]).square()


def shrunk(sizes: Tensor, amounts: Tensor) -> Tensor:
    """What is left of each size after `amounts` are taken away, as a factor; exactly 0 where nothing is."""
    return (1 - amounts / sizes.clamp(min=torch.finfo(sizes.dtype).tiny)).clamp(min=0)


def along(site: ChannelSite, weight: Tensor, values: Tensor) -> Tensor:
    """One value a channel, in the shape in which it multiplies the site's weight."""
    return values.to(weight).view([-1 if a == site.axis else 1 for a in range(weight.dim())])


def parameter(model: nn.Module, name: str) -> nn.Parameter:
    """The model's parameter of that name; InputError if there is none."""
    try:
        return model.get_parameter(name)
    except AttributeError as error:
        raise InputError(f"the sites name a parameter {name} that this {type(model).__name__} has not") from error


def refuse_frozen(named: Sequence[tuple[str, Tensor]]) -> None:
    """InputError if parameters to be made sparse are frozen, by name, or if there are none."""
    if frozen := [name for name, parameter in named if not parameter.requires_grad]:
        raise InputError(
            f"{len(frozen)} parameters to be made sparse are frozen: {few(frozen)}; let them train, or leave their "
            "sites out: sites=[s for s in channel_sites(model) if model.get_parameter(s.weight).requires_grad]"
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
