"""Tensors that hold one number, in a given shape or in that of another tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import Node

from passes.graph.layout import Layout
from passes.graph.nodes import operator_name
from passes.graph.ranges import Range
from passes.rules.base import ANY_LAYOUT, Request, Rule, Site, SiteFacts
from passes.rules.pointwise import Pointwise


class Fill(Pointwise):
    """A constant in the shape of a tensor: it reads the shape, not the elements."""

    def __init__(self, *, makes_constant: bool = True) -> None:
        self.makes_constant = makes_constant

    def needed(self, site: Site, lives: Sequence[Tensor], zeros: Sequence[Tensor]) -> list[Tensor]:
        return [torch.zeros_like(zeros[0]), *super().needed(site, lives, zeros)[1:]]

    def keeps_zero(self, site: Site) -> bool:
        return False

    def range(self, site: Site, zeros: Sequence[Tensor], ranges: Sequence[Range | None]) -> list[Range | None]:
        return [
            filled(site, {"zeros": 0.0, "ones": 1.0}.get(operator_name(site.node).partition("_")[0], _second(site)))
        ]

    def zero(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor]:
        value = site.node.args[1] if len(site.node.args) > 1 else None
        if isinstance(value, Node):
            value = site.values.constant(value)
        is_zero = "zeros" in str(site.node.target) or (value is not None and not bool(value))
        return [torch.full((1,) * len(site.out_shape), is_zero)]


class Made(Rule):
    """A constant that is made from nothing, in one value."""

    family = "pointwise"
    reason = None
    is_pointwise = True
    makes_channels = False
    makes_constant = True

    def number(self, site: Site) -> object:
        """What it holds; None for arbitrary elements."""
        return {"zeros": 0.0, "ones": 1.0}.get(operator_name(site.node), _second(site))

    def range(self, site: Site, zeros: Sequence[Tensor], ranges: Sequence[Range | None]) -> list[Range | None]:
        return [filled(site, self.number(site))]

    def zero(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor]:
        number = self.number(site)
        return [torch.full((1,) * len(site.out_shape), isinstance(number, (bool, int, float)) and number == 0)]


class MadeNew(Made):
    """A constant of a given size that takes its dtype and its device from a tensor, of which it reads no element.

    `value` is the number that it holds; None for arbitrary elements (`new_empty`) and for an argument (`new_full`).
    """

    def __init__(self, value: float | None = None) -> None:
        self.value = value

    def number(self, site: Site) -> object:
        return site.argument(2, "fill_value") if self.value is None else self.value

    def needed(self, site: Site, lives: Sequence[Tensor], zeros: Sequence[Tensor]) -> list[Tensor]:
        return [torch.zeros_like(zero) for zero in zeros]

    def legalise(self, site: Site, requested: Sequence[Layout], facts: SiteFacts) -> list[Layout]:
        return [Layout.whole(layout.rank) for layout in requested]

    def requests(self, site: Site, outs: Sequence[Layout], facts: SiteFacts) -> list[Request] | None:
        return [ANY_LAYOUT for _ in site.inputs]


def filled(site: Site, value: object) -> Range | None:
    """The range of a constant that holds one number."""
    if not isinstance(value, (bool, int, float)):
        return None
    return Range.between((1,) * len(site.out_shape), float(value), float(value))


def _second(site: Site) -> object:
    return site.node.args[1] if len(site.node.args) > 1 else None


RULES: dict[str, Rule] = {
    **dict.fromkeys(("zeros_like", "ones_like", "full_like", "empty_like"), Fill()),
    "fill": Fill(makes_constant=False),  # perhaps with the value of a tensor
    **dict.fromkeys(("zeros", "ones", "full"), Made()),
    **dict.fromkeys(("new_empty", "new_full"), MadeNew()),
    "new_zeros": MadeNew(0.0),
    "new_ones": MadeNew(1.0),
}
