"""Scores: one number for each channel of a site; the channels with the smallest are zeroed first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from l1rr_fx.method.sites.zeroing import ChannelSite, evaluation_mode, unwrapped
from l1rr_fx.method.training.decay import few
from l1rr_fx.method.training.penalised import SOURCE, parameter, refuse_frozen, row_norms
from l1rr_fx.support.arguments import all_of_kind, of_kind
from passes.errors import InputError


class Score(Protocol):
    """A function that gives the scores of a site's channels, shape (channels,), at least 0."""

    def __call__(self, model: nn.Module, site: ChannelSite) -> Tensor: ...


def bn_scale(model: nn.Module, site: ChannelSite) -> Tensor:
    """|gamma| of a scale, the L2 norms of rows. Liu et al. 2017, Network Slimming."""
    return row_norms(parameter(model, site.weight).detach(), site.axis)


def weight_norm(model: nn.Module, site: ChannelSite) -> Tensor:
    """The L2 norm of the filter that makes each channel. Li et al. 2017 take the L1 norm; pruners today take L2."""
    if site.filters is None:
        raise InputError(
            f"{site.name}: no single layer makes its channels, so that they have no filter to take the norm of; "
            'use the score "bn-scale" or "taylor"'
        )
    return row_norms(filters_of(model, site, site.filters), 0)


def filters_of(model: nn.Module, site: ChannelSite, name: str) -> Tensor:
    """The weight that makes a site's channels, with the channels along axis 0."""
    weight = model.get_parameter(name).detach()
    layer = model.get_submodule(name.rpartition(".")[0])
    if isinstance(layer, _ConvTransposeNd):  # (inputs, outputs of a group, window): groups lie along the inputs
        by_group: Tensor = weight.unflatten(0, (layer.groups, -1))
        return by_group.transpose(1, 2).flatten(0, 1)
    if site.kind == "rows":
        return weight.movedim(site.axis, 0)
    if weight.dim() > 2 and not isinstance(layer, _ConvNd):
        raise InputError(
            f"{site.name}: {name} of shape {(*weight.shape,)} is of no convolution of torch.nn, so that it is not "
            'known which of its axes makes the channels; use the score "bn-scale" or l1rr_fx.Taylor'
        )
    return weight


class Taylor:
    """The change of the loss, to first order and squared, if a channel is zeroed: the mean over batches.

    For a scale it is (gamma g + beta g')^2, with g and g' the gradients of gamma and beta; for a row the sum of weight
    times gradient, squared. Molchanov et al. 2019, Importance estimation for neural network pruning, with the batch
    norm as the gate. `loss(model, batch)` is called on each batch in evaluation mode. Gradients of the model do not
    change. InputError without batches, and for a loss that is not a finite scalar with a gradient.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Iterable[Any],
        loss: Callable[[nn.Module, Any], Tensor],
        sites: Sequence[ChannelSite],
    ) -> None:
        inner = unwrapped(of_kind("model", model, nn.Module))
        self.scores: dict[str, Tensor] = {}
        names = [name for site in _sites(sites) for name in (site.weight, site.bias) if name is not None]
        parameters = [parameter(inner, name) for name in names]
        refuse_frozen(list(zip(names, parameters, strict=True)))
        count = 0
        with evaluation_mode(model), torch.enable_grad():
            for count, batch in enumerate(batches, start=1):
                value = _loss(loss(model, batch), f"batch {count - 1}")
                gradients = torch.autograd.grad(value, parameters, allow_unused=True)
                self._add(sites, dict(zip(names, zip(parameters, gradients, strict=True), strict=True)))
        if not count:
            raise InputError("no batches: the score is a mean over batches")
        self.scores = {name: score / count for name, score in self.scores.items()}

    def __call__(self, model: nn.Module, site: ChannelSite) -> Tensor:
        if site.name not in self.scores:
            raise InputError(f"{site.name} was not among the sites that the scores were measured for")
        return self.scores[site.name]

    def _add(self, sites: Sequence[ChannelSite], known: Mapping[str, tuple[Tensor, Tensor | None]]) -> None:
        for site in sites:
            weight, gradient = known[site.weight]
            other = [a for a in range(weight.dim()) if a != site.axis]
            change = weight.new_zeros(site.channels)
            if gradient is not None:
                change = (weight.detach() * gradient).sum(other) if other else weight.detach() * gradient
            if site.bias is not None:
                bias, slope = known[site.bias]
                change = change if slope is None else change + bias.detach() * slope
            self.scores[site.name] = self.scores.get(site.name, 0) + change.square()


def _sites(sites: Sequence[ChannelSite]) -> tuple[ChannelSite, ...]:
    return all_of_kind("sites", sites, ChannelSite, SOURCE)


def _loss(value: object, where: str) -> Tensor:
    """A finite scalar with a gradient, or InputError."""
    if not isinstance(value, Tensor) or value.numel() != 1:
        found = f"of shape {(*value.shape,)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise InputError(f"{where}: the loss is {found}; expected a tensor with one number")
    if not bool(value.detach().isfinite()):
        raise InputError(f"{where}: the loss is {float(value.detach())}")
    if not value.requires_grad:
        raise InputError(f"{where}: the loss has no gradient; is it computed under no_grad, or detached?")
    return value


class GroupSum:
    """The sum of another score over all sites of a group, whose channels sums of branches couple.

    With the global threshold the sites of a group then lose the same channels, as in pruners that work by groups (Fang
    et al. 2023, DepGraph). `sites` are those of `channel_sites(model, args)`, which have group numbers.
    """

    def __init__(self, score: str | Score, sites: Sequence[ChannelSite]) -> None:
        self.score = score_named(score)
        self.sites = _sites(sites)
        if lost := [site.name for site in self.sites if not site.group]:
            raise InputError(
                f"the groups of {len(lost)} sites are not known: {few(lost)}; give an example input, so that the graph "
                "is asked: channel_sites(model, args)"
            )

    def __call__(self, model: nn.Module, site: ChannelSite) -> Tensor:
        members = [s for s in self.sites if s.group == site.group and s.channels == site.channels] or [site]
        return torch.stack([self.score(model, member) for member in members]).sum(0)


BN_SCALE = "bn-scale"
SCORES: Mapping[str, Score] = {BN_SCALE: bn_scale, "weight-norm": weight_norm}


def score_named(score: str | Score) -> Score:
    """The score of that name, or the callable itself; InputError if it is neither."""
    if isinstance(score, str):
        if score not in SCORES:
            raise InputError(f"scores is {score!r}; expected one of {', '.join(SCORES)} or a Score")
        return SCORES[score]
    if not callable(score):
        raise InputError(f"scores is a {type(score).__name__}; expected a name or a Score")
    return score


def scores_of(model: nn.Module, site: ChannelSite, score: Score) -> Tensor:
    """The scores of a site on the CPU in float64. InputError unless they are one finite number a channel."""
    found = score(unwrapped(model), site)
    if not isinstance(found, Tensor):
        raise InputError(
            f"{site.name}: the scores are a {type(found).__name__}; expected a tensor of one number a channel"
        )
    found = found.detach().to("cpu", torch.float64)
    if found.shape != (site.channels,) or not bool(found.isfinite().all()):
        raise InputError(
            f"{site.name}: scores of shape {tuple(found.shape)} for {site.channels} channels, "
            f"{int((~found.isfinite()).sum())} of them not finite"
        )
    return found
