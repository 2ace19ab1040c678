"""Blocks: residual branches that go as a whole, with all of their kernels and the launches of these.

A branch is all that is computed for one operand of a sum alone, where the other operand is computed for other readers
too. It goes when the layer that ends it is zero: then the operand is zero, and nothing reads the rest of the branch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from l1rr_fx.method.planning.curves import Unit
from l1rr_fx.method.planning.families import Family
from l1rr_fx.method.sites.producers import producers
from l1rr_fx.method.sites.zeroing import ChannelSite, ZeroedProgram, zeroed_values
from passes.analysis.liveness import channel_facts
from passes.analysis.program import Program
from passes.graph.nodes import operator_name


@dataclass(frozen=True, eq=False)
class Block(Unit):
    """A branch that one zeroed site ends: `branch` has the calls that are only there for it, `meeting` is the sum with
    the `other` operand. It counts as a unit with one channel."""

    branch: frozenset[Node]
    meeting: Node
    other: Node

    @property
    def name(self) -> str:
        return f"the block that {self.sites[0].name} ends"

    @property
    def channels(self) -> int:
        return 1

    @property
    def counts(self) -> tuple[int, ...]:
        return (1,)

    def zeroing(self, count: int) -> dict[str, Tensor]:
        """The mask of the whole site once the block is gone."""
        return {site.name: torch.ones(site.channels, dtype=torch.bool) for site in self.sites} if count else {}

    @property
    def is_copied(self) -> bool:
        """Whether a concatenation, into which the sum is written in place, copies the other operand without it."""
        readers = list(self.meeting.users)
        kept_elsewhere = any(user is not self.meeting and user not in self.branch for user in self.other.users)
        return len(readers) == 1 and operator_name(readers[0]) == "cat" and kept_elsewhere

    def holds(self, family: Family) -> bool:
        """Whether all that a family makes is computed for this block alone, and is not its end."""
        read = {str(node.target) for call in self.branch for node in call.all_input_nodes if node.op == "get_attr"}
        mine = all(site.weight in read for site in family.sites)
        return mine and not any(site.name == self.sites[0].name for site in family.sites)


def blocks(
    program: Program, sites: Sequence[ChannelSite], values: Mapping[str, Tensor], kept: frozenset[str]
) -> tuple[Block, ...]:
    """The blocks of a network in its order; a site that is `kept` whole ends none."""
    by_weight = {site.weight: site for site in sites if site.name not in kept}
    made = {each.site.node: by_weight[each.weight] for each in producers(program) if each.weight in by_weight}
    found = [
        (block, operand)
        for site in program.sites
        if site.rule.is_sum and len(site.inputs) == 2
        for operand, other in (site.inputs, site.inputs[::-1])
        if other.op != "get_attr" and not set(_branch(other, site.node)) & made.keys()
        if (block := _block(_branch(operand, site.node), site.node, other, made)) is not None
    ]
    zeroing = {name: mask for block, _ in found for name, mask in block.zeroing(1).items()}
    zero = channel_facts(ZeroedProgram(program, zeroed_values(sites, values, zeroing))).zero
    return tuple(block for block, operand in found if bool(zero[operand].all()))


def _block(branch: Sequence[Node], meeting: Node, other: Node, made: Mapping[Node, ChannelSite]) -> Block | None:
    ends = [made[node] for node in branch if node in made]
    return Block((ends[0],), torch.zeros(1, dtype=torch.int64), frozenset(branch), meeting, other) if ends else None


def _branch(operand: Node, meeting: Node) -> list[Node]:
    """The calls that are computed for an operand of a sum alone, the last ones first."""
    found: dict[Node, None] = {}
    waiting = [operand] if operand.op == "call_function" and list(operand.users) == [meeting] else []
    while waiting:
        node = waiting.pop(0)
        found[node] = None
        given = (each for each in node.all_input_nodes if each.op == "call_function" and each not in found)
        waiting += [each for each in given if all(user in found for user in each.users)]
    return list(found)
