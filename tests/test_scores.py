"""Scores of channels, and the sites that they are scores of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from l1rr_fx.method.planning.group_norm import GroupNorm
from l1rr_fx.method.planning.scores import GroupSum, Taylor, bn_scale, score_named, scores_of, weight_norm
from l1rr_fx.method.sites.channel_sites import channel_sites
from l1rr_fx.method.sites.zeroing import ChannelSite
from passes.errors import InputError

ARGS = (torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)),)


class Net(nn.Module):
    """A residual sum, a depthwise convolution, a gate, a layer without batch norm, and a prediction."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.stem_norm = nn.BatchNorm2d(8)
        self.branch = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.branch_norm = nn.BatchNorm2d(8)
        self.expand = nn.Conv2d(8, 12, 1, bias=False)
        self.expand_norm = nn.BatchNorm2d(12)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False)
        self.depthwise_norm = nn.BatchNorm2d(12)
        self.squeeze = nn.Conv2d(12, 6, 1)
        self.excite = nn.Conv2d(6, 12, 1)
        self.up = nn.ConvTranspose2d(12, 10, 2, stride=2)
        self.head = nn.Conv2d(10, 2, 1)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, -1.5, 1.5)
                nn.init.uniform_(module.bias, -1, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_norm(self.stem(x)))
        x = F.relu(x + self.branch_norm(self.branch(x)))
        x = F.relu(self.depthwise_norm(self.depthwise(F.relu(self.expand_norm(self.expand(x))))))
        gate = self.excite(F.relu(self.squeeze(x.mean((2, 3), keepdim=True)))).sigmoid()
        found: Tensor = self.head(F.relu(self.up(x * gate)))
        return found


@pytest.fixture
def net() -> Net:
    return Net().double().eval()


@pytest.fixture
def sites(net: Net) -> dict[str, ChannelSite]:
    return {site.name: site for site in channel_sites(net, (ARGS[0].double(),))}


def test_the_sites_of_a_network(sites: dict[str, ChannelSite]) -> None:
    found = {name: (site.kind, site.channels, site.unit, site.blocked is None) for name, site in sites.items()}
    assert found == {
        "stem_norm": ("scale", 8, "stem_norm", True),
        "branch_norm": ("scale", 8, "branch_norm", True),
        "expand_norm": ("scale", 12, "expand_norm", True),
        "depthwise_norm": ("scale", 12, "expand_norm", True),  # one unit with what it reads
        "squeeze": ("rows", 6, "squeeze", True),
        "excite": ("rows", 12, "excite", False),  # a dead channel of the gate is a half, not zero
        "up": ("rows", 10, "up", True),
        "head": ("rows", 2, "head", False),
    }
    assert sites["head"].blocked == "network output"
    assert sites["up"].axis == 1 and sites["up"].filters == "up.weight"
    assert sites["stem_norm"].group == sites["branch_norm"].group != sites["expand_norm"].group
    assert sites["stem_norm"].macs == 2 * 16 * 16 * 8 * 3 * 9


def test_without_an_example_the_batch_norms_are_found(net: Net) -> None:
    names = [site.name for site in channel_sites(net)]
    assert names == ["stem_norm", "branch_norm", "expand_norm", "depthwise_norm"]


def test_features_that_are_shown_besides_may_go() -> None:
    """A detector that returns the maps that its heads read, as Ultralytics' do: only predictions are kept whole."""

    class Shown(Net):
        def forward(self, x: Tensor) -> Any:
            x = F.relu(self.stem_norm(self.stem(x)))
            return F.relu(self.branch_norm(self.branch(x))), x

    blocked = {site.name: site.blocked for site in channel_sites(Shown(), ARGS)}
    assert blocked == {"stem_norm": None, "branch_norm": "network output"}


def test_bn_scale(net: Net, sites: dict[str, ChannelSite]) -> None:
    assert torch.equal(bn_scale(net, sites["stem_norm"]), net.stem_norm.weight.detach().abs())
    rows = net.up.weight.detach().transpose(0, 1).flatten(1).norm(dim=1)
    torch.testing.assert_close(bn_scale(net, sites["up"]), rows)


def test_weight_norm(net: Net, sites: dict[str, ChannelSite]) -> None:
    torch.testing.assert_close(
        weight_norm(net, sites["branch_norm"]), net.branch.weight.detach().flatten(1).norm(dim=1)
    )
    lonely = channel_sites(nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 4, 1)), ARGS)[0]
    with pytest.raises(InputError, match="0: no single layer makes its channels"):
        weight_norm(nn.Sequential(nn.BatchNorm2d(3)), lonely)


