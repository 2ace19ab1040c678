"""The reweighted L1 penalty: its formulas, exact zeros under every way to train, resuming, and what it refuses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.optim import SGD, Adam, AdamW, Optimizer

from l1rr_fx.method.sites.channel_sites import channel_sites
from l1rr_fx.method.sites.zeroing import ChannelSite
from l1rr_fx.method.training.decay import parameter_groups
from l1rr_fx.method.training.reweighting import EPS_FLOOR, EPS_SHARE, LEAST_WEIGHT, MOST_WEIGHT
from l1rr_fx.method.training.schedules import SCHEDULES, mean_factor, schedule_named
from l1rr_fx.method.training.sparsity import STATE, TRAVEL, ReweightedL1
from passes.errors import InputError

IMAGE = (torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)),)


class Net(nn.Module):
    """A layer with a batch norm, one without, and a prediction."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.b = nn.Conv2d(8, 6, 3, padding=1)
        self.c = nn.Conv2d(6, 2, 1)
        nn.init.uniform_(self.norm.weight, 0.2, 1.5)
        nn.init.uniform_(self.norm.bias, -1, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.c(F.relu(self.b(F.relu(self.norm(self.a(x))))))
        return found


def train(model: nn.Module, optimizer: Optimizer, steps: int, *, accumulate: int = 1, seed: int = 0) -> None:
    dice = torch.Generator().manual_seed(seed)
    dtype = next(model.parameters()).dtype
    for _ in range(steps):
        optimizer.zero_grad()
        for _ in range(accumulate):
            x = torch.rand(2, 3, 8, 8, generator=dice, dtype=dtype)
            (model(x).square().mean() / accumulate).backward()
        optimizer.step()


def test_the_weights_are_those_of_the_formula() -> None:
    model = Net().double()
    sparsity = ReweightedL1(model, total_steps=10, strength=1.0, schedule="constant", spared=0)
    gamma = model.norm.weight.detach().clone()
    eps = max(EPS_FLOOR, EPS_SHARE * float(gamma.mean()))
    weights = 1 / (gamma + eps)
    weights = (weights / weights.mean()).clamp(LEAST_WEIGHT, MOST_WEIGHT)
    torch.testing.assert_close(sparsity.penalty().detach(), (weights * gamma).sum())
    sparsity.step(0.01)
    torch.testing.assert_close(model.norm.weight.detach(), (gamma - 0.01 * weights).clamp(min=0))


def test_a_slower_group_is_pushed_as_far() -> None:
    """The strength "auto" is of each group's own learning rate; a number is the same lambda for all."""
    for strength, wanted in (("auto", 1.0), (0.5, 0.1)):
        model = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4))
        groups = [{"params": list(model[0].parameters()), "lr": 0.01}, {"params": list(model[1].parameters())}]
        optimizer = SGD(groups, lr=0.1)
        sparsity = ReweightedL1(model, total_steps=20, strength=strength, schedule="constant", adaptive=False, spared=0)
        sparsity.attach(optimizer)
        for _ in range(2):
            optimizer.step()
        slow, fast = (1 - float(norm.weight.detach()[0]) for norm in model)
        assert slow / fast == pytest.approx(wanted, rel=1e-3)
        if strength == "auto":
            assert fast == pytest.approx(TRAVEL * 2 / 20, rel=1e-3)


def test_a_training_longer_than_was_said_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    sparsity = ReweightedL1(Net(), total_steps=3)
    for _ in range(3):
        sparsity.step(0.01)
    assert not caplog.records
    for _ in range(3):
        sparsity.step(0.01)
    assert [record.getMessage() for record in caplog.records] == [
        "the penalty goes on after its total_steps=3, at the end of its schedule"
    ]


def test_small_scales_are_pushed_harder_and_bounds_hold() -> None:
    model = Net()
    with torch.no_grad():
        model.norm.weight.copy_(torch.tensor([1e-9, 1e-3, 0.1, 0.5, 1, 2, 5, 100.0]))
    sparsity = ReweightedL1(model, total_steps=10, strength=1.0, schedule="constant", spared=0)
    before = model.norm.weight.detach().clone()
    sparsity.step(1e-3)
    shrunk = before - model.norm.weight.detach()
    assert shrunk[2] > shrunk[4] > 0
    factors = sparsity.state_dict()["factors"]
    assert float(factors.min()) == pytest.approx(LEAST_WEIGHT) and float(factors.max()) <= MOST_WEIGHT


