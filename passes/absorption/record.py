"""The record of an absorption: where the constant channels of each tensor went, and why some stay."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.fx import Node

from passes.absorption.columns import Reader
from passes.absorption.maps import FixedMaps, fixed_maps
from passes.absorption.shifts import Meeting
from passes.accounts import Constant
from passes.analysis.liveness import Facts
from passes.analysis.program import Program
from passes.graph.nodes import operator_label
from passes.rules.base import Site

PADDED = "padding: one channel stays for all of them"
DEPTHWISE = "depthwise with padding: a map that differs at the border"
OUTPUT = "returned by the network"


def moved_constants(
    readers: Sequence[Reader], columns: Sequence[Tensor], sums: Sequence[Meeting], labels: Sequence[Tensor]
) -> Iterator[Constant]:
    """What went into biases, merged columns and shifts."""
    for reader, gone in zip(readers, columns, strict=True):
        for site in reader.sites if bool(gone.any()) else ():
            yield Constant(site.inputs[0].name, site.node.name, int(gone.sum()), "bias" if reader.even else "merged")
    for meeting, gone in zip(sums, labels, strict=True):
        if bool(gone.any()):
            yield Constant(meeting.node.name, meeting.site.node.name, int(gone.sum()), "shift")


def staying_constants(program: Program, facts: Facts) -> Iterator[Constant]:
    """The channels that no input changes and that something still reads which does not hand them on as such."""
    maps = fixed_maps(program, facts)
    for site in program.sites:
        for index, node in enumerate(site.inputs):
            if (fixed := _fixed(program, facts, maps, node)) is None:
                continue
            stopped = fixed & facts.asked[site.node][index]
            if bool(stopped.any()) and (count := int((stopped & ~_handed_on(site, facts, maps, node)).sum())) > 0:
                yield Constant(node.name, site.node.name, count, "stays", _reason(site))
    for node in program.output_tensors:
        if (fixed := _fixed(program, facts, maps, node)) is not None and (count := int(fixed.sum())):
            yield Constant(node.name, "output", count, "stays", OUTPUT)


def _fixed(program: Program, facts: Facts, maps: Mapping[Node, FixedMaps], node: Node) -> Tensor | None:
    """Which labels of a tensor that is computed from an input no input changes, and are not zero; None if none."""
    known = facts.ranges.get(node)
    if node not in program.at or node not in program.fed or (known is None and node not in maps):
        return None
    fixed = torch.zeros_like(facts.zero[node]) if known is None else known.is_constant & ~known.is_zero
    return fixed | maps[node].is_known if node in maps else fixed


def _handed_on(site: Site, facts: Facts, maps: Mapping[Node, FixedMaps], node: Node) -> Tensor:
    """Which labels of an input are the same for all inputs in the result too, or leave the call as they came."""
    mask = facts.zero[node].new_zeros(facts.zero[node].shape)
    out = site.outputs[0]
    if out is None or (out in maps and site.rule.spreads(site) is not None):
        return ~mask
    known = facts.ranges.get(out)
    if site.rule.is_movement:
        return ~mask if out in maps or (known is not None and bool(known.is_constant.any())) else mask
    if site.rule.weight is not None or known is None or known.low.dim() != mask.dim() or not _fits(mask, known.low):
        return mask
    return known.expand(facts.zero[out].shape).fitted(tuple(mask.shape)).is_constant


def _fits(mask: Tensor, other: Tensor) -> bool:
    return all(a == b or 1 in (a, b) for a, b in zip(mask.shape, other.shape, strict=True))


def _reason(site: Site) -> str:
    if site.rule.weight is not None:
        return DEPTHWISE if site.rule.keeps_channels(site) else PADDED
    if site.rule.is_affine:
        return "batch norm: another constant in training than in evaluation"
    if site.rule.is_sum:
        return "added to what is not constant, and needed elsewhere"
    return f"read by {operator_label(site.node)} together with what is not constant"
