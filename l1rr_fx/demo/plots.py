"""The demo's plots: what each layer's channels are worth, the scales before and after, what each layer keeps, and where
the predicted time goes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import nn

from l1rr_fx.method.planning.curves import Curve
from l1rr_fx.method.planning.explain import Explanation
from l1rr_fx.method.planning.plan import Plan

COLUMNS = 5
BEFORE, AFTER = "#9aa5b1", "#c2185b"


def write_curves(curves: Mapping[str, Curve], plan: Plan, path: Path) -> None:
    """Each layer's attention loss by the share of its channels zeroed, and how far the plan goes."""
    sites = [site for site in plan.sites if site.name in curves]
    figure, panels = _grid(len(sites))
    for axes, site in zip(panels, sites, strict=False):
        counts = range(curves[site.name].counts[-1] + 1)
        axes.plot([n / site.channels for n in counts], [curves[site.name].at(n) for n in counts], color="black", lw=1)
        axes.axvline(len(site.zeroed) / site.channels, color=AFTER, lw=1)
        axes.set_title(site.name, fontsize=6, pad=2)
        axes.set_ylim(0, 1)
    figure.suptitle(
        "attention lost by the share of a layer's channels zeroed alone; the line: zeroed in the plan", fontsize=9
    )
    figure.savefig(path, dpi=100)


def write_scales(before: nn.Module, after: nn.Module, path: Path) -> None:
    """How many channels have which |gamma|, on a logarithmic scale, before and after."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.subplots()
    floor = 1e-4
    bins = [floor * 10 ** (n / 8) for n in range(8 * 5)]
    for model, colour, label in ((before, BEFORE, "before"), (after, AFTER, "after")):
        scales = torch.cat([m.weight.detach().abs() for m in model.modules() if isinstance(m, nn.BatchNorm2d)])
        label = f"{label}: {int((scales == 0).sum()):,} of {len(scales):,} are 0"
        axes.hist(scales.clamp(min=1.1 * floor).tolist(), bins, color=colour, alpha=0.6, label=label, log=True)
    axes.set_xscale("log")
    axes.set_xlabel("|gamma|; the first bar holds all below 0.0001")
    axes.set_ylabel("channels")
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=100)


def write_kept(plan: Plan, path: Path) -> None:
    """How many channels each layer has, and how many the plan keeps."""
    figure = Figure(figsize=(7, 0.17 * len(plan.sites) + 0.8), layout="constrained")
    axes = figure.subplots()
    names = [site.name for site in plan.sites]
    axes.barh(names, [site.channels for site in plan.sites], color=BEFORE, label="zeroed")
    axes.barh(names, [site.channels - len(site.zeroed) for site in plan.sites], color=AFTER, label="kept")
    axes.invert_yaxis()
    axes.margins(y=0.01)
    axes.tick_params(labelsize=6)
    axes.set_xlabel("channels", fontsize=8)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=100)


def write_time(explained: Explanation, path: Path) -> None:
    """Where the predicted time of a network goes before and after a plan, and the loss by time of the plans that its
    moves make."""
    figure = Figure(figsize=(9, 3), layout="constrained")
    bars, curve = figure.subplots(1, 2)
    columns = {"dense": explained.before, "pruned": explained.after}
    below = [0.0] * len(columns)
    for part, colour in (("launch", BEFORE), ("compute", AFTER), ("traffic", "#5c7cfa")):
        heights = [getattr(each, part) for each in columns.values()]
        bars.bar(list(columns), heights, bottom=below, color=colour, label=part)
        below = [low + height for low, height in zip(below, heights, strict=True)]
    bars.set_ylabel("predicted ms")
    bars.legend(fontsize=8)
    moves = sorted(explained.curve, key=lambda move: -move.latency)
    curve.plot([1.0, *(move.latency for move in moves)], [0.0, *(move.loss for move in moves)], color="black", lw=1)
    if explained.last_move is not None:
        curve.plot([explained.last_move.latency], [explained.last_move.loss], "o", color=AFTER, label="the plan")
        curve.legend(fontsize=8)
    curve.invert_xaxis()
    curve.set_xlabel("predicted time, as a share of the dense")
    curve.set_ylabel("loss")
    figure.savefig(path, dpi=100)


def _grid(count: int) -> tuple[Figure, list[Any]]:
    rows = math.ceil(count / COLUMNS)
    figure = Figure(figsize=(9, 1.2 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False).flatten().tolist()
    for axes in panels[count:]:
        axes.set_axis_off()
    for axes in panels:
        axes.tick_params(labelsize=5)
    return figure, panels
