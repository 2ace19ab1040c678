"""The interface between the compiler and a family of operators.

The compiler calls, in this order:

1. liveness, forward: `zero` says which labels of the results are zero for every input;
2. liveness, backward: `needed` says which labels of the inputs a live label of the results depends on;
3. layout assignment, from the outputs to the inputs: `legalise` chooses the layouts that the results will have, as near
   to those that readers request as the operator allows; `requests` says which layouts its inputs must then have;
4. `gives`, where the call itself produces other layouts than its results will have: the rewriter then recombines;
5. `select` says which part of each parameter the small network keeps;
6. `emit` writes the call of the small network.

Masks are bool and have the compact shape of their tensor (`passes.graph.layout`), with an entry for each label: zero
if all elements of the label are zero, needed if one of them is. Every method has a default that is correct for any
operator: nothing is zero, everything is needed. A call is followed if its rule can say which layouts its inputs need.
Otherwise `requests` returns None, and the call reads its inputs whole, with zeros filled in, which is always correct.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from passes.graph.layout import Layout, along
from passes.graph.ranges import Range
from passes.graph.selection import Selection
from passes.graph.values import Values
from passes.rules.emitter import Emitter
from passes.rules.memo import Memo
from passes.rules.weights import Columns


@dataclass(frozen=True, eq=False)
class LayoutRequest:
    """The layout that a call requires of an input. `used` masks the labels that it uses (None: all of them)."""

    layout: Layout
    used: Tensor | None = None


class AnyLayout:
    """The call takes its input in any layout; `Rule.accept` says in which one, given the layout that the input has."""


class Unread:
    """The call does not read this input: the input is zero, or nothing depends on it."""


ANY_LAYOUT, UNREAD = AnyLayout(), Unread()
Request = LayoutRequest | AnyLayout | Unread

GROUPS = "groups of a convolution made equally wide"
ROWS = "rows of a view or a product made equally wide"
COLUMNS = "columns of zeros: on this target cheaper than a copy without them"
ALONE = "depthwise: a dead input under a live bias"


@dataclass(frozen=True, eq=False)
class Contraction:
    """The size of a contraction as a matrix product.

    `inputs` counts the elements that one output element sums, `outputs` the output channels, `macs` the multiply-
    accumulates, `weights` the entries of the weight (0 where there is none).
    """

    inputs: int
    outputs: int
    macs: int
    weights: int = 0


@dataclass(frozen=True)
class WeightForm:
    """How the weight of a contraction is stored.

    `linear`: its channels lie along the last axis of its input, else along axis 1. `transposed`: the input channels are
    the first axis of the weight, the output channels the second.
    """

    linear: bool = False
    transposed: bool = False


@dataclass(eq=False)
class Site:
    """A call site: one operator call of a canonical graph.

    `inputs` are the tensors whose liveness and layout the compiler decides, `parameters` those that the rule slices
    itself, `outputs` the nodes of the results (None for a result without readers).
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
        """An argument of the call, given by position or by name; sizes have their value at the example input."""
        node = self.node
        value = node.args[index] if index < len(node.args) else node.kwargs.get(name, default)
        return self.values.concrete(value)

    def __str__(self) -> str:
        return f"{self.node.name} = {self.node.target}({', '.join(a.name for a in self.node.all_input_nodes)})"


@dataclass(frozen=True, eq=False)
class SiteFacts:
    """The liveness of the tensors at one call site, and what the user asks of layouts.

    `lives`: which labels of each result are live. `zeros`: which of each input are zero. `inputs_live`: which of each
    input are live for any of its readers. `asked`: which of each input this call needs. `multiple`: channel counts are
    rounded up to it. `ranks`: the position of each label in the order chosen for a result (None or missing: the natural
    order), see `passes.assignment.channel_order`.
    """

    lives: tuple[Tensor, ...]
    zeros: tuple[Tensor, ...]
    inputs_live: tuple[Tensor, ...]
    asked: tuple[Tensor, ...]
    multiple: int = 1
    ranks: tuple[Tensor | None, ...] = ()

    def reads(self, index: int) -> Tensor:
        """Which labels of an input this call reads: those it needs that are not zero. Other readers may need more."""
        return self.asked[index] & ~self.zeros[index]


