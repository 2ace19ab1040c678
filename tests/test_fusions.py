"""Fusions: which calls become one, which do not, and that the graph computes the same."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from passes import capture, normalise
from passes.graph.nodes import operator_name

X = torch.rand(2, 6, 4, 4, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A function between two layers."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.first, self.last = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.last(self.function(self.first(x)))
        return found


def shuffled(x: Tensor) -> Tensor:
    return x.view(2, 2, 3, 4, 4).transpose(1, 2).reshape(2, 6, 4, 4)


FUSED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "a shuffle": (shuffled, "index_select"),
    "a shuffle with a copy": (
        lambda x: x.unflatten(1, (2, 3)).permute(0, 2, 1, 3, 4).contiguous().flatten(1, 2),
        "index_select",
    ),
    "slices side by side": (lambda x: torch.cat((x[:, 4:], x[:, :2], x[:, 2:4]), 1), "split_with_sizes"),
    "slices with a gap": (lambda x: torch.cat((x[:, 4:], x[:, :2], x[:, 4:]), 1), "split_with_sizes"),
}

NOT_FUSED: dict[str, Callable[[Tensor], Tensor]] = {
    "a shuffle that stops the gradient": lambda x: x.view(2, 2, 3, 4, 4).transpose(1, 2).detach().reshape(2, 6, 4, 4),
    "another dtype": lambda x: x.view(torch.int16).transpose(0, 1).transpose(0, 1).view(torch.float32),
    "a transposition of the image": lambda x: x.flatten(2).unflatten(2, (4, 4)).transpose(2, 3).reshape(2, 6, 4, 4),
    "a shuffle that transposes the image": lambda x: x.view(2, 2, 3, 4, 4).permute(0, 2, 1, 4, 3).reshape(2, 6, 4, 4),
    "a shuffle that mixes images": lambda x: x.view(2, 2, 3, 4, 4).permute(1, 2, 0, 3, 4).reshape(2, 6, 4, 4),
    "overlapping slices": lambda x: torch.cat((x[:, :4], x[:, 2:4]), 1),
    "the same channels": lambda x: x.unsqueeze(1).transpose(1, 2).squeeze(2),
}


@pytest.mark.parametrize("name", FUSED)
def test_calls_become_one(name: str) -> None:
    function, operator = FUSED[name]
    assert operator in operators_of(Net(function))


@pytest.mark.parametrize("name", NOT_FUSED)
def test_calls_that_stay(name: str) -> None:
    assert not operators_of(Net(NOT_FUSED[name])) & {"index_select", "split_with_sizes"}


def operators_of(net: Net) -> set[str]:
    """The operators of the canonical graph, after a check that it computes the same."""
    module = normalise(capture(net.eval(), (X,)))
    assert torch.equal(module(X), net(X))
    return {operator_name(node) for node in module.graph.nodes}


def test_a_bit_cast_between_reshapes_is_no_shuffle() -> None:
    """`view.dtype` has the name of a reshape, and the shape can be the same in the end."""
    net = Net(lambda x: x.view(torch.int16).transpose(2, 2).view(torch.float32))
    assert "index_select" not in operators_of(net)


def test_gradients_flow_through_a_fused_shuffle_alone() -> None:
    for function, flows in ((shuffled, True), (NOT_FUSED["a shuffle that stops the gradient"], False)):
        net = Net(function)
        module = normalise(capture(net, (X,)))
        module(X).sum().backward()
        assert (net.first.weight.grad is not None) == flows
