"""Moves that a machine understands: families of channels, their cost without the compiler, and paths of moves."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import l1rr_fx
from l1rr_fx.demo.detector import ConvBlock, SplitBlock
from l1rr_fx.demo.plots import write_time
from l1rr_fx.latency import model as latency_model
from l1rr_fx.machines.jetson_tx2 import JetsonTX2
from l1rr_fx.method.planning.allocate import Moves
from l1rr_fx.method.planning.families import cells
from l1rr_fx.method.planning.moves import costs
from l1rr_fx.method.planning.plan import Plan
from l1rr_fx.method.sites.budget import Analysis, Budget
from passes.errors import InputError
from tests.test_revive import ARGS, MACS, network, zeroed

CLOSE = 0.03
"""The compiler may write fewer copies than the dense network has, or narrower ones."""


class Chunked(nn.Module):
    """A block whose chunk goes through residual sums, and a grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = ConvBlock(3, 16), SplitBlock(16, 2)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.head = nn.Conv2d(16, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.grouped(self.block(self.stem(x))))
        return found


class Kept(nn.Module):
    """A channel that an output shows, one that meets the input, and one that a softmax mixes."""

    def __init__(self) -> None:
        super().__init__()
        self.shown, self.added, self.mixed, self.free = (nn.Conv2d(3, 3, 1) for _ in range(4))
        self.head = nn.Conv2d(3, 2, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.free(self.added(x) + x)
        return self.head(self.mixed(x).softmax(1)), self.shown(x)


def families_of(model: nn.Module) -> dict[str, list[str]]:
    analysis = Analysis(model, ARGS)
    found = cells(analysis.program, analysis.sites).families(analysis.sites, frozenset())
    return {family.name: [site.name for site in family.sites] for family in found}


def test_a_family_is_what_sums_join_through_chunks_and_groups() -> None:
    found = families_of(Chunked().double())
    split = next(name for name, sites in found.items() if len(sites) == 3)  # half of the chunk, and two residual blocks
    first = found[split][0]
    assert split == f"{first}[8-15]" and found[f"{first}[0-7]"] == [first]
    analysis = Analysis(Chunked().double(), ARGS)
    grouped = next(
        family
        for family in cells(analysis.program, analysis.sites).families(analysis.sites, frozenset())
        if family.sites[0].name == "grouped"
    )
    assert grouped.places["grouped"].tolist() == [[n, n + 4, n + 8, n + 12] for n in range(4)]


def test_what_an_output_shows_and_what_is_mixed_is_in_no_family() -> None:
    assert families_of(Kept().double()) == {"free": ["free"]}


def moves_of(model: nn.Module) -> Moves:
    analysis = Analysis(model, ARGS, target="jetson-tx2")
    kept = frozenset(site.name for site in analysis.sites if site.blocked is not None or site.kind != "scale")
    scores = {
        site.name: model.get_parameter(site.weight).detach().abs() for site in analysis.sites if site.name not in kept
    }
    found = Moves.of(analysis, scores, kept, lambda channels: 4)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def moves() -> Moves:
    return moves_of(network())


def test_the_cost_of_widths_is_that_of_the_written_network(moves: Moves) -> None:
    analysis, dense = moves.analysis, moves.analysis.dense
    assert isinstance(moves.target, JetsonTX2)
    full = torch.tensor([[float(unit.channels) for unit in moves.units]], dtype=torch.float64)
    whole = costs(moves.shapes, full, moves.target)
    assert dense.latency is not None
    assert float(whole.seconds) == pytest.approx(dense.latency) and float(whole.macs) == dense.macs
    path = moves.path({"latency": 0.7}, {})
    for number in (len(path) // 2, len(path)):
        shares = analysis.size(path.zeroing(number)).shares(dense)
        assert path.states[number].shares["latency"] == pytest.approx(shares["latency"], rel=CLOSE)
        assert path.states[number].shares["macs"] == pytest.approx(shares["macs"], abs=CLOSE)


def test_a_block_goes_with_its_kernels(moves: Moves) -> None:
    """One of the sums is read by a concatenation, which has a copy to make where the branch is gone."""
    analysis, families = moves.analysis, len(moves.families)
    assert [block.sites[0].name for block in moves.blocks] == ["first.second.1", "second.second.1", "right.1"]
    assert [family.name for family in moves.families if moves.blocks[0].holds(family)] == ["first.first.1"]
    full = torch.tensor([[float(unit.channels) for unit in moves.units]], dtype=torch.float64)
    for number, block in enumerate(moves.blocks, start=families):
        without = full.clone()
        without[0, number] = 0
        found, size = costs(moves.shapes, without, moves.target), analysis.size(block.zeroing(1))
        assert float(found.seconds) == pytest.approx(size.latency, rel=CLOSE)
        assert float(found.macs) == size.macs and int(found.seconds < analysis.dense.latency)


@pytest.mark.parametrize("tile", [8, 16, 32, 64])
def test_a_path_never_gains_loss_nor_time(moves: Moves, tile: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latency_model, "ROW_TILE", tile)
    states = moves.path({"latency": 0.5}, {}).states
    assert len(states) > 1 and not states[0].loss and states[0].shares["latency"] == 1
    assert all(
        before.shares["latency"] > after.shares["latency"] and before.loss < after.loss
        for before, after in pairwise(states)
    )


LIMITS = (0.95, 0.85, 0.8, 0.77)


@pytest.fixture(scope="module")
def plans() -> dict[float, Plan]:
    """The plans of one network for several limits on its latency."""
    model = network()
    return {limit: l1rr_fx.choose(model, ARGS, budget=Budget(latency=limit), target="jetson-tx2") for limit in LIMITS}


def test_a_smaller_budget_has_no_larger_time_nor_smaller_loss(plans: dict[float, Plan]) -> None:
    assert all(plan.method == "moves of the machine" for plan in plans.values())
    assert all(more.reached["latency"] >= less.reached["latency"] for more, less in pairwise(plans.values()))
    assert all(more.tau <= less.tau for more, less in pairwise(plans.values()))


def test_a_latency_is_met_within_a_hundredth_or_the_next_move_is_larger(plans: dict[float, Plan]) -> None:
    for limit, plan in plans.items():
        assert plan.reached["latency"] <= limit
        if plan.reached["latency"] < limit - 0.01:
            assert plan.last is not None and plan.last.without["latency"] > limit
            assert f"{plan.last.channels} channels of {plan.last.name}" in " ".join(str(plan).split())
    assert any(plan.last is None for plan in plans.values()), "states between moves should be near to their limits"


def test_a_plan_says_where_the_time_goes(plans: dict[float, Plan], tmp_path: Path) -> None:
    explained = plans[LIMITS[-1]].explained
    assert explained is not None
    for parts in (explained.before, explained.after):
        assert sum(parts.stages.values()) == pytest.approx(parts.ms)
    assert [*explained.before.stages] == ["32x32"] and explained.before.ms > explained.after.ms
    assert "Predicted ms by map" in str(plans[LIMITS[-1]])
    write_time(explained, tmp_path / "time.png")
    assert (tmp_path / "time.png").stat().st_size > 1000


def test_a_plan_for_a_latency_computes_what_the_zeroed_network_does(plans: dict[float, Plan]) -> None:
    small = zeroed(network(), plans[LIMITS[-1]])
    fast, least = (l1rr_fx.prune(small, ARGS, target=target) for target in ("jetson-tx2", "none"))
    torch.testing.assert_close(fast.module(*ARGS), small(*ARGS), rtol=1e-10, atol=1e-10)  # float64
    assert fast.report.after.macs <= MACS * least.report.after.macs


@pytest.mark.parametrize("mode", ["recombine", "union"])
def test_a_budget_below_the_launches_is_refused(mode: str) -> None:
    with pytest.raises(
        InputError, match=r"latency=0\.\d+ is reachable.*to start the kernels of the dense network takes"
    ):
        l1rr_fx.choose(network(), ARGS, budget=Budget(latency=0.05), target="jetson-tx2", mode=mode)
