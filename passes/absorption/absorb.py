"""Absorption as one function: it finds the constant channels, changes their readers, and says where they went."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from passes.absorption.columns import Reader, constant_readers
from passes.absorption.edits import Edits
from passes.absorption.gates import Prices, split_gates
from passes.absorption.maps import fixed_maps
from passes.absorption.record import moved_constants, staying_constants
from passes.absorption.shifts import Meeting, clear_shifts, meetings, move_shift, replace_constants, split_idle_shifts
from passes.accounts import Constant
from passes.analysis.liveness import Facts, channel_facts, facts_without
from passes.analysis.program import Program
from passes.rules.base import Rule


@dataclass(frozen=True, eq=False)
class Absorbed:
    """The program of a canonical graph after its constant channels were absorbed, its facts, and where they went."""

    program: Program
    facts: Facts
    constants: tuple[Constant, ...] = ()


@dataclass(frozen=True)
class _FreeCopies:
    """No machine in particular: what costs no multiplication is free."""

    multiple: int = 1

    def contraction(self, macs: float, inputs: int, outputs: int) -> float:
        return macs

    def traffic(self, size: float) -> float:
        return 0.0


FREE_COPIES = _FreeCopies()


@torch.no_grad()
def absorb_constants(
    module: GraphModule,
    rule_for: Callable[[Node], Rule],
    *,
    inference: bool = False,
    prices: Prices = FREE_COPIES,
) -> Absorbed:
    """Absorb the constant channels of a canonical graph, in place.

    The tensors that the graph shares with the user's model stay as they are. `inference`: the network is for evaluation
    alone, so that a batch norm of a constant is a constant. `prices` says whether fewer multiplications pay for an
    addition; by default they always do.
    """
    program, facts = _analysed(module, rule_for, inference)
    if not _has_constants(program, facts):
        return Absorbed(program, facts)
    edits = Edits(module)
    gates = split_gates(program, facts, edits, prices)
    if gates:
        program, facts = _analysed(module, rule_for, inference)
    readers = constant_readers(program, facts, fixed_maps(program, facts))
    sums = list(meetings(program, facts))
    moved = _moved(program, facts, readers, sums)
    constants = tuple(moved_constants(readers, moved.columns, sums, moved.labels))
    for reader, columns in zip(readers, moved.columns, strict=True):
        reader.absorb(edits, columns)
    clear_shifts(program, moved.facts, edits)
    program, facts = _analysed(module, rule_for, inference)
    for meeting, labels in zip(sums, moved.labels, strict=True):
        if bool(labels.any()):
            move_shift(program, facts, edits, meeting, labels)
    changed = replace_constants(program, facts, edits) | split_idle_shifts(program, facts, edits)
    if changed or any(bool(labels.any()) for labels in moved.labels):
        program, facts = _analysed(module, rule_for, inference)
    return Absorbed(program, facts, (*gates, *constants, *staying_constants(program, facts)))


def _analysed(module: GraphModule, rule_for: Callable[[Node], Rule], inference: bool) -> tuple[Program, Facts]:
    program = Program(module, rule_for, inference=inference)
    return program, channel_facts(program)


def _has_constants(program: Program, facts: Facts) -> bool:
    """Whether a tensor that is computed from an input has a channel that is constant, not zero, and needed."""
    return any(
        bool((known.is_constant & ~known.is_zero & facts.needed[node]).any())
        for node, known in facts.ranges.beyond.items()  # others have zeros at most
        if node in program.at and node in program.fed
    )


@dataclass(frozen=True, eq=False)
class _Moved:
    """What each reader and each sum needs no more, and the facts of the network in which they do not."""

    columns: tuple[Tensor, ...]
    labels: tuple[Tensor, ...]
    facts: Facts


def _moved(program: Program, facts: Facts, readers: Sequence[Reader], sums: Sequence[Meeting]) -> _Moved:
    """First as if everything could go; then one channel stays where something pads, and what is needed anyway."""
    without = {key: mask for reader in readers for key, mask in reader.cuts(facts, reader.constant)}
    of_sums = {(each.site.node, each.index): each.constant for each in sums}
    least = facts_without(program, facts, {**without, **of_sums})
    columns = tuple(reader.moved(reader.labels(least.needed[reader.sites[0].inputs[0]])) for reader in readers)
    cuts = dict(of_sums)
    for reader, gone in zip(readers, columns, strict=True):
        cuts.update(reader.cuts(facts, gone))
    found = facts_without(program, facts, cuts)
    labels = tuple(each.constant & ~found.needed[each.node] for each in sums)
    cuts.update({(each.site.node, each.index): gone for each, gone in zip(sums, labels, strict=True)})
    return _Moved(columns, labels, facts_without(program, facts, cuts))
