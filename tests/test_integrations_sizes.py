"""Sizes that Dynamo leaves open stay open: pruning a graph that writes into views compiles no more often than not."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from l1rr_fx.integrations.dynamo import backend

SIZES = ((2, 3, 8, 6), (3, 3, 12, 10), (5, 3, 7, 9))


def parts(h: Tensor) -> None:
    h[:, :4] += 1.0
    h[:, 4:8].relu_()
    h[:, 3] = 5.0
    h[0].mul_(2)


def regions(h: Tensor) -> None:
    h[:, :, 1:-1, 1:] *= 2
    h[:, :, : h.shape[2] // 2] += 1


def reshaped(h: Tensor) -> None:
    h.view(h.shape[0], 4, 4, -1)[:, 1] += 1
    h.flatten(2).mul_(2.0)
    h.contiguous().permute(0, 2, 3, 1).add_(1.0)


def copied(h: Tensor) -> None:
    """These are no views: nothing is written into h."""
    h.transpose(1, 2).reshape(h.shape[0], h.shape[2], -1).add_(1.0)
    h[:, :, 1:].flatten(2).add_(1.0)
    h.transpose(2, 3).contiguous().zero_()


class Writing(nn.Module):
    """A convolution with every second channel zero, a write into what it gives, and another."""

    def __init__(self, write: Callable[[Tensor], None]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.write = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 1), write
        with torch.no_grad():
            self.a.weight[::2] = self.a.bias[::2] = 0  # type: ignore[index]

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x)
        self.write(h)
        found: Tensor = self.b(h)
        return found


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    yield
    torch._dynamo.reset()


def graphs(net: nn.Module, *, pruned: bool) -> list[GraphModule]:
    """What the last backend is given while the sizes are called one after another, the results being right."""
    found: list[GraphModule] = []

    def last(module: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        found.append(module)
        return module.forward

    torch._dynamo.reset()
    options = {"options": {"then": last}, "backend": backend} if pruned else {"backend": last}
    fast = torch.compile(net, dynamic=True, **options)
    for size in SIZES:
        image = torch.rand(size)
        torch.testing.assert_close(fast(image), net(image), rtol=1e-5, atol=1e-6)
    return found


@torch.no_grad()
@pytest.mark.parametrize("write", [parts, regions, reshaped, copied])
def test_writing_into_views_leaves_sizes_open(write: Callable[[Tensor], None]) -> None:
    net = Writing(write).eval()
    plain, pruned = graphs(net, pruned=False), graphs(net, pruned=True)
    assert len(pruned) == len(plain) == 1
    (small,) = pruned
    assert 0 < sum(each.numel() for each in small.parameters()) < sum(each.numel() for each in net.parameters())
