"""What is said to have no zero has none; and 0 / y is followed where it is said."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from l1rr_fx.testing import assert_prunes_exactly
from passes.analysis.liveness import channel_facts
from passes.analysis.program import Program
from passes.canonical.normalise import normalise
from passes.frontend.capture import capture
from passes.rules import rule_for

X = torch.randn(2, 4, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
X[0, 0] = 0

NEVER: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: x.clamp_min(0.1),
    lambda x: x.clamp(0.1, 2),
    lambda x: x.abs() + 1,
    lambda x: 1e-3 + x * x,
    lambda x: (x**2 + 1e-6).sqrt(),
    lambda x: x.relu() + x.sigmoid() + 0.5,
    lambda x: (x.var((2, 3), keepdim=True) + 1e-5).expand(2, 4, 3, 3),
    lambda x: x.norm(dim=1, keepdim=True).clamp_min(1e-12),
    lambda x: (x.exp() * x.abs() / 2 + 1).mean(1, keepdim=True) + 1,
    lambda x: (1 + x**2) ** 0.75,
    lambda x: x.sin() + 1.5,
    lambda x: x.sigmoid().clamp(0.2, 0.9) * -2,
    lambda x: 3 - x.tanh(),
    lambda x: torch.maximum(x, x.abs() + 0.1),
    lambda x: nn.functional.leaky_relu(x.abs() + 1, 0.1),
)
PERHAPS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: x,
    lambda x: x + 1,
    lambda x: x.abs(),
    lambda x: x.clamp_max(1),
    lambda x: x.clamp(-1, 1),
    lambda x: x.clamp(1, 0),
    lambda x: torch.clamp(x, max=1.0),
    lambda x: x**3 + 1,
    lambda x: x * x.flip(1) + 1,
    lambda x: x.abs() - 1,
    lambda x: torch.add(x.abs(), 1, alpha=-1),
    lambda x: x.exp(),  # which may underflow
    lambda x: x.abs().add(1).round() - 1,
    lambda x: (x**2) ** 0.75,
    lambda x: x.sin() + 1,
    lambda x: 1 - x.sigmoid(),
    lambda x: x**-2 - 1,
)


class Divided(nn.Module):
    """x / y(x) behind a layer some of whose channels die."""

    def __init__(self, divisor: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)
        self.divisor = divisor

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        result: Tensor = self.last(x / self.divisor(x))
        return result


def is_never_zero(net: nn.Module) -> bool:
    """What is said of the divisor of the last division."""
    module = normalise(capture(net.double(), (X,)))
    divisions = [node for node in module.graph.nodes if node.target is torch.ops.aten.div.Tensor]
    found = channel_facts(Program(module, rule_for)).ranges.get(divisions[-1].args[1])
    return found is not None and bool(found.excludes_zero.all())


@pytest.mark.parametrize("divisor", NEVER)
def test_never_zero(divisor: Callable[[Tensor], Tensor]) -> None:
    assert is_never_zero(Divided(divisor))
    assert bool(divisor(X).all())
    model = Divided(divisor).double().eval()
    model.first.weight.data[[0, 2]] = 0
    assert model.first.bias is not None
    model.first.bias.data[[0, 2]] = 0
    pruned = assert_prunes_exactly(model, (X,), at_limit=False)
    assert pruned.module.get_parameter("last.weight").shape[1] == 2


@pytest.mark.parametrize("divisor", PERHAPS)
def test_what_may_be_zero_is_not_said_never_to_be(divisor: Callable[[Tensor], Tensor]) -> None:
    assert not is_never_zero(Divided(divisor))


@pytest.mark.parametrize(("value", "expected"), [([3.0, -1.0, 1.0, 2.0], True), ([0.0, 1.0, 2.0, 3.0], False)])
def test_constants(value: list[float], expected: bool) -> None:
    net = Divided(lambda x: net.get_buffer("scale"))
    net.register_buffer("scale", torch.tensor(value).view(4, 1, 1))
    assert is_never_zero(net) is expected
