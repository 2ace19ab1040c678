"""Plans for budgets: what is reached, by what, what is refused; and curves that are interrupted and taken up."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F
from typer.testing import CliRunner

import l1rr_fx
from l1rr_fx.cli import app
from l1rr_fx.cli import planning as planning
from l1rr_fx.demo.detector import ConvBlock, Head, Residual
from l1rr_fx.latency.prediction import FITTED, Latency
from l1rr_fx.latency.published import MAXN
from l1rr_fx.machines.by_name import machine
from l1rr_fx.machines.settings import settings_of
from l1rr_fx.method.attention.loss import FeatureAttention
from l1rr_fx.method.planning.choose import choose
from l1rr_fx.method.planning.curves import Curve, Unit, read_curves
from l1rr_fx.method.planning.plan import Plan
from l1rr_fx.method.planning.scores import GroupSum
from l1rr_fx.method.planning.search import WITHIN
from l1rr_fx.method.planning.weighing import EXPONENTS, savings, weighings
from l1rr_fx.method.sites.budget import Analysis, Budget
from l1rr_fx.method.sites.channel_sites import channel_sites
from l1rr_fx.method.training.recalibrate import recalibrate_batch_norm
from passes.errors import InputError, VanishedError
from tests.test_scores import Net

IMAGES = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
BOXES = [torch.tensor([[4.0, 6, 30, 28], [40, 40, 60, 62]]), torch.tensor([[10.0, 10, 20, 20]])]
ARGS = (IMAGES[:1],)
ROOT = Path(__file__).resolve().parent.parent


class Detector(nn.Module):
    """The tree detector's kind in a few layers: a residual sum, an added pyramid of two scales, heads with towers."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvBlock(3, 32, stride=4)
        self.stage4 = Residual(32, 32)
        self.stage8 = ConvBlock(32, 48, stride=2)
        self.stage16 = ConvBlock(48, 64, stride=2)
        self.lateral8 = ConvBlock(48, 48, 1)
        self.lateral16 = ConvBlock(64, 48, 1)
        self.head8 = Head(48)
        self.head16 = Head(48)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        c8 = self.stage8(self.stage4(self.stem(image)))
        p16 = self.lateral16(self.stage16(c8))
        p8 = self.lateral8(c8) + F.interpolate(p16, scale_factor=2.0, mode="nearest")
        score8, sides8 = self.head8(p8)
        score16, sides16 = self.head16(p16)
        return {"score_8": score8, "sides_8": sides8, "score_16": score16, "sides_16": sides16}


def detector() -> Detector:
    torch.manual_seed(0)
    model = Detector()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.05, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
    recalibrate_batch_norm(model, [IMAGES])
    return model.eval()


@pytest.fixture(scope="module")
def model() -> Detector:
    return detector()


@pytest.fixture(scope="module")
def attention(model: Detector) -> FeatureAttention:
    return FeatureAttention(model, ARGS, [(IMAGES, BOXES)])


