"""Operators that read everything along some axes and are independent along the others.

Pooling, resizing, reductions, softmax, cumulative sums, normalisation. Along the mixed axes zeros count too, so nothing
is removed there; along the other axes liveness passes through.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.fx import Node

from passes.graph.layout import Layout, box_of, collapse, product
from passes.graph.nodes import operator_name
from passes.graph.ranges import Range
from passes.graph.selection import Selection
from passes.rules.base import LayoutRequest, Request, Rule, Site, SiteFacts, call_key, own_parameter, replaced
from passes.rules.emitter import Emitter

Axes = Callable[[Site], tuple[int, ...]]


def spatial(site: Site) -> tuple[int, ...]:
    """The axes after batch and channel."""
    return tuple(range(2, len(site.shape(site.inputs[0]))))


def named(index: int = 1) -> Axes:
    """The axes given as an argument of the call, one or several; all of them if it is missing."""

    def axes(site: Site) -> tuple[int, ...]:
        rank = len(site.shape(site.inputs[0]))
        given = site.argument(index, "dim", None)
        if given is None or given == []:
            return tuple(range(rank))
        return tuple(int(a) % max(1, rank) for a in (given if isinstance(given, (list, tuple)) else [given]))

    return axes


def padded(site: Site) -> tuple[int, ...]:
    """The axes that a padding changes."""
    rank, pads = len(site.shape(site.inputs[0])), site.argument(1, "pad")
    return tuple(rank - 1 - i // 2 for i in range(0, len(pads), 2) if pads[i] or pads[i + 1])


class Mixing(Rule):
    """Everything along `axes`, one by one along the rest. `keeps_zero`: a line of zeros gives zeros."""

    family = "mixing"
    reason = None
    makes_channels = False

    def __init__(self, axes: Axes, *, keeps_zero: bool, keepdim_at: int | None = None) -> None:
        self.axes = axes
        self.keeps_zero = keeps_zero
        self.keepdim_at = keepdim_at

    def keeps_channels(self, site: Site) -> bool:
        return bool(site.inputs)

    def dropped(self, site: Site) -> tuple[int, ...]:
        """The axes of the input that the result does not have."""
        return self.axes(site) if len(site.shape(site.inputs[0])) != len(site.out_shape) else ()

    def outer(self, site: Site, mask: Tensor, *, every: bool) -> Tensor:
        """A mask of the input, reduced along the mixed axes, with the result's rank."""
        mixed = self.axes(site)
        mask = collapse(mask, [1 if a in mixed else n for a, n in enumerate(mask.shape)], every=every)
        dropped = self.dropped(site)
        return mask.reshape([n for a, n in enumerate(mask.shape) if a not in dropped])

    def inner_shape(self, site: Site, mask: Tensor) -> list[int]:
        """The shape of a mask of the result, with the dropped axes put back."""
        dropped, rest = self.dropped(site), iter(mask.shape)
        return [1 if a in dropped else next(rest) for a in range(len(site.shape(site.inputs[0])))]

    def zero(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor]:
        zero = self.outer(site, zeros[0], every=True)
        if len(site.inputs) > 1 or not self.keeps_zero:
            zero = torch.zeros_like(zero)
        return [zero if index == 0 else torch.zeros_like(zero) for index in range(len(site.outputs))]

    def range(self, site: Site, zeros: Sequence[Tensor], ranges: Sequence[Range | None]) -> list[Range | None]:
        found = mixed_range(site, self.outer_range(site, zeros[0], ranges[0])) if site.outputs[0] is not None else None
        return [found if index == 0 else None for index in range(len(site.outputs))]

    def outer_range(self, site: Site, zero: Tensor, known: Range | None) -> Range | None:
        """The hull of the input along the mixed axes, with the result's rank."""
        if known is None:
            return None
        mixed, dropped = self.axes(site), self.dropped(site)
        hull = known.expand(zero.shape).fitted([1 if a in mixed else n for a, n in enumerate(zero.shape)])
        return hull.reshape([n for a, n in enumerate(hull.low.shape) if a not in dropped])

    def needed(self, site: Site, lives: Sequence[Tensor], zeros: Sequence[Tensor]) -> list[Tensor]:
        live, mixed = either(lives), self.axes(site)
        whole = collapse(
            live.reshape(self.inner_shape(site, live)), [1 if a in mixed else n for a, n in enumerate(zeros[0].shape)]
        )
        return [whole.expand(zeros[0].shape), *(torch.full_like(z, bool(live.any())) for z in zeros[1:])]

    def legalise(self, site: Site, requested: Sequence[Layout], facts: SiteFacts) -> list[Layout]:
        """Values and indices come together, so where one of them lives both do."""
        used = [layout for layout, out in zip(requested, site.outputs, strict=True) if out is not None]
        if all(used[0].same(layout) for layout in used[1:]):
            return [used[0] for _ in requested]
        return [box_of(either(facts.lives), facts.multiple) for _ in requested]

    def requests(self, site: Site, outs: Sequence[Layout], facts: SiteFacts) -> list[Request] | None:
        if len(site.inputs) > 1:
            return None
        native = self.gives(site, outs)[0]
        shape = self.inner_shape(site, native.labels)
        sizes = self.inner_shape(site, torch.empty(native.compact, device="meta"))
        used = native.of(collapse(either(facts.lives), native.compact))
        return [LayoutRequest(Layout(tuple(sizes), native.labels.reshape(shape)), used.reshape(shape))]

    def gives(self, site: Site, outs: Sequence[Layout]) -> list[Layout]:
        return list(outs)

    def spreads(self, site: Site) -> str | None:
        name = operator_name(site.node)
        linear = name in LINEAR or name.startswith(("avg_pool", "adaptive_avg_pool", "upsample"))
        alone = len(site.inputs) == 1 and not self.dropped(site) and all(axis > 1 for axis in self.axes(site))
        return call_key(site) if linear and alone else None