def test_spared_channels_are_not_pushed() -> None:
    model = Net()
    before = model.norm.weight.detach().clone()
    ReweightedL1(model, total_steps=10, strength=1.0, schedule="constant", spared=0.25).step(0.01)  # two of the eight
    pushed = model.norm.weight.detach() != before
    assert int(pushed.sum()) == 6 and float(before[pushed].max()) < float(before[~pushed].min())


def test_channels_that_a_plan_has_zeroed_count_in_no_mean_and_no_share() -> None:
    """A second round, with the zeros of the first held, pushes what is left as if the others had never been there."""
    gamma = torch.tensor([0.3, 0.0, 0.5, 0.0, 0.8, 0.0, 1.2, 0.0])
    left = []
    for values in (gamma, gamma[gamma != 0]):
        norm = nn.BatchNorm2d(len(values))
        norm.weight.data.copy_(values)
        sparsity = ReweightedL1(nn.Sequential(nn.Conv2d(3, len(values), 1), norm), total_steps=100)
        for _ in range(3):
            sparsity.step(0.05)
        left.append(norm.weight.detach()[values != 0])
    torch.testing.assert_close(left[0], left[1])
    assert bool((left[1] < gamma[gamma != 0])[:2].all()) and bool((left[1] > 0).all())


def test_channels_are_spared_by_what_the_loss_would_lose() -> None:
    """Not the largest: those with the largest gamma * gradient; without a gradient again the largest."""
    model = Net()
    before = model.norm.weight.detach().clone()
    sparsity = ReweightedL1(model, total_steps=10, strength=1.0, schedule="constant", spared=0.25, refresh_every=1)
    smallest = before.abs().argsort()[:2]
    model.norm.weight.grad = torch.zeros(8).index_fill(0, smallest, 100.0)
    sparsity.step(0)  # learns of it
    sparsity.step(0.001)
    spared = model.norm.weight.detach() == before
    assert spared.nonzero().flatten().tolist() == sorted(smallest.tolist())


def test_negative_scales_shrink_towards_zero_and_never_cross_it() -> None:
    model = Net()
    with torch.no_grad():
        model.norm.weight.copy_(torch.tensor([-1, -0.5, -1e-4, 1e-4, 0.5, 1, 0, -2.0]))
    before = model.norm.weight.detach().clone()
    ReweightedL1(model, total_steps=10, strength=1.0, schedule="constant", adaptive=False, spared=0).step(0.01)
    torch.testing.assert_close(model.norm.weight.detach(), F.softshrink(before, 0.01))


def test_rows_of_layers_without_batch_norm_shrink_as_groups() -> None:
    model = Net().double()
    before = model.b.weight.detach().clone()
    sparsity = ReweightedL1(
        model, total_steps=10, strength=1.0, schedule="constant", spared=0, args=(IMAGE[0].double(),)
    )
    assert [(site.name, site.kind) for site in sparsity.sites] == [("norm", "scale"), ("b", "rows")]
    factors = sparsity.state_dict()["factors"][8:]
    sparsity.step(0.01)
    norms = before.flatten(1).norm(dim=1)
    left = (1 - 0.01 * factors / norms).view(-1, 1, 1, 1)
    torch.testing.assert_close(model.b.weight.detach(), before * left)
    for _ in range(2000):
        sparsity.step(0.1)
    assert not model.b.weight.any() and not model.b.bias.any()
    assert model.c.weight.any(), "the predictions were made sparse"


def test_the_shift_of_a_channel_shrinks_only_once_its_scale_is_zero() -> None:
    model = Net()
    with torch.no_grad():
        model.norm.weight[:3] = 0
    shift = model.norm.bias.detach().clone()
    ReweightedL1(model, total_steps=10, strength=1e-3, schedule="constant").step(0.1)
    assert (model.norm.bias[:3].abs() < shift[:3].abs()).all()
    assert torch.equal(model.norm.bias[3:], shift[3:])


OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": lambda p: SGD(p, lr=0.05, momentum=0.9),
    "Adam": lambda p: Adam(p, lr=1e-3),
    "AdamW": lambda p: AdamW(p, lr=1e-3),
    "AdamW, fused": lambda p: AdamW(p, lr=1e-3, fused=True),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_default_strength_gives_exact_zeros_under_any_optimiser(optimizer: str) -> None:
    model = Net()
    opt = OPTIMIZERS[optimizer](parameter_groups(model, weight_decay=0.01))
    sparsity = ReweightedL1(model, total_steps=60)
    sparsity.attach(opt)
    train(model, opt, 60)
    zeros = sparsity.zeros()["norm"]
    assert sparsity.steps == 60
    assert 0 < int(zeros.sum()) < 8
    assert torch.equal(zeros, model.norm.weight.detach() == 0)


def test_attached_and_called_by_hand_are_the_same() -> None:
    by_hook = Net()
    by_hand = copy.deepcopy(by_hook)
    for model in (by_hook, by_hand):
        opt = SGD(model.parameters(), lr=0.05)
        sparsity = ReweightedL1(model, total_steps=20, strength=0.3, refresh_every=5)
        if model is by_hook:
            sparsity.attach(opt)
        for seed in range(20):
            train(model, opt, 1, seed=seed)
            if model is by_hand:
                sparsity.step(0.05)
        assert sparsity.steps == 20
    assert torch.equal(by_hook.norm.weight, by_hand.norm.weight)


def test_a_removed_handle_stops() -> None:
    model = Net()
    opt = SGD(model.parameters(), lr=0.05)
    sparsity = ReweightedL1(model, total_steps=20)
    handle = sparsity.attach(opt)
    train(model, opt, 2)
    handle.remove()
    train(model, opt, 2)
    assert sparsity.steps == 2


def test_accumulated_gradients_are_one_step() -> None:
    model = Net()
    opt = SGD(model.parameters(), lr=0.05)
    sparsity = ReweightedL1(model, total_steps=20)
    sparsity.attach(opt)
    train(model, opt, 3, accumulate=4)
    assert sparsity.steps == 3


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_the_scaler_skips_are_skipped(fused: bool) -> None:
    model = Net()
    opt = SGD(model.parameters(), lr=0.05, fused=fused)
    sparsity = ReweightedL1(model, total_steps=20, strength=0.1)
    sparsity.attach(opt)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    for number, factor in enumerate((1.0, float("inf"), 1.0)):
        before = copy.deepcopy(model.state_dict())
        opt.zero_grad()
        scaler.scale(model(IMAGE[0]).square().mean() * factor).backward()
        scaler.step(opt)
        scaler.update()
        same = all(torch.equal(before[n], p) for n, p in model.named_parameters())
        assert same == (number == 1)
    assert sparsity.steps == 2


def test_each_gamma_has_the_learning_rate_of_its_group() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    opt = SGD([{"params": model[0].parameters(), "lr": 0.0}, {"params": model[1].parameters(), "lr": 0.1}], lr=0.1)
    ReweightedL1(model, total_steps=5, strength=0.1, schedule="constant", adaptive=False, spared=0).attach(opt)
    model(torch.rand(2, 4, 3, 3)).sum().backward()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    opt.step()
    assert torch.equal(model[0].weight.detach(), torch.ones(4))
    torch.testing.assert_close(model[1].weight.detach(), torch.full((4,), 0.99))


def test_the_subgradient_is_that_of_the_penalty() -> None:
    model = Net().double()
    sparsity = ReweightedL1(model, total_steps=10, strength=0.3, schedule="linear", args=(IMAGE[0].double(),))
    wanted = torch.autograd.grad(sparsity.penalty(), [model.norm.weight, model.b.weight])
    model(IMAGE[0].double()).sum().backward()
    before = [model.norm.weight.grad.clone(), model.b.weight.grad.clone()]
    sparsity.add_grad_()
    for weight, old, slope in zip((model.norm.weight, model.b.weight), before, wanted, strict=True):
        torch.testing.assert_close(weight.grad, old + slope)
    assert sparsity.steps == 1


def test_training_goes_on_bit_for_bit() -> None:
    """Interrupted between two refreshes, from everything saved and loaded."""
    whole = Net()
    start = copy.deepcopy(whole.state_dict())

    def run(model: Net, spans: tuple[int, ...]) -> Tensor:
        states: list[Any] = []
        for number, steps in enumerate(spans):
            opt = Adam(model.parameters(), lr=1e-2)
            sparsity = ReweightedL1(model, total_steps=30, refresh_every=4)
            if states:
                opt.load_state_dict(states[0])
                sparsity.load_state_dict(states[1])
            sparsity.attach(opt)
            for step in range(steps):
                train(model, opt, 1, seed=sum(spans[:number]) + step)
            states = [opt.state_dict(), copy.deepcopy(sparsity.state_dict())]
        return model.norm.weight.detach().clone()

    uninterrupted = run(whole, (30,))
    other = Net()
    other.load_state_dict(start)
    assert torch.equal(run(other, (11, 19)), uninterrupted)