@pytest.fixture(scope="module")
def curves(model: Detector, attention: FeatureAttention, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file with the curves of `model`, measured once."""
    file = tmp_path_factory.mktemp("curves") / "curves.jsonl"
    choose(model, ARGS, budget=Budget(macs=0.9), attention=attention, scores="bn-scale", curves=file)
    return file


def pruned_shares(plan: Plan, model: nn.Module, args: tuple[Any, ...] = ARGS) -> tuple[float, float]:
    """Parameters and MACs that `prune` leaves of the zeroed model, and that it computes what the zeroed model does."""
    zeroed = copy.deepcopy(model)
    plan.zero_(zeroed)
    report = l1rr_fx.prune(zeroed, args, mode=plan.mode).report
    return report.after.parameters / report.before.parameters, report.after.macs / report.before.macs


@pytest.mark.parametrize("method", ["attention", "global threshold"])
@pytest.mark.parametrize("budget", [Budget(macs=0.35), Budget(params=0.3), Budget(macs=0.6, params=0.25)])
def test_a_budget_is_reached_in_the_pruned_network(
    model: Detector, attention: FeatureAttention, curves: Path, budget: Budget, method: str
) -> None:
    chosen = {"attention": attention, "curves": curves, "scores": "bn-scale"} if method == "attention" else {}
    plan = choose(model, ARGS, budget=budget, **chosen)  # type: ignore[arg-type]
    assert plan.method.startswith(method)
    params, macs = pruned_shares(plan, model)
    assert plan.reached == pytest.approx({"params": params, "macs": macs})
    slack = [limit - plan.reached[name] for name, limit in budget.limits.items()]
    assert min(slack) >= 0, "a limit is exceeded"
    assert min(slack) <= WITHIN, "fewer channels would have done"


def test_attention_loses_less_of_it_than_the_threshold(
    model: Detector, attention: FeatureAttention, curves: Path
) -> None:
    budget = Budget(macs=0.5)
    by_attention = choose(model, ARGS, budget=budget, attention=attention, curves=curves, scores="bn-scale")
    by_threshold = choose(model, ARGS, budget=budget)
    zeroed = copy.deepcopy(model)
    by_threshold.zero_(zeroed)
    assert by_attention.attention is not None
    threshold = attention.of(zeroed).total
    assert by_attention.attention.total < threshold
    by_default = choose(model, ARGS, budget=budget, attention=attention)  # in an order that these scales mislead
    assert by_default.attention is not None and by_default.attention.total <= threshold


def test_the_way_to_weigh_costs_is_that_which_loses_least(
    model: Detector, attention: FeatureAttention, curves: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = Budget(macs=0.5)
    best = choose(model, ARGS, budget=budget, attention=attention, curves=curves, scores="bn-scale")
    each = []
    for exponent in EXPONENTS:
        monkeypatch.setattr(sys.modules[weighings.__module__], "EXPONENTS", (exponent,))
        each.append(choose(model, ARGS, budget=budget, attention=attention, curves=curves, scores="bn-scale"))
    losses = [plan.attention.total for plan in each if plan.attention is not None]
    assert len({plan.zeroed for plan in each}) > 1, "costs were not weighed"
    assert best.attention is not None and best.attention.total == min(losses) < max(losses)


def test_a_dear_channel_saves_more_than_a_cheap_one(model: Detector) -> None:
    analysis = Analysis(model, ARGS)
    sites = {site.name: site for site in analysis.sites}
    early, late = (Unit((sites[name],), torch.arange(40)) for name in ("stage8.1", "stage16.1"))
    found = savings(analysis, [early, late], Budget(macs=0.5, params=0.5))
    assert set(found) == {"macs", "params", "params + macs"} and set(savings(analysis, [late], Budget(macs=1))) == {
        "macs"
    }
    by_macs, by_parameters, by_both = found["macs"], found["params"], found["params + macs"]
    assert by_macs["stage8.1"] > by_macs["stage16.1"], "four times the positions"
    assert by_macs["stage8.1"] / by_macs["stage16.1"] > by_parameters["stage8.1"] / by_parameters["stage16.1"]
    assert sum(by_macs.values()) == pytest.approx(2)
    ratios = [each["stage8.1"] / each["stage16.1"] for each in (by_parameters, by_both, by_macs)]
    assert ratios == sorted(ratios)


def test_latency_is_weighed_where_the_target_predicts_it(model: Detector) -> None:
    """A predictor of the user's is not asked once for each unit: see `savings`."""
    analysis = Analysis(model, ARGS, target=QUICK)
    sites = {site.name: site for site in analysis.sites}
    early, late = (Unit((sites[name],), torch.arange(40)) for name in ("stage8.1", "stage16.1"))
    found = savings(analysis, [early, late], Budget(latency=0.5, macs=0.5))
    assert set(found) == {"macs", "latency", "macs + latency"}
    assert found["latency"] != found["macs"] and sum(found["latency"].values()) == pytest.approx(2)


def test_of_two_limited_costs_each_and_their_sum_are_weighed(
    model: Detector, attention: FeatureAttention, curves: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = Budget(params=0.25, macs=0.8)
    best = choose(model, ARGS, budget=budget, attention=attention, curves=curves, scores="bn-scale")
    losses = []
    for costs in ("params", "macs", "params + macs"):
        only = lambda *args, costs=costs: {costs: savings(*args)[costs]}
        monkeypatch.setattr(sys.modules[choose.__module__], "savings", only)
        plan = choose(model, ARGS, budget=budget, attention=attention, curves=curves, scores="bn-scale")
        assert plan.attention is not None
        losses.append(plan.attention.total)
    assert best.attention is not None and best.attention.total == min(losses) < losses[2]


def test_a_warning_is_of_the_plan_alone(
    model: Detector, attention: FeatureAttention, curves: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing is said of plans that were not taken, nor of a limit that is slack beside one that is met."""
    choose(model, ARGS, budget=Budget(params=0.25, macs=0.8), attention=attention, curves=curves, scores="bn-scale")
    assert not [record for record in caplog.records if record.name.startswith("l1rr_fx")]
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    choose(net, ARGS, budget=Budget(macs=0.8))
    assert "macs=0.75 is left, not the budget macs=0.8" in caplog.text


def test_sums_stay_whole_where_the_mode_leaves_them() -> None:
    plan = choose(detector(), ARGS, budget=Budget(macs=0.8), mode="exclude")
    whole = {site.name for site in plan.sites if site.blocked == "the mode leaves sums of branches whole"}
    assert whole == {"stem.1", "stage4.second.1", "lateral8.1", "lateral16.1"}
    assert not any(site.zeroed for site in plan.sites if site.name in whole)


def test_every_layer_goes_as_far_as_tau(
    model: Detector, attention: FeatureAttention, curves: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules[weighings.__module__], "EXPONENTS", (0.0,))
    plan = choose(model, ARGS, budget=Budget(macs=0.5), attention=attention, curves=curves, scores="bn-scale")
    alone = [site.attention for site in plan.sites if site.attention is not None]
    assert max(alone) == pytest.approx(plan.tau)
    measured = [json.loads(line) for line in curves.read_text().splitlines()[1:]]
    for each in measured:
        site = next(site for site in plan.sites if site.name == each["unit"])
        curve = Curve(tuple(each["counts"]), tuple(each["losses"]))
        if len(site.zeroed) < each["counts"][-1]:
            assert curve.at(len(site.zeroed) + 1) >= plan.tau, f"{site.name} could lose another channel"


def test_the_smallest_scales_of_a_layer_go(model: Detector) -> None:
    plan = choose(model, ARGS, budget=Budget(macs=0.5))
    for site in plan.sites:
        if site.zeroed:
            sizes = model.get_parameter(site.weight).detach().abs()
            assert float(sizes[site.mask].max()) <= float(sizes[~site.mask].min())
            assert float(sizes[site.mask].max()) <= plan.tau


def test_layers_keep_their_least() -> None:
    model = detector()
    with torch.no_grad():
        model.stage8[1].weight.mul_(1e-3)
    plan = choose(model, ARGS, budget=Budget(macs=0.5))
    kept = {site.name: site.channels - len(site.zeroed) for site in plan.sites}
    assert kept["stage8.1"] == 4 < min(kept["stage4.first.1"], kept["stage16.1"])
    assert all(not site.zeroed for site in plan.sites if site.blocked)


def test_the_model_is_left_alone(model: Detector) -> None:
    before = copy.deepcopy(model.state_dict())
    choose(model, ARGS, budget=Budget(macs=0.5))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_limit_on_attention_alone(model: Detector, attention: FeatureAttention, curves: Path) -> None:
    plans = [
        choose(model, ARGS, budget=Budget(attention=x), attention=attention, curves=curves, scores="bn-scale")
        for x in (0.02, 0.1)
    ]
    for plan, limit in zip(plans, (0.02, 0.1), strict=True):
        assert plan.attention is not None and 0 < plan.attention.total <= limit
    assert plans[1].zeroed > plans[0].zeroed > 0


def test_cost_and_attention_that_exclude_each_other(model: Detector, attention: FeatureAttention, curves: Path) -> None:
    with pytest.raises(
        InputError, match=r"macs=0.3 needs an attention loss of 0\.\d+, not 0.01; up to .* is reachable"
    ):
        choose(
            model, ARGS, budget=Budget(macs=0.3, attention=0.01), attention=attention, curves=curves, scores="bn-scale"
        )


def test_an_impossible_budget_says_what_is_possible_and_what_stays(model: Detector) -> None:
    with pytest.raises(InputError, match=r"macs=0.001 cannot be met; params=0.\d+, macs=0.\d+ is reachable") as caught:
        choose(model, ARGS, budget=Budget(macs=0.001))
    assert "11 layers at their least" in str(caught.value) and "head8.sides (network output)" in str(caught.value)


def test_only_the_sites_given_are_touched(model: Detector) -> None:
    plan = choose(model, ARGS, budget=Budget(macs=0.9), sites=("stage4.first.1", "head8.score_tower.1"))
    assert {site.name for site in plan.sites if site.zeroed} == {"stage4.first.1", "head8.score_tower.1"}
    with pytest.raises(InputError, match="sites: 'stage4' is not a site"):
        choose(model, ARGS, budget=Budget(macs=0.9), sites=("stage4",))


def test_layers_after_the_last_map_are_left_alone(model: Detector) -> None:
    """With taps at the entries of the heads, the heads' towers lose nothing there: they would go to their least."""
    attention = FeatureAttention(model, ARGS, [(IMAGES, BOXES)], taps=("lateral16.2", "add_1"))
    plan = choose(model, ARGS, budget=Budget(macs=0.7), attention=attention)
    towers = [site for site in plan.sites if "tower" in site.name]
    assert len(towers) == 4
    assert all(not site.zeroed and site.blocked == "no feature map depends on it" for site in towers)


def test_channels_that_are_zero_already_go_first() -> None:
    model = detector()
    with torch.no_grad():
        model.stage8[1].weight[3:9] = 0
        model.stage8[1].bias[3:9] = 0
        model.stage16[1].weight[:5] = 0  # a constant remains: not zero yet
        model.stage8[0].weight[3:9] *= 100  # for the score of filters they would be the last to go
    plan = choose(model, ARGS, budget=Budget(macs=0.93), scores="weight-norm")
    zeroed = {site.name: site.zeroed for site in plan.sites}
    assert set(range(3, 9)) <= {*zeroed["stage8.1"]}
    assert pruned_shares(plan, model)[1] == pytest.approx(plan.reached["macs"])
    assert Analysis(model, ARGS).dense == Analysis(detector(), ARGS).dense, "dense is what it was before the zeros"


def test_a_budget_that_is_met_already_takes_nothing(model: Detector) -> None:
    assert choose(model, ARGS, budget=Budget(macs=1.0)).zeroed == 0


def test_zeros_that_are_there_belong_to_every_plan() -> None:
    """Else a fine-tune would bring them back to life."""
    model = detector()
    with torch.no_grad():
        model.stage8[1].weight[3:9] = model.stage8[1].bias[3:9] = 0
    plan = choose(model, ARGS, budget=Budget(macs=1.0))
    assert {site.name: site.zeroed for site in plan.sites if site.zeroed} == {"stage8.1": tuple(range(3, 9))}


class SecondsByMacs:
    """The smallest latency model: a constant and the multiplications of convolutions, counted by running them."""

    def predict(self, module: GraphModule, args: tuple[Any, ...]) -> float:
        total = 0

        class Count(torch.fx.Interpreter):
            def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
                nonlocal total
                result = super().call_function(target, args, kwargs)
                if target is torch.ops.aten.conv2d.default:
                    total += result.numel() * args[1][0].numel()
                return result

        with torch.no_grad():
            Count(module).run(*args)
        return 1e-3 + 1e-9 * total


def test_latency_by_any_predictor(model: Detector) -> None:
    plan = choose(model, ARGS, budget=Budget(latency=0.9), latency=SecondsByMacs())
    macs = Analysis(model, ARGS).dense.macs
    wanted = (1e-3 + 1e-9 * macs * plan.reached["macs"]) / (1e-3 + 1e-9 * macs)
    assert plan.reached["latency"] == pytest.approx(wanted, rel=1e-6) and 0.895 <= plan.reached["latency"] <= 0.9
    with pytest.raises(InputError, match="give a predictor"):
        choose(model, ARGS, budget=Budget(latency=0.9))


QUICK = Latency("jetson-tx2", coefficients=replace(FITTED, launch=0.2))
"""A TX2 on which kernels start at once, so that small networks have a latency that plans can lower."""


@pytest.mark.parametrize("mode", ["union", "recombine"])
def test_latency_on_a_machine_is_that_of_what_prune_writes(model: Detector, mode: str) -> None:
    plan = choose(model, ARGS, budget=Budget(latency=0.7), target=QUICK, mode=mode)
    zeroed = copy.deepcopy(model)
    plan.zero_(zeroed)
    pruned = l1rr_fx.prune(zeroed, ARGS, target=QUICK, mode=mode)
    share = QUICK.predict(pruned.module, ARGS) / QUICK.predict(model, ARGS)
    assert plan.reached["latency"] == pytest.approx(share) and share <= 0.7
    assert share >= 0.7 - WITHIN or (plan.last is not None and plan.last.without["latency"] > 0.7)
    assert plan.reached["macs"] == pytest.approx(pruned.report.after.macs / pruned.report.before.macs)


def test_moves_of_a_machine_go_by_attention(model: Detector, attention: FeatureAttention, tmp_path: Path) -> None:
    budget, file = Budget(latency=0.6), tmp_path / "curves.jsonl"
    plan = choose(model, ARGS, budget=budget, target=QUICK, attention=attention, curves=file)
    measured = read_curves(file)
    assert measured["the block that stage4.second.1 ends"].counts == (1,)
    zeroed = copy.deepcopy(model)
    choose(model, ARGS, budget=budget, target=QUICK).zero_(zeroed)
    assert plan.attention is not None and plan.attention.total < attention.of(zeroed).total
    assert 0.595 < plan.reached["latency"] <= 0.6


def test_a_smaller_latency_has_a_smaller_prediction(model: Detector) -> None:
    reached = [choose(model, ARGS, budget=Budget(latency=x), target=QUICK).reached["latency"] for x in (0.5, 0.7, 0.9)]
    assert reached == sorted(reached)


def test_a_plan_records_its_machine(model: Detector) -> None:
    plan = choose(model, ARGS, budget=Budget(macs=0.6), target=QUICK)
    assert plan.inputs == ((1, 3, 64, 64),) and plan.machine is not None
    assert (plan.machine.target, plan.machine.precision, plan.machine.clock) == ("jetson-tx2-fp16", "fp16", MAXN)
    others = {settings_of(machine(each)).coefficients for each in (QUICK, "jetson-tx2", Latency("jetson-tx2", "fp32"))}
    assert plan.machine.coefficients in others and len(others) == 3
    assert "jetson-tx2-fp16 at 1.30 GHz, inputs 1x3x64x64" in str(plan)
    assert Plan.from_json(plan.to_json()) == plan
    document = json.loads(plan.to_json())
    before = {name: value for name, value in document.items() if name not in ("machine", "inputs")}
    old = Plan.from_json(json.dumps(before))
    assert old == replace(plan, machine=None, inputs=()) and old.zeroing.keys() == plan.zeroing.keys()


def test_a_latency_below_that_of_starting_kernels_is_refused_before_anything_is_measured(
    model: Detector, attention: FeatureAttention
) -> None:
    with pytest.raises(InputError, match=r"latency=0.1 cannot be met; .*latency=0\.\d+ is reachable") as caught:
        choose(model, ARGS, budget=Budget(latency=0.1), target="jetson-tx2", attention=attention, progress=never)
    assert "where to start the kernels of the dense network takes 0.9" in str(caught.value)


def test_a_few_questions_find_the_number_of_channels(model: Detector, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bisection would ask eleven times."""
    asked: list[int] = []
    size = Analysis.size
    monkeypatch.setattr(Analysis, "size", lambda self, zeroing: asked.append(1) or size(self, zeroing))
    for limit in (0.3, 0.5, 0.7):
        asked.clear()
        plan = choose(model, ARGS, budget=Budget(macs=limit))
        assert len(asked) <= 9 and limit - WITHIN <= plan.reached["macs"] <= limit


@pytest.mark.parametrize("mode", ["recombine", "union", "exclude"])
def test_units_groups_and_modes(mode: str) -> None:
    """A depthwise convolution shares its mask with what it reads; grouped scores give groups one mask."""
    torch.manual_seed(0)
    net = Net().eval()
    args = (torch.rand(1, 3, 16, 16),)
    grouped = GroupSum("bn-scale", channel_sites(net, args))
    plan = choose(net, args, budget=Budget(macs=0.8), mode=mode, scores=grouped)
    masks = {site.name: site.zeroed for site in plan.sites}
    assert masks["expand_norm"] == masks["depthwise_norm"] and masks["stem_norm"] == masks["branch_norm"]
    assert masks["up"] == masks["squeeze"] == (), "norms of rows were compared with scales"
    assert pruned_shares(plan, net, args)[1] == pytest.approx(plan.reached["macs"])


def test_parameters_that_are_read_as_values_count() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = ConvBlock(3, 16)
            self.scale = nn.Parameter(torch.rand(1, 16, 1, 1))
            self.position = nn.Parameter(torch.rand(1, 1, 12, 12))
            self.last = nn.Conv2d(16, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.last(self.first(x) * self.scale) + self.position
            return found

    net, args = Scaled().eval(), (torch.rand(1, 3, 12, 12),)
    with torch.no_grad():
        net.first[1].weight.copy_(torch.linspace(0.1, 1, 16))
    plan = choose(net, args, budget=Budget(params=0.6))
    assert plan.reached["params"] == pytest.approx(pruned_shares(plan, net, args)[0])


def test_a_network_without_batch_norms() -> None:
    net = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Conv2d(16, 2, 1))
    plan = choose(net, (torch.rand(1, 3, 12, 12),), budget=Budget(macs=0.5), scores="weight-norm")
    assert [site.name for site in plan.sites if site.zeroed] == ["0", "2"]
    assert 0.4 < plan.reached["macs"] <= 0.5


class Interrupted(Exception):
    pass


def test_curves_are_taken_up_where_they_stopped(model: Detector, attention: FeatureAttention, tmp_path: Path) -> None:
    file = tmp_path / "curves"
    told: list[tuple[int, int]] = []

    def stop(done: int, total: int) -> None:
        told.append((done, total))
        if done == 8:
            raise Interrupted

    budget = Budget(macs=0.5)
    options: Any = {"budget": budget, "attention": attention}
    with pytest.raises(Interrupted):
        choose(model, ARGS, curves=file, progress=stop, **options)
    assert told == [(0, 11), (4, 11), (8, 11)]
    with file.open("a") as half:
        half.write('{"unit": "stage8.1", "cou')  # cut off in the middle of a write
    told.clear()
    resumed = choose(model, ARGS, curves=file, progress=lambda *now: told.append(now), **options)
    assert told == [(8, 11), (11, 11)]
    assert resumed == choose(model, ARGS, **options)
    assert len(read_curves(file)) == 11, "a curve was written behind the half"
    other = detector()
    with torch.no_grad():
        other.lateral8[1].weight[0] += 1
    with pytest.raises(InputError, match="holds no curves, or those of another model"):
        choose(other, ARGS, budget=budget, attention=FeatureAttention(other, ARGS, [(IMAGES, BOXES)]), curves=file)


def test_attention_of_other_weights_is_refused(attention: FeatureAttention) -> None:
    other = detector()
    with torch.no_grad():
        other.lateral8[1].weight[0] += 1
    with pytest.raises(InputError, match=r"other weights: lateral8\.1\.weight differs"):
        choose(other, ARGS, budget=Budget(macs=0.5), attention=attention)


def test_constants_that_went_into_shifts_are_not_other_weights() -> None:
    """Attention is measured in the model as it is, costs without its constant channels."""
    torch.manual_seed(0)
    net = nn.Sequential(ConvBlock(3, 8, 3, 4), ConvBlock(8, 8, 1), ConvBlock(8, 8, 1), nn.Conv2d(8, 5, 1)).eval()
    with torch.no_grad():
        net[0][1].weight[:3], net[0][1].bias[:3] = 0, 1
    attention = FeatureAttention(net, ARGS, [(IMAGES, BOXES)])
    plan = choose(net, ARGS, budget=Budget(macs=0.6), attention=attention)
    zeroed = copy.deepcopy(net)
    plan.zero_(zeroed)
    assert plan.attention is not None and plan.attention.total == pytest.approx(attention.of(zeroed).total, rel=1e-4)


class Small(nn.Module):
    """Two sizes of map from a few layers, the second after a tower."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.ModuleList([ConvBlock(c, 8, stride=4) for c in (3, 8)])
        self.tower = ConvBlock(8, 8)
        self.heads = nn.ModuleList(nn.Conv2d(8, 2, 1) for _ in range(2))

    def forward(self, x: Tensor) -> list[Tensor]:
        fine = self.body[0](x)
        return [self.heads[0](fine), self.heads[1](self.tower(self.body[1](fine)))]


def small_curves(net: nn.Module, targets: list[Tensor], file: Path | None) -> Plan:
    attention = FeatureAttention(net, ARGS, [(IMAGES, targets)])
    return choose(net, ARGS, budget=Budget(macs=0.7), attention=attention, curves=file)


def test_curves_of_other_data_or_of_another_network_are_refused(tmp_path: Path) -> None:
    """The same boxes in other images; the same weights with another dilation; the same scores with other statistics."""
    net, file = Small().eval(), tmp_path / "curves"
    joined, apart = [torch.cat(BOXES), torch.zeros(0, 4)], BOXES
    first = small_curves(net, joined, file)
    assert first == small_curves(net, joined, file) != small_curves(net, apart, None)
    with pytest.raises(InputError, match="another model, score or data"):
        small_curves(net, apart, file)
    net.tower[0].dilation = net.tower[0].padding = (2, 2)
    assert small_curves(net, joined, None) != first
    with pytest.raises(InputError, match="another model, score or data"):
        small_curves(net, joined, file)
    net = Small().eval()
    net.tower[1].running_mean.add_(1)
    with pytest.raises(InputError, match="another model, score or data"):
        small_curves(net, joined, file)


def test_fingerprints_are_those_of_what_is_computed() -> None:
    """In another process, on another device, for an equal copy: resumed curves must be known again."""
    batches = [(IMAGES, BOXES), (IMAGES[:1, :, :32], BOXES[1:])]
    found = {FeatureAttention(Small().eval(), ARGS, batches).fingerprint() for _ in range(2)}
    code = (
        "from tests.test_choose import *\n"
        "batches = [(IMAGES, BOXES), (IMAGES[:1, :, :32], BOXES[1:])]\n"
        "print(FeatureAttention(Small().eval(), ARGS, batches).fingerprint())"
    )
    again = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert found == {again.stdout.strip()}


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nothing": (lambda path: None, "curves is a NoneType"),
    "no folder": (lambda path: path / "no" / "curves", "No such file"),
    "a folder": (lambda path: path, "Is a directory"),
    "binary": (lambda path: written(path, b"\xff\xfe\x00"), "cannot be used"),
    "text": (lambda path: written(path, b"curves"), "curves"),
    "no counts": (lambda path: written(path, HEAD + b'{"unit": "a", "losses": []}'), "line 2: curve: .*'counts'"),
    "no unit": (lambda path: written(path, HEAD + b'{"counts": [], "losses": []}'), "line 2: unit"),
    "no number": (lambda path: written(path, HEAD + b'{"unit": "a", "counts": [1], "losses": ["x"]}'), r"losses\[0\]"),
    "falling": (lambda path: written(path, HEAD + b'{"unit": "a", "counts": [2, 1], "losses": [0, 0]}'), "do not rise"),
    "infinite": (lambda path: written(path, HEAD + b'{"unit": "a", "counts": [1], "losses": [NaN]}'), "finite"),
}
HEAD = b'{"curves of": "it"}\n'


def written(folder: Path, content: bytes) -> Path:
    (folder / "curves").write_bytes(content)
    return folder / "curves"


@pytest.mark.parametrize("case", BROKEN)
def test_files_that_hold_no_curves(case: str, tmp_path: Path, model: Detector, attention: FeatureAttention) -> None:
    make, message = BROKEN[case]
    file = make(tmp_path)
    with pytest.raises(InputError, match="missing" if case == "no folder" else message):
        read_curves(file)
    if file is not None:
        with pytest.raises(InputError, match=message):
            choose(model, ARGS, budget=Budget(macs=0.5), attention=attention, curves=file, progress=never)


def never(done: int, total: int) -> None:
    raise AssertionError("something was measured")


def test_attention_of_other_statistics_is_refused() -> None:
    for name in ("tower.0.weight", "body.1.1.running_mean", "heads.0.bias"):
        net = Small().eval()
        attention = FeatureAttention(net, ARGS, [(IMAGES, BOXES)])
        net.state_dict()[name].add_(1)
        with pytest.raises(InputError, match=f"other weights: {name} differs"):
            choose(net, ARGS, budget=Budget(macs=0.5), attention=attention)


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a number": ({"budget": 0.5}, r"budget is a float; expected a Budget.*Budget\(macs=0.35\)"),
    "a mapping": ({"budget": {"macs": 0.5}}, "budget is a dict"),
    "text": ({"budget": "macs=0.5"}, "budget is a str"),
    "no model": ({"model": None}, "model is a NoneType"),
    "attention": ({"attention": 3}, "attention is a int"),
    "a function for a predictor": ({"latency": len}, "builtin_function_or_method; expected a LatencyPredictor"),
    "one site": ({"sites": "stem.1"}, "sites is 'stem.1'; expected a sequence"),
}


@pytest.mark.parametrize("case", WRONG)
def test_arguments_of_a_wrong_type(case: str, model: Detector) -> None:
    changed, message = WRONG[case]
    arguments: dict[str, Any] = {"model": model, "args": ARGS, "budget": Budget(macs=0.5), **changed}
    with pytest.raises(InputError, match=message):
        choose(**arguments)


@pytest.mark.parametrize("says", ["x", None, float("nan"), -1])
def test_what_a_predictor_says_is_a_number(says: Any) -> None:
    class Says:
        def predict(self, module: GraphModule, args: tuple[Any, ...]) -> Any:
            return says

    with pytest.raises(InputError, match=f"the latency predictor says {says!r}; expected a positive number"):
        choose(Small().eval(), ARGS, budget=Budget(latency=0.5), latency=Says())


def test_an_output_that_is_constant_already_is_refused_as_prune_does() -> None:
    net = Small().eval()
    for parameter in net.heads[1].parameters():
        nn.init.zeros_(parameter)
    for act in (lambda: l1rr_fx.prune(net, ARGS), lambda: choose(net, ARGS, budget=Budget(macs=0.9))):
        with pytest.raises(VanishedError, match="output 1"):
            act()


def one_batch_norm() -> nn.Sequential:
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(a, b, 3, padding=1) for a, b in ((3, 16), (16, 32), (32, 32), (32, 2))]
    first, second, third, last = convolutions
    return nn.Sequential(first, nn.BatchNorm2d(16), nn.ReLU(), second, nn.ReLU(), third, nn.ReLU(), last).eval()


def test_layers_without_batch_norm_say_why_they_are_whole() -> None:
    net, args = one_batch_norm(), (torch.rand(1, 3, 8, 8),)
    why = "no batch norm: only with attention, or named in sites="
    reasons = {site.name: site.blocked for site in choose(net, args, budget=Budget(macs=0.95)).sites}
    assert reasons == {"1": None, "3": why, "5": why, "7": "network output"}
    with pytest.raises(InputError, match=f"these whole: 3 .{why}., 5 .{why}., 7 .network output"):
        choose(net, args, budget=Budget(macs=0.3))


@pytest.mark.parametrize("scores", ["weight-norm", "bn-scale"])
def test_sites_that_are_named_are_taken_from(scores: str) -> None:
    net, args = one_batch_norm(), (torch.rand(1, 3, 8, 8),)
    plan = choose(net, args, budget=Budget(macs=0.5), sites=["3", "5"], scores=scores)
    assert [site.name for site in plan.sites if site.zeroed] == ["3", "5"]
    assert pruned_shares(plan, net, args)[1] == pytest.approx(plan.reached["macs"])
    assert choose(net, args, budget=Budget(macs=0.2), sites=["1", "3", "5"], scores="weight-norm").sites[0].zeroed
    with pytest.raises(InputError, match="no layer has channels that may go: 7: network output; 1: not among"):
        choose(net, args, budget=Budget(macs=0.5), sites=["7"])


def test_why_small_layers_and_partners_are_whole() -> None:
    small = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)
    )
    plan = choose(small.eval(), (torch.rand(1, 3, 8, 8),), budget=Budget(macs=0.9))
    assert plan.sites[0].blocked == "no more channels than a layer keeps"
    torch.manual_seed(0)
    plan = choose(
        Net().eval(), (torch.rand(1, 3, 16, 16),), budget=Budget(macs=0.99), sites=["expand_norm", "stem_norm"]
    )
    partner = next(site for site in plan.sites if site.name == "expand_norm")
    assert not partner.zeroed and partner.blocked == "one with depthwise_norm: not among the sites given"


