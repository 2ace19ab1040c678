"""Selections: what `apply` takes is what `labels` names."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import torch
from hypothesis import given, settings
from torch import Tensor

from passes.graph.selection import Selection
from tests.test_layout import SHAPES, kept_indices

QUICK = settings(max_examples=60)


@st.composite
def by_axis(draw: st.DrawFn, shape: tuple[int, ...]) -> Selection:
    """A box of a tensor: some indices of each axis, in any order, or None."""
    whole = tuple(torch.arange(n) for n in shape)
    return Selection(shape, tuple(draw(st.one_of(st.none(), st.just(w), kept_indices(len(w)))) for w in whole))


@st.composite
def flat(draw: st.DrawFn, shape: tuple[int, ...]) -> Selection:
    """Flat indices in a new shape, as for grouped convolutions."""
    rows, columns = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    indices = draw(st.lists(st.integers(0, math.prod(shape) - 1), min_size=rows * columns, max_size=rows * columns))
    return Selection(shape, (None,) * len(shape), torch.tensor(indices).view(rows, columns))


@st.composite
def selections(draw: st.DrawFn) -> tuple[Selection, Selection]:
    """Two selections of the same kind from tensors of the same shape."""
    shape = draw(SHAPES)
    kind = draw(st.sampled_from((by_axis, flat)))
    first = draw(kind(shape))
    return first, draw(st.one_of(st.just(first), kind(shape)))


def numbered(shape: tuple[int, ...]) -> Tensor:
    return torch.arange(math.prod(shape)).view(shape)


@QUICK
@given(selections())
def test_apply_takes_what_labels_names(drawn: tuple[Selection, Selection]) -> None:
    selection, _ = drawn
    tensor = torch.rand(selection.shape)
    taken = selection.apply(tensor)
    assert tuple(taken.shape) == selection.new_shape == tuple(selection.labels().shape)
    assert torch.equal(taken, tensor.reshape(-1)[selection.labels()])
    assert taken.data_ptr() != tensor.data_ptr(), "a new tensor, even where all of it is taken"


@QUICK
@given(selections())
def test_simplified_selects_the_same(drawn: tuple[Selection, Selection]) -> None:
    selection, _ = drawn
    simple = selection.simplified()
    assert torch.equal(simple.labels(), selection.labels())
    assert simple.simplified().same(simple)
    for n, kept in zip(simple.shape, simple.axes):
        assert kept is None or kept.tolist() != list(range(n))


@QUICK
@given(selections())
def test_same_means_the_same_elements_in_order(drawn: tuple[Selection, Selection]) -> None:
    """Of simplified selections of one kind: whole axes are written in one way only."""
    first, second = (each.simplified() for each in drawn)
    mine, yours = first.labels(), second.labels()
    assert first.same(second) == second.same(first) == (mine.shape == yours.shape and torch.equal(mine, yours))


@QUICK
@given(SHAPES)
def test_whole_takes_everything(shape: tuple[int, ...]) -> None:
    whole = Selection.whole(shape)
    assert whole.new_shape == shape
    assert torch.equal(whole.labels(), numbered(shape))
    assert whole.simplified().same(whole)


def test_a_selection_reads_tensors_that_are_not_contiguous() -> None:
    tensor = torch.rand(3, 4).t()
    box = Selection((4, 3), (torch.tensor([2, 0]), None))
    assert torch.equal(box.apply(tensor), tensor[[2, 0]])
    picked = Selection((4, 3), (None, None), torch.tensor([[5, 0]]))
    assert torch.equal(picked.apply(tensor), tensor.reshape(-1)[torch.tensor([[5, 0]])])
