"""A target that predicts whole networks gets the fastest of the ways to write one, and never a slower one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, note, settings
from torch import Tensor, nn
from torch.fx import GraphModule

import l1rr_fx
from benchmarks.never_slower import compared
from l1rr_fx.conformance import cases_of
from l1rr_fx.latency.prediction import Latency
from l1rr_fx.machines.by_name import machine
from l1rr_fx.testing import Network, kill, networks, randomised, zeroed
from passes import (
    Facts,
    InputError,
    Machine,
    Options,
    Program,
    Sketch,
    capture,
    channel_facts,
    fastest_plan,
    normalise,
    remove_zero_channels,
    rule_for,
)
from passes.accounts import Alternative
from passes.assignment.whole import WHOLE
from passes.compile import AS_IT_IS, NEAR, fastest
from tests.machines import BALANCED, Biased
from tests.zoo import by_name

WAYS = {
    *(mode + more for mode in ("recombine", "union", "exclude") for more in ("", " without a target")),
    AS_IT_IS,
}


class Residual(nn.Module):
    """Two branches that meet in a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.stem, self.branch = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(self.first(x))
        found: Tensor = self.head(x + self.branch(x))
        return found


EXAMPLES = settings.default.max_examples if settings.default else 1
ARGS = (torch.rand(1, 3, 8, 8, dtype=torch.float64),)


def residual() -> nn.Module:
    """Channels 2 and 6 are dead in the branch, 1 and 4 in both: every mode writes another network."""
    model = randomised(Residual())
    kill(model.first, rows=(0, 1))
    kill(model.stem, rows=(1, 4, 5))
    kill(model.branch, rows=(1, 2, 4, 6))
    return model


def analysed(model: nn.Module, args: tuple[Any, ...]) -> tuple[Program, Facts]:
    program = Program(normalise(capture(model, args)), rule_for)
    return program, channel_facts(program)


@dataclass(frozen=True)
class Judge(Biased):
    """Prices with a whole-network predictor: `copied` for each copy, and `element` for each element of a weight."""

    copied: float = 0.0
    element: float = 0.0

    def predict_sketch(self, sketch: Sketch) -> float:
        weights = sum(n.meta["val"].numel() for n in sketch.graph.nodes if str(n.target).endswith("weight"))
        return 1.0 + self.copied * sketch.copies + self.element * weights


CHOSEN = {
    "copies cost all": (Judge("a", 0.0, copied=1.0, element=-1e-6), AS_IT_IS),
    "elements cost all": (Judge("b", 0.0, element=1.0), "recombine without a target"),
    "copies cost, elements too": (Judge("c", 0.0, copied=1.0, element=1e-3), "recombine"),
    "a near tie": (Judge("d", 5.0, element=NEAR / 1e3), "union"),
}


@pytest.mark.parametrize("case", CHOSEN)
def test_the_fastest_way_is_written(case: str) -> None:
    target, name = CHOSEN[case]
    removed = remove_zero_channels(capture(residual(), ARGS), Options(target=target))
    chosen, *others = removed.alternatives
    assert {each.name for each in removed.alternatives} == WAYS
    assert chosen.name == name
    assert [each.seconds for each in others] == sorted(each.seconds for each in others)
    written = [each for each in removed.rewritten.recombinations if each.kind != "folded"]
    assert len(written) == chosen.copies
    torch.testing.assert_close(removed.module(*ARGS), residual()(*ARGS), rtol=1e-10, atol=1e-10)  # float64


def test_the_report_of_the_network_as_it_is_knows_what_could_go() -> None:
    report = l1rr_fx.prune(residual(), ARGS, target=CHOSEN["copies cost all"][0]).report
    assert report.alternatives[0].name == AS_IT_IS and report.after == report.before
    assert report.limit.macs == l1rr_fx.prune(residual(), ARGS).report.limit.macs < report.after.macs
    assert {each.reason for each in report.accounts.kept} == {WHOLE}
    assert f"{AS_IT_IS} (written)" in str(report)


def test_of_near_ties_the_one_with_fewer_copies_is_written() -> None:
    alternatives = fastest_plan(*analysed(residual(), ARGS), Options(target=CHOSEN["a near tie"][0])).alternatives
    assert min(alternatives, key=lambda each: each.seconds).copies > alternatives[0].copies


