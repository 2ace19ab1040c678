"""The one primitive: whatever two layouts a value has, the calls written give exactly the elements wanted."""

from __future__ import annotations

from collections.abc import Sequence

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from passes.graph.layout import Layout, Shape
from passes.rewriting.recombine import Recombiner, Written, positions, runs
from tests.test_layout import elements, kept_indices, pairs

aten = torch.ops.aten
QUICK = settings(max_examples=100)

CALLS = {
    None: set(),
    "slice": {aten.slice.Tensor},
    "padded": {aten.slice.Tensor, aten.constant_pad_nd.default},
    "concatenation": {aten.slice.Tensor, aten.cat.default},
    "gather": {aten.index_select.default, aten.constant_pad_nd.default},
}
"""The operators that a recombination along one axis may consist of, by its kind."""


def recombined(have: Layout, want: Layout, x: Tensor) -> tuple[Tensor, Written]:
    """`x` brought from one layout to the other by the calls that the recombiner writes, and what it says of them."""
    root, graph = nn.Module(), Graph()

    def constant(index: Tensor) -> Node:
        name = f"index_{len(list(root.buffers()))}"
        root.register_buffer(name, index)
        return graph.get_attr(name)

    written = Recombiner(graph, constant)(graph.placeholder("x"), have, want)
    graph.output(written.node)
    graph.lint()
    result: Tensor = GraphModule(root, graph)(x)
    return result, written


def expected(have: Layout, want: Layout, full: Shape) -> tuple[Tensor, Tensor]:
    """A value in the layout `have`, and what it must become: found through its elements' numbers."""
    own, other = elements(have, full), elements(want, full)
    value = {int(number): float(number + 1) for number in own.reshape(-1)}
    wanted = [value.get(int(number), 0.0) for number in other.reshape(-1)]
    return (own + 1).double(), torch.tensor(wanted, dtype=torch.float64).view(other.shape)


def operators(written: Written) -> set[object]:
    """What the written calls are."""
    return {node.target for node in written.node.graph.nodes if node.op == "call_function"}


@QUICK
@given(pairs())
def test_gives_exactly_the_elements_wanted(drawn: tuple[Layout, Layout, Shape]) -> None:
    have, want, full = drawn
    x, result = expected(have, want, full)
    found, written = recombined(have, want, x)
    assert torch.equal(found, result)
    assert (written.kind is None) == (not operators(written)) == have.same(want)
    gathers = {aten.index_select.default, aten.index.Tensor}
    assert (written.kind == "gather") == bool(gathers & operators(written))


@QUICK
@given(pairs())
def test_the_same_layout_is_free(drawn: tuple[Layout, Layout, Shape]) -> None:
    have, other, full = drawn
    x, _ = expected(have, have, full)
    found, written = recombined(have, have.refined(other.compact), x)
    assert found is x
    assert (written.node.op, written.kind) == ("placeholder", None)


@QUICK
@given(st.data())
def test_along_one_axis_the_kind_says_which_calls(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 10))
    have, want = (Layout.along(4, 1, size, data.draw(kept_indices(size))) for _ in range(2))
    x, result = expected(have, want, (2, size, 2, 1))
    found, written = recombined(have, want, x)
    assert torch.equal(found, result)
    assert operators(written) <= CALLS[written.kind]
    place, _, _ = positions(have, want)
    assert (written.kind == "padded") <= bool((place < 0).any())


@pytest.mark.parametrize(
    ("have", "want", "kind"),
    [
        ([0, 1, 2, 5], [0, 1, 2, 5], None),
        ([0, 1, 2, 5], [1, 2], "slice"),
        ([1, 2], [0, 1, 2, 3], "padded"),
        ([0, 1], [0, 1, 2], "padded"),
        ([1, 2], [0, 2, 3], "padded"),
        ([3], [0, 1], "gather"),  # nothing of it is held: zeros, and dearer than they need be
        ([0, 1, 2, 3], [2, 3, 0, 1], "concatenation"),
        ([0, 1, 2, 3, 4, 5, 6], [0, 2, 4, 6], "concatenation"),
        ([0, 1, 2, 3, 4, 5, 6, 7, 8], [0, 2, 4, 6, 8], "gather"),
        ([1, 3], [1, 2, 3], "gather"),  # a hole in the middle
    ],
)
def test_kinds_by_example(have: list[int], want: list[int], kind: str | None) -> None:
    first, second = (Layout.along(4, 1, 9, torch.tensor(kept)) for kept in (have, want))
    x, result = expected(first, second, (1, 9, 1, 2))
    found, written = recombined(first, second, x)
    assert torch.equal(found, result)
    assert written.kind == kind


def test_ragged_rows_are_one_gather_over_both_axes() -> None:
    """Attention heads whose dead channels differ, with the labelled axes apart: (heads, tokens, channels)."""
    compact = (2, 1, 3)
    have = Layout(compact, torch.tensor([[0, 2], [4, 5]]).view(2, 1, 2))
    want = Layout(compact, torch.tensor([[2, 1], [5, 4]]).view(2, 1, 2))
    x, result = expected(have, want, (2, 4, 3))
    found, written = recombined(have, want, x)
    assert torch.equal(found, result)
    assert written.kind == "gather"
    assert aten.index.Tensor in operators(written)


@QUICK
@given(st.lists(st.integers(-1, 6), min_size=1, max_size=10))
def test_runs_say_the_vector(index: list[int]) -> None:
    found = runs(torch.tensor(index))
    assert _spelt(found) == index
    for (first, length), (following, _) in zip(found, found[1:]):
        assert not (first == following == -1), "neighbouring holes are one run"
        assert first == -1 or following != first + length, "consecutive runs are one"


def _spelt(found: Sequence[tuple[int, int]]) -> list[int]:
    return [first if first == -1 else first + i for first, length in found for i in range(length)]