def test_a_latency_that_cannot_be_met_says_whose_it_is(model: Detector) -> None:
    with pytest.raises(InputError, match=r"Latency is that of the network that prune\(target=\"none\"\) writes"):
        choose(model, ARGS, budget=Budget(latency=0.01), latency=SecondsByMacs())


def test_curves_are_read_back(model: Detector, curves: Path) -> None:
    found = read_curves(curves)
    assert {"stem.1", "stage16.1", "lateral8.1"} <= {*found}
    assert all(curve.at(0) == 0 and curve.at(curve.counts[-1]) > 0 for curve in found.values())
    with pytest.raises(InputError, match="no curves in .*missing"):
        read_curves(curves.with_name("missing"))


def test_curves_rise_and_are_linear_in_between() -> None:
    curve = Curve((2, 4, 8), (0.2, 0.1, 0.6))
    assert [curve.at(n) for n in (0, 1, 2, 3, 4, 6, 8, 9)] == pytest.approx([0, 0.1, 0.2, 0.2, 0.2, 0.4, 0.6, 0.6])


@pytest.mark.parametrize("value", [0, -0.5, 1.5, float("nan"), True, "half"])
def test_budgets_are_shares(value: Any) -> None:
    with pytest.raises(InputError, match=r"macs=.* is not a share in \(0, 1\]"):
        Budget(macs=value)


