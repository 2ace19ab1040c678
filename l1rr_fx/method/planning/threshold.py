"""A plan of everything below a threshold: for checkpoints whose scales are small and not zero."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from l1rr_fx.method.planning.plan import Plan, planned
from l1rr_fx.method.planning.scores import Score, score_named, scores_of
from l1rr_fx.method.sites.budget import Analysis
from l1rr_fx.method.sites.channel_sites import channel_sites
from l1rr_fx.method.sites.zeroing import ChannelSite, Zeroing, blocked_units, check_names, stored_shapes, unwrapped
from l1rr_fx.support.arguments import all_of_kind, number, of_kind
from passes.errors import InputError

log = logging.getLogger(__name__)

NOT_GIVEN = "not among the sites given"
NO_SCALE = "no batch norm: only if named in sites="
KEPT = "all are below: the largest stays"
THRESHOLD = "a finite number above 0"


def threshold(
    model: nn.Module,
    args: tuple[Any, ...] | None = None,
    *,
    below: float,
    kwargs: Mapping[str, Any] | None = None,
    scores: str | Score = "bn-scale",
    sites: Sequence[str] | None = None,
) -> Plan:
    """The plan that zeroes every channel whose score is below `below`. The model is not changed.

    It suits a model that was trained with a penalty elsewhere, whose scales are small and not zero:

        plan = threshold(model, (image,), below=0.01)
        plan.zero_(model)
        small = prune(model, (image,)).module

    Of each layer at least the channel with the largest score stays, and the plan says where. With an example input
    `args`, `kwargs`: layers that a depthwise convolution joins share one mask, in which a channel goes if its score is
    below in any of them; blocked sites (`channel_sites`) lose no channels; the plan has the shares of parameters and
    MACs that are left. Without one the batch norms are all sites, each for itself, and the plan has no costs.

    `scores`: as for `choose`; "bn-scale" is |gamma|, or the L2 norm of a row.
    `sites`: the names of the only sites to take channels from. Without it rows are left alone if there are batch norms,
        because their norms are not comparable.

    InputError for a threshold that is not above 0, for unknown sites, and as from `channel_sites`. VanishedError for a
    network with an output that would be constant.
    """
    of_kind("model", model, nn.Module)
    if number("below", below, THRESHOLD) == 0:
        raise InputError(f"below is {below}; expected {THRESHOLD}: no score is below 0")
    chosen = None if sites is None else all_of_kind("sites", sites, str)
    inner = unwrapped(model)
    analysis = None if args is None else Analysis(inner, args, kwargs)
    found = channel_sites(inner) if analysis is None else analysis.sites
    blocked = _blocked(found, chosen)
    cut = _cut(inner, found, score_named(scores), blocked, below)
    if not cut.zeroing:
        log.warning("no channel has a score below %g; the smallest is %.3g", below, cut.smallest)
    notes = {**blocked, **dict.fromkeys(cut.whole, KEPT)}
    return Plan(
        type(inner).__name__,
        stored_shapes(inner, [name for site in found for name in (site.weight, site.bias)]),
        tuple(planned(site, cut.zeroing.get(site.name), None, notes.get(site.name)) for site in found),
        None,
        {} if analysis is None else analysis.size(cut.zeroing).shares(analysis.dense),
        "recombine",
        f"scores below {below:g}",
        cut.largest,
        not_counted=() if analysis is None else analysis.not_counted,
        inputs=tuple(tuple(x.shape) for x in pytree.tree_leaves((args, kwargs)) if isinstance(x, Tensor)),
    )


@dataclass(frozen=True, eq=False)
class _Cut:
    """The channels below the threshold, the largest score among them, the smallest score of all that may go, and the
    names of the sites that would have lost all channels."""

    zeroing: Zeroing
    largest: float
    smallest: float
    whole: tuple[str, ...]


def _cut(
    model: nn.Module, sites: Sequence[ChannelSite], score: Score, blocked: Mapping[str, str], below: float
) -> _Cut:
    units: dict[str, list[ChannelSite]] = defaultdict(list)
    for site in sites:
        units[site.unit].append(site)
    zeroing: dict[str, Tensor] = {}
    largest, smallest, whole = 0.0, float("inf"), list[str]()
    for members in units.values():
        if any(site.name in blocked for site in members):
            continue
        least = torch.stack([scores_of(model, site, score) for site in members]).amin(0)
        smallest = min(smallest, float(least.min()))
        gone = least < below
        if bool(gone.all()):
            gone[least.argmax()] = False
            whole += [site.name for site in members]
        if bool(gone.any()):
            largest = max(largest, float(least[gone].max()))
            zeroing |= {site.name: gone for site in members}
    return _Cut(zeroing, largest, smallest, tuple(whole))


def _blocked(sites: Sequence[ChannelSite], chosen: Sequence[str] | None) -> Mapping[str, str]:
    """Why a site loses no channels, by its name; sites of one unit are blocked together."""
    check_names(sites, chosen)
    scales = any(site.kind == "scale" and site.blocked is None for site in sites)

    def reason(site: ChannelSite) -> str | None:
        if site.blocked is not None:
            return site.blocked
        if chosen is not None:
            return None if site.name in chosen else NOT_GIVEN
        return NO_SCALE if scales and site.kind != "scale" else None

    found = {site.name: why for site in sites if (why := reason(site)) is not None}
    return blocked_units(sites, found)
