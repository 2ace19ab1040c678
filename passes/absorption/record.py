"""The record of an absorption: where the constant channels of each tensor went, and why some stay."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor
from torch.fx import Node

from passes.absorption.columns import Reader
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
            yield Constant(site.inputs[0].name, site.node.name, int(gone.sum()), "bias" if reader.uniform else "merged")
    for meeting, gone in zip(sums, labels, strict=True):
        if bool(gone.any()):
            yield Constant(meeting.node.name, meeting.site.node.name, int(gone.sum()), "shift")


def staying_constants(program: Program, facts: Facts) -> Iterator[Constant]:
    """The constants that something still reads which does not hand them on as constants."""
    for site in program.sites:
        for index, node in enumerate(site.inputs):
            known = facts.ranges.get(node)
            if known is None or node not in program.at or node not in program.fed:
                continue
            stopped = known.is_constant & ~known.is_zero & facts.asked[site.node][index]
            if (count := int((stopped & ~_handed_on(site, facts, node)).sum())) > 0:
                yield Constant(node.name, site.node.name, count, "stays", _reason(site))
    for node in program.output_tensors:
        known = facts.ranges.get(node)
        if known is not None and node in program.at and node in program.fed:
            if count := int((known.is_constant & ~known.is_zero).sum()):
                yield Constant(node.name, "output", count, "stays", OUTPUT)


def _handed_on(site: Site, facts: Facts, node: Node) -> Tensor:
    """Which labels of an input are constant in the result too, or leave the call as they came."""
    mask = facts.zero[node].new_zeros(facts.zero[node].shape)
    out = site.outputs[0]
    if out is None:
        return ~mask
    known = facts.ranges.get(out)
    if site.rule.is_movement:
        return ~mask if known is not None and bool(known.is_constant.any()) else mask
    if site.rule.weight is None and known is not None and known.low.dim() == mask.dim():
        return (
            known.expand(facts.zero[out].shape).fitted(tuple(mask.shape)).is_constant
            if _fits(mask, known.low)
            else mask
        )
    return mask


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