class Conjunction(Mixing):
    """A product along the mixed axes: one zero makes it zero."""

    def zero(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor]:
        return [self.outer(site, zeros[0], every=False)]


class Normalisation(Mixing):
    """(x - mean) / deviation over the mixed axes, then a scale and a shift along them (layer norm, group norm)."""

    family = "normalisation"

    def keeps_channels(self, site: Site) -> bool:
        return False  # it reads all of them

    def __init__(self, axes: Axes, weights_at: tuple[int, int], channels: Axes) -> None:
        super().__init__(axes, keeps_zero=False)
        self.weights_at = weights_at
        self.channels = channels  # the axes along which scale and shift vary

    def parameters(self, node: Node) -> tuple[Node | None, ...]:
        given = [node.args[i] if len(node.args) > i else None for i in self.weights_at]
        return tuple(a if isinstance(a, Node) and a.op == "get_attr" else None for a in given)

    def shift(self, site: Site) -> Node | None:
        scale, shift = self.weights_at
        return own_parameter(site, site.node.args[shift] if scale != shift and len(site.node.args) > shift else None)

    def shift_axes(self, site: Site) -> tuple[int, ...]:
        return self.channels(site)

    def zero(self, site: Site, zeros: Sequence[Tensor]) -> list[Tensor]:
        outer = self.outer(site, zeros[0], every=True)
        axes = self.channels(site)
        shape = [site.out_shape[a] if a in axes else n for a, n in enumerate(outer.shape)]
        given = [site.node.args[i] if len(site.node.args) > i else None for i in self.weights_at]
        if not isinstance(given[0], Node) or any(isinstance(g, Node) and g.op != "get_attr" for g in given):
            return [torch.zeros(shape, dtype=torch.bool)]
        zero = (site.values.tensor(given[0]) == 0).cpu()
        if isinstance(given[1], Node):
            zero = zero & (site.values.tensor(given[1]) == 0).cpu()
        line = [site.out_shape[a] if a in axes else 1 for a in range(len(shape))]
        return [zero.reshape(line).expand(shape)]

    def range(self, site: Site, zeros: Sequence[Tensor], ranges: Sequence[Range | None]) -> list[Range | None]:
        """A label with scale 0 is its shift."""
        scale, shift = (site.node.args[i] if len(site.node.args) > i else None for i in self.weights_at)
        if not isinstance(scale, Node) or any(isinstance(g, Node) and g.op != "get_attr" for g in (scale, shift)):
            return [None for _ in site.outputs]
        gone = (site.values.tensor(scale) == 0).cpu()
        if not bool(gone.any()):
            return [None for _ in site.outputs]
        value = site.values.tensor(shift) if isinstance(shift, Node) else torch.zeros_like(site.values.tensor(scale))
        line = [n if a in self.channels(site) else 1 for a, n in enumerate(site.out_shape)]
        return [Range.constant(value.cpu().reshape(line), gone.reshape(line)), *(None for _ in site.outputs[1:])]

    def firm(self, site: Site, zeros: Sequence[Tensor]) -> Tensor | None:
        """A label with scale 0."""
        known = self.range(site, zeros, [None for _ in site.inputs])[0]
        return None if known is None else known.is_constant

    def requests(self, site: Site, outs: Sequence[Layout], facts: SiteFacts) -> list[Request] | None:
        return None if len(site.inputs) > 1 else super().requests(site, outs, facts)

    def gives(self, site: Site, outs: Sequence[Layout]) -> list[Layout]:
        return [whole_along(outs[0], self.axes(site))]

    def select(self, site: Site, ins: Sequence[Layout], outs: Sequence[Layout]) -> list[Selection]:
        return [Selection.whole(site.shape(p)) for p in site.parameters]


