"""Plans: applied, held through training, stored and refused; and batch norms measured again afterwards."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_
from torch.optim import SGD, Adam, AdamW, Optimizer

import l1rr_fx
from l1rr_fx.method.attention.loss import AttentionLoss
from l1rr_fx.method.planning.choose import choose
from l1rr_fx.method.planning.plan import Plan
from l1rr_fx.method.sites.budget import Budget
from l1rr_fx.method.training.recalibrate import recalibrate_batch_norm
from passes.errors import InputError

DICE = torch.Generator().manual_seed(0)
IMAGES = torch.rand(6, 4, 3, 12, 12, dtype=torch.float64, generator=DICE)
ARGS = (IMAGES[0],)


class Net(nn.Module):
    """A residual sum, a layer without batch norm, and a prediction."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(12)
        self.branch = nn.Conv2d(12, 12, 3, padding=1, bias=False)
        self.branch_norm = nn.BatchNorm2d(12)
        self.plain = nn.Conv2d(12, 10, 3)
        self.head = nn.Conv2d(10, 2, 1)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.1, 1.5)
                nn.init.uniform_(module.bias, -1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_norm(self.stem(x)))
        x = x + self.branch_norm(self.branch(x))
        found: Tensor = self.head(F.relu(self.plain(x)))
        return found


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().double()


@pytest.fixture
def plan(net: Net) -> Plan:
    """Scales and rows: with a score for each, all layers take part."""
    found = choose(net, ARGS, budget=Budget(macs=0.5))
    plain = next(site for site in found.sites if site.name == "plain")
    sites = tuple(replace(s, zeroed=(1, 4, 8)) if s is plain else s for s in found.sites)
    return replace(found, sites=sites)


def zeroed(net: nn.Module, plan: Plan) -> Any:
    copied = copy.deepcopy(net)
    plan.zero_(copied)
    return copied


def test_zeroed_channels_give_nothing_and_the_rest_is_as_it_was(net: Net, plan: Plan) -> None:
    found = zeroed(net, plan)
    assert plan.zeroed == plan.zero_(found) == sum(len(site.zeroed) for site in plan.sites)
    masks = plan.zeroing
    changed = {site.weight: site for site in plan.sites if site.zeroed} | {
        site.bias: site for site in plan.sites if site.zeroed and site.bias
    }
    assert {*changed} == {f"{n}.{k}" for n in ("stem_norm", "branch_norm", "plain") for k in ("weight", "bias")}
    for name, parameter in found.named_parameters():
        before = net.get_parameter(name)
        mask = masks[changed[name].name] if name in changed else torch.zeros(len(before), dtype=torch.bool)
        assert not parameter[mask].any() and torch.equal(parameter[~mask], before[~mask])
    maps: list[Tensor] = []
    found.stem_norm.register_forward_hook(lambda m, args, out: maps.append(out))
    for mode in (True, False):
        found.train(mode)(IMAGES[0])
        assert not maps[-1][:, masks["stem_norm"]].any()
    assert l1rr_fx.prune(found.eval(), ARGS).module.get_parameter("plain.weight").shape[0] == 7


def test_a_plan_prints_layers_and_classes(plan: Plan) -> None:
    loss = AttentionLoss(0.125, {"map": 0.25}, {"ship": 0.3125, "vehicle": 0.0625})
    text = str(replace(plan, attention=loss, budget=Budget(macs=0.5, attention=0.2)))
    for shown in ("plain", "│ head", "network output", "budget 0.5", "feature attention loss: 0.1250 (budget 0.2)"):
        assert shown in text
    assert "ship" in text and "0.3125" in text and "map" in text and "0.2500" in text


def test_json_and_back(plan: Plan) -> None:
    loss = AttentionLoss(0.125, {"map": float("nan")}, {"ship": 0.25})
    again = Plan.from_json(plan.to_json())
    assert again == plan
    with_loss = replace(plan, attention=loss, budget=Budget(attention=0.2), tau=float("inf"))
    assert Plan.from_json(with_loss.to_json()).to_json() == with_loss.to_json()


