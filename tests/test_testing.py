"""The kit for tests: strategies draw what they promise, assertions say what is wrong, planted bugs are found."""

from __future__ import annotations

import functools
import re
from collections import Counter
from contextlib import nullcontext

import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, Phase, given, settings
from torch import Tensor, nn
from torch.nn.utils import prune

import l1rr_fx
from l1rr_fx.testing import (
    FAMILIES,
    Network,
    ResidualFamily,
    Zeroing,
    assert_prunes_exactly,
    assert_stays_prunable,
    channel_sets,
    find_fault,
    input_shapes,
    kill,
    networks,
    randomised,
    residual_families,
    zeroed,
    zeroings,
)
from l1rr_fx.testing.operators import OPERATORS
from passes.analysis.program import Program
from passes.assignment.pq_tree import consecutive_order
from passes.canonical.normalise import normalise_graph
from passes.errors import InputError
from passes.frontend.capture import capture
from passes.rules import RULES, mixing, rule_for
from tests.planted import BUGS, Bug, hunt

pytest_plugins = ["pytester"]

FEW = settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
QUICK = ("every function keeps zero", "a sum is zero if one side is", "a flip moves nothing", "the parts of a split")


class Net(nn.Module):
    """A residual network with a gate, for the assertions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.block, self.gate, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        return self.head(x + self.block(x) * self.gate(x).sigmoid())


IMAGE = (torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)


# --- strategies


@FEW
@given(st.data())
def test_channel_sets_are_sets_of_channels(data: st.DataObject) -> None:
    n = data.draw(st.integers(1, 12))
    for density in ("some", "many", "few"):
        chosen = data.draw(channel_sets(n, density=density))
        assert list(chosen) == sorted(set(chosen))
        assert set(chosen) <= set(range(n))
    with pytest.raises(InputError, match="density"):
        data.draw(channel_sets(n, density="most"))


def test_a_family_that_does_not_exist_is_named_at_once() -> None:
    with pytest.raises(InputError, match="there is no family 'bogus'; there are "):
        networks(("residual", "bogus"))
    with pytest.raises(InputError, match="families is 'residual'; expected a sequence of str"):
        networks("residual")


@settings(FEW, max_examples=15)
@given(zeroing=zeroings(Net()))
def test_a_zeroing_can_be_applied_and_pasted(zeroing: Zeroing) -> None:
    model = randomised(Net())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    result = zeroing.apply(model)
    pasted = randomised(Net())
    exec(repr(zeroing), {"kill": kill, "model": pasted})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(torch.equal(value, pasted.state_dict()[name]) for name, value in result.state_dict().items())
    assert_prunes_exactly(result, (IMAGE[0].double(),))


@FEW
@given(family=residual_families())
def test_residual_families_have_branches(family: ResidualFamily) -> None:
    assert len(family.branches) >= 2
    assert all(branch and set(branch) <= set(range(family.width)) for branch in family.branches)
    order = consecutive_order(family.width, family.branches[:2]).order
    for branch in family.branches[:2]:  # any two sets are runs of some order
        places = sorted(order.index(channel) for channel in branch)
        assert places == list(range(places[0], places[0] + len(branch)))


@FEW
@given(shape=input_shapes(channels=4, multiple=8, max_size=64))
def test_input_shapes_are_multiples(shape: tuple[int, ...]) -> None:
    assert shape[1] == 4 and len(shape) == 4
    assert all(size % 8 == 0 and 8 <= size <= 64 for size in shape[2:])


@settings(FEW, max_examples=5)
@given(network=networks(("residual", "split"), max_nodes=3, dtype=torch.float32))
def test_networks_of_another_type(network: Network) -> None:
    model, args = network.build()
    assert {value.dtype for value in [*model.parameters(), *args]} == {torch.float32}
    assert len(network.operators) <= 3
    l1rr_fx.prune(model, args)


def drawn(family: str, count: int) -> list[Network]:
    """Random networks of a family, the same ones each time."""
    found: list[Network] = []

    @settings(FEW, max_examples=count, database=None, derandomize=True, phases=(Phase.generate,))
    @given(networks((family,)))
    def draw(network: Network) -> None:
        found.append(network)

    draw()
    return found


@pytest.mark.fuzz
def test_all_families_are_reached() -> None:
    """All families of networks and of rules, and 19 of 20 operators of the strategy."""
    operators, rules = Counter[str](), Counter[str]()
    sample = [network for family in FAMILIES for network in drawn(family, 60)]
    for network in sample:
        operators.update(network.operators)
    for network in sample[::3]:
        module = capture(*network.build())
        normalise_graph(module.graph)
        rules.update(site.rule.family for site in Program(module, rule_for).sites)
    missing = {each.name for each in OPERATORS} - set(operators)
    assert len(missing) <= 0.05 * len(OPERATORS), missing
    elsewhere = {"recurrent"}  # tests/test_recurrent.py draws networks of these
    assert {rule.family for rule in RULES.values()} - elsewhere | {"unknown"} <= set(rules)
    assert {family for each in OPERATORS for family in each.families} == set(FAMILIES)


# --- assertions


def test_a_right_network_passes() -> None:
    pruned = assert_prunes_exactly(zeroed(randomised(Net()), 0.5, 1), (IMAGE[0].double(),))
    assert pruned.report.after.macs < pruned.report.before.macs
    model = zeroed(Net().eval(), 0.5, 1)  # float32: compared in float64
    weight = model.get_submodule("stem").get_parameter("weight").clone()
    assert_prunes_exactly(model, IMAGE)
    assert torch.equal(weight, model.get_submodule("stem").get_parameter("weight"))


@pytest.mark.parametrize(
    ("bug", "rule", "says"),
    [
        ("every function keeps zero", "pointwise.Pointwise", "zero, which is 0.5"),
        ("a bias is nothing", "convolution.Weighted", "zero, which is"),
    ],
)
def test_the_rule_at_fault_is_named(bug: str, rule: str, says: str) -> None:
    model = randomised(Net())
    kill(model.get_submodule("gate"), range(4))
    kill(model.get_submodule("block"), columns=range(8))
    planted = next(each for each in BUGS if each.name == bug)
    with planted.plant(), pytest.raises(AssertionError) as failure:
        assert_prunes_exactly(model, (IMAGE[0].double(),))
    message = str(failure.value)
    assert re.search(r"first difference is at \w+ \(aten\.[\w.]+\), .*test_testing\.py:\d+", message), message
    assert f"rule at fault: passes.rules.{rule}" in message
    assert says in message
    assert find_fault(model, (IMAGE[0].double(),)) is None


def test_a_network_that_does_not_run_is_blamed(monkeypatch: pytest.MonkeyPatch) -> None:
    model = randomised(nn.Sequential(nn.Linear(5, 8), nn.LayerNorm(8), nn.Linear(8, 2)))
    kill(model.get_submodule("0"), [1, 2])
    kill(model.get_submodule("1"), [1, 2, 3])
    monkeypatch.setattr(mixing.Normalisation, "gives", lambda self, site, outs: list(outs))
    with pytest.raises(AssertionError, match=r"(?s)does not run.*at layer_norm.*mixing.Normalisation"):
        assert_prunes_exactly(model, (torch.randn(3, 5, dtype=torch.float64),))


def test_a_network_above_the_limit_says_what_keeps_more() -> None:
    model = randomised(nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1, groups=2), nn.Conv2d(8, 2, 1)))
    kill(model.get_submodule("2"), [0, 1, 2])
    args = (IMAGE[0].double(),)
    with pytest.raises(AssertionError, match=r"(?s)times the limit.*  2: .*groups of a convolution"):
        assert_prunes_exactly(model, args)
    assert_prunes_exactly(model, args, at_limit=False)


def test_models_whose_weights_have_a_history_are_taken() -> None:
    """What a hook left on its layer at the last call is no leaf, of which torch makes no copy."""
    model = Net()
    prune.ln_structured(model.block, "weight", 0.5, n=2, dim=0)
    model(IMAGE[0]).sum().backward()
    assert_prunes_exactly(model.eval(), IMAGE)
    assert_stays_prunable(model, IMAGE, at_least=0.3)
    assert zeroed(model, 0.5, seed=0).block.weight_orig.is_leaf and not model.block.weight.is_leaf


class Transformed(Net):
    """The same, with an operator in it that nobody follows."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + self.head(torch.fft.fft(F.relu(self.norm(self.stem(x))), dim=1).real)


