"""What a family of operators must tell the compiler.

Forward, `zero`: which elements of the results are zero for every input. Backward, `needed`: which elements of the
inputs some live element of the results depends on. Then, from the outputs towards the inputs: `legalise` turns the
layouts that readers would like into ones that the operator can give; `requests` says which layouts its inputs must then
have. Last, `emit` writes the call of the small network. All masks have the compact shape of their tensor (see
`passes.graph.layout`).

A rule that cannot follow a case natively says so by returning None from `requests`: the compiler then gives the operator
its inputs whole, zeros filled in, which is always right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from passes.graph.layout import Layout, boxed
from passes.graph.selection import Selection
from passes.graph.values import Values
from passes.rules.emitter import Emitter
from passes.rules.memo import Memo


@dataclass(frozen=True, eq=False)
class LayoutRequest:
    """The layout that a call asks of an input, and which of its labels the call really uses (None: all)."""

    layout: Layout
    used: Tensor | None = None


class AnyLayout:
    """The call takes its input in whatever layout it comes; `Rule.accept` says how."""


class Unread:
    """The call does without this input: it is zero or nothing depends on it."""


GROUPS = "groups of a convolution made equally wide"
ROWS = "rows of a view or a product made equally wide"
COLUMNS = "columns of zeros: on this target cheaper than a copy without them"
ALONE = "depthwise: a dead input under a live bias"

ANY_LAYOUT, UNREAD = AnyLayout(), Unread()
Request = LayoutRequest | AnyLayout | Unread


@dataclass(frozen=True, eq=False)
class Contraction:
    """The size of a matrix product for the accounts: what one output element sums, how many outputs there are, and the
    entries of the weight, if it has one."""

    inputs: int
    outputs: int
    macs: int
    weights: int = 0


@dataclass(eq=False)
class Site:
    """A call site: one operator call of a graph.

    `inputs` are the tensors that carry facts, `parameters` those that the rule slices itself, `outputs` the nodes of the
    results (None for a result that nobody reads).
    """

    values: Values
    node: Node
    rule: Rule
    inputs: tuple[Node, ...]
    outputs: tuple[Node | None, ...]
    parameters: tuple[Node, ...]
    memo: Memo = field(default_factory=Memo)

    def shape(self, node: Node) -> tuple[int, ...]:
        """The original full shape of a tensor."""
        return self.values.shape(node)

    @property
    def out_shape(self) -> tuple[int, ...]:
        """The original full shape of the first result that is used."""
        return self.values.shape(next(out for out in self.outputs if out is not None))

    def argument(self, index: int, name: str, default: Any = None) -> Any:
        """An argument of the call, given by position or by name; sizes are read at the example input."""
        node = self.node
        value = node.args[index] if index < len(node.args) else node.kwargs.get(name, default)
        return self.values.concrete(value)

    def __str__(self) -> str:
        return f"{self.node.name} = {self.node.target}({', '.join(a.name for a in self.node.all_input_nodes)})"


@dataclass(frozen=True, eq=False)
class SiteFacts:
    """The facts at one site: what is live of its results; what is zero and what is live of its inputs, and what the
    call itself asks of them; and the order in which the labels of the results should come (`passes.arrange`; None or
    missing: the natural one)."""

    lives: tuple[Tensor, ...]
    zeros: tuple[Tensor, ...]
    inputs_live: tuple[Tensor, ...]
    asked: tuple[Tensor, ...]
    multiple: int = 1
    ranks: tuple[Tensor | None, ...] = ()

    def reads(self, index: int) -> Tensor:
        """What the call itself reads of an input; more of it may be live, for others."""
        return self.asked[index] & ~self.zeros[index]


class Rule:
    """A family of operators of which nothing is known: nothing is zero, everything is needed."""

    family = "unknown"
    reason: str | None = "unknown operator"

    def parameters(self, node: Node) -> tuple[Node | None, ...]:
        """The arguments that the rule slices itself where they are parameters or buffers."""
        return ()

    def zero(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor]:
        """For each result, which elements are zero for every input."""
        return [unlabelled(site, out) for out in site.outputs]

    def ceiling(self, site: Site, zeros: Sequence[Tensor]) -> Tensor | None:
        """Where the result is constant by its weights, a number that it does not exceed, in training and in evaluation;
        infinite elsewhere. None if it is nowhere."""
        return None

    def silenced(self, site: Site, ceiling: Tensor) -> Tensor | None:
        """What of the result is zero where the first input is constant and no larger than `ceiling`; None: nothing."""
        return None

    def needed(self, site: Site, lives: Sequence[Tensor], zeros: Sequence[Tensor]) -> list[Tensor]:
        """For each input, which elements some live element of a result depends on."""
        anything = any(bool(live.any()) for live in lives)
        return [torch.full_like(zero, anything) for zero in zeros]

    def filler(self, site: Site, index: int) -> float:
        """The number that may stand in for elements of an input that are not needed: the results must stay finite."""
        return 0.0

    def legalise(self, site: Site, wanted: Sequence[Layout], facts: SiteFacts) -> list[Layout]:
        """For each result, the layout that the call will give, as near as possible to the one wanted."""
        return list(wanted)

    def growth(self, site: Site) -> str | None:
        """Why the call itself keeps dead channels, if it may."""
        return None

    def requests(self, site: Site, outs: Sequence[Layout], facts: SiteFacts) -> list[Request] | None:
        """For each input, the layout that the call needs to give `outs`; None where it must have everything whole."""
        return None

    def gives(self, site: Site, outs: Sequence[Layout]) -> list[Layout]:
        """The layouts in which the call itself gives its results; what differs from `outs` is recombined after it."""
        return list(outs)

    def accept(self, site: Site, index: int, have: Layout) -> Layout:
        """For an input that may come in any layout: the layout in which the call takes it."""
        return have

    def narrowed(self, site: Site, have: Layout, facts: SiteFacts) -> Layout | None:
        """The part that the call reads of an input that it takes as it comes; None if it must or does read all."""
        return None

    def select(self, site: Site, ins: Sequence[Layout], outs: Sequence[Layout]) -> list[Selection]:
        """For each parameter of the site, the part that the call of the small network reads."""
        return [Selection.whole(site.shape(p)) for p in site.parameters]

    def emit(self, site: Site, to: Emitter, ins: Sequence[Layout], outs: Sequence[Layout]) -> list[Node]:
        """Write the call; `to` knows the new inputs and parameters. The results must have the layouts `outs`."""
        return [to.copy()]

    def cost(self, site: Site, ins: Sequence[Layout], outs: Sequence[Layout]) -> Contraction | None:
        """What a contraction costs in the given layouts; None for operators without multiplications that count."""
        return None

    def limit(self, site: Site, facts: SiteFacts) -> Contraction | None:
        """What a contraction costs if only live inputs and live outputs exist."""
        return None


def unlabelled(site: Site, out: Node | None) -> Tensor:
    """The fact that nothing of a result is zero, without labelled axes."""
    rank = len(site.shape(out)) if out is not None else 0
    return torch.zeros((1,) * rank, dtype=torch.bool)


def compact(mask: Tensor) -> tuple[int, ...]:
    """The compact shape of a fact."""
    return tuple(mask.shape)


def box_of(live: Tensor, multiple: int = 1, rank: Tensor | None = None) -> Layout:
    """The smallest layout that holds everything live, each count rounded up to `multiple`; labels in order of `rank`."""
    return boxed(live, multiple, rank)


def replaced(arguments: Sequence[Any], index: int, value: Any) -> tuple[Any, ...]:
    """The arguments with one of them replaced; the list is filled up with None if it is shorter."""
    values = [*arguments, *([None] * (index + 1 - len(arguments)))]
    values[index] = value
    return tuple(values)
