"""Optimizer state carried over: training goes on as if the zeroed channels had never been there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import LBFGS, SGD, Adafactor, Adam, AdamW, Optimizer, RMSprop

import l1rr_fx
from passes.errors import InputError


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.b = nn.Conv2d(8, 8, 3, padding=1, groups=2)
        self.c = nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(F.silu(self.b(F.silu(self.a(x)))))


DEAD = {"a": (0, 1, 5, 6), "b": (1, 4)}  # as many in each group of b: a channel kept to fill a group would train again
OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": lambda p: SGD(p, lr=0.1),
    "momentum": lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=1e-3),
    "Adam": lambda p: Adam(p, lr=1e-2, amsgrad=True),
    "AdamW": lambda p: AdamW(p, lr=1e-2),
    "RMSprop": lambda p: RMSprop(p, lr=1e-2, momentum=0.9, centered=True),
}


def step(model: nn.Module, optimizer: Optimizer, x: Tensor, *, dead: bool = False) -> None:
    """One step of training; with `dead`, the channels of DEAD are kept at zero as sparse training does."""
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()
    if dead:
        zero(model)


@torch.no_grad()
def zero(model: nn.Module) -> None:
    for name, channels in DEAD.items():
        for parameter in model.get_submodule(name).parameters():
            parameter[list(channels)] = 0


@pytest.fixture
def net() -> Net:
    net = Net().double()
    zero(net)
    return net


IMAGES = torch.rand(4, 2, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_training_goes_on(net: Net, optimizer: str) -> None:
    make = OPTIMIZERS[optimizer]
    old = make(net.parameters())
    for x in IMAGES[:2]:
        step(net, old, x, dead=True)
    pruned = l1rr_fx.prune(net, (IMAGES[0],))
    assert pruned.module.get_parameter("a.weight").shape[0] < 8
    new = make(pruned.module.parameters())
    new.load_state_dict(l1rr_fx.pruned_optimizer_state(pruned, net, old))
    for x in IMAGES[2:]:
        step(net, old, x, dead=True)
        step(pruned.module, new, x)
    for x in IMAGES:
        torch.testing.assert_close(pruned.module(x), net(x), rtol=1e-10, atol=1e-12)


def test_groups_keep_their_options_and_order(net: Net) -> None:
    def groups(model: nn.Module) -> list[dict[str, object]]:
        biases = [p for n, p in model.named_parameters() if n.endswith("bias")]
        rest = [p for n, p in reversed([*model.named_parameters()]) if not n.endswith("bias")]
        return [{"params": rest, "lr": 0.5}, {"params": biases, "weight_decay": 0.25}]

    old = AdamW(groups(net), lr=0.125)
    step(net, old, IMAGES[0], dead=True)
    pruned = l1rr_fx.prune(net, (IMAGES[0],))
    state = l1rr_fx.pruned_optimizer_state(pruned, net, old)
    assert [(group["lr"], group["weight_decay"]) for group in state["param_groups"]] == [(0.5, 0.01), (0.125, 0.25)]
    names = [n for n, _ in pruned.module.named_parameters()]
    in_order = [n for n in names if not n.endswith("bias")] + [n for n in names if n.endswith("bias")]
    for index, name in enumerate(in_order):
        moment = state["state"][index]["exp_avg"]
        originals = dict(zip([n for n, _ in net.named_parameters()], net.parameters(), strict=True))
        assert torch.equal(moment, pruned.kept[name].apply(old.state[originals[name]]["exp_avg"])), name
        assert state["state"][index]["step"] == 1


def test_named_parameters_keep_their_names(net: Net) -> None:
    old = AdamW(net.named_parameters(), lr=0.1)
    step(net, old, IMAGES[0], dead=True)
    pruned = l1rr_fx.prune(net, (IMAGES[0],))
    new = AdamW(pruned.module.named_parameters(), lr=0.1)
    new.load_state_dict(l1rr_fx.pruned_optimizer_state(pruned, net, old))
    assert new.param_groups[0]["param_names"] == [name for name, _ in pruned.module.named_parameters()]


def test_nothing_is_shared(net: Net) -> None:
    old = Adam(net.parameters())
    step(net, old, IMAGES[0], dead=True)
    before = {p: {k: v.clone() for k, v in s.items()} for p, s in old.state.items()}
    pruned = l1rr_fx.prune(net, (IMAGES[0],))
    state = l1rr_fx.pruned_optimizer_state(pruned, net, old)
    for values in state["state"].values():
        for value in values.values():
            value.add_(1)
    assert all(torch.equal(old.state[p][k], v) for p, values in before.items() for k, v in values.items())


@pytest.mark.parametrize("make", [lambda p: LBFGS(p), lambda p: Adafactor(p)], ids=["LBFGS", "Adafactor"])
def test_a_state_that_cannot_be_cut_is_refused(net: Net, make: Callable[[Any], Optimizer]) -> None:
    old = make(net.parameters())

    def closure() -> float:
        old.zero_grad()
        loss = net(IMAGES[0]).square().mean()
        loss.backward()
        return float(loss.detach())

    old.step(closure)
    zero(net)
    pruned = l1rr_fx.prune(net, (IMAGES[0],))
    with pytest.raises(InputError, match=r"weight, .*a state of "):
        l1rr_fx.pruned_optimizer_state(pruned, net, old)


def test_another_model_or_optimizer_is_refused(net: Net) -> None:
    pruned = l1rr_fx.prune(net, (IMAGES[0],))
    with pytest.raises(InputError, match="is not one of this Linear"):
        l1rr_fx.pruned_optimizer_state(pruned, nn.Linear(1, 1), SGD(net.parameters()))
    with pytest.raises(InputError, match="that the model has not"):
        l1rr_fx.pruned_optimizer_state(pruned, net, SGD(Net().parameters()))
    other = Net()
    other.a = nn.Conv2d(3, 9, 3)
    with pytest.raises(InputError, match="is this another model"):
        l1rr_fx.pruned_optimizer_state(pruned, other, SGD(other.parameters()))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_what_is_dead_but_stays_has_no_moments_from_before_it_died(optimizer: str) -> None:
    """Channels that a multiple keeps get no gradient behind a ReLU: nothing but old moments could wake them."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 2, 1)).double()

    def held() -> None:
        with torch.no_grad():
            for parameter in (*net[0].parameters(), *net[2].parameters()):
                parameter[:3] = 0

    old = OPTIMIZERS[optimizer](net.parameters())
    for x in IMAGES[:2]:
        step(net, old, x)
    held()
    pruned = l1rr_fx.prune(net, (IMAGES[0],), channel_multiple=4)
    assert pruned.module.get_parameter("0.weight").shape[0] == 8 and pruned.report.accounts.kept
    new = OPTIMIZERS[optimizer](pruned.module.parameters())
    new.load_state_dict(l1rr_fx.pruned_optimizer_state(pruned, net, old))
    for x in IMAGES[2:]:
        step(net, old, x)
        held()
        step(pruned.module, new, x)
    assert not pruned.module.get_parameter("0.weight")[:3].any()
    for x in IMAGES:
        torch.testing.assert_close(pruned.module(x), net(x), rtol=1e-10, atol=1e-12)


def test_arguments_of_another_kind_are_refused(net: Net) -> None:
    pruned, optimizer = l1rr_fx.prune(net, (IMAGES[0],)), SGD(net.parameters())
    for arguments, message in (
        ((None, net, optimizer), "pruned is a NoneType; expected a Pruned, what `l1rr_fx.prune` returned"),
        ((pruned.module, net, optimizer), "pruned is a GraphModule; expected a Pruned"),
        ((pruned, None, optimizer), "model is a NoneType; expected a Module"),
        ((pruned, net, None), "optimizer is a NoneType; expected an Optimizer"),
    ):
        with pytest.raises(InputError, match=message):
            l1rr_fx.pruned_optimizer_state(*arguments)  # type: ignore[arg-type]
