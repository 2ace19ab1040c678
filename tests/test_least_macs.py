"""The limit that no rule has counted, as an assertion for anyone's models."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from l1rr_fx.testing import assert_at_limit, executed_macs, numerical_limit, randomised, zeroed


class Net(nn.Module):
    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.first, self.norm, self.middle = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), middle
        self.last, self.head = nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.last(self.middle(self.norm(self.first(x)).relu()))
        found: Tensor = self.head(x.mean((2, 3)))
        return found


@torch.library.custom_op("l1rr_fx_tests::unknown_copy", mutates_args=())
def unknown_copy(x: Tensor) -> Tensor:
    return x.clone()


unknown_copy.register_fake(lambda x: torch.empty_like(x))
unknown_copy.register_autograd(lambda context, grad: grad)


class Unknown(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = torch.ops.l1rr_fx_tests.unknown_copy(x)
        return found


X = torch.randn(1, 3, 6, 6)


def zeroed_net(middle: nn.Module) -> nn.Module:
    return zeroed(randomised(Net(middle), dtype=torch.float32), 0.5, 1)


def test_a_network_of_known_operators_is_at_both_limits() -> None:
    model = zeroed_net(nn.Identity())
    for independent in (False, True):
        pruned = assert_at_limit(model, (X,), independent=independent)
    found = numerical_limit(model.double(), (X.double(),), strict=True)
    assert executed_macs(model, (X.double(),)) == found.dense
    assert executed_macs(pruned.module, (X.double(),)) == pruned.report.after.macs == found.macs < 0.6 * found.dense


def test_behind_an_unknown_operator_only_the_independent_limit_sees_what_is_left() -> None:
    model = zeroed_net(Unknown())
    assert_at_limit(model, (X,))
    with pytest.raises(AssertionError, match=r"times the [\d,]+ at the limit by activations and gradients; what keeps"):
        assert_at_limit(model, (X,), independent=True)