def test_budgets_as_text() -> None:
    assert Budget.parse("macs=0.35, params=0.2") == Budget(macs=0.35, params=0.2)
    for text, message in (("macs", "'' is no number"), ("flops=1", "not one of params="), ("macs=1,macs=1", "once")):
        with pytest.raises(InputError, match=message):
            Budget.parse(text)
    with pytest.raises(InputError, match="empty budget"):
        Budget()
    with pytest.raises(InputError, match="the budget is a NoneType"):
        Budget.parse(None)  # type: ignore[arg-type]  # that is the test


def test_budgets_of_other_numbers() -> None:
    found = Budget(macs=np.float32(0.5), params=Fraction(1, 4))  # type: ignore[arg-type]  # real numbers, but no floats
    assert found == Budget(macs=0.5, params=0.25) and {type(limit) for limit in found.limits.values()} == {float}


MODELS = """
import torch
from tests.test_choose import ARGS, BOXES, IMAGES, detector

def model():
    return detector(), ARGS

def data():
    return [(IMAGES, BOXES)]

def torn():
    yield IMAGES, BOXES
    raise OSError("the disk is gone")
"""


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Detector) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "my_models.py").write_text(MODELS)
    call = ["choose", "my_models:model", "--budget", "macs=0.5", "-o", "plan.json"]
    result = CliRunner().invoke(app, [*call, "--data", "my_models:data", "--scores", "bn-scale"])
    assert result.exit_code == 0, result.output
    plan = Plan.from_json((tmp_path / "plan.json").read_text())
    assert plan.method.startswith("attention") and "head8.sides" in result.output
    assert pruned_shares(plan, model)[1] == pytest.approx(plan.reached["macs"])
    on = CliRunner().invoke(app, [*call, "--overwrite", "--target", "jetson-tx2"])
    assert on.exit_code == 0, on.output
    found = Plan.from_json((tmp_path / "plan.json").read_text())
    assert found.machine is not None and found.machine.target == "jetson-tx2-fp16" and "latency" in found.reached
    for arguments, message in (
        (call, "plan.json exists"),
        ([*call[:2], "-b", "latency=0.5", *call[4:], "--overwrite"], "which target 'none' does not predict"),
        ([*call, "--overwrite", "--target", "moon"], "'moon' is not one of 'none', 'cpu'"),
        ([*call, "--overwrite", "--data", "my_models:nothing"], "no function 'nothing'"),
        ([*call, "--overwrite", "--budget", "macs=0.2"], "given once"),
        ([*call, "--overwrite", "--data", "my_models:torn"], "my_models:torn raised OSError: the disk is gone"),
        ([*call[:-1], "no/plan.json", "--data", "my_models:nothing"], "no/plan.json lies in no folder that exists"),
        ([*call[:-1], ".", "--overwrite", "--data", "my_models:nothing"], ". is a folder"),
        (
            [*call, "--overwrite", "--data", "my_models:data", "--curves", "no/curves"],
            "curves: no/curves cannot be used",
        ),
    ):
        failed = CliRunner().invoke(app, arguments)
        assert failed.exit_code == 2 and message in failed.output
