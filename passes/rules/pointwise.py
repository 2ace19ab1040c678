"""Element by element: f(x), f(x, y) with broadcasting."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.fx import Node

from passes.graph.layout import Layout, collapse
from passes.graph.modes import DROPOUTS
from passes.graph.nodes import FIXED
from passes.graph.ranges import Range
from passes.rules.base import ANY_LAYOUT, UNREAD, LayoutRequest, Request, Rule, Site, SiteFacts, compact
from passes.rules.emitter import Emitter
from passes.rules.intervals import argument_range, bounded
from passes.rules.memo import Key
from passes.rules.probe import stand_ins, value_at
from passes.rules.views import COPIES

aten = torch.ops.aten

AT_ZERO = Key[Tensor | None]()


def aligned(layout: Layout, shape: Sequence[int]) -> Layout | None:
    """The layout of an operand of original shape `shape` that broadcasts to a result in `layout`.

    None where no layout can do it: an operand that is shared by rows which keep different columns.
    """
    offset = layout.rank - len(shape)
    labels = layout.labels
    coordinates: dict[int, Tensor] = {}
    for axis in layout.axes:
        if axis >= offset and shape[axis - offset] != 1:
            coordinates[axis] = layout.coordinate(axis)
    for axis in layout.axes:
        if axis in coordinates or labels.shape[axis] == 1:
            continue
        for key, value in coordinates.items():
            first = value.narrow(axis, 0, 1)
            if not bool((value == first).all()):
                return None
            coordinates[key] = first
    small = tuple(layout.compact[a + offset] if shape[a] != 1 else 1 for a in range(len(shape)))
    result = torch.zeros((1,) * len(shape), dtype=torch.int64)
    for axis, value in coordinates.items():
        result = result + value.reshape(value.shape[offset:]) * math.prod(small[axis - offset + 1 :])
    return Layout(small, result)


class Pointwise(Rule):
    """f of one or several tensors, element by element. Zero goes through where f(0, ..., 0) is 0: f is asked."""

    family = "pointwise"
    reason = None
    is_pointwise = True
    makes_channels = False
    ranges_hold_zeros = False

    def keeps_channels(self, site: Site) -> bool:
        return bool(site.inputs)

    def zero(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor]:
        rank = len(site.out_shape)
        shape = torch.broadcast_shapes(*(compact(z) for z in zeros), (1,) * rank)
        if not zeros or not self.keeps_zero(site):
            return [torch.zeros(shape, dtype=torch.bool)]
        return [self.combine(site, zeros).expand(shape)]

    def combine(self, site: Site, zeros: Sequence[Tensor]) -> Tensor:
        """Which labels are zero, given that f(0, ..., 0) is."""
        result = zeros[0]
        for zero in zeros[1:]:
            result = result & zero
        return result

    def range(self, site: Site, zeros: Sequence[Tensor], ranges: Sequence[Range | None]) -> list[Range | None]:
        if any(known is not None for known in ranges) or not self.keeps_zero(site):
            ranges = [Range.with_zeros(known, zero) for known, zero in zip(ranges, zeros, strict=True)]
        return [bounded(site, ranges)]

    def keeps_zero(self, site: Site) -> bool:
        """Whether f(0, ..., 0) is 0."""
        result = self.at_zero(site)
        return result is not None and bool((result == 0).all())

    def vanishes(
        self,
        site: Site,
        zeros: Sequence[Tensor],
        ranges: Sequence[Range | None],
        found: Range | None,
        firm: Callable[[Node], Tensor | None],
    ) -> Tensor | None:
        """A function that is zero at zero, of one tensor, where it maps a firm label to zero."""
        if found is None or len(site.inputs) != 1 or ranges[0] is None or not self.keeps_zero(site):
            return None
        gone = found.is_zero
        fixed = firm(site.inputs[0]) if bool(gone.any()) else None
        return None if fixed is None else gone & fixed

    def at_zero(self, site: Site) -> Tensor | None:
        """f(0, ..., 0), found by calling f; None where it cannot be called."""
        return site.memo.once(AT_ZERO, lambda: value_at(site, {}))

    def stand_in(self, site: Site, index: int) -> float:
        return stand_ins(site)[index] or 0.0

    def needed(self, site: Site, lives: Sequence[Tensor], zeros: Sequence[Tensor]) -> list[Tensor]:
        return [
            torch.full_like(zero, bool(lives[0].any()))  # no number can stand in for an unneeded element
            if number is None
            else collapse(lives[0], compact(zero)).expand(zero.shape)
            for zero, number in zip(zeros, stand_ins(site), strict=True)
        ]

    def legalise(self, site: Site, requested: Sequence[Layout], facts: SiteFacts) -> list[Layout]:
        layout = requested[0]
        if all(aligned(layout, site.shape(n)) is not None for n in (*site.inputs, *site.parameters)):
            return [layout]
        return [layout.as_product()]

    def requests(self, site: Site, outs: Sequence[Layout], facts: SiteFacts) -> list[Request] | None:
        out = outs[0]
        used = out.of(facts.lives[0])
        requests: list[Request] = []
        for node in site.inputs:
            layout = aligned(out, site.shape(node))
            if layout is None:
                return None
            requests.append(self.request(layout, used))
        return requests

    @staticmethod
    def request(layout: Layout, used: Tensor) -> LayoutRequest:
        offset = used.dim() - layout.rank
        return LayoutRequest(
            layout, collapse(used, [1] * offset + list(layout.labels.shape)).reshape(layout.labels.shape)
        )


class Product(Pointwise):
    """x * y, x & y: zero where either is, and neither is needed where the other is zero."""

    def zero(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor]:
        if any(isinstance(factor, (int, float)) and factor == 0 for factor in site.node.args):
            return [torch.ones((1,) * len(site.out_shape), dtype=torch.bool)]
        return super().zero(site, zeros)

    def combine(self, site: Site, zeros: Sequence[Tensor]) -> Tensor:
        result = zeros[0]
        for zero in zeros[1:]:
            result = result | zero
        return result

    def needed(self, site: Site, lives: Sequence[Tensor], zeros: Sequence[Tensor]) -> list[Tensor]:
        found = []
        for index, zero in enumerate(zeros):
            live = lives[0]
            for other, partner in enumerate(zeros):
                if other != index and site.inputs[other] is not site.inputs[index]:
                    live = live & ~partner
            found.append(collapse(live, compact(zero)).expand(zero.shape))
        return found

    def emit(self, site: Site, to: Emitter, ins: Sequence[Layout], outs: Sequence[Layout]) -> list[Node]:
        """Where a mask of the compiler has no zero left it is left out."""
        for index, node in enumerate(site.inputs):
            other = to.inputs[1 - index] if len(site.inputs) == 2 else None
            if (
                other is not None
                and node.meta.get(FIXED)
                and bool((ins[index].of(site.values.tensor(node).cpu()) == 1).all())
            ):
                return [other]
        return [to.copy()]


class Quotient(Pointwise):
    """x / y, x // y, x % y: zero where x is and y is not (0 / 0 is no number)."""

    ranges_hold_zeros = True

    def keeps_zero(self, site: Site) -> bool:
        return False  # the range of y decides

    def range(self, site: Site, zeros: Sequence[Tensor], ranges: Sequence[Range | None]) -> list[Range | None]:
        return [bounded(site, ranges)]

    def vanishes(
        self,
        site: Site,
        zeros: Sequence[Tensor],
        ranges: Sequence[Range | None],
        found: Range | None,
        firm: Callable[[Node], Tensor | None],
    ) -> Tensor | None:
        dividend, divisor = site.node.args[:2]
        known = argument_range(site, ranges, divisor)
        if known is None and isinstance(divisor, Node):  # a count of positions, say, is computed from nothing
            constant = site.values.constant(divisor)
            known = None if constant is None else Range.constant(constant)
        if dividend is divisor or known is None or not isinstance(dividend, Node):
            return None
        return zeros[site.inputs.index(dividend)] & known.excludes_zero


