"""What a plan may remove: the units of a model with the order of their channels, and why the other sites are whole."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.fx import Node

from l1rr_fx.method.attention.loss import FeatureAttention
from l1rr_fx.method.planning.curves import Unit
from l1rr_fx.method.planning.scores import Score, scores_of
from l1rr_fx.method.planning.search import KEPT_CHANNELS, KEPT_SHARE
from l1rr_fx.method.sites.budget import Analysis
from l1rr_fx.method.sites.zeroing import ChannelSite, blocked_units, check_names
from passes.analysis.coupling import residual_values
from passes.errors import InputError

UNSEEN = "no feature map depends on it"
NOT_GIVEN = "not among the sites given"
NO_SCALE = "no batch norm: only with attention, or named in sites="
SMALL = "no more channels than a layer keeps"
WHOLE = "the mode leaves sums of branches whole"


@dataclass(frozen=True, eq=False)
class RankedUnit:
    """A unit with the scores of the channels of its order."""

    unit: Unit
    scores: list[float]


def blocked_sites(
    analysis: Analysis, attention: FeatureAttention | None, chosen: Sequence[str] | None
) -> Mapping[str, str]:
    """Why a site loses no channels, by its name."""
    check_names(analysis.sites, chosen)
    whole = _kept_whole(analysis)
    scales = any(site.kind == "scale" and site.blocked is None for site in analysis.sites)

    def reason(site: ChannelSite) -> str | None:
        if site.blocked is not None:
            return site.blocked
        if chosen is not None and site.name not in chosen:
            return NOT_GIVEN
        if site.weight in whole:
            return WHOLE
        if attention is not None and not attention.reaches([site.weight, site.bias or site.weight]):
            return UNSEEN
        if attention is None and chosen is None and scales and site.kind != "scale":
            return NO_SCALE
        return SMALL if site.channels <= least_width(site.channels) else None

    found = {site.name: why for site in analysis.sites if (why := reason(site)) is not None}
    return blocked_units(analysis.sites, found)


def _kept_whole(analysis: Analysis) -> frozenset[str]:
    """The parameters that scale or make the channels of sums of branches, if the mode is "exclude"."""
    if analysis.options.mode != "exclude":
        return frozenset()
    read = (argument for node in residual_values(analysis.program) for argument in node.args)
    return frozenset(str(node.target) for node in read if isinstance(node, Node) and node.op == "get_attr")


def ranked_units(model: nn.Module, analysis: Analysis, score: Score, blocked: Mapping[str, str]) -> list[RankedUnit]:
    """The units with removable channels, in the order of their scores; channels that are zero already come first."""
    members: dict[str, list[ChannelSite]] = defaultdict(list)
    for site in analysis.sites:
        members[site.unit].append(site)
    already = analysis.already_zero()
    found = []
    for sites in members.values():
        if any(site.name in blocked for site in sites):
            continue
        total = torch.stack([scores_of(model, site, score) for site in sites]).sum(0)
        gone = torch.stack([already.get(s.name, torch.zeros(s.channels, dtype=torch.bool)) for s in sites]).all(0)
        total = torch.where(gone, torch.minimum(total, torch.zeros_like(total)), total)
        order = total.argsort(stable=True)[: len(total) - least_width(len(total))]
        found.append(RankedUnit(Unit(tuple(sites), order), total[order].tolist()))
    if not found:
        raise InputError(f"no layer has channels that may go: {_reasons(blocked)}")
    return found


def least_width(channels: int) -> int:
    """How many of so many channels a layer keeps at least."""
    return max(KEPT_CHANNELS, math.ceil(KEPT_SHARE * channels))


def _reasons(blocked: Mapping[str, str]) -> str:
    """The first sites with their reasons; sites that were not given come last."""
    reasons = sorted(blocked.items(), key=lambda each: each[1] == NOT_GIVEN)
    return "; ".join(f"{name}: {reason}" for name, reason in reasons[:8])
