"""The channels of all sites as one vector: measured in the parameters of a model, and applied to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from l1rr_fx.method.sites.zeroing import ChannelSite
from l1rr_fx.method.training.penalised import (
    Remainder,
    along,
    parameter,
    refuse_frozen,
    row_norms,
    scaled_by,
    shrunk,
    squared_changes,
)


class ChannelVector:
    """The index of a vector with one number for each channel of each site, one site after another.

    `sites`: the sites, each parameter once. `weights`, `biases`: their scales or rows, and their shifts (None where
    there are none). `sizes`: their numbers of channels. A vector has shape (sum(sizes),). Vectors that are measured are
    on the device of the first weight, in float32 or float64.

    InputError if the model lacks parameters of the sites, or has frozen ones.
    """

    def __init__(self, model: nn.Module, sites: Sequence[ChannelSite]) -> None:
        scaled = scaled_by(model, sites)
        self.sites = tuple(scaled.values())
        self.weights: list[Tensor] = list(scaled)
        self.biases = [parameter(model, site.bias) if site.bias else None for site in self.sites]
        refuse_frozen(self._named())
        self.sizes = [site.channels for site in self.sites]
        self._owed = Remainder(self.weights, self.sizes)
        shifts = [(bias, size) for bias, size in zip(self.biases, self.sizes, strict=True) if bias is not None]
        self._owed_shifts = Remainder([bias for bias, _ in shifts], [size for _, size in shifts])

    def __len__(self) -> int:
        return sum(self.sizes)

    def parts(self, vector: Tensor) -> tuple[Tensor, ...]:
        """The part of each site, as a view of the vector."""
        return tuple(vector.split(self.sizes))

    def spread(self, values: Tensor) -> Tensor:
        """The vector in which each channel has the value of its site; `values` has shape (sites,)."""
        return values.repeat_interleave(torch.tensor(self.sizes, device=values.device))

    @torch.no_grad()
    def magnitudes(self) -> Tensor:
        """The magnitude of each channel: |gamma| of a scale, the L2 norm of a row."""
        first = self.weights[0]
        kind = torch.promote_types(first.dtype, torch.float32)
        parts = [row_norms(weight, site.axis) for site, weight in zip(self.sites, self.weights, strict=True)]
        return torch.cat([part.to(first.device, kind) for part in parts])

    def zeros(self) -> Mapping[str, Tensor]:
        """The channels whose scale or row is exactly zero: by the name of the site a bool mask on the CPU."""
        dead = (self.magnitudes() == 0).cpu()
        return {site.name: mask for site, mask in zip(self.sites, self.parts(dead), strict=True)}

    def changes(self, besides: Sequence[Tensor] | None = None) -> Tensor | None:
        """The change of the loss, squared, if each channel were zero (see `squared_changes`); None without gradients.

        `besides` is the part of each weight's gradient that belongs to another term."""
        if all(weight.grad is None for weight in self.weights):
            return None
        return squared_changes(self.sites, self.weights, besides)

    def weighted_sum(self, slopes: Tensor) -> Tensor:
        """The sum of slope times magnitude over all channels: a scalar, differentiable."""
        parts = [
            (each.to(weight) * row_norms(weight, site.axis)).sum()
            for weight, site, each in zip(self.weights, self.sites, self.parts(slopes), strict=True)
        ]
        return torch.stack([part.to(parts[0]) for part in parts]).sum()

    @torch.no_grad()
    def gradients(self, slopes: Tensor) -> list[Tensor]:
        """The gradient of `weighted_sum` with respect to each weight; 0 at a row of zeros."""
        magnitudes = self.parts(self.magnitudes())
        found = []
        for weight, site, each, size in zip(self.weights, self.sites, self.parts(slopes), magnitudes, strict=True):
            direction = weight.detach() / along(site, weight, size).clamp(min=1e-12)
            found.append(direction * along(site, weight, each))
        return found

    @torch.no_grad()
    def shrink_(self, amounts: Tensor, *, shift: float) -> None:
        """Reduce the magnitudes by `amounts`, down to exactly 0.

        The shifts of channels at 0 are reduced by `shift` times the amounts. For parameters in 16 bits, what rounding
        undoes is added to the next amounts.
        """
        magnitudes = self.magnitudes()
        amounts = amounts.to(magnitudes)
        left = shrunk(magnitudes, self._owed.due(amounts))
        parts = zip(self.sites, self.weights, self.parts(left), strict=True)
        torch._foreach_mul_(self.weights, [along(site, weight, part) for site, weight, part in parts])
        if self._owed.is_kept:
            self._owed.keep(amounts, magnitudes, self.magnitudes())
        self._shrink_shifts_(amounts * (shift * (left == 0)))

    @property
    def owed(self) -> list[Tensor | None]:
        """Copies of the remainders of scales and rows, and of shifts; None where there is none."""
        return [None if each.owed is None else each.owed.clone() for each in (self._owed, self._owed_shifts)]

    @owed.setter
    def owed(self, values: Sequence[Tensor | None]) -> None:
        for remainder, value in zip((self._owed, self._owed_shifts), values, strict=True):
            remainder.owed = None if value is None else value.clone()

    def _shrink_shifts_(self, amounts: Tensor) -> None:
        """Reduce the magnitudes of the shifts by `amounts`, down to exactly 0."""
        pairs = [(bias, part) for bias, part in zip(self.biases, self.parts(amounts), strict=True) if bias is not None]
        if not pairs:
            return
        biases: list[Tensor] = [bias for bias, _ in pairs]
        amounts = torch.cat([part for _, part in pairs])
        sizes = _magnitudes_of(biases, amounts)
        left = shrunk(sizes, self._owed_shifts.due(amounts)).split([len(bias) for bias in biases])
        torch._foreach_mul_(biases, [part.to(bias) for bias, part in zip(biases, left, strict=True)])
        if self._owed_shifts.is_kept:
            self._owed_shifts.keep(amounts, sizes, _magnitudes_of(biases, amounts))

    def _named(self) -> list[tuple[str, Tensor]]:
        """The parameters by name."""
        pairs = [(site.weight, weight) for site, weight in zip(self.sites, self.weights, strict=True)]
        biases = zip(self.sites, self.biases, strict=True)
        return [*pairs, *((str(site.bias), bias) for site, bias in biases if bias is not None)]


def _magnitudes_of(vectors: list[Tensor], like: Tensor) -> Tensor:
    """The magnitudes of vectors, one after another."""
    return torch.cat([size.to(like) for size in torch._foreach_abs(vectors)])
