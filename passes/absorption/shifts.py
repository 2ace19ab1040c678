"""The layers that constants come from, and the sums in which they meet what is not constant.

    s = a + b        where b is the constant c in some channels and a is not
    s = (a + b') + c                    b' is zero there, so that b's branch need not compute these channels

c goes into the shift of the layer that a comes from, where nothing else reads it; or into the readers of the sum, where
all of them can take it; otherwise it is one addition for each channel. A branch that is constant altogether is left out
with all its calls.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.fx import Node

from passes.absorption.columns import add_to_biases, are_private
from passes.absorption.edits import Edits, tensor_readers
from passes.analysis.liveness import Facts
from passes.analysis.program import Program
from passes.graph.nodes import flat_inputs
from passes.graph.ranges import Range
from passes.rules.base import Site

aten = torch.ops.aten


@dataclass(frozen=True, eq=False)
class Meeting:
    """Constant labels of one operand of a sum whose other operand is not constant there."""

    site: Site
    index: int
    constant: Tensor
    value: Tensor

    @property
    def node(self) -> Node:
        return self.site.inputs[self.index]

    @property
    def other(self) -> Node:
        return self.site.inputs[1 - self.index]


def meetings(program: Program, facts: Facts) -> Iterator[Meeting]:
    """The operands of sums that have constant labels which are not zero, and of which something depends."""
    for site in program.sites:
        if not site.rule.adds(site) or len(set(site.inputs)) != 2:
            continue
        for index, node in enumerate(site.inputs):
            known = facts.ranges.get(node)
            if known is None or node not in program.at or node not in program.fed:
                continue
            other = facts.ranges.get(site.inputs[1 - index])
            constant = known.is_constant & ~known.is_zero & facts.asked[site.node][index]
            if len(site.shape(site.inputs[1 - index])) > known.low.dim():
                continue
            if other is not None:
                constant = constant & ~_hull(other, constant).is_constant
            if bool(constant.any()):
                yield Meeting(site, index, constant, torch.where(constant, known.low, 0.0))


def _hull(known: Range, like: Tensor) -> Range:
    """A range in the compact shape of a mask, which broadcasts against its own."""
    shape = torch.broadcast_shapes(known.low.shape, like.shape)
    return known.expand(shape).fitted(tuple(like.shape))


def clear_shifts(program: Program, facts: Facts, edits: Edits) -> None:
    """Make the shifts zero that give constants of which nothing depends, so that these channels are zero."""
    gone: dict[str, Tensor] = {}
    for site in program.sites:
        shift = site.rule.shift(site)
        if shift is None:
            continue
        (out,) = (each for each in site.outputs[:1])
        idle = torch.zeros(program.shape(shift), dtype=torch.bool)
        if out is not None and (known := facts.ranges.get(out)) is not None:
            idle = _by_channel(site, known.is_constant & ~facts.needed[out], idle)
        elif out is None:
            idle = ~idle
        for name in edits.names(str(shift.target)):
            gone[name] = gone[name] & idle if name in gone else idle
    readers = tensor_readers(program)
    for name, idle in gone.items():
        value = edits.tensor(name)
        if bool((idle & (value != 0).cpu()).any()) and _is_only_added(program, edits, readers, name):
            edits.value(name)[idle.to(value.device)] = 0


def _by_channel(site: Site, mask: Tensor, like: Tensor) -> Tensor:
    """A mask of a result's labels as a mask of the shift, True where it is along all other axes."""
    own = site.rule.shift_axes(site)
    for axis in range(mask.dim()):
        if axis not in own and mask.shape[axis] != 1:
            mask = mask.all(axis, keepdim=True)
    return mask.expand([n if a in own else 1 for a, n in enumerate(site.out_shape)]).reshape(like.shape)


def _is_only_added(program: Program, edits: Edits, readers: Mapping[str, frozenset[Node]], name: str) -> bool:
    """Whether every call that reads a parameter adds it at last, and reads it in no other place."""
    names = edits.names(name)
    for reader in readers[name]:
        site = program.at_call(reader)
        shift = None if site is None else site.rule.shift(site)
        if shift is None or str(shift.target) not in names:
            return False
        if sum(str(node.target) in names for node in flat_inputs(reader) if node.op == "get_attr") != 1:
            return False
    return True


def move_shift(program: Program, facts: Facts, edits: Edits, meeting: Meeting, moved: Tensor) -> None:
    """Take the constants `moved` out of the operand, whose zeros are those of `facts`, and add them elsewhere."""
    graph, call = program.module.graph, meeting.site.node
    if not bool(facts.zero[meeting.node][moved].all()):
        operand = call.args[meeting.index]  # no longer `meeting.node` if a shift was added after that
        assert isinstance(operand, Node)
        with graph.inserting_before(call):
            keep = edits.new_buffer(operand, (~moved).double(), before=call)
            product = graph.call_function(aten.mul.Tensor, (operand, keep))
        product.meta["val"] = operand.meta["val"]
        call.replace_input_with(operand, product)
    value = torch.where(moved, meeting.value, 0.0)
    if (name := _producer_shift(program, edits, meeting, value)) is not None:
        _add_to(edits, name, value)
    elif (takers := _takers(program, edits, call, value)) is not None:
        for take in takers:
            take()
    else:
        add_after(program, edits, call, value)


