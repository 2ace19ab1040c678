"""Layouts: every method against the elements themselves, numbered one by one."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor

from passes.graph.layout import Layout, Shape, box_of, collapse, grown, identity, product
from passes.rules.reshape import Reshape, matching_groups

QUICK = settings(max_examples=60)
SHAPES = st.lists(st.integers(1, 4), min_size=1, max_size=4).map(tuple)


@st.composite
def compacts(draw: st.DrawFn, full: Shape) -> Shape:
    """Which axes of a full shape are labelled."""
    return tuple(n if draw(st.booleans()) else 1 for n in full)


@st.composite
def kept_indices(draw: st.DrawFn, size: int) -> Tensor:
    """Some indices below `size`, at least one, in any order."""
    order = draw(st.permutations(range(size)))
    return torch.tensor(order[: draw(st.integers(1, size))])


@st.composite
def layouts(draw: st.DrawFn, full: Shape) -> Layout:
    """A layout of a value of that shape: a product, or rows of equal length along the last labelled axis."""
    compact = draw(compacts(full))
    axes = [a for a, n in enumerate(compact) if n != 1]
    kept = [draw(kept_indices(n)) if n != 1 else None for n in compact]
    box = product(compact, kept)
    if len(axes) < 2 or draw(st.booleans()):
        return box
    rows = box.labels.movedim(axes[-1], -1)
    flat = rows.reshape(-1, rows.shape[-1])
    width = draw(st.integers(1, flat.shape[1]))
    orders = [draw(st.permutations(range(flat.shape[1])))[:width] for _ in flat]
    chosen = flat.gather(1, torch.tensor(orders)).view(*rows.shape[:-1], width)
    return Layout(compact, chosen.movedim(-1, axes[-1]).contiguous())


def elements(layout: Layout, full: Shape) -> Tensor:
    """The number, in the value of the full shape, of every element of the box: found one by one."""
    sizes = [layout.labels.shape[a] if n != 1 else full[a] for a, n in enumerate(layout.compact)]
    numbers = []
    for index in itertools.product(*map(range, sizes)):
        inside = tuple(i if n != 1 else 0 for i, n in zip(index, layout.compact))
        own = _unravelled(int(layout.labels[inside]), layout.compact)
        numbers.append(_ravelled([o if n != 1 else i for o, n, i in zip(own, layout.compact, index)], full))
    return torch.tensor(numbers).view(sizes)


def _unravelled(number: int, shape: Sequence[int]) -> list[int]:
    found: list[int] = []
    for size in reversed(shape):
        number, index = divmod(number, size)
        found.insert(0, index)
    return found


def _ravelled(index: Sequence[int], shape: Sequence[int]) -> int:
    number = 0
    for i, size in zip(index, shape):
        number = number * size + i
    return number


@st.composite
def shaped_layouts(draw: st.DrawFn) -> tuple[Layout, Shape]:
    full = draw(SHAPES)
    return draw(layouts(full)), full


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Layout, Layout, Shape]:
    """Two layouts of one value, equal more often than chance would have it."""
    full = draw(SHAPES)
    first = draw(layouts(full))
    return first, draw(st.one_of(layouts(full), compacts(full).map(first.refined))), full


@QUICK
@given(shaped_layouts())
def test_shrunk_is_the_shape_of_what_is_kept(drawn: tuple[Layout, Shape]) -> None:
    layout, full = drawn
    kept = elements(layout, full)
    assert layout.shrunk(full) == tuple(kept.shape)
    assert len(kept.unique()) == kept.numel()
    assert layout.is_whole == torch.equal(kept, identity(full))


@QUICK
@given(st.data())
def test_refined_keeps_the_same_elements(data: st.DataObject) -> None:
    layout, full = data.draw(shaped_layouts())
    compact = data.draw(compacts(full))
    refined = layout.refined(compact)
    assert refined.compact == tuple(max(a, b) for a, b in zip(layout.compact, compact))
    assert torch.equal(elements(refined, full), elements(layout, full))
    assert refined.refined(compact) is refined


@QUICK
@given(pairs())
def test_same_means_the_same_elements_in_order(drawn: tuple[Layout, Layout, Shape]) -> None:
    first, second, full = drawn
    one, two = elements(first, full), elements(second, full)
    assert first.same(second) == second.same(first) == (one.shape == two.shape and torch.equal(one, two))


@QUICK
@given(shaped_layouts())
def test_coordinates_masks_and_values(drawn: tuple[Layout, Shape]) -> None:
    layout, _ = drawn
    flat = layout.labels.reshape(-1).tolist()
    for axis in range(layout.rank):
        expected = [_unravelled(label, layout.compact)[axis] for label in flat]
        assert layout.coordinate(axis).reshape(-1).tolist() == expected
    assert layout.mask().reshape(-1).nonzero().view(-1).tolist() == sorted(flat)
    values = torch.rand(layout.compact)
    assert torch.equal(layout.of(values).reshape(-1), torch.stack([values.reshape(-1)[i] for i in flat]))
    first = values[tuple(slice(0, 1) for _ in layout.compact)]
    assert bool((layout.of(first) == first.reshape(-1)).all()), "values broadcast"


@QUICK
@given(shaped_layouts())
def test_kept_is_what_every_row_keeps(drawn: tuple[Layout, Shape]) -> None:
    layout, _ = drawn
    for axis in range(layout.rank):
        rows = layout.coordinate(axis).movedim(axis, -1).reshape(-1, layout.labels.shape[axis]).tolist()
        kept = layout.kept(axis)
        assert (None if kept is None else kept.tolist()) == (rows[0] if all(r == rows[0] for r in rows) else None)
    if layout.is_product():
        assert layout.same(product(layout.compact, [layout.kept(a) for a in range(layout.rank)]))


@QUICK
@given(st.data())
def test_product_keeps_what_it_is_given(data: st.DataObject) -> None:
    compact = data.draw(SHAPES)
    given_ = [data.draw(st.none() | kept_indices(n)) if n != 1 else None for n in compact]
    layout = product(compact, given_)
    indices = [torch.arange(n) if kept is None else kept for n, kept in zip(compact, given_)]
    expected = identity(compact)
    for axis, index in enumerate(indices):
        expected = expected.index_select(axis, index)
    assert torch.equal(layout.labels, expected)
    assert layout.is_product()
    axis = data.draw(st.integers(0, len(compact) - 1))
    alone = Layout.along(len(compact), axis, compact[axis], indices[axis])
    only = [kept if a == axis else None for a, kept in enumerate(indices)]
    assert alone.same(product(tuple(n if a == axis else 1 for a, n in enumerate(compact)), only))


@QUICK
@given(st.data())
def test_boxed_covers_what_lives_and_not_much_more(data: st.DataObject) -> None:
    compact = data.draw(SHAPES)
    live = torch.tensor(data.draw(st.lists(st.booleans(), min_size=math.prod(compact), max_size=math.prod(compact))))
    live, multiple = live.view(compact), data.draw(st.integers(1, 4))
    box = box_of(live, multiple)
    labels = box.labels.reshape(-1)
    assert box.compact == compact
    assert bool((box.mask() >= live).all()), "covers what lives"
    assert len(labels.unique()) == len(labels), "holds nothing twice"
    assert labels.tolist() == sorted(labels.tolist()), "in the original order"
    if len(box.axes) == 1:
        wanted = max(1, math.ceil(int(live.sum()) / multiple)) * multiple
        assert len(labels) == min(live.numel(), wanted)
    if len(box.axes) > 1:
        needs = [max(1, int(collapse(live, _only(compact, a)).sum())) for a in box.axes]
        widest = max(1, int(live.movedim(box.axes[-1], -1).sum(-1).max()))
        assert list(box.labels.squeeze().shape or [1]) == [n for n in (*needs[:-1], widest) if n != 1] or [1]


def _only(compact: Shape, axis: int) -> Shape:
    return tuple(n if a == axis else 1 for a, n in enumerate(compact))


@QUICK
@given(st.lists(st.booleans(), min_size=1, max_size=12), st.integers(1, 5))
def test_grown_adds_the_first_dead_ones(bits: list[bool], multiple: int) -> None:
    live = torch.tensor(bits)
    kept = grown(live, multiple).tolist()
    dead = [i for i, bit in enumerate(bits) if not bit]
    added = [i for i in kept if not bits[i]]
    assert kept == sorted({*kept, *(i for i, bit in enumerate(bits) if bit)})
    assert added == dead[: len(added)]
    assert len(kept) == len(bits) or (
        len(kept) % multiple == 0 and 0 < len(kept) < sum(bits) + multiple + (not any(bits))
    )


@QUICK
@given(st.data())
def test_collapse_is_any_or_all_of_what_merges(data: st.DataObject) -> None:
    full = data.draw(SHAPES)
    mask = torch.tensor(data.draw(st.lists(st.booleans(), min_size=math.prod(full), max_size=math.prod(full)))).view(
        full
    )
    extra = data.draw(st.integers(0, len(full) - 1))
    compact = data.draw(compacts(full[extra:]))
    for every in (False, True):
        found = collapse(mask, compact, every=every)
        assert tuple(found.shape) == compact
        for index in itertools.product(*map(range, compact)):
            window = tuple(slice(None) if n == 1 else slice(i, i + 1) for i, n in zip(index, compact))
            merged = mask[(slice(None),) * extra + window]
            assert bool(found[index]) == bool(merged.all() if every else merged.any())


def test_a_whole_layout_has_no_labelled_axis() -> None:
    whole = Layout.whole(3)
    assert (whole.axes, whole.is_whole, whole.shrunk((2, 5, 7))) == ((), True, (2, 5, 7))


# --- reshapes ---------------------------------------------------------------------------------------------------------


@st.composite
def reshapes(draw: st.DrawFn) -> tuple[Shape, Shape]:
    """Two shapes with the same number of elements: small factors, grouped in two ways, ones strewn in."""
    factors = draw(st.lists(st.sampled_from((2, 3, 4, 5)), max_size=5))
    return _grouped(draw, factors), _grouped(draw, factors)


def _grouped(draw: st.DrawFn, factors: list[int]) -> Shape:
    shape: list[int] = []
    for factor in factors:
        if draw(st.booleans()) and shape:
            shape[-1] *= factor
        else:
            shape.append(factor)
        if draw(st.integers(0, 3)) == 3:
            shape.append(1)
    return tuple(shape)


@QUICK
@given(reshapes())
def test_matching_groups_split_both_sides_where_they_agree(drawn: tuple[Shape, Shape]) -> None:
    before, after = drawn
    groups = matching_groups(before, after)
    assert [a for left, _ in groups for a in left] == list(range(len(before)))
    assert [a for _, right in groups for a in right] == list(range(len(after)))
    for left, right in groups:
        sizes, others = [before[a] for a in left], [after[a] for a in right]
        assert math.prod(sizes) == math.prod(others)
        inner = {math.prod(sizes[:i]) for i in range(1, len(sizes))}
        assert not inner & {math.prod(others[:j]) for j in range(1, len(others))} - {1}, "could be split further"


@QUICK
@given(st.data())
def test_sizes_of_a_small_reshape(data: st.DataObject) -> None:
    before, after = data.draw(reshapes())
    labelled = [data.draw(st.booleans()) for _ in after]
    small = tuple(data.draw(st.integers(1, n)) for n in before)
    sizes = Reshape.sizes(before, after, small, labelled)
    if sizes is not None:
        assert math.prod(sizes) == math.prod(small)
        assert all(size == n for size, n, may in zip(sizes, after, labelled) if not may), "only labelled axes shrink"
        for left, right in matching_groups(before, after):
            assert math.prod(small[a] for a in left) == math.prod(sizes[a] for a in right)
    assert Reshape.sizes(before, after, before, labelled) == list(after)


@pytest.mark.parametrize(
    ("before", "after", "small", "labelled", "sizes"),
    [
        ((2, 6, 5), (2, 3, 2, 5), (2, 4, 5), (0, 0, 1, 0), None),  # 4 channels in 3 rows: no box
        ((2, 6, 5), (2, 3, 2, 5), (2, 3, 5), (0, 0, 1, 0), [2, 3, 1, 5]),
        ((2, 6, 5), (2, 3, 2, 5), (2, 4, 5), (0, 1, 0, 0), [2, 2, 2, 5]),
        ((2, 6, 5), (2, 3, 2, 5), (2, 4, 5), (0, 1, 1, 0), None),  # which of the two lost them is not known
        ((2, 3, 4), (2, 12), (2, 3, 2), (0, 1), [2, 6]),
        ((2, 8, 1, 1), (2, 8), (2, 5, 1, 1), (0, 1), [2, 5]),
    ],
)
def test_sizes_by_example(before: Shape, after: Shape, small: Shape, labelled: Shape, sizes: list[int] | None) -> None:
    assert Reshape.sizes(before, after, small, [bool(may) for may in labelled]) == sizes


def test_a_layout_prints_its_ranges() -> None:
    scattered = Layout.along(4, 1, 100, torch.arange(0, 100, 2))
    assert str(scattered) == "axis 1: 50 of 100 [0 2 4 6 8 10 12 14 16 18 20 22 and 38 more]"
    assert str(Layout.along(4, 1, 8, torch.tensor([0, 1, 2, 5]))) == "axis 1: 4 of 8 [0-2 5]"
    assert str(Layout.whole(4)) == "whole"