@pytest.mark.parametrize(("inputs", "outputs", "groups"), [(8, 8, 1), (8, 4, 1), (8, 8, 2), (8, 4, 2), (4, 8, 2)])
def test_weight_norm_of_a_transposed_convolution(inputs: int, outputs: int, groups: int) -> None:
    """Its filters lie along axis 1, group by group along axis 0, also where it is square."""
    up = nn.ConvTranspose2d(inputs, outputs, 2, 2, bias=False, groups=groups)
    layers = nn.Conv2d(3, inputs, 1), nn.ReLU(), up, nn.BatchNorm2d(outputs), nn.ReLU(), nn.Conv2d(outputs, 2, 1)
    model = nn.Sequential(*layers).eval()
    (site,) = [site for site in channel_sites(model, ARGS) if site.name == "3"]
    pulses = torch.eye(inputs)[:, :, None, None]  # what each input channel makes of a 1 is its part of every filter
    wanted = up(pulses).detach().square().sum((0, 2, 3)).sqrt()
    torch.testing.assert_close(weight_norm(model, site), wanted)


class Bare(nn.Module):
    """Weights that functions call, and one that is computed at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.square = nn.Parameter(torch.rand(3, 3, 2, 2))
        self.first, self.second = nn.BatchNorm2d(3), nn.BatchNorm2d(4)
        self.normed = parametrizations.weight_norm(nn.Conv2d(3, 4, 1))
        self.head = nn.Conv2d(4, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(F.conv_transpose2d(x, self.square)))
        found: Tensor = self.head(F.relu(self.second(self.normed(x))))
        return found


def test_filters_that_cannot_be_told_are_refused() -> None:
    model = Bare().eval()
    first, second = (site for site in channel_sites(model, ARGS) if site.kind == "scale")
    with pytest.raises(InputError, match="first: square of shape .* is of no convolution of torch.nn"):
        weight_norm(model, first)
    with pytest.raises(InputError, match="second: no single layer makes its channels"):
        weight_norm(model, second)


def test_taylor_is_the_change_of_the_loss_to_first_order(net: Net, sites: dict[str, ChannelSite]) -> None:
    """Against the loss itself, with every channel scaled down by a little."""
    x, step = ARGS[0].double(), 1e-5

    def loss(model: nn.Module, batch: Tensor) -> Tensor:
        return model(batch).square().mean()

    chosen = [sites[name] for name in ("branch_norm", "up")]
    net.stem.weight.grad = torch.ones_like(net.stem.weight)
    score = Taylor(net, [x], loss, chosen)
    assert net.branch_norm.weight.grad is None and bool((net.stem.weight.grad == 1).all()), "gradients were touched"
    with torch.no_grad():
        before = loss(net, x)
        for site, channel in ((chosen[0], 3), (chosen[1], 7)):
            parameters = [net.get_parameter(name) for name in (site.weight, site.bias) if name]
            kept = [p.clone() for p in parameters]
            for parameter in parameters:
                parameter.select(site.axis if parameter.dim() > 1 else 0, channel).mul_(1 - step)
            slope = (loss(net, x) - before) / step
            for parameter, old in zip(parameters, kept, strict=True):
                parameter.copy_(old)
            torch.testing.assert_close(score(net, site)[channel], slope.square(), rtol=1e-3, atol=1e-12)


def test_groups_are_summed_over_sums_of_branches(net: Net, sites: dict[str, ChannelSite]) -> None:
    grouped = GroupSum("bn-scale", list(sites.values()))
    wanted = net.stem_norm.weight.detach().abs() + net.branch_norm.weight.detach().abs()
    torch.testing.assert_close(grouped(net, sites["stem_norm"]), wanted)
    assert torch.equal(grouped(net, sites["stem_norm"]), grouped(net, sites["branch_norm"]))
    assert torch.equal(grouped(net, sites["squeeze"]), bn_scale(net, sites["squeeze"]))


def test_unknown_groups_are_refused(net: Net) -> None:
    """Without an example all sites would be of one group, and layers of one width would be summed."""
    with pytest.raises(InputError, match=r"groups of 4 sites are not known: stem_norm, .*channel_sites\(model, args\)"):
        GroupSum("bn-scale", channel_sites(net))
    with pytest.raises(InputError, match="sites is None; expected a sequence of ChannelSite"):
        GroupSum("bn-scale", None)  # type: ignore[arg-type]


@pytest.mark.parametrize("found", [[1.0] * 8, torch.ones(8).numpy(), None])
def test_scores_that_are_no_tensor_are_refused(net: Net, sites: dict[str, ChannelSite], found: Any) -> None:
    with pytest.raises(
        InputError, match=f"stem_norm: the scores are a {type(found).__name__}; expected a tensor of one number"
    ):
        scores_of(net, sites["stem_norm"], lambda model, site: found)


LOSSES: dict[str, tuple[Any, str]] = {
    "None": (lambda model, batch: None, "batch 0: the loss is a NoneType; expected a tensor with one number"),
    "a vector": (lambda model, batch: model(batch).mean((1, 2, 3)), r"batch 0: the loss is of shape \(2,\)"),
    "detached": (lambda model, batch: model(batch).mean().detach(), "batch 0: the loss has no gradient"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_without_a_gradient_is_refused(net: Net, sites: dict[str, ChannelSite], name: str) -> None:
    loss, message = LOSSES[name]
    with pytest.raises(InputError, match=message):
        Taylor(net, [ARGS[0].double()], loss, [sites["stem_norm"]])


def test_taylor_of_frozen_parameters_or_of_nothing_is_refused(net: Net, sites: dict[str, ChannelSite]) -> None:
    x = ARGS[0].double()
    with pytest.raises(InputError, match="no sites"):
        Taylor(net, [x], lambda model, batch: model(batch).mean(), [])
    with pytest.raises(InputError, match=r"2 parameters of the sites are frozen: stem_norm\.weight, stem_norm\.bias"):
        Taylor(net.requires_grad_(False), [x], lambda model, batch: model(batch).mean(), [sites["stem_norm"]])


def test_what_is_refused(net: Net, sites: dict[str, ChannelSite]) -> None:
    with pytest.raises(InputError, match="scores is 'l1'; expected one of bn-scale, weight-norm"):
        score_named("l1")
    with pytest.raises(InputError, match="scores is a int"):
        score_named(3)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"stem_norm: scores of shape \(3,\) for 8 channels"):
        scores_of(net, sites["stem_norm"], lambda model, site: torch.ones(3))
    with pytest.raises(InputError, match="8 of them not finite"):
        scores_of(net, sites["stem_norm"], lambda model, site: torch.full((8,), float("nan")))
    with pytest.raises(InputError, match="no batches"):
        Taylor(net, [], lambda model, batch: torch.zeros(()), list(sites.values()))
    with pytest.raises(InputError, match="batch 0: the loss is nan"):
        Taylor(net, [1], lambda model, batch: torch.tensor(float("nan")), list(sites.values()))
    with pytest.raises(InputError, match="no convolution"):
        channel_sites(nn.LayerNorm(16), ARGS)


class Residual(nn.Module):
    """Sums of branches, a concatenation and a prediction: what Torch-Pruning follows too."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.inner, self.inner_norm = nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.outer, self.outer_norm = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.side, self.side_norm = nn.Conv2d(8, 4, 1, bias=False), nn.BatchNorm2d(4)
        self.last, self.last_norm = nn.Conv2d(12, 8, 3, padding=1, groups=1, bias=False), nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2, bias=False)
        self.up_norm, self.head = nn.BatchNorm2d(6), nn.Conv2d(6, 2, 1)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.uniform_(module.weight, 0.2, 1.5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem_norm(self.stem(x)))
        x = F.relu(x + self.outer_norm(self.outer(F.relu(self.inner_norm(self.inner(x))))))
        x = torch.cat((x, F.relu(self.side_norm(self.side(x)))), 1)
        x = F.relu(self.last_norm(self.last(x)))
        found: Tensor = self.head(F.relu(self.up_norm(self.up(x))))
        return found