class GroupNorm(Normalisation):
    """A normalisation within groups of channels. A group without a live channel is removed."""

    def needed(self, site: Site, lives: Sequence[Tensor], zeros: Sequence[Tensor]) -> list[Tensor]:
        groups = collapse(self.whole_groups(site, lives[0]), zeros[0].shape).expand(zeros[0].shape)
        return [groups, *(torch.full_like(zero, bool(lives[0].any())) for zero in zeros[1:])]

    def whole_groups(self, site: Site, live: Tensor) -> Tensor:
        """The channels of groups that have a live one: bool, shape (1, C, 1, ...)."""
        channels, groups = site.out_shape[1], site.argument(1, "num_groups")
        line = [channels if a == 1 else 1 for a in range(live.dim())]
        live = collapse(live.expand([channels if a == 1 else n for a, n in enumerate(live.shape)]), line)
        return live.view(groups, -1).any(1).repeat_interleave(channels // groups).view(line)

    def requests(self, site: Site, outs: Sequence[Layout], facts: SiteFacts) -> list[Request] | None:
        if len(site.inputs) > 1:
            return None
        native = self.gives(site, outs)[0]
        return [LayoutRequest(native, torch.ones_like(native.labels, dtype=torch.bool))]

    def gives(self, site: Site, outs: Sequence[Layout]) -> list[Layout]:
        rank, channels = len(site.out_shape), site.out_shape[1]
        if outs[0].compact[1] == 1:
            return [Layout.whole(rank)]
        kept = self.whole_groups(site, collapse(outs[0].mask(), [channels if a == 1 else 1 for a in range(rank)]))
        return [Layout.along(rank, 1, channels, kept.flatten().nonzero().flatten())]

    def select(self, site: Site, ins: Sequence[Layout], outs: Sequence[Layout]) -> list[Selection]:
        kept = ins[0].kept(1) if ins[0].compact[1] != 1 else None
        return [Selection(site.shape(p), (kept,)).simplified() for p in site.parameters]

    def emit(self, site: Site, to: Emitter, ins: Sequence[Layout], outs: Sequence[Layout]) -> list[Node]:
        groups = site.argument(1, "num_groups") * ins[0].size(1, site.out_shape[1]) // site.out_shape[1]
        return [to.call(site.node.target, replaced(to.args, 1, groups), to.kwargs)]


INSIDE = frozenset(
    "max_pool1d max_pool2d max_pool3d max_pool2d_with_indices adaptive_avg_pool1d adaptive_avg_pool2d "
    "adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d upsample_nearest1d "
    "upsample_nearest2d upsample_nearest3d _upsample_nearest_exact2d upsample_bilinear2d upsample_linear1d "
    "upsample_trilinear3d mean amax amin max min median sort topk reflection_pad1d reflection_pad2d reflection_pad3d "
    "replication_pad1d replication_pad2d replication_pad3d".split()
)
"""Their results lie between the least and the greatest element that they read."""

WEIGHTED = frozenset(("upsample_bicubic2d", "_upsample_bilinear2d_aa"))
"""Sums with weights that add up to 1, some of them negative: of a constant they are the constant."""

LINEAR = frozenset(
    "mean sum _upsample_nearest_exact2d _upsample_bilinear2d_aa reflection_pad1d reflection_pad2d reflection_pad3d "
    "replication_pad1d replication_pad2d replication_pad3d".split()
)
"""Their results are sums of what they read, with weights that are the same for all inputs; pooling by averages and
`upsample_...` are too."""

NEVER_NEGATIVE = frozenset("var std norm linalg_vector_norm".split())


def mixed_range(site: Site, hull: Range | None) -> Range | None:
    """The range of a result, given the hull of what it is computed from."""
    name, rank = operator_name(site.node), len(site.out_shape)
    if name in NEVER_NEGATIVE:
        return Range.between((1,) * rank, 0.0, math.inf)
    if name in ("softmax", "_softmax"):
        return Range.between((1,) * rank, 0.0, 1.0)
    if hull is None:
        return None
    if name in INSIDE:
        return hull
    if name in WEIGHTED:
        return Range.constant(hull.low, hull.is_constant)
    if name.startswith("avg_pool"):
        pads, counted, divisor = (
            site.argument(3, "padding", 0),
            site.argument(5, "count_include_pad", True),
            site.argument(6, "divisor_override"),
        )
        if divisor is not None:
            return None
        padded = any(pads) if isinstance(pads, (list, tuple)) else bool(pads)
        return hull.joined(Range.between(hull.low.shape, 0.0, 0.0)) if padded and counted else hull
    if name in ("sum", "prod", "cumsum"):
        return Range(
            hull.low.masked_fill(hull.low >= 0, 0.0).masked_fill(hull.low < 0, -math.inf),
            torch.full_like(hull.low, math.inf),
        )
    return None


def either(lives: Sequence[Tensor]) -> Tensor:
    """What is live of some result."""
    live = lives[0]
    for other in lives[1:]:
        live = live | other
    return live


def whole_along(layout: Layout, axes: Sequence[int]) -> Layout:
    """The product layout that keeps what `layout` keeps, but everything along `axes`."""
    small = tuple(1 if a in axes else n for a, n in enumerate(layout.compact))
    return product(small, [layout.coordinate(a).unique() for a in range(layout.rank)])


def normalised(site: Site) -> tuple[int, ...]:
    """The last axes, as many as the call's `normalized_shape` has."""
    rank = len(site.out_shape)
    return tuple(range(rank - len(site.argument(1, "normalized_shape")), rank))


def from_channel(site: Site) -> tuple[int, ...]:
    return tuple(range(1, len(site.out_shape)))


def channel(site: Site) -> tuple[int, ...]:
    return (1,)


POOLING = Mixing(spatial, keeps_zero=True)
REDUCTION = Mixing(named(), keeps_zero=True)
CONJUNCTION = Conjunction(named(), keeps_zero=True)
STATISTIC = Mixing(named(), keeps_zero=False)
TOTAL = Mixing(named(99), keeps_zero=True)  # an operator without an argument that names axes
LINEWISE = Mixing(named(), keeps_zero=False)
CUMULATIVE = Mixing(named(), keeps_zero=True)
PADDING = Mixing(padded, keeps_zero=True)
LAYER_NORM = Normalisation(normalised, (2, 3), normalised)
GROUP_NORM = GroupNorm(from_channel, (2, 3), channel)

POOLS = (
    "max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d",
    "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d",
    "max_pool1d_with_indices", "max_pool2d_with_indices", "max_pool3d_with_indices",
    "upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact2d",
    "upsample_bilinear2d", "upsample_bicubic2d", "upsample_linear1d", "upsample_trilinear3d", "_upsample_bilinear2d_aa",
)  # fmt: skip

RULES: dict[str, Rule] = {
    **dict.fromkeys(POOLS, POOLING),
    **dict.fromkeys(("mean", "sum", "any"), REDUCTION),
    **dict.fromkeys(("prod", "all"), CONJUNCTION),
    **dict.fromkeys(("amax", "amin", "max", "min", "median", "nanmedian"), REDUCTION),
    **dict.fromkeys(("linalg_vector_norm", "norm"), Mixing(named(2), keeps_zero=True)),
    **dict.fromkeys(("var", "std", "logsumexp", "argmax", "argmin"), STATISTIC),
    **dict.fromkeys(("softmax", "log_softmax", "_softmax", "sort"), LINEWISE),
    "cumsum": CUMULATIVE,
    "topk": Mixing(named(2), keeps_zero=False),
    **dict.fromkeys((f"{kind}_pad{n}d" for kind in ("reflection", "replication") for n in (1, 2, 3)), PADDING),
    "layer_norm": LAYER_NORM,
    "rms_norm": Normalisation(normalised, (2, 2), normalised),
    "group_norm": GROUP_NORM,
}