def _producer_shift(program: Program, edits: Edits, meeting: Meeting, value: Tensor) -> str | None:
    """The shift of the layer that gives the other operand, if nothing else reads either."""
    maker = program.at.get(meeting.other)
    shift = None if maker is None else maker.rule.shift(maker)
    if maker is None or shift is None or len(meeting.other.users) != 1 or maker.out_shape != meeting.site.out_shape:
        return None
    name = str(shift.target)
    line = [a for a, n in enumerate(value.shape) if n != 1] == [1] and edits.tensor(name).shape == value.shape[1:2]
    alone = len(shift.users) == 1 and len(edits.names(name)) == 1
    return name if line and alone and maker.rule.shift_axes(maker) == (1,) else None


def _takers(program: Program, edits: Edits, node: Node, value: Tensor) -> list[Callable[[], None]] | None:
    """What lets all readers of a tensor read it without a constant that is added to it; None if one of them cannot.

    A weight without padding takes W c into its bias. Its own gradient loses c times that of the bias, which is zero in
    front of a batch norm. A sum takes c into the shift of its other operand, or its own readers do.
    """
    found: list[Callable[[], None]] = []
    readers = tensor_readers(program)
    for user in node.users:
        site = program.at_call(user)
        if site is None or [a for a, n in enumerate(value.shape) if n != 1] != [1]:
            return None
        columns = site.rule.columns(site)
        if columns is not None and columns.even and columns.axis == 1 and are_private([site], readers, biases=True):
            if not (program.inference or all(each.target is aten.batch_norm.default for each in user.users)):
                return None
            found.append(partial(add_to_biases, edits, [site], columns.response(value.view(-1))))
        elif site.rule.adds(site) and len(set(site.inputs)) == 2 and site.out_shape == program.shape(node):
            index = site.inputs.index(node)
            name = _producer_shift(program, edits, Meeting(site, index, value != 0, value), value)
            more = _takers(program, edits, user, value) if name is None else [partial(_add_to, edits, name, value)]
            if more is None:
                return None
            found += more
        else:
            return None
    return found


def _add_to(edits: Edits, name: str, value: Tensor) -> None:
    own = edits.value(name)
    own.add_(value.view(-1).to(own))


def replace_constants(program: Program, facts: Facts, edits: Edits) -> bool:
    """Let element-wise calls read a number for each channel in place of a tensor that is constant altogether.

    Says whether there was one: a gate, say, that no input opens any more is a scale.
    """
    found = False
    for site in program.sites:
        if not site.rule.is_pointwise or len(set(site.inputs)) < 2:
            continue
        for node in dict.fromkeys(site.inputs):
            known = facts.ranges.get(node)
            others = [other for other in site.inputs if other is not node]
            whole = any(program.shape(other) == site.out_shape for other in others)
            if known is None or node not in program.at or node not in program.fed or not whole:
                continue
            if bool(facts.zero[node].all()):
                continue
            if bool(known.is_constant.all()):
                buffer = edits.new_buffer(node, known.low, before=site.node)
                site.node.replace_input_with(node, buffer)
                found = True
    return found


def split_idle_shifts(program: Program, facts: Facts, edits: Edits) -> bool:
    """Add the shift of a depthwise layer after it, in channels whose input is zero: the layer need not compute them.

    Says whether there was one.
    """
    found = False
    readers = tensor_readers(program)
    for site in program.sites:
        shift, known = site.rule.shift(site), facts.ranges.get(site.node)
        if shift is None or known is None or site.rule.weight is None or not site.rule.keeps_channels(site):
            continue
        idle = known.is_constant & ~known.is_zero & facts.needed[site.node] & facts.zero[site.inputs[0]]
        name = str(shift.target)
        if not bool(idle.any()) or readers[name] != {site.node} or len(edits.names(name)) > 1:
            continue
        add_after(program, edits, site.node, torch.where(idle, known.low, 0.0))
        bias = edits.value(name)
        bias[_by_channel(site, idle, torch.zeros(bias.shape, dtype=torch.bool)).to(bias.device)] = 0
        found = True
    return found


def add_after(program: Program, edits: Edits, call: Node, value: Tensor) -> None:
    """Let all readers of a call read its result plus a constant."""
    with program.module.graph.inserting_after(call):
        total = program.module.graph.call_function(aten.add.Tensor, (call,))
    total.meta["val"] = call.meta["val"]
    call.replace_all_uses_with(total)
    total.args = (call, edits.new_buffer(call, value, before=total))