@given(st.lists(st.tuples(st.floats(0.99, 1.02), st.integers(0, 3)), min_size=1), st.floats(0.99, 1.02))
def test_nothing_slower_than_the_network_as_it_is_is_chosen(ways: list[tuple[float, int]], as_it_is: float) -> None:
    found = [Alternative("way", *each) for each in ways]
    chosen = fastest([*found, Alternative(AS_IT_IS, as_it_is, 0)])
    assert chosen.seconds <= as_it_is
    assert chosen.seconds <= min(each.seconds for each in found) * (1 + NEAR)


@pytest.mark.parametrize("options", [Options("union", target=CHOSEN["a near tie"][0]), Options(target=BALANCED)])
def test_a_mode_that_is_named_and_a_target_that_predicts_nothing_leave_no_choice(options: Options) -> None:
    assert not fastest_plan(*analysed(residual(), ARGS), options).alternatives


PATTERNS = {case.name: case.build for case in cases_of("patterns")}
SMALL = ("bottleneck", "c2f_residual", "inception", "squeeze_excite", "sum_of_concatenation", "res_next_block")


@pytest.mark.parametrize(
    "name", [*SMALL, *(pytest.param(name, marks=pytest.mark.fuzz) for name in ("tv/resnet18", "yolo/yolov8n"))]
)
def test_no_network_is_predicted_slower_than_another_mode_writes(name: str) -> None:
    model, args = PATTERNS[name]() if name in PATTERNS else by_name(name).build()[:2]
    model = zeroed(model, 0.4, seed=1)
    pruned = l1rr_fx.prune(model, args, target="jetson-tx2", verify=False)
    latency, seconds = Latency("jetson-tx2"), pruned.report.alternatives[0].seconds
    assert latency.predict(pruned.module, args) == pytest.approx(seconds)
    others = [latency.predict(model, args)]
    for mode in ("recombine", "union", "exclude"):
        others.append(latency.predict(l1rr_fx.prune(model, args, mode=mode, verify=False).module, args))
    assert seconds <= min(others) * (1 + NEAR)


@pytest.mark.property
@pytest.mark.parametrize("family", ("residual", "split", "grouped"))
@settings(max_examples=max(1, min(4, EXAMPLES // 10)))
@given(data=st.data())
def test_no_random_network_is_predicted_slower(family: str, data: st.DataObject) -> None:
    network: Network = data.draw(networks((family,), max_nodes=4), label="network")
    model, args = network.build()
    found = compared(model, args, "jetson-tx2")
    note(str(found))
    assert not found.is_slower


class Own(Biased):
    """A cost model of a user's that predicts networks, as `l1rr_fx.Budget` asks of a predictor."""

    def predict(self, module: GraphModule, args: tuple[Any, ...]) -> float:
        module(*args)
        return 1.0 + len(module.graph.nodes)


def test_a_target_of_ones_own_predicts_what_is_written() -> None:
    pruned = l1rr_fx.prune(residual(), ARGS, target=Own("own", 0.0))
    assert {each.name for each in pruned.report.alternatives} == WAYS
    assert pruned.report.alternatives[0].seconds == 1 + len(pruned.module.graph.nodes)
    assert l1rr_fx.prune(residual(), ARGS, target=BALANCED).report.alternatives == ()


def test_what_a_target_of_ones_own_says_is_a_positive_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Own, "predict", lambda self, module, args: -1.0)
    with pytest.raises(InputError, match=r"the latency predictor says -1\.0; expected a positive number"):
        l1rr_fx.prune(residual(), ARGS, target=Own("own", 0.0))


def test_a_latency_is_a_machine() -> None:
    slow = Latency("jetson-tx2", precision="fp32", clock=0.85)
    target = machine(slow, ARGS)
    assert isinstance(target, Machine) and target.name == "jetson-tx2-fp32"
    pruned = l1rr_fx.prune(residual(), ARGS, target=slow)
    assert pruned.report.target == "jetson-tx2-fp32"
    assert pruned.report.alternatives[0].seconds == pytest.approx(slow.predict(pruned.module, ARGS))
    assert target.contraction(1e9, 8, 32) > machine(Latency("jetson-tx2", precision="fp32")).contraction(1e9, 8, 32)


def test_inspect_says_what_the_machine_predicts() -> None:
    model, latency = residual(), Latency("jetson-tx2")
    found = l1rr_fx.inspect(model, ARGS, target="jetson-tx2")
    assert found.seconds == pytest.approx(latency.predict(model, ARGS))
    assert f"predicted {found.seconds * 1e3:.2f} ms on jetson-tx2-fp16" in str(found)
    assert l1rr_fx.inspect(model, ARGS).seconds is None