def test_a_state_survives_torch_save(tmp_path: Any) -> None:
    model = Net()
    sparsity = ReweightedL1(model, total_steps=30)
    sparsity.step(0.1)
    torch.save(sparsity.state_dict(), tmp_path / "state")
    again = ReweightedL1(model, total_steps=30)
    again.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert again.steps == 1 and torch.equal(again.penalty(), sparsity.penalty())


def test_a_state_of_other_sites_is_refused() -> None:
    state = ReweightedL1(Net(), total_steps=30).state_dict()
    other = ReweightedL1(nn.Sequential(nn.BatchNorm2d(8)), total_steps=30)
    with pytest.raises(InputError, match=r"norm\.weight.*0\.weight"):
        other.load_state_dict(state)


def test_averaged_weights_keep_the_order() -> None:
    """A running average has no exact zeros; its smallest scales are those that are zero in the model."""
    model = Net()
    opt = AdamW(parameter_groups(model, weight_decay=0.01), lr=1e-3)
    sparsity = ReweightedL1(model, total_steps=80)
    sparsity.attach(opt)
    average = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
    for step in range(80):
        train(model, opt, 1, seed=step)
        average.update_parameters(model)
    zeros = sparsity.zeros()["norm"]
    sizes = average.module.norm.weight.detach().abs()
    assert 0 < int(zeros.sum()) < 8
    assert float(sizes[zeros].max()) < float(sizes[~zeros].min())


def test_synchronised_batch_norms_and_wrappers_are_looked_through() -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(Net())
    plain = ReweightedL1(model, total_steps=10)
    assert [site.weight for site in plain.sites] == ["norm.weight"]
    wrapped = ReweightedL1(nn.DataParallel(model), total_steps=10)
    compiled = ReweightedL1(torch.compile(model), total_steps=10)  # type: ignore[arg-type]  # its stub says Callable
    assert wrapped.sites == compiled.sites == plain.sites


def test_cost_aware_pushes_dear_layers_harder() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.MaxPool2d(4), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8),
        nn.ReLU(), nn.Conv2d(8, 2, 1),
    )  # fmt: skip
    sparsity = ReweightedL1(
        model,
        total_steps=10,
        strength=1.0,
        schedule="constant",
        args=(torch.rand(1, 3, 16, 16),),
        cost_aware=True,
        spared=0,
    )
    assert [site.name for site in sparsity.sites] == ["1", "4"]
    sparsity.step(0.01)
    first, second = (1 - model[n].weight.detach() for n in (1, 4))
    macs = [site.macs for site in sparsity.sites]
    torch.testing.assert_close(first / second, torch.full((8,), macs[0] / macs[1]), rtol=1e-3, atol=0.0)
    torch.testing.assert_close((first + second) / 2, torch.full((8,), 0.01), rtol=1e-3, atol=0.0)


def test_schedules() -> None:
    warm = SCHEDULES["warm-linear"]
    assert [warm(t) for t in (0, 0.05, 0.1, 1)] == pytest.approx([0, 0.5, 1, 0.1])
    assert warm(0.55) == pytest.approx(1 - 0.9 * 0.5)
    assert [SCHEDULES["step"](t) for t in (0.49, 0.5)] == [1, 0.01]
    for name, schedule in SCHEDULES.items():
        assert all(0 <= schedule(n / 20) <= 1 for n in range(21)), name
        assert 0 < mean_factor(schedule) <= 1
    assert mean_factor(SCHEDULES["linear"]) == pytest.approx(0.55)
    assert schedule_named(lambda t: t)(0.25) == 0.25


