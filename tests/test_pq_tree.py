"""Orders in which sets are runs: 2,000 random families, and brute force over all permutations of small ones."""

from __future__ import annotations

import itertools
import random
import sys
from collections.abc import Callable, Collection, Sequence

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from passes.assignment.pq_tree import Order, consecutive_order
from passes.errors import InputError

Family = list[list[int]]
SEEDS = st.integers(0, 2**32 - 1).map(random.Random)


def runs(order: Sequence[int], members: Collection[int]) -> int:
    """In how many runs the set comes."""
    inside = [element in set(members) for element in order]
    return sum(now and not before for before, now in itertools.pairwise([False, *inside]))


def check(n: int, family: Family, found: Order) -> None:
    """It is a permutation, and what it says of each set is so."""
    assert sorted(found.order) == list(range(n))
    assert list(found.satisfied) == [runs(found.order, members) <= 1 for members in family]


@st.composite
def small_families(draw: st.DrawFn) -> tuple[int, Family]:
    n = draw(st.integers(1, 6))
    subset = st.integers(0, 2**n - 1).map(lambda bits: [i for i in range(n) if bits >> i & 1])
    return n, draw(st.lists(subset, max_size=6))


@pytest.mark.property
@settings(max_examples=600)
@given(small_families(), st.data())
def test_takes_every_set_that_fits_those_before_it(small: tuple[int, Family], data: st.DataObject) -> None:
    n, family = small
    weights = data.draw(st.lists(st.integers(0, 3), min_size=len(family), max_size=len(family)))
    found = consecutive_order(n, family, weights)
    check(n, family, found)
    possible = list(itertools.permutations(range(n)))
    for index in sorted(range(len(family)), key=lambda i: -weights[i]):
        fitting = [order for order in possible if runs(order, family[index]) <= 1]
        assert found.satisfied[index] == bool(fitting)
        possible = fitting or possible
    assert found.order in possible


@pytest.mark.property
@settings(max_examples=600)
@given(SEEDS)
def test_intervals_of_a_hidden_order_are_all_satisfied(seed: random.Random) -> None:
    n = seed.choice((5, 40, 512))
    hidden = seed.sample(range(n), n)
    bounds = [sorted(seed.choices(range(n + 1), k=2)) for _ in range(seed.randint(1, 12))]
    family = [seed.sample(hidden[a:b], b - a) for a, b in bounds]
    found = consecutive_order(n, family)
    check(n, family, found)
    assert all(found.satisfied)


@pytest.mark.property
@settings(max_examples=200)
@given(SEEDS)
def test_what_is_in_order_stays(seed: random.Random) -> None:
    n = seed.randint(1, 128)
    bounds = [sorted(seed.choices(range(n + 1), k=2)) for _ in range(seed.randint(0, 12))]
    found = consecutive_order(n, [range(a, b) for a, b in bounds])
    assert found.order == tuple(range(n))


@pytest.mark.property
@settings(max_examples=200)
@given(SEEDS)
def test_nested_families_are_all_satisfied(seed: random.Random) -> None:
    n = seed.randint(1, 128)
    shuffled = seed.sample(range(n), n)
    family = [shuffled[: seed.randint(0, n)] for _ in range(seed.randint(1, 12))]
    found = consecutive_order(n, family)
    check(n, family, found)
    assert all(found.satisfied)


@pytest.mark.property
@settings(max_examples=200)
@given(SEEDS)
def test_two_sets_are_both_satisfied_and_a_third_comes_in_two_runs(seed: random.Random) -> None:
    n = seed.randint(1, 128)
    family = [seed.sample(range(n), seed.randint(0, n)) for _ in range(3)]
    found = consecutive_order(n, family)
    check(n, family, found)
    assert found.satisfied[:2] == (True, True)
    assert runs(found.order, family[2]) <= 2


@pytest.mark.property
@settings(max_examples=200)
@given(SEEDS)
def test_random_families_are_told_truly_and_twice_the_same(seed: random.Random) -> None:
    n = seed.randint(1, 512)
    family = [seed.sample(range(n), seed.randint(0, n)) for _ in range(seed.randint(1, 12))]
    found = consecutive_order(n, family)
    check(n, family, found)
    assert consecutive_order(n, family) == found
    assert consecutive_order(n, [seed.sample(members, len(members)) for members in family]) == found


def test_the_heaviest_are_satisfied() -> None:
    triangle = [{0, 1}, {1, 2}, {0, 2}]  # any two of them are runs of some order, all three of none
    assert consecutive_order(3, triangle).satisfied == (True, True, False)
    assert consecutive_order(3, triangle, [1, 3, 2]) == Order((0, 2, 1), (False, True, True))


def test_families_without_a_choice() -> None:
    assert consecutive_order(0, []) == Order((), ())
    assert consecutive_order(3, []) == Order((0, 1, 2), ())
    assert consecutive_order(4, [[], [2], range(4), [0, 3], [3, 0]]) == Order((0, 3, 1, 2), (True,) * 5)


def test_a_set_that_cuts_three_others_is_left() -> None:
    pairs = [[0, 1], [2, 3], [4, 5]]
    check(6, [*pairs, [0, 2, 4]], found := consecutive_order(6, [*pairs, [0, 2, 4]]))
    assert found.satisfied == (True, True, True, False)


def test_a_chain_of_overlapping_sets_is_one_order_and_its_reverse() -> None:
    chain = [(4, 2), (2, 0), (0, 3), (3, 1)]
    assert consecutive_order(5, chain).order == (1, 3, 0, 2, 4)


def test_a_long_nested_family_needs_no_recursion() -> None:
    found = consecutive_order(1200, [range(i, 1200) for i in range(1200)][::-1])
    assert all(found.satisfied)
    assert found.order == tuple(range(1200))


def calls_of(function: Callable[[], object]) -> int:
    """How many Python functions are called: a measure of work that does not depend on the machine."""
    count = 0

    def counted(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(counted)
    try:
        function()
    finally:
        sys.setprofile(before)
    return count


def test_the_work_for_twelve_sets_grows_with_the_channels() -> None:
    """Four times the channels are about four times the calls, and there are a few for each channel."""

    def family(size: int) -> list[list[int]]:
        seed = random.Random(0)
        return [seed.sample(range(size), size // 2) for _ in range(12)]

    small, large = (calls_of(lambda n=n: consecutive_order(n, family(n))) for n in (128, 512))  # type: ignore[misc]
    assert large < 6 * small
    assert large < 512 * 100


@pytest.mark.parametrize("element", [-1, 3])
def test_an_element_out_of_range_is_refused(element: int) -> None:
    with pytest.raises(InputError, match=rf"set 1 has the element {element}; elements are 0 to 2"):
        consecutive_order(3, [[0], [element]])


def test_a_missing_weight_is_refused() -> None:
    with pytest.raises(InputError, match="1 weights for 2 sets"):
        consecutive_order(3, [[0], [1]], [1.0])