def test_the_norm_of_a_group_is_that_of_torch_pruning() -> None:
    torch_pruning = pytest.importorskip("torch_pruning")
    net = Residual().eval()
    sites = {site.name: site for site in channel_sites(net, ARGS)}
    score, importance = GroupNorm(net, ARGS), torch_pruning.importance.GroupMagnitudeImportance()
    graph = torch_pruning.DependencyGraph().build_dependency(net, example_inputs=ARGS[0])
    layers = {"stem": "stem_norm", "inner": "inner_norm", "side": "side_norm", "last": "last_norm", "up": "up_norm"}
    for layer, norm in layers.items():
        convolution = net.get_submodule(layer)
        transposed = isinstance(convolution, nn.ConvTranspose2d)
        channels = convolution.out_channels
        cut = torch_pruning.prune_conv_out_channels
        wanted = importance(graph.get_pruning_group(convolution, cut, list(range(channels))))
        torch.testing.assert_close(score(net, sites[norm]), wanted.double(), rtol=1e-5, atol=1e-5, msg=norm)
        assert not transposed or channels == 6
    torch.testing.assert_close(score(net, sites["stem_norm"]), score(net, sites["outer_norm"]))  # one sum


def test_the_norm_without_what_sums_join_is_that_of_the_channel_and_its_readers() -> None:
    net = Residual().double().eval()
    sites = {site.name: site for site in channel_sites(net, (ARGS[0].double(),))}
    found = GroupNorm(net, (ARGS[0].double(),), coupled=False)(net, sites["inner_norm"])
    columns = net.outer.weight.detach().square().sum((0, 2, 3))
    energy = net.inner_norm.weight.detach() ** 2 + net.inner.weight.detach().square().sum((1, 2, 3)) + columns
    torch.testing.assert_close(found, energy / energy.mean())
    with pytest.raises(InputError, match="other is not a site"):
        GroupNorm(net, (ARGS[0].double(),))(net, ChannelSite("other", "scale", "other.weight", None, 4))
