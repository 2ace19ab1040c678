"""Networks that were decomposed to core ATen lose what they lose as they were."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import l1rr_fx
from passes import capture, normalise
from passes.canonical import recompose
from tests.oracle import relative_error


class Net(nn.Module):
    """Two layers of a kind with a normalisation between them, every second channel of which is zero, and a linear one
    after the mean over what is no channel."""

    def __init__(self, layers: Callable[[], tuple[nn.Module, nn.Module, nn.Module]]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.norm, self.second = layers()
        self.last = nn.Linear(12, 4)
        for parameter in self.norm.parameters():
            nn.init.uniform_(parameter, 0.5, 1.5)
            with torch.no_grad():
                parameter[::2] = 0

    def forward(self, x: Tensor) -> Tensor:
        h = self.second(self.norm(self.first(x)).relu())
        found: Tensor = self.last(h.flatten(2).mean(2) if h.dim() > 2 else h)
        return found


CONV, UP = ((nn.Conv1d, nn.Conv2d, nn.Conv3d), (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))
BATCH = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def convolutions(rank: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    conv, norm = CONV[rank - 1], BATCH[rank - 1]
    return conv(3, 16, 3, padding=2, dilation=2, bias=False), norm(16), conv(16, 12, 2, stride=2, groups=2)


def transposed(rank: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    conv, norm = UP[rank - 1], BATCH[rank - 1]
    return conv(3, 16, 3, stride=2, output_padding=1), norm(16), conv(16, 12, 2, groups=2, dilation=2)


def groups() -> tuple[nn.Module, nn.Module, nn.Module]:
    return nn.Conv2d(3, 16, 3), nn.GroupNorm(4, 16), nn.Conv2d(16, 12, 1)


def rows() -> tuple[nn.Module, nn.Module, nn.Module]:
    return nn.Linear(3, 16), nn.LayerNorm(16), nn.Linear(16, 12)


CASES: dict[str, tuple[Callable[[], tuple[nn.Module, nn.Module, nn.Module]], int]] = {
    **{f"convolution, {n}d": (lambda n=n: convolutions(n), n) for n in (1, 2, 3)},  # type: ignore[misc]
    **{f"transposed, {n}d": (lambda n=n: transposed(n), n) for n in (1, 2, 3)},  # type: ignore[misc]
    "group norm": (groups, 2),
    "layer norm": (rows, 0),
}


@pytest.mark.parametrize("name", CASES)
def test_decomposed_networks_lose_what_they_lose_as_they_were(name: str) -> None:
    layers, rank = CASES[name]
    net, image = Net(layers).double().eval(), torch.rand(2, 3, *[6] * rank, dtype=torch.float64)
    decomposed = torch.export.export(net, (image,), strict=False).run_decompositions().module()
    assert any(node.target in recompose.RECOMPOSED for node in decomposed.graph.nodes)
    whole, small = l1rr_fx.prune(net, (image,)), l1rr_fx.prune(decomposed, (image,))
    assert shapes(small.module) == shapes(whole.module) != shapes(net)
    assert small.report.accounts.after.macs == whole.report.accounts.after.macs
    with torch.no_grad():
        assert relative_error(small.module(image), net(image)) < 1e-12


def shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def test_what_a_normalisation_remembers_for_training_is_left() -> None:
    class Statistics(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(6)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y, mean, _ = torch.ops.aten.native_layer_norm(x, [6], self.norm.weight, self.norm.bias, 1e-5)
            return y, mean

    image = torch.rand(2, 6)
    graph = normalise(capture(Statistics().eval(), (image,)))
    for ours, theirs in zip(graph(image), Statistics()(image), strict=True):
        assert torch.equal(ours, theirs)