class Rule:
    """What the compiler knows of a family of operators. The defaults describe an operator of which nothing is known."""

    family = "unknown"
    """The name of the family in reports."""
    reason: str | None = "unknown operator"
    """The reason to report for a call that is not followed; None for a family whose calls are normally followed."""

    # --- Traits: what other stages ask about the operator

    weight: WeightForm | None = None
    """The form of the weight of a contraction (convolution, linear layer); None for every other operator."""
    contracts = False
    """Multiplies its inputs with each other and adds up the products, so that an input may be a matrix of weights."""
    is_sum = False
    """Adds its operands, element by element."""
    ranges_hold_zeros = True
    """`range` finds the zeros of its inputs in their ranges; False: it looks into `zeros`, which takes less time."""
    is_join = False
    """Lays its inputs side by side."""
    is_pointwise = False
    """Computes each element of its result from the elements in the same place of its inputs."""
    is_affine = False
    """Scales and shifts each channel."""
    is_movement = False
    """Each element of its results is an element of its inputs or a constant."""
    makes_channels = True
    """The channels of its results are other channels than those of its inputs."""
    makes_constant = False
    """Its result depends on sizes and types alone, not on elements."""
    moves_nothing = False
    """Its result is another view of its first input: a machine need not copy it."""

    def keeps_channels(self, site: Site) -> bool:
        """Whether channel c of the result depends on channel c of each input only, so that they share a mask."""
        return False

    def owns_parameters(self, site: Site) -> bool:
        """Whether the call has one input besides its parameters: the rule slices all other tensors that it reads."""
        return len(site.inputs) == 1

    def groups(self, site: Site) -> int:
        """The number of channel groups that a contraction keeps apart."""
        return 1

    def columns(self, site: Site) -> Columns | None:
        """How a contraction whose tensors are all parameters reads the channels of its input; None for other calls."""
        return None

    def adds(self, site: Site) -> bool:
        """Whether the call is x + y without a factor, in one dtype."""
        return False

    def spreads(self, site: Site) -> str | None:
        """A key of what the call does to each channel: a linear function of that channel alone, along axes after 1, and
        the same one for all channels. None for other calls."""
        return None

    def moves_channels(self, site: Site) -> bool:
        """Whether each channel (axis 1) of the results is a channel of an input, with the same elements."""
        return False

    def takes_any_order(self, site: Site, zeros: Sequence[Tensor], *, cut: bool) -> bool:
        """Whether the call works with its channels in any order.

        `cut`: the call reads the reordered tensor, rather than producing it.
        """
        return self.keeps_channels(site)

    def order(self, site: Site, zeros: Sequence[Tensor], ranks: Sequence[Tensor | None]) -> list[Tensor | None]:
        """For each result the position of each label, given those of the inputs' labels; None: the natural order."""
        known = next((rank for rank in ranks if rank is not None), None)
        return [known if self.keeps_channels(site) else None for _ in site.outputs]

    def carried(self, site: Site, masks: Sequence[Tensor]) -> list[Tensor | None]:
        """For each result, a mask of each input carried to the labels that are computed from it (None: not known)."""
        if not self.keeps_channels(site):
            return [None for _ in site.outputs]
        shapes = [site.shape(out) if out is not None else () for out in site.outputs]
        joined: Tensor | None = None
        for mask in masks:
            if mask.dim() > 1 and mask.numel() == mask.shape[1] > 1 and (joined is None or mask.numel() == len(joined)):
                joined = mask.view(-1) if joined is None else joined | mask.view(-1)
        return [along(joined, 1, len(n)) if joined is not None and n[1:2] == joined.shape else None for n in shapes]

    def parameters(self, node: Node) -> tuple[Node | None, ...]:
        """The arguments that the rule slices itself where they are parameters or buffers."""
        return ()

    def shift(self, site: Site) -> Node | None:
        """The parameter that is added to each channel of the result at last; None if there is none."""
        return None

    def shift_axes(self, site: Site) -> tuple[int, ...]:
        """The axes of the result along which that parameter varies."""
        return (1,)

    # --- Liveness

    def zero(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor]:
        """For each result, which labels are zero for every input, given which labels of the inputs are."""
        return [unlabelled(site, out) for out in site.outputs]

    def range(self, site: Site, zeros: Sequence[Tensor], ranges: Sequence[Range | None]) -> list[Range | None]:
        """For each result, the bounds of each label, given those of the inputs' labels (None: nothing is known).

        They hold for every input, in training and in evaluation: a batch norm of a constant channel has two values.
        """
        return [None for _ in site.outputs]

    def firm(self, site: Site, zeros: Sequence[Tensor]) -> Tensor | None:
        """Which labels of the first result have a value that parameters alone give; None if none have.

        The small network has that value there, or zeros where it leaves the label out, whatever it puts in the place of
        inputs that nothing needs.
        """
        return None

    def vanishes(
        self,
        site: Site,
        zeros: Sequence[Tensor],
        ranges: Sequence[Range | None],
        found: Range | None,
        firm: Callable[[Node], Tensor | None],
    ) -> Tensor | None:
        """Which labels of the first result are zero because of the ranges of the inputs; None if none are.

        `found` is the range of that result.
        They have to be zero also where nothing needs the inputs and the small network has other elements there.
        """
        return None

    def needed(self, site: Site, lives: Sequence[Tensor], zeros: Sequence[Tensor]) -> list[Tensor]:
        """For each input, which labels some live label of a result depends on."""
        anything = any(bool(live.any()) for live in lives)
        return [torch.full_like(zero, anything) for zero in zeros]

    def merges_positions(self, site: Site, zeros: Sequence[Tensor]) -> bool:
        """Whether positions have one label in the result although inputs tell them apart: there would be too many."""
        return False

    def stand_in(self, site: Site, index: int) -> float:
        """The number that stands in for elements of an input that this call does not need, so that it stays finite."""
        return 0.0

    # --- Layouts

    def legalise(self, site: Site, requested: Sequence[Layout], facts: SiteFacts) -> list[Layout]:
        """Legalise the requested layouts: the layouts that the results will have, as near as the operator allows."""
        return list(requested)

    def growth(self, site: Site) -> str | None:
        """The reason to report where the operator itself makes a layout keep dead channels; None if it never does."""
        return None

    def requests(self, site: Site, outs: Sequence[Layout], facts: SiteFacts) -> list[Request] | None:
        """For each input, the layout that the call needs to produce `outs`; None if it needs every input whole."""
        return None

    def gives(self, site: Site, outs: Sequence[Layout]) -> list[Layout]:
        """The layouts that the emitted call produces; where they differ from `outs` the rewriter recombines."""
        return list(outs)

    def accept(self, site: Site, index: int, have: Layout) -> Layout:
        """The layout in which the call takes an input that it requested in any layout, given the one that it has."""
        return have

    def narrowed(self, site: Site, have: Layout, facts: SiteFacts) -> Layout | None:
        """The labels that the call reads of an input that it takes in any layout; None if it reads all of them."""
        return None

    # --- Rewriting

    def select(self, site: Site, ins: Sequence[Layout], outs: Sequence[Layout]) -> list[Selection]:
        """For each parameter of the site, the part that the call of the small network reads."""
        return [Selection.whole(site.shape(p)) for p in site.parameters]

    def emit(self, site: Site, to: Emitter, ins: Sequence[Layout], outs: Sequence[Layout]) -> list[Node]:
        """Write the call of the small network and return the nodes of its results, in the layouts of `gives`."""
        return [to.copy()]

    # --- Costs

    def cost(self, site: Site, ins: Sequence[Layout], outs: Sequence[Layout]) -> Contraction | None:
        """What a contraction costs in the given layouts; None for operators without multiplications that count."""
        return None

    def limit(self, site: Site, facts: SiteFacts) -> Contraction | None:
        """What a contraction costs if only live inputs and live outputs exist."""
        return None


def call_key(site: Site) -> str:
    """The operator of a call and its arguments, without its first one: equal for calls that do the same."""
    return f"{site.node.target} {site.node.args[1:]} {sorted(site.node.kwargs.items())}"


def own_parameter(site: Site, argument: Any) -> Node | None:
    """The argument if it is one of the parameters that the rule slices."""
    return argument if isinstance(argument, Node) and argument in site.parameters else None


def unlabelled(site: Site, out: Node | None) -> Tensor:
    """The mask that says of a result that no element is zero, without labelled axes."""
    rank = len(site.shape(out)) if out is not None else 0
    return torch.zeros((1,) * rank, dtype=torch.bool)


def compact(mask: Tensor) -> tuple[int, ...]:
    """The compact shape of a fact."""
    return tuple(mask.shape)


def replaced(arguments: Sequence[Any], index: int, value: Any) -> tuple[Any, ...]:
    """The arguments with one of them replaced; a shorter list is filled up with None."""
    values = [*arguments, *([None] * (index + 1 - len(arguments)))]
    values[index] = value
    return tuple(values)
