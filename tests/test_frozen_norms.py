"""Frozen batch norms, in each way in which detectors write them: facts, sites, plans, folding, and both modes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import l1rr_fx
from l1rr_fx.testing import randomised
from passes import capture, fold_batch_norm, fold_constants, normalise
from tests.torchvision_shim import import_torchvision

BATCH = 2


class Frozen(nn.Module):
    """Buffers under the names of a batch norm; as the query detectors of transformers compute with them."""

    weight: Tensor
    bias: Tensor
    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(channels) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        scale = self.weight.reshape(1, -1, 1, 1) * (self.running_var.reshape(1, -1, 1, 1) + 1e-5).rsqrt()
        return x * scale + (self.bias.reshape(1, -1, 1, 1) - self.running_mean.reshape(1, -1, 1, 1) * scale)


class Called(Frozen):
    """As detectron2 calls the function."""

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training=False)


class Plain(nn.Module):
    weight: Tensor
    bias: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.rand(channels, 1, 1) + 0.5)
        self.register_buffer("bias", torch.rand(channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias, x, self.weight)


class Untrained(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = (nn.Parameter(torch.rand(channels, 1, 1), requires_grad=False) for _ in (0, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x.mul(self.weight).add_(self.bias)


def of_torchvision(channels: int) -> nn.Module:
    import_torchvision()
    from torchvision.ops import FrozenBatchNorm2d

    frozen: nn.Module = FrozenBatchNorm2d(channels)
    frozen.running_mean.uniform_(-1, 1)
    return frozen


WAYS: dict[str, Callable[[int], nn.Module]] = {
    "of buffers": Frozen,
    "called": Called,
    "of torchvision": of_torchvision,
    "plain": Plain,
    "untrained": Untrained,
}


class Net(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Conv2d(3, 16, 3, bias=False), norm, nn.Conv2d(16, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(self.norm(self.first(x)).relu())
        return found


X = torch.randn(BATCH, 3, 8, 8, dtype=torch.float64)
DEAD = [1, 4, 5]


def network(way: str) -> Net:
    torch.manual_seed(0)
    return Net(WAYS[way](16)).double().eval()


def tensor(model: nn.Module, name: str) -> Tensor:
    found: Tensor = getattr(model.get_submodule("norm"), name)
    return found.data


@pytest.mark.parametrize("way", WAYS)
def test_a_frozen_norm_is_a_batch_norm(way: str) -> None:
    model = network(way)
    sites = {site.name: site for site in l1rr_fx.channel_sites(model, (X,))}
    assert (sites["norm"].kind, sites["norm"].weight, sites["norm"].bias) == ("scale", "norm.weight", "norm.bias")
    assert sites["norm"].blocked is None and "first" not in sites

    plan = l1rr_fx.choose(model, (X,), budget=l1rr_fx.Budget(macs=0.6))
    zeroed = [each for each in plan.sites if each.zeroed]
    assert [each.name for each in zeroed] == ["norm"]
    plan.zero_(model)
    assert bool((tensor(model, "weight").flatten()[list(zeroed[0].zeroed)] == 0).all())
    small = l1rr_fx.prune(model, (X,)).module
    assert small.get_parameter("first.weight").shape[0] == 16 - len(zeroed[0].zeroed)

    folded = fold_constants(fold_batch_norm(small))
    calls = [str(node.target) for node in folded.graph.nodes if node.op.startswith("call")]
    assert calls == ["aten.conv2d.default", "aten.relu.default", "aten.conv2d.default"]
    for mode in (False, True):
        other = torch.randn(BATCH, 3, 8, 8, dtype=torch.float64)
        for network_ in (small, folded):
            expected = model.train(mode)(other)
            assert torch.allclose(network_.train(mode)(other), expected, rtol=1e-11, atol=1e-11), mode


@pytest.mark.parametrize("way", WAYS)
def test_a_negative_shift_before_a_relu_is_zero(way: str) -> None:
    model = network(way)
    tensor(model, "weight")[DEAD], tensor(model, "bias")[DEAD] = 0, -0.5
    small = l1rr_fx.prune(model, (X,)).module
    assert small.get_parameter("last.weight").shape[1] == 13
    assert torch.allclose(small(X), model(X), rtol=1e-12, atol=1e-12)


def test_a_batch_norm_that_training_switches_stays_one() -> None:
    class Own(Frozen):
        def forward(self, x: Tensor) -> Tensor:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training, 0.1)

    for norm in (Own(16), nn.BatchNorm2d(16)):
        model = randomised(Net(norm))
        graph = normalise(capture(model, (X,))).graph
        assert graph.find_nodes(op="call_function", target=torch.ops.aten.batch_norm.default)
        small = l1rr_fx.prune(model, (X,)).module
        assert torch.allclose(small.train()(X), model.train()(X), rtol=1e-11, atol=1e-11)


def test_a_constant_that_widens_what_it_multiplies_is_not_folded() -> None:
    """One channel becomes many: a reader, or a producer, of one channel cannot take that up."""

    class Widened(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.last = nn.Conv2d(3, 1, 3), Plain(16), nn.Conv2d(16, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(self.norm(self.first(x).relu())) + self.last(self.norm(self.first(x)))

    model = Widened().double().eval()
    for graph in (capture(model, (X,)), l1rr_fx.prune(model, (X,)).module):
        assert torch.allclose(fold_constants(fold_batch_norm(graph))(X), model(X), rtol=1e-11, atol=1e-11)