DAMAGE: dict[str, tuple[Callable[[Any], object], str]] = {
    "another format": (lambda d: d.update(format="x"), 'this is not a plan: "format"'),
    "a later version": (lambda d: d.update(version=9), "version 9"),
    "a field too many": (lambda d: d.update(more=1), "'more' is missing or unknown"),
    "a channel that is not there": (lambda d: d["sites"][0].update(zeroed=[99]), "stem_norm zeroes channels"),
    "a site twice": (lambda d: d["sites"].append(d["sites"][0]), "the site stem_norm is there 2 times"),
    "a mode that is none": (lambda d: d.update(mode="bogus"), "plan.mode: expected one of recombine, union, exclude"),
    "a channel twice": (lambda d: d["sites"][0].update(zeroed=[1, 1]), "stem_norm zeroes channels"),
    "another number of channels": (lambda d: d["sites"][0].update(channels=3), "stem_norm has 3 channels"),
    "a bias of another layer": (lambda d: d["sites"][0].update(bias="head.bias"), r"its head\.bias another shape"),
    "a budget of nothing": (lambda d: d["budget"].update(macs=0), "macs=0"),
    "text for a number": (lambda d: d.update(tau="much"), "plan.tau"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_plan_is_refused(plan: Plan, case: str) -> None:
    damage, message = DAMAGE[case]
    document = json.loads(plan.to_json())
    damage(document)
    with pytest.raises(InputError, match=message):
        Plan.from_json(json.dumps(document))
    with pytest.raises(InputError, match="not JSON"):
        Plan.from_json(plan.to_json()[:-20])


def test_another_model_is_refused_with_the_first_difference(net: Net, plan: Plan) -> None:
    net.plain = nn.Conv2d(12, 11, 3).double()
    with pytest.raises(
        InputError, match=r"plain\.weight, shape \(10, 12, 3, 3\) in the plan and shape \(11, 12, 3, 3\)"
    ):
        plan.zero_(net)
    net.plain = nn.Conv2d(12, 10, 3, bias=False).double()
    with pytest.raises(InputError, match=r"plain\.bias, shape \(10,\) in the plan and nothing in Net"):
        plan.hold(net)
    net.plain = nn.Conv2d(12, 10, 3).double()
    net.more = nn.Linear(1, 1)
    with pytest.raises(InputError, match=r"more\.weight, nothing in the plan"):
        plan.zero_(net)


def test_plans_are_compared(plan: Plan) -> None:
    other = replace(plan, sites=tuple(replace(s, zeroed=(4, 9)) if s.name == "plain" else s for s in plan.sites))
    (difference,) = plan.diff(other)
    assert (difference.name, difference.only_first, difference.only_second) == ("plain", (1, 8), (9,))
    assert plan.diff(plan) == ()
    with pytest.raises(InputError, match="another model"):
        plan.diff(replace(plan, shapes={}))


def test_wrapped_models_are_taken(net: Net, plan: Plan) -> None:
    plan.zero_(nn.DataParallel(net))
    assert not net.plain.weight[1].any()


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "momentum": lambda p: SGD(p, lr=0.05, momentum=0.9, weight_decay=0.01),
    "Adam": lambda p: Adam(p, lr=1e-2),
    "AdamW": lambda p: AdamW(p, lr=1e-2),
}


def step(model: nn.Module, optimizer: Optimizer, x: Tensor, *, clip: float = 0.05) -> None:
    optimizer.zero_grad()
    (model(x) - 1).square().mean().backward()
    clip_grad_norm_(model.parameters(), clip)
    optimizer.step()


def test_kept_shifts_stay_and_their_channels_go(net: Net, plan: Plan) -> None:
    found = copy.deepcopy(net).eval()
    assert plan.zero_(found, shift="keep") == plan.zeroed
    scales, shifts = ({getattr(s, each): s.mask for s in plan.sites if s.zeroed} for each in ("weight", "bias"))
    assert {*scales} == {"stem_norm.weight", "branch_norm.weight", "plain.weight"}
    for name, parameter in found.named_parameters():
        mask = scales.get(name, torch.zeros(len(parameter), dtype=torch.bool))
        assert not parameter[mask].any() and torch.equal(parameter[~mask], net.get_parameter(name)[~mask])
    assert all(found.get_parameter(name)[mask].all() for name, mask in shifts.items() if name is not None)
    small = l1rr_fx.prune(found, ARGS).module
    torch.testing.assert_close(small(IMAGES[1]), found(IMAGES[1]), rtol=1e-10, atol=1e-10)
    assert small.get_parameter("plain.weight").shape[0] == 7


@pytest.mark.parametrize("shift", ["keep", "zero"])
def test_held_is_what_was_zeroed_and_nothing_else(net: Net, plan: Plan, shift: Any) -> None:
    optimizer = SGD(net.parameters(), lr=0.1, momentum=0.9)
    step(net, optimizer, IMAGES[0], clip=10.0)  # momentum
    with plan.hold(net, shift=shift):
        before = [net.get_parameter(str(site.bias)).detach().clone() for site in plan.sites if site.zeroed]
        for x in IMAGES:
            step(net, optimizer, x, clip=10.0)
    for site, bias in zip((s for s in plan.sites if s.zeroed), before, strict=True):
        assert not net.get_parameter(site.weight)[site.mask].any()
        moved = (net.get_parameter(str(site.bias)) != bias)[site.mask]
        assert bool(moved.any()) == (shift == "keep")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_held_zeros_train_as_the_small_network_does(net: Net, plan: Plan, optimizer: str) -> None:
    """Gradient clipping included: the norm is that of the small network."""
    model = zeroed(net, plan)
    small = l1rr_fx.prune(model, ARGS).module
    pairs = [(each, OPTIMIZERS[optimizer](each.parameters())) for each in (model, small)]
    with plan.hold(model):
        for x in IMAGES:
            for each, opt in pairs:
                step(each, opt, x)
    assert all(not p[m].any() for s in plan.sites if s.zeroed for p, m in [(model.get_parameter(s.weight), s.mask)])
    torch.testing.assert_close(small(IMAGES[0]), model(IMAGES[0]), rtol=1e-8, atol=1e-10)


def test_momentum_from_before_does_not_revive_channels(net: Net, plan: Plan) -> None:
    optimizer = SGD(net.parameters(), lr=0.1, momentum=0.9)
    step(net, optimizer, IMAGES[0], clip=10.0)
    held = plan.hold(net)
    for x in IMAGES:
        step(net, optimizer, x)
        assert not net.plain.weight[1].any() and not net.plain.bias[1].any()
    held.release()
    step(net, optimizer, IMAGES[0])
    assert net.plain.weight[1].any(), "nothing was held: the test proves nothing"


def test_other_models_are_not_held(net: Net, plan: Plan) -> None:
    other = copy.deepcopy(net)
    with plan.hold(net):
        optimizer = SGD(other.parameters(), lr=0.1)
        step(other, optimizer, IMAGES[0])
        assert other.plain.weight[1].any()


def test_an_average_of_held_weights_is_held(net: Net, plan: Plan) -> None:
    optimizer = Adam(net.parameters(), lr=1e-2)
    with plan.hold(net):
        average = torch.optim.swa_utils.AveragedModel(net)
        for x in IMAGES:
            step(net, optimizer, x)
            average.update_parameters(net)
    assert not average.module.plain.weight[1].any() and not average.module.stem_norm.bias[plan.sites[0].mask].any()


def test_recalibration_takes_a_lost_constant_out(net: Net) -> None:
    """Channels with scale 0 and a live shift are constants; zeroing them shifts what the next batch norm sees."""
    net.eval()
    with torch.no_grad():
        net.stem_norm.weight[:5] = 0
        net.stem_norm.bias[:5] = 3
        net.branch = nn.Conv2d(12, 12, 1, bias=False).double()  # no border: a constant moves only the mean
        net.forward = lambda x: net.branch_norm(net.branch(F.relu(net.stem_norm(net.stem(x)))))  # type: ignore[method-assign]
        recalibrate_batch_norm(net, [IMAGES[0], IMAGES[1]])
        wanted = net(IMAGES[0])
        net.stem_norm.bias[:5] = 0
        assert float((net(IMAGES[0]) - wanted).abs().max()) > 0.1
        assert recalibrate_batch_norm(net, [IMAGES[0], IMAGES[1]]) == 2
        torch.testing.assert_close(net(IMAGES[0]), wanted, rtol=1e-9, atol=1e-9)


def test_recalibration_is_the_mean_of_the_batches_and_nothing_else(net: Net) -> None:
    net.train()
    net.branch_norm.eval()
    modes, momenta = [m.training for m in net.modules()], [net.stem_norm.momentum, net.branch_norm.momentum]
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    batches = [(x, [None] * 4) for x in IMAGES]
    assert recalibrate_batch_norm(net, batches) == len(IMAGES)
    with torch.no_grad():
        maps = [net.stem(x) for x in IMAGES]
    wanted = torch.stack([m.mean((0, 2, 3)) for m in maps]).mean(0)
    torch.testing.assert_close(net.stem_norm.running_mean, wanted)
    assert modes == [m.training for m in net.modules()]
    assert momenta == [net.stem_norm.momentum, net.branch_norm.momentum]
    assert all(torch.equal(before[name], p) for name, p in net.named_parameters())


def test_recalibration_of_the_pruned_network(net: Net, plan: Plan) -> None:
    model = zeroed(net, plan).eval()
    small = l1rr_fx.prune(model, ARGS).module
    for each in (model, small):
        recalibrate_batch_norm(each, IMAGES)
    torch.testing.assert_close(small(IMAGES[0]), model(IMAGES[0]), rtol=1e-10, atol=1e-12)


class Auxiliary(nn.Module):
    """A branch that only training calls, and a batch norm after the pool, which one image does not suffice for."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.aux, self.last = nn.BatchNorm2d(4), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        if self.training:
            x = self.aux(x)
        found: Tensor = self.last(x.mean((2, 3)))
        return found


def statistics(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.named_buffers()}


def images_then(error: BaseException) -> Iterator[Tensor]:
    yield torch.rand(4, 3, 5, 5)
    raise error


FAILURES: dict[str, tuple[Callable[[], Any], type[BaseException]]] = {
    "a mapping": (lambda: [{"image": ONES}], InputError),
    "a mapping later": (lambda: [ONES, {"image": ONES}], InputError),
    "other channels": (lambda: [ONES, torch.ones(4, 1, 5, 5)], RuntimeError),
    "another type": (lambda: [ONES, ONES.double()], RuntimeError),
    "one image": (lambda: [ONES[:1]], ValueError),
    "no image": (lambda: [ONES, ONES[:0]], InputError),
    "a loader that fails": (lambda: images_then(OSError()), OSError),
    "an interrupt": (lambda: images_then(KeyboardInterrupt()), KeyboardInterrupt),
    "infinity": (lambda: [ONES * torch.inf], InputError),
    "no batches": (lambda: None, InputError),
}
ONES = torch.ones(4, 3, 5, 5)


@pytest.mark.parametrize("case", FAILURES)
def test_a_recalibration_that_fails_changes_nothing(case: str) -> None:
    net = Auxiliary()
    net(torch.rand(4, 3, 5, 5))
    before, momenta = statistics(net), [net.norm.momentum, net.last.momentum]
    batches, error = FAILURES[case]
    with pytest.raises(error):
        recalibrate_batch_norm(net, batches())
    assert all(torch.equal(value, before[name]) for name, value in net.named_buffers())
    assert net.norm.training and net.training and momenta == [net.norm.momentum, net.last.momentum]


def test_what_evaluation_does_not_call_keeps_its_statistics() -> None:
    net = Auxiliary()
    net(torch.rand(4, 3, 5, 5))
    before = statistics(net)
    recalibrate_batch_norm(net, [torch.rand(4, 3, 5, 5)])
    changed = {name for name, value in net.named_buffers() if not torch.equal(value, before[name])}
    assert changed == {f"{norm}.running_{kind}" for norm in ("norm", "last") for kind in ("mean", "var")}


def test_wrong_types_are_refused(net: Net, plan: Plan) -> None:
    nothing: Any = None
    any_shift: Any = ["keep"]
    other_shift: Any = "both"
    for call, message in (
        (lambda: plan.zero_(nothing), "model is a NoneType"),
        (lambda: plan.zero_(net, shift=other_shift), "shift is 'both'; expected one of keep, zero"),
        (lambda: plan.hold(net, shift=any_shift), r"shift is \['keep'\]; expected one of keep, zero"),
        (lambda: plan.diff(nothing), "other is a NoneType; expected a Plan"),
        (lambda: Plan.from_json(nothing), "the plan is a NoneType"),
        (lambda: recalibrate_batch_norm(nothing, [ONES]), "module is a NoneType"),
        (lambda: recalibrate_batch_norm(net, nothing), "batches is a NoneType"),
    ):
        with pytest.raises(InputError, match=message):
            call()


def test_what_recalibration_refuses(net: Net) -> None:
    before = net.stem_norm.running_mean
    assert before is not None
    kept = before.clone()
    for module, batches, message in (
        (net, [], "no batches"),
        (nn.Linear(2, 2), [IMAGES[0]], "Linear has no batch norm"),
        (net, ["image"], "batch 0 is a str"),
        (net, [IMAGES[0] * float("inf")], "stem_norm: its statistics became NaN"),
    ):
        with pytest.raises(InputError, match=message):
            recalibrate_batch_norm(module, batches)
        assert torch.equal(before, kept)
