"""Values read at computed places: everything along some axes, one by one along the rest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import Node

from passes.graph.layout import Layout, along, collapse, product
from passes.graph.ranges import Range
from passes.graph.selection import Selection
from passes.rules.base import LayoutRequest, Request, Rule, Site, SiteFacts
from passes.rules.mixing import Axes, Mixing, named, spatial
from passes.rules.weights import kept_or_all


class Sampling(Mixing):
    """x read at places that the other inputs give.

    `shared`: the axes of the result that the places have too, so that each index along them has places of its own.
    `beyond`: places may lie beyond the border, where zeros are read.
    """

    family = "sampling"

    def keeps_channels(self, site: Site) -> bool:
        return False

    def __init__(self, axes: Axes, shared: Axes, *, beyond: bool = False) -> None:
        super().__init__(axes, keeps_zero=True)
        self.shared = shared
        self.beyond = beyond

    def is_followed(self, site: Site) -> bool:
        """Whether the result has x's axes, and along those that are not sampled all that x has."""
        given, found, sampled = site.shape(site.inputs[0]), site.out_shape, self.axes(site)
        return (
            len(site.inputs) > 1
            and site.inputs.count(site.inputs[0]) == 1
            and len(given) == len(found)
            and all(given[a] == found[a] for a in range(len(given)) if a not in sampled)
        )

    def zero(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor]:
        return [self.outer(site, zeros[0], every=True)] if self.is_followed(site) else Rule.zero(self, site, zeros)

    def range(self, site: Site, zeros: Sequence[Tensor], ranges: Sequence[Range | None]) -> list[Range | None]:
        """Elements of x where they are picked; where they are interpolated, zeros beyond the border too."""
        if not self.is_followed(site):
            return [None]
        found = self.outer_range(site, zeros[0], ranges[0])
        if found is None or not self.beyond:
            return [found]
        return [found.joined(Range.between(found.low.shape, 0.0, 0.0))]

    def needed(self, site: Site, lives: Sequence[Tensor], zeros: Sequence[Tensor]) -> list[Tensor]:
        if not self.is_followed(site):
            return Rule.needed(self, site, lives, zeros)
        x, *places = super().needed(site, lives, zeros)
        if shared := self.shared(site):
            live = collapse(lives[0], [n if a in shared else 1 for a, n in enumerate(lives[0].shape)])
            places = [collapse(live, place.shape).expand(place.shape) for place in places]
        return [x, *places]

    def legalise(self, site: Site, requested: Sequence[Layout], facts: SiteFacts) -> list[Layout]:
        return [requested[0] if requested[0].is_product() else requested[0].as_product()]

    def requests(self, site: Site, outs: Sequence[Layout], facts: SiteFacts) -> list[Request] | None:
        if not self.is_followed(site):
            return None
        out, shared = outs[0], self.shared(site)
        used = out.of(facts.lives[0])
        requests: list[Request] = [LayoutRequest(out, used)]
        for node in site.inputs[1:]:
            if not shared:
                requests.append(LayoutRequest(Layout.whole(len(site.shape(node)))))
                continue
            small = tuple(n if a in shared else 1 for a, n in enumerate(out.compact))
            layout = product(small, [out.kept(a) for a in range(out.rank)])
            requests.append(LayoutRequest(layout, collapse(used, layout.labels.shape)))
        return requests


class Embedding(Rule):
    """Rows of a table at the places that the other input gives: channels are the columns of the table."""

    family = "sampling"
    reason = None

    def takes_any_order(self, site: Site, zeros: Sequence[Tensor], *, cut: bool) -> bool:
        return not cut and self.owns_parameters(site)

    def parameters(self, node: Node) -> tuple[Node | None, ...]:
        table = node.args[0]
        return (table,) if isinstance(table, Node) and table.op == "get_attr" else ()

    def zero(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor]:
        rank, columns = len(site.out_shape), site.out_shape[-1]
        if self.owns_parameters(site):
            zero = (site.values.tensor(site.parameters[0]) == 0).all(0).cpu()
        else:
            zero = collapse(zeros[0], (1, zeros[0].shape[1]), every=True).view(-1).expand(columns)
        return [along(zero, rank - 1, rank)]

    def needed(self, site: Site, lives: Sequence[Tensor], zeros: Sequence[Tensor]) -> list[Tensor]:
        *table, places = zeros
        columns = lives[0].reshape(1, -1)
        found = [collapse(columns, each.shape).expand(each.shape) for each in table]
        return [*found, torch.full_like(places, bool(columns.any()))]

    def requests(self, site: Site, outs: Sequence[Layout], facts: SiteFacts) -> list[Request] | None:
        *table, places = site.inputs
        columns, size = outs[0].labels.view(-1), site.out_shape[-1]
        layout, used = Layout.along(2, 1, size, columns), facts.lives[0].reshape(1, -1)
        found = [LayoutRequest(layout, layout.of(used)) for _ in table]
        return [*found, LayoutRequest(Layout.whole(len(site.shape(places))))]

    def select(self, site: Site, ins: Sequence[Layout], outs: Sequence[Layout]) -> list[Selection]:
        columns = kept_or_all(outs[0], outs[0].rank - 1, site.out_shape[-1])
        return [Selection(site.shape(table), (None, columns)).simplified() for table in site.parameters]


def indexed(site: Site) -> tuple[int, ...]:
    """The axes of `index` that have an index; all if their indices do not lie where the axes are."""
    rank, indices = len(site.shape(site.inputs[0])), site.node.args[1]
    assert isinstance(indices, (list, tuple))
    by_axis = {axis: index for axis, index in enumerate(indices) if isinstance(index, Node)}
    given, sizes = tuple(by_axis), max(len(site.shape(index)) for index in by_axis.values())
    together = given == tuple(range(given[0], given[-1] + 1))
    return given if together and sizes == len(given) else tuple(range(rank))


def _nowhere(site: Site) -> tuple[int, ...]:
    return ()


def _batch(site: Site) -> tuple[int, ...]:
    return (0,)


def _images(axes: int) -> tuple[Axes, Axes]:
    """The last `axes` axes of the input, and those before them."""

    def inner(site: Site) -> tuple[int, ...]:
        rank = len(site.shape(site.inputs[0]))
        return tuple(range(rank - axes, rank))

    return inner, lambda site: tuple(range(len(site.out_shape) - axes))


def _everywhere(site: Site) -> tuple[int, ...]:
    return tuple(range(len(site.out_shape)))


PICKED = Sampling(named(), _nowhere)

RULES: dict[str, Rule] = {
    **dict.fromkeys(("grid_sampler", "grid_sampler_2d", "grid_sampler_3d"), Sampling(spatial, _batch, beyond=True)),
    "embedding": Embedding(),
    **{f"max_unpool{axes}d": Sampling(*_images(axes), beyond=True) for axes in (2, 3)},
    "gather": Sampling(named(), _everywhere),
    "index": Sampling(indexed, _nowhere),
}
