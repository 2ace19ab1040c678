"""The reweighted L1 penalty: its formulas, exact zeros under every way to train, resuming, and what it refuses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Adam, AdamW, Optimizer

from l1rr_fx.decay import parameter_groups
from l1rr_fx.schedules import SCHEDULES, mean_factor, schedule_named
from l1rr_fx.sites import channel_sites
from l1rr_fx.sparsity import FLOOR, LEAST, MOST, SHARE, TRAVEL, ReweightedL1
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
    eps = max(FLOOR, SHARE * float(gamma.mean()))
    weights = 1 / (gamma + eps)
    weights = (weights / weights.mean()).clamp(LEAST, MOST)
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
    assert float(factors.min()) == pytest.approx(LEAST) and float(factors.max()) <= MOST


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
    "no schedule of that name": ({"total_steps": 1, "schedule": "warm"}, "schedule is 'warm'; one of constant"),
    "a schedule below 0": ({"total_steps": 1, "schedule": lambda t: -t}, "the schedule is -"),
    "a schedule of zeros": ({"total_steps": 1, "schedule": lambda t: 0}, "0 throughout"),
    "all spared": ({"total_steps": 1, "spared": 1.0}, r"spared is 1.0; a share of the channels in \[0, 1\)"),
    "refreshed never": ({"total_steps": 1, "refresh_every": 0}, "refresh_every is 0"),
    "costs unknown": ({"total_steps": 1, "cost_aware": True}, r"args=\(image,\)"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input(case: str) -> None:
    options, message = BAD[case]
    with pytest.raises(InputError, match=message):
        ReweightedL1(Net(), **options)


def test_frozen_parameters_are_named() -> None:
    model = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    model[0].requires_grad_(False)
    with pytest.raises(InputError, match=r"2 parameters .* frozen: 0\.weight, 0\.bias;"):
        ReweightedL1(model, total_steps=1)
    kept = [site for site in channel_sites(model) if model.get_parameter(site.weight).requires_grad]
    assert [site.name for site in ReweightedL1(model, total_steps=1, sites=kept).sites] == ["1"]


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