class Sum(Pointwise):
    """x + y: an operand without live labels is left out."""

    is_sum = True

    def requests(self, site: Site, outs: Sequence[Layout], facts: SiteFacts) -> list[Request] | None:
        requests = super().requests(site, outs, facts)
        if requests is None or len(requests) != 2:
            return requests
        for index in (0, 1):
            if bool(facts.reads(index).any()) or not bool(facts.reads(1 - index).any()):
                continue
            if site.shape(site.inputs[1 - index]) == site.out_shape and self.adds(site):
                requests[index] = UNREAD
                break
        return requests

    def emit(self, site: Site, to: Emitter, ins: Sequence[Layout], outs: Sequence[Layout]) -> list[Node]:
        present = [node for node in to.inputs if node is not None]
        return [to.copy()] if len(present) == len(to.inputs) else present

    def adds(self, site: Site) -> bool:
        dtypes = {n.meta["val"].dtype for n in (*site.inputs, site.node)}
        return (
            site.node.target is aten.add.Tensor
            and len(site.node.args) == 2
            and not site.node.kwargs
            and len(dtypes) == 1
        )


class Choice(Pointwise):
    """One tensor where a condition holds, another elsewhere (`where`, `masked_fill`); `places` says at which argument
    condition, first and second are. Where the condition is known not to hold, the first is not read."""

    ranges_hold_zeros = True

    def __init__(self, places: tuple[int, int, int]) -> None:
        self.places = places

    def range(self, site: Site, zeros: Sequence[Tensor], ranges: Sequence[Range | None]) -> list[Range | None]:
        condition, first, second = (argument_range(site, ranges, site.node.args[index]) for index in self.places)
        if second is None:
            return [None]
        never = condition.is_zero if condition is not None else torch.zeros((), dtype=torch.bool)
        if first is None:
            first = Range.unknown(second.low.shape)
        return [
            Range(torch.where(never, second.low, hull.low), torch.where(never, second.high, hull.high))
            for hull in (first.joined(second),)
        ]

    def zero(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor]:
        condition, first, second = (self._is_zero(site, zeros, index) for index in self.places)
        rank = len(site.out_shape)
        return [((first | condition) & second).expand(torch.broadcast_shapes(*map(compact, zeros), (1,) * rank))]

    @staticmethod
    def _is_zero(site: Site, zeros: Sequence[Tensor], index: int) -> Tensor:
        argument = site.node.args[index]
        if argument in site.inputs:
            return zeros[site.inputs.index(argument)]
        return torch.tensor(not isinstance(argument, Node) and not argument)

    def needed(self, site: Site, lives: Sequence[Tensor], zeros: Sequence[Tensor]) -> list[Tensor]:
        condition, first = (site.node.args[index] for index in self.places[:2])
        never = self._is_zero(site, zeros, self.places[0])
        live = dict.fromkeys(site.inputs, lives[0])
        if first is not condition and first is not site.node.args[self.places[2]] and first in live:
            live[first] = lives[0] & ~never  # type: ignore[index]
        return [
            collapse(live[node], compact(zero)).expand(zero.shape)
            for node, zero in zip(site.inputs, zeros, strict=True)
        ]