def test_the_default_strength_moves_a_silent_channel_by_so_many_mean_scales() -> None:
    """At a constant learning rate, whatever its value and however many steps."""
    for lr, steps in ((0.1, 50), (1e-4, 400)):
        model = Net()
        mean = float(model.norm.weight.detach().abs().mean())
        with torch.no_grad():
            model.norm.weight.fill_(mean)
        sparsity = ReweightedL1(model, total_steps=steps, schedule="linear", adaptive=False, spared=0)
        with torch.no_grad():
            model.norm.weight.fill_((1 + TRAVEL) * mean)
        for _ in range(steps):
            sparsity.step(lr)
        assert float(model.norm.weight.detach().mean()) == pytest.approx(mean, abs=0.02 * TRAVEL * mean)


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no steps": ({"total_steps": 0}, "total_steps is 0"),
    "strength below 0": ({"total_steps": 1, "strength": -1.0}, "strength is -1.0"),
    "strength NaN": ({"total_steps": 1, "strength": float("nan")}, "strength is nan"),
    "no schedule of that name": ({"total_steps": 1, "schedule": "warm"}, "schedule is 'warm'; expected one of "),
    "a schedule below 0": ({"total_steps": 1, "schedule": lambda t: -t}, "the schedule at t = 1 is -1.0"),
    "a schedule of zeros": ({"total_steps": 1, "schedule": lambda t: 0}, "0 throughout"),
    "a schedule that divides by 0": ({"total_steps": 1, "schedule": lambda t: 1 / t}, "raises ZeroDivision.* at t = 0"),
    "a schedule of nothing": ({"total_steps": 1, "schedule": lambda t: None}, "the schedule raises TypeError at t = 0"),
    "a schedule of words": ({"total_steps": 1, "schedule": lambda t: "x"}, "the schedule raises ValueError at t = 0"),
    "sites that are none": ({"total_steps": 1, "sites": "abc"}, "sites is 'abc'; expected a sequence of ChannelSite"),
    "sites of names": ({"total_steps": 1, "sites": ["norm"]}, r"sites\[0\] is a str; expected a ChannelSite"),
    "sites of another": (
        {"total_steps": 1, "sites": [ChannelSite("norm", "scale", "norm.weight", None, 9)]},
        r"norm has 9 channels .* this Net's norm.weight shape \(8,\)",
    ),
    "all spared": ({"total_steps": 1, "spared": 1.0}, r"spared is 1.0; expected a share of the channels in \[0, 1\)"),
    "refreshed never": ({"total_steps": 1, "refresh_every": 0}, "refresh_every is 0"),
    "costs unknown": ({"total_steps": 1, "cost_aware": True}, r"args=\(image,\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    options, message = BAD[case]
    with pytest.raises(InputError, match=message):
        ReweightedL1(Net(), **options)


@pytest.mark.parametrize("frozen", [("weight", "bias"), ("bias",)])
def test_frozen_parameters_are_named(frozen: tuple[str, ...]) -> None:
    """And what the error says to write instead does it."""
    model = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    for name in frozen:
        model[0].get_parameter(name).requires_grad_(False)
    with pytest.raises(InputError, match=rf"{len(frozen)} parameters .* frozen: 0\.{frozen[0]}.*;") as caught:
        ReweightedL1(model, total_steps=1)
    recipe = str(caught.value).partition("sites=")[2]
    kept = eval(recipe, {"channel_sites": channel_sites, "model": model})
    assert [site.name for site in ReweightedL1(model, total_steps=1, sites=kept).sites] == ["1"]


def test_arguments_of_another_kind() -> None:
    sparsity = ReweightedL1(Net(), total_steps=10)
    before = copy.deepcopy(sparsity.state_dict())
    for call, message in (
        (lambda: ReweightedL1(None, total_steps=1), "model is a NoneType; expected a Module"),  # type: ignore[arg-type]
        (lambda: sparsity.attach(None), "optimizer is a NoneType"),  # type: ignore[arg-type]
        (lambda: sparsity.step("x"), "the learning rate is 'x'; expected a finite number >= 0"),  # type: ignore[arg-type]
        (lambda: sparsity.step(-0.1), "the learning rate is -0.1"),
        (lambda: sparsity.step(float("nan")), "the learning rate is nan"),
        (lambda: sparsity.add_grad_(-1.0), "the learning rate is -1.0"),
        (lambda: sparsity.advance(float("inf")), "the learning rate is inf"),
        (lambda: sparsity.load_state_dict(None), "state is a NoneType"),  # type: ignore[arg-type]
        (lambda: sparsity.load_state_dict({}), "the state lacks sites, steps, "),
        (lambda: sparsity.load_state_dict({n: before[n] for n in STATE if n != "eps"}), "the state lacks eps; "),
        (lambda: sparsity.load_state_dict({**before, "eps": before["eps"][:3]}), r"the state's eps has shape \(3,\)"),
        (lambda: sparsity.load_state_dict({**before, "alive": None}), "the state's alive is a NoneType"),
        (lambda: parameter_groups(Net(), weight_decay=-1), "weight_decay is -1; expected a finite number >= 0"),
        (lambda: parameter_groups(Net(), weight_decay="x"), "weight_decay is 'x'"),  # type: ignore[arg-type]
    ):
        with pytest.raises(InputError, match=message):
            call()  # type: ignore[no-untyped-call]
    after = sparsity.state_dict()
    assert all(torch.equal(after[n], v) if isinstance(v, Tensor) else after[n] == v for n, v in before.items())


def test_a_schedule_that_has_no_value_later_is_named_and_does_no_harm() -> None:
    """Between the points at which it is tried when it is given."""
    model = Net()
    sparsity = ReweightedL1(model, total_steps=9, schedule=lambda t: float("nan") if t == 1 / 9 else 1.0)
    sparsity.step(0.01)
    with pytest.raises(InputError, match=r"the schedule at t = 0\.111111 is nan"):
        sparsity.step(0.01)
    assert bool(model.norm.weight.isfinite().all())


DIFFERENT: dict[str, dict[str, Any]] = {
    "total_steps": {"total_steps": 31},
    "strength": {"strength": 0.5},
    "schedule": {"schedule": "linear"},
    "adaptive": {"adaptive": False},
    "spared": {"spared": 0.25},
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_a_state_of_another_penalty_is_refused(name: str) -> None:
    state = ReweightedL1(Net(), total_steps=30).state_dict()
    other = ReweightedL1(Net(), **{"total_steps": 30, **DIFFERENT[name]})
    with pytest.raises(InputError, match=f"another penalty: its {name} is "):
        other.load_state_dict(state)
    other.load_state_dict({part: state[part] for part in STATE})  # as states were before they said so


def test_a_scale_of_two_batch_norms_is_pushed_once() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    model[1].weight = model[0].weight
    assert [site.name for site in channel_sites(model)] == ["0"]
    twice = [ChannelSite(str(n), "scale", f"{n}.weight", f"{n}.bias", 4) for n in (0, 1)]
    for sites in (None, twice):
        nn.init.ones_(model[0].weight)
        options: dict[str, Any] = {"strength": 1.0, "schedule": "constant", "adaptive": False, "spared": 0}
        ReweightedL1(model, total_steps=10, sites=sites, **options).step(0.1)
        torch.testing.assert_close(model[0].weight.detach(), torch.full((4,), 0.9))


def test_batch_norms_whose_scale_is_computed_are_no_sites() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    prune.l1_unstructured(model[0], "weight", 0.5)
    prune.l1_unstructured(model[2], "bias", 0.5)
    assert [site.name for site in ReweightedL1(model, total_steps=1).sites] == ["1"]
    with pytest.raises(InputError, match="no batch norm with scales of its own"):
        ReweightedL1(model[0], total_steps=1)


@pytest.mark.parametrize("strength", ["auto", 0.2])
def test_the_penalty_as_a_term_of_the_loss(strength: Any) -> None:
    """It shrinks what `step` shrinks, as far, but for the exact zeros; with a schedule that starts at 0 too."""
    left = {}
    for kind in ("none", "step", "term"):
        torch.manual_seed(0)
        model = Net()
        optimizer = SGD(model.parameters(), lr=0.02)
        sparsity = ReweightedL1(model, total_steps=200, strength=strength)
        for seed in range(200):
            x = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(seed))
            optimizer.zero_grad()
            loss = model(x).square().mean()
            (loss + sparsity.penalty() if kind == "term" else loss).backward()
            optimizer.step()
            if kind != "none":
                (sparsity.step if kind == "step" else sparsity.advance)(0.02)
        left[kind] = model.norm.weight.detach().abs()
    assert int((left["step"] == 0).sum()) > 0 and float((left["none"] - left["step"]).max()) > 0.2
    torch.testing.assert_close(left["term"], left["step"], rtol=0, atol=0.02)  # a step beyond zero, and back


def test_a_loop_that_forgets_to_advance_is_told(caplog: pytest.LogCaptureFixture) -> None:
    sparsity = ReweightedL1(Net(), total_steps=1000)
    for _ in range(99):
        sparsity.penalty()
    sparsity.advance(0.1)
    with torch.no_grad():
        for _ in range(200):  # for logs
            sparsity.penalty()
    assert not caplog.records
    for _ in range(300):
        sparsity.penalty()
    assert [record.getMessage() for record in caplog.records] == [
        "penalty() was asked for 100 times between two steps: is `advance` called?"
    ]


def test_its_own_slope_does_not_make_a_channel_matter() -> None:
    """What the loss would change by is asked of the loss alone, when the penalty is a term of it too."""
    model = Net().double()
    changes = []
    for kind in ("step", "term"):
        sparsity = ReweightedL1(model, total_steps=10, strength=0.5, schedule="constant", args=(IMAGE[0].double(),))
        model.zero_grad()
        loss = model(IMAGE[0].double()).square().mean()
        (loss + sparsity.penalty() if kind == "term" else loss).backward()
        (sparsity.advance if kind == "term" else sparsity.step)(0.0)
        changes.append(sparsity.state_dict()["changes"])
    torch.testing.assert_close(changes[0], changes[1], rtol=1e-4, atol=1e-9)  # kept in float32


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [False, True])
def test_parameters_of_16_bits_shrink_as_those_of_32(dtype: torch.dtype, rows: bool) -> None:
    """Each push is below what their numbers resolve; what it leaves undone is kept, and resumed."""
    left = []
    for kind, interrupted in ((torch.float32, False), (dtype, False), (dtype, True)):
        torch.manual_seed(0)
        model = Net().to(kind)
        args = (IMAGE[0].to(kind),) if rows else None
        options: dict[str, Any] = {"total_steps": 2000, "schedule": "constant", "strength": 0.08, "args": args}
        sparsity = ReweightedL1(model, **options)
        for number in range(2000):
            if interrupted and number == 750:
                state = copy.deepcopy(sparsity.state_dict())
                sparsity = ReweightedL1(model, **options)
                sparsity.load_state_dict(state)
            sparsity.step(0.005)
        left.append((model.b.weight.flatten(1).norm(dim=1) if rows else model.norm.weight).detach().float())
    assert 0 < int((left[0] == 0).sum()) < len(left[0])
    torch.testing.assert_close(left[1], left[0], rtol=2e-2, atol=2e-2)
    assert torch.equal(left[1], left[2])


