"""Channels arranged: where an order exists in which branches are runs, no gather is left; always exact."""

from __future__ import annotations

from collections import Counter

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

import l1rr_fx
from l1rr_fx.pruning.report import Report
from passes.analysis.liveness import channel_facts
from passes.analysis.program import Program
from passes.assignment.channel_order import Arrangement, arrange
from passes.assignment.cost_model import ByteCount
from passes.audit.comparison import relative_deviation
from passes.canonical.normalise import normalise_graph
from passes.frontend.capture import capture
from passes.rules import rule_for
from tests.machines import BALANCED, FILLS, MACHINES, RUNS, WIDENS, Biased

WIDTH = 24
TOLERANCE = 1e-10  # float64: what is left is the reassociation of sums
X = torch.randn(1, 3, 5, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Branch(nn.Module):
    """Convolution and batch norm of which only some channels live."""

    def __init__(self, inputs: int, kept: list[int]) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, WIDTH, 1, bias=False)
        self.norm = nn.BatchNorm2d(WIDTH)
        dead = [c for c in range(WIDTH) if c not in kept]
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)
        nn.init.uniform_(self.norm.bias, -0.5, 0.5)
        self.norm.weight.data[dead], self.norm.bias.data[dead] = 0, 0

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class Residual(nn.Module):
    """A stem and branches that are added to it one after the other."""

    def __init__(self, stem: list[int], branches: list[list[int]]) -> None:
        super().__init__()
        self.stem = Branch(3, stem)
        self.branches = nn.ModuleList(Branch(WIDTH, kept) for kept in branches)
        self.head = nn.Conv2d(WIDTH, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        for branch in self.branches:
            x = (x + branch(x)).relu()
        return self.head(x)


def made(model: nn.Module) -> nn.Module:
    torch.manual_seed(1)
    return model.double().eval()


def kinds(report: Report) -> Counter[str]:
    return Counter(each.kind for each in report.accounts.recombinations if each.kind != "folded")


def arranged(model: nn.Module) -> tuple[Program, Arrangement]:
    captured = capture(model, (X,))
    normalise_graph(captured.graph)
    program = Program(captured, rule_for)
    return program, arrange(program, channel_facts(program))


permutations = st.permutations(range(WIDTH))


@settings(max_examples=40)
@given(permutations, st.lists(st.integers(2, WIDTH), min_size=2, max_size=5))
def test_nested_branches_leave_no_gather(order: list[int], lengths: list[int]) -> None:
    stem, *branches = (sorted(order[:length]) for length in lengths)
    model = made(Residual(stem, branches))
    small = l1rr_fx.prune(model, (X,))
    assert kinds(small.report)["gather"] == 0, small.module
    assert all(family.runs == family.sets for family in small.report.accounts.families)
    assert relative_deviation(model(X), small.module(X)) <= TOLERANCE


@settings(max_examples=40)
@given(*[st.sets(st.integers(0, WIDTH - 1), min_size=2)] * 2)
def test_two_branches_leave_no_gather(stem: set[int], branch: set[int]) -> None:
    model = made(Residual(sorted(stem), [sorted(branch)]))
    small = l1rr_fx.prune(model, (X,))
    assert kinds(small.report)["gather"] == 0
    assert relative_deviation(model(X), small.module(X)) <= TOLERANCE


@settings(max_examples=40)
@given(st.lists(st.sets(st.integers(0, WIDTH - 1), min_size=2), min_size=2, max_size=5), st.sampled_from(MACHINES))
def test_random_branches_are_exact_for_every_target(sets: list[set[int]], machine: object) -> None:
    stem, *branches = map(sorted, sets)
    model = made(Residual(stem, branches))
    small = l1rr_fx.prune(model, (X,), target=machine)
    assert relative_deviation(model(X), small.module(X)) <= TOLERANCE


def test_a_deep_chain_of_equal_sums_is_priced_up_to_the_next_sum() -> None:
    """All blocks but the last keep the same channels: a look-ahead without end would run through all of them."""
    kept = list(range(4))
    model = made(Residual(kept, [kept] * 300 + [[1, 2, 8]]))
    small = l1rr_fx.prune(model, (X,), target=BALANCED, verify=False)
    assert len(small.report.accounts.families) == 1
    assert relative_deviation(model(X), small.module(X)) <= TOLERANCE


BITS = [[c for c in range(16) if c >> bit & 1] for bit in range(4)]  # no order has four such runs
SCATTERED = [list(range(0, WIDTH, 2)), [1, 5, 9, 14, 20], [2, 3, 11, 17, 23]]


def test_a_target_chooses_between_copies_and_zeros() -> None:
    model = made(Residual(SCATTERED[0], SCATTERED[1:]))
    thrifty, lavish = (l1rr_fx.prune(model, (X,), target=target).report for target in ("none", FILLS))
    assert thrifty.macs_over_limit == 1.0
    assert sum(kinds(thrifty).values()) > 0
    assert sum(kinds(lavish).values()) == 0
    assert lavish.macs_over_limit > 1.0
    (family,) = lavish.accounts.families
    assert (family.sums, family.copied) == (2, 0)
    assert family.as_zeros > 0
    assert thrifty.accounts.families[0].copied == sum(kinds(thrifty).values())


def test_zeros_are_gathered_from_a_channel_and_not_padded_in() -> None:
    """One operator that moves data for each copy: with a dead channel at hand a gather needs no padding first."""
    model = made(Residual(BITS[0], BITS[1:]))
    small = l1rr_fx.prune(model, (X,), target=Biased("one channel is cheap", 5.0))
    called = Counter(str(node.target) for node in small.module.graph.nodes if node.op == "call_function")
    copies = kinds(small.report)
    assert called["aten.index_select.default"] + called["aten.constant_pad_nd.default"] == sum(copies.values())
    assert copies["gather"] > 0, "the case tests nothing"


class Shared(nn.Module):
    """Three maps of one prediction layer side by side, of which a view wants every channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Branch(3, list(range(WIDTH)))
        self.heads = nn.ModuleList(Branch(WIDTH, [0, 3, 4, 9, 15, 16, 22]) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        maps = torch.cat([head(x).flatten(2) for head in self.heads], 2)
        return maps.view(1, 4, WIDTH // 4, -1).softmax(2)


@pytest.mark.parametrize("model", [Residual(BITS[0], BITS[1:]), Shared()], ids=["sums", "concatenation"])
def test_where_gathers_are_dear_none_is_left(model: nn.Module) -> None:
    model = made(model)
    reports = {target: l1rr_fx.prune(model, (X,), target=target).report for target in (ByteCount(), RUNS)}
    assert kinds(reports[ByteCount()])["gather"] > 0, "the case tests nothing"
    assert kinds(reports[RUNS])["gather"] == 0
    assert reports[RUNS].after.macs < reports[RUNS].before.macs


def test_a_run_with_zeros_in_it_is_padded_where_a_gather_is_dear() -> None:
    """Neither a gather nor all the zeros of the sum: what lies between the first and the last live channel."""
    model = made(Residual(BITS[0], BITS[1:]))
    copies = kinds(l1rr_fx.prune(model, (X,), target=RUNS).report)
    assert copies["padded"] > 2, "two of four fit in any case"


def test_widths_are_grown_where_that_pays() -> None:
    model = made(
        nn.Sequential(Branch(3, list(range(5))), nn.ReLU(), Branch(WIDTH, list(range(6))), nn.Conv2d(WIDTH, 4, 1))
    )
    widths = {
        target: [layer.outputs[1] for layer in l1rr_fx.prune(model, (X,), target=target).report.accounts.layers]
        for target in ("none", WIDENS)
    }
    assert widths["none"] == [5, 6, 4]
    assert widths[WIDENS] == [8, 8, 4]


class Joined(nn.Module):
    """A family whose members are concatenated with another tensor, and read behind that."""

    def __init__(self) -> None:
        super().__init__()
        self.family = Residual(SCATTERED[0], [SCATTERED[1]])
        self.other = Branch(3, SCATTERED[2])
        self.head = nn.Conv2d(2 * WIDTH, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        stem = self.family.stem(x)
        total = stem + self.family.branches[0](stem)
        return self.head(torch.cat([self.other(x), total], 1))


def test_the_order_flows_through_concatenations() -> None:
    model = made(Joined())
    small = l1rr_fx.prune(model, (X,))
    assert kinds(small.report)["gather"] == 0
    program, arrangement = arranged(model)
    (cat,) = (node for node in program.tensors if node.name.startswith("cat"))
    assert arrangement.ranks[cat].numel() == 2 * WIDTH
    assert relative_deviation(model(X), small.module(X)) <= TOLERANCE


class Returned(Residual):
    """A family that the network returns."""

    def forward(self, x: Tensor) -> Tensor:
        stem = self.stem(x)
        return stem + self.branches[0](stem)


def test_outputs_keep_their_order() -> None:
    _, arrangement = arranged(made(Returned(SCATTERED[0], [SCATTERED[1]])))
    assert not arrangement.ranks
    ((family, _),) = arrangement.families
    assert family.fixed == "an input or output of the network"


@pytest.mark.parametrize("groups", [2, 3])
def test_an_operator_with_an_order_of_its_own_is_named(groups: int) -> None:
    model = Residual(SCATTERED[0], SCATTERED[1:2])
    model.head = nn.Conv2d(WIDTH, 6, 1, groups=groups)
    _, arrangement = arranged(made(model))
    ((family, _),) = arrangement.families
    assert family.fixed is not None
    assert "conv2d" in family.fixed