class Identity(Pointwise):
    """The same elements, perhaps in another dtype, memory or graph: copies, casts, dropout. Of a second tensor
    (`type_as`) only the dtype is read."""

    moves_nothing = True
    ranges_hold_zeros = True

    def zero(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor]:
        return [zeros[0]]

    def range(self, site: Site, zeros: Sequence[Tensor], ranges: Sequence[Range | None]) -> list[Range | None]:
        """A dropout that drops something changes what is not zero, except in evaluation."""
        found, dtype = ranges[0], site.node.meta["val"].dtype
        if found is None or not dtype.is_floating_point or not site.inputs[0].meta["val"].dtype.is_floating_point:
            return [None]
        if site.node.target in DROPOUTS and site.argument(1, "p") and not site.values.inference:
            return [Range.constant(found.low, found.is_zero)]
        if dtype is site.inputs[0].meta["val"].dtype:
            return [found]
        return [Range(found.low.to(dtype).double(), found.high.to(dtype).double())]

    def needed(self, site: Site, lives: Sequence[Tensor], zeros: Sequence[Tensor]) -> list[Tensor]:
        return [lives[0], *(torch.zeros_like(z) for z in zeros[1:])]

    def legalise(self, site: Site, requested: Sequence[Layout], facts: SiteFacts) -> list[Layout]:
        return list(requested)

    def requests(self, site: Site, outs: Sequence[Layout], facts: SiteFacts) -> list[Request] | None:
        return [LayoutRequest(outs[0], outs[0].of(facts.lives[0])), *(ANY_LAYOUT for _ in site.inputs[1:])]


POINTWISE = Pointwise()
PRODUCT, QUOTIENT, SUM, IDENTITY = Product(), Quotient(), Sum(), Identity()

# Operators without torch's own `pointwise` tag that are.
UNTAGGED = (
    "log_sigmoid",
    "copy",
    "threshold",
    "lerp",
    "subtract",
    "rrelu",
    "hardswish",
)

RULES: dict[str, Rule] = {
    **dict.fromkeys(UNTAGGED, POINTWISE),
    "where": Choice((0, 1, 2)),
    "masked_fill": Choice((1, 2, 0)),
    **dict.fromkeys(("mul", "multiply", "logical_and", "bitwise_and"), PRODUCT),
    **dict.fromkeys(("div", "divide", "true_divide", "floor_divide", "remainder", "fmod"), QUOTIENT),
    "add": SUM,
    **dict.fromkeys((*COPIES, "to", "_to_copy", "lift_fresh_copy", "type_as", "dropout", "feature_dropout"), IDENTITY),
}