def test_shifts_of_16_bits_shrink_as_those_of_32() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        model = Net().to(dtype)
        nn.init.zeros_(model.norm.weight)
        nn.init.ones_(model.norm.bias)
        options: dict[str, Any] = {"strength": 0.01, "schedule": "constant", "adaptive": False, "spared": 0}
        sparsity = ReweightedL1(model, total_steps=500, **options)
        for _ in range(500):
            sparsity.step(0.01)  # a thousandth of the shift
        torch.testing.assert_close(model.norm.bias.detach().float(), torch.full((8,), 0.5), rtol=1e-2, atol=0)


def test_weight_decay_on_gamma_is_refused() -> None:
    model = Net()
    sparsity = ReweightedL1(model, total_steps=1)
    with pytest.raises(InputError, match=r"decays 1 gammas: norm\.weight; .*parameter_groups"):
        sparsity.attach(AdamW(model.parameters(), lr=0.1))
    sparsity.attach(AdamW(parameter_groups(model, weight_decay=0.1), lr=0.1))


def test_an_optimiser_of_another_model_is_refused() -> None:
    with pytest.raises(InputError, match=r"lacks 1 penalised parameters: norm\.weight"):
        ReweightedL1(Net(), total_steps=1).attach(SGD(Net().parameters(), lr=0.1))


def test_a_model_without_batch_norm_is_told_what_to_do() -> None:
    with pytest.raises(InputError, match="sites=channel_sites"):
        ReweightedL1(nn.Linear(2, 2), total_steps=1)


def test_a_training_that_diverged_is_named() -> None:
    model = Net()
    sparsity = ReweightedL1(model, total_steps=10, refresh_every=1)
    with torch.no_grad():
        model.norm.weight[2] = float("nan")
    with pytest.raises(InputError, match=r"norm\.weight: NaN or infinity after 1 steps"):
        sparsity.step(0.1)