def test_a_model_stays_prunable() -> None:
    pruned = assert_stays_prunable(Net(), IMAGE, at_least=0.5)
    assert pruned.report.after.macs <= 0.5 * pruned.report.before.macs
    with pytest.raises(AssertionError, match=r"(?s)of the MACs can go, expected 67.0%.*aten.fft_fft"):
        assert_stays_prunable(Transformed(), IMAGE, at_least=0.67)
    for at_least in (40, 0, None, "0.4", float("nan")):
        with pytest.raises(
            InputError, match=f"at_least is {at_least!r}; expected a share between 0 and 1, such as 0.4"
        ):
            assert_stays_prunable(Net(), IMAGE, at_least=at_least)  # type: ignore[arg-type]
    for call in (assert_prunes_exactly, functools.partial(assert_stays_prunable, at_least=0.5)):
        with pytest.raises(InputError, match="model is a NoneType"):
            call(None, IMAGE)  # type: ignore[operator, arg-type]


def test_the_plugin(pytester: pytest.Pytester) -> None:
    pytester.makeconftest('pytest_plugins = ["l1rr_fx.testing.plugin"]')
    pytester.makepyfile(
        """
        import torch
        from torch import nn

        def net():
            return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1))

        def test_enough(prunable):
            prunable(net(), (torch.rand(1, 3, 8, 8),), at_least=0.4)

        def test_too_little(prunable):
            prunable(net(), (torch.rand(1, 3, 8, 8),), at_least=0.95)

        def test_exact(prunes_exactly):
            prunes_exactly(net(), (torch.rand(1, 3, 8, 8),))
        """
    )
    result = pytester.runpytest_inprocess("-p", "no:cacheprovider", "-p", "no:xdist")
    result.assert_outcomes(passed=2, failed=1)
    result.stdout.fnmatch_lines(["*of the MACs can go, expected 95.0%*"])


# --- planted bugs


@pytest.mark.parametrize("bug", [bug for bug in BUGS if bug.name.startswith(QUICK)], ids=lambda bug: bug.name)
def test_a_planted_bug_is_found(bug: Bug) -> None:
    found = hunt(bug, examples=500, shrink=False, number=1)
    assert found.found_after is not None


@pytest.mark.fuzz
def test_planted_bugs_are_found_and_shrink() -> None:
    """Ten bugs, each found within 500 networks of up to 12 operators; 95 % of what is found shrinks below 8."""
    hunts = {bug.name: hunt(bug, examples=500, shrink=True) for bug in BUGS}
    assert [name for name, found in hunts.items() if found.found_after is None] == []
    small = [found for found in hunts.values() if found.smallest is not None and len(found.smallest.operators) < 8]
    assert len(small) >= 0.95 * len(hunts), {name: found.smallest for name, found in hunts.items()}


def test_without_a_bug_nothing_is_found() -> None:
    nothing = Bug("none", "residual", nullcontext, max_nodes=4)
    assert hunt(nothing, examples=10, shrink=False).found_after is None
