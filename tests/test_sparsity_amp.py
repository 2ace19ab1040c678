"""Sparsity under mixed precision on a CPU: bfloat16 autocast and a gradient scaler."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from l1rr_fx.method.training.sparsity import ReweightedL1

STEPS = 20


def trained(*, scale: float | None, overflows: tuple[int, ...] = ()) -> tuple[Tensor, int]:
    """The gammas after training, and the penalty's steps; without a scaler, no steps where the scaler skips them."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    penalty = ReweightedL1(model, total_steps=STEPS, strength=2.0)
    penalty.attach(optimizer)
    scaler = torch.amp.GradScaler("cpu", enabled=scale is not None, init_scale=scale or 1.0, backoff_factor=0.5)
    for number in range(STEPS):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            found = model(torch.rand(4, 3, 8, 8))
        assert found.dtype == torch.bfloat16
        loss = found.float().square().mean()
        if scale is None and number in overflows:
            continue
        scaler.scale(loss * (float("inf") if number in overflows else 1)).backward()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        scaler.step(optimizer)
        scaler.update()
    return model.get_parameter("1.weight").detach().clone(), penalty.steps


def test_the_scale_of_the_loss_changes_nothing() -> None:
    """Powers of two are exact, so the channels that are spared, by their gradients, are the same, bit for bit."""
    plain, steps = trained(scale=None)
    scaled, same = trained(scale=2.0**12)
    assert steps == same == STEPS
    assert torch.equal(plain, scaled) and 0 < int((plain == 0).sum()) < 16


def test_steps_that_overflow_are_no_steps_of_the_penalty() -> None:
    plain, steps = trained(scale=None, overflows=(0, 7, 8))
    scaled, same = trained(scale=2.0**12, overflows=(0, 7, 8))
    assert steps == same == STEPS - 3
    assert torch.equal(plain, scaled) and 0 < int((plain == 0).sum()) < 16
