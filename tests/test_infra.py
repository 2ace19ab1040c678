"""Our passes in torch.fx's own PassManager: what they compute, what they demand, and that twice is once."""

from __future__ import annotations

import copy
from dataclasses import FrozenInstanceError

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, symbolic_trace
from torch.fx.passes.infra.pass_base import PassBase, PassResult
from torch.fx.passes.infra.pass_manager import PassManager
from torch.nn import functional as F

import passes
from passes import Functionalise, InputError, Normalise, RemoveZeroChannels, RestoreModes, capture

X = torch.rand(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """In-place operators, a chunk, a residual sum, batch norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.b = nn.Conv2d(16, 16, 3, padding=1)
        self.drop = nn.Dropout(0.25)
        self.c = nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm(self.a(x)), inplace=True)
        h += self.b(h)
        left, right = self.drop(h).chunk(2, 1)
        result: Tensor = self.c(left * (right + 1).sigmoid_())
        return result


@pytest.fixture
def net() -> Net:
    net = Net().double().eval()
    with torch.no_grad():
        for module, dead in ((net.norm, [0, 3, 9]), (net.b, [0, 3, 4, 8, 9, 15])):
            for parameter in module.parameters():
                parameter[dead] = 0
    return net


def exported(model: nn.Module) -> GraphModule:
    """The graph as torch gives it, in-place operators and all."""
    module = torch.export.export(model, (X,), strict=False).module(check_guards=False)
    assert isinstance(module, GraphModule)
    return module


def targets(module: nn.Module) -> set[str]:
    assert isinstance(module, GraphModule)
    return {str(node.target) for node in module.graph.nodes}


def test_a_pipeline_of_a_pass_manager(net: Net) -> None:
    expected = net(X)
    manager = PassManager(passes=[Functionalise(), Normalise(), RemoveZeroChannels(), RestoreModes()])
    result = manager(exported(net))
    assert result.modified
    small = result.graph_module
    torch.testing.assert_close(small(X), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(net(X), expected, rtol=0, atol=0)
    assert small.get_parameter("a.weight").shape == (13, 3, 3, 3)
    assert small.get_parameter("b.weight").shape == (9, 13, 3, 3)  # 11 meets only 3, a zero
    assert isinstance(small.get_submodule("norm"), nn.BatchNorm2d)


def test_the_passes_among_those_of_others(net: Net) -> None:
    sizes: list[int] = []

    class Weigh(PassBase):
        def call(self, graph_module: GraphModule) -> PassResult:
            sizes.append(sum(parameter.numel() for parameter in graph_module.parameters()))
            return PassResult(graph_module, False)

    manager = PassManager(passes=[Functionalise(), Weigh(), RemoveZeroChannels(mode="union"), Weigh()])
    assert manager(exported(net)).modified
    assert sizes[0] == sum(parameter.numel() for parameter in net.parameters()) > sizes[1]


@pytest.mark.parametrize("each", [Functionalise(), Normalise(), RestoreModes()], ids=lambda each: type(each).__name__)
def test_a_pass_twice_is_a_pass_once(net: Net, each: passes.infra.GraphPass) -> None:
    module = exported(net) if isinstance(each, Functionalise) else capture(net, (X,))
    first = each(module)
    text = str(first.graph_module.graph)
    assert first.modified
    second = each(first.graph_module)
    assert not second.modified
    assert str(second.graph_module.graph) == text
    torch.testing.assert_close(second.graph_module(X), net(X), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", ["exclude", "union", "recombine"])
def test_what_was_removed_stays_removed(net: Net, mode: str) -> None:
    remove = RemoveZeroChannels(mode=mode)
    first = remove(capture(net, (X,)))
    again = capture(first.graph_module, (X,))
    second = remove(again)
    assert (first.modified, second.modified) == (True, False)
    assert second.graph_module is again
    torch.testing.assert_close(again(X), net(X), rtol=1e-10, atol=1e-12)


def test_options(net: Net) -> None:
    wide = RemoveZeroChannels(channel_multiple=8)(capture(net, (X,))).graph_module
    assert wide.get_parameter("a.weight").shape[0] == 16
    with pytest.raises(FrozenInstanceError):
        RemoveZeroChannels().mode = "union"  # type: ignore[misc]
    assert RemoveZeroChannels(mode="union") == RemoveZeroChannels(mode="union") != RemoveZeroChannels()
    with pytest.raises(InputError, match="mode is 'magic'"):
        RemoveZeroChannels(mode="magic")(capture(net, (X,)))


def test_restored_modes_switch(net: Net) -> None:
    module = RestoreModes()(capture(net, (X,))).graph_module
    assert not any("batch_norm" in name or "dropout.default" in name for name in targets(module))
    module.train()
    net.train()
    for each in (*module.modules(), *net.modules()):
        if isinstance(each, nn.Dropout):
            each.eval()
    torch.testing.assert_close(module(X), net(X), rtol=1e-12, atol=1e-12)


EVERY = [Functionalise(), Normalise(), RemoveZeroChannels()]


@pytest.mark.parametrize("each", EVERY, ids=lambda each: type(each).__name__)
def test_what_was_not_captured_is_refused(net: Net, each: passes.infra.GraphPass) -> None:
    with pytest.raises(InputError, match="capture the network with passes.capture"):
        each(symbolic_trace(net))
    module = capture(net, (X,))
    for node in module.graph.nodes:
        node.meta.clear()
    with pytest.raises(InputError, match="has no example value"):
        each(module)
    with pytest.raises(InputError, match="expected a torch.fx.GraphModule, not a Net"):
        each(net)  # type: ignore[arg-type]


@pytest.mark.parametrize("each", EVERY[1:], ids=lambda each: type(each).__name__)
def test_writes_are_refused(net: Net, each: passes.infra.GraphPass) -> None:
    with pytest.raises(InputError, match=r"writes into its argument: run Functionalise first"):
        each(exported(net))


def test_the_functions_compose_to_the_same(net: Net) -> None:
    program = passes.Program(passes.normalise(capture(net, (X,))), passes.rule_for)
    plan = passes.plan_layouts(program, passes.channel_facts(program))
    by_hand = passes.rewrite(plan).module
    at_once = passes.remove_zero_channels(capture(net, (X,))).module
    assert str(by_hand.graph) == str(at_once.graph)
    assert all(map(torch.equal, by_hand.parameters(), at_once.parameters()))
    assert passes.first_difference(plan, passes.rewrite(plan), (X,)) is None


def test_every_public_name_is_there() -> None:
    assert passes.__all__ == sorted(passes.__all__)
    assert all(hasattr(passes, name) for name in passes.__all__)
    assert copy.deepcopy(passes.RemoveZeroChannels()) == passes.RemoveZeroChannels()
