"""Channels that are constant and not zero cost nothing: what reads them has them in its bias, or in one column."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import l1rr_fx
from l1rr_fx.testing import randomised
from passes.accounts import Constant

X = torch.randn(2, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
OTHER = torch.randn(2, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
ACTIVATIONS: tuple[type[nn.Module], ...] = (nn.SiLU, nn.ReLU, nn.LeakyReLU, nn.Hardswish, nn.Sigmoid, nn.GELU)


def halved(model: nn.Module, *, shift: bool = False) -> nn.Module:
    """A copy whose batch norms have lost every other scale, and with `shift` these shifts too."""
    model = copy.deepcopy(model)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for index, norm in enumerate(norms):
        norm.weight.data[index % 2 :: 2] = 0
        if shift:
            norm.bias.data[index % 2 :: 2] = 0
    return model


def unit(inputs: int, outputs: int, kernel: int, act: Callable[[], nn.Module], **options: Any) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False, **options)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), act())


class Residual(nn.Module):
    """Sums in front of an activation and behind one, an identity and a projected shortcut, a concatenation."""

    def __init__(self, kernel: int, act: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.stem = unit(3, 8, kernel, act)
        self.inner, self.outer = unit(8, 8, kernel, act), unit(8, 8, kernel, nn.Identity)
        self.behind = unit(8, 8, kernel, act)
        self.shortcut, self.branch = unit(8, 12, 1, nn.Identity), unit(8, 12, kernel, nn.Identity)
        self.act = act()
        self.head = nn.Conv2d(32, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.act(x + self.outer(self.inner(x)))
        z = y + self.behind(y)
        w = self.act(self.shortcut(z) + self.branch(z))
        pooled = F.interpolate(F.max_pool2d(y, 3), scale_factor=3)
        result: Tensor = self.head(torch.cat([w, pooled, x, F.dropout(z, 0.0)], 1)[:, :32])
        return result


def exact(model: nn.Module, **options: Any) -> l1rr_fx.Pruned:
    """The pruned model: equal on other inputs, and in training in outputs, statistics and the bias of the head."""
    pruned = l1rr_fx.prune(model, (X,), **options)
    with torch.no_grad():
        torch.testing.assert_close(pruned.module(OTHER), model(OTHER), rtol=1e-10, atol=1e-10)
    big, small = copy.deepcopy(model).train(), copy.deepcopy(pruned.module).train()
    outputs = [network(OTHER) for network in (big, small)]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-10, atol=1e-10)
    for output in outputs:
        (output * torch.linspace(1, 2, output.numel(), dtype=output.dtype).view(output.shape)).sum().backward()
    scales = {name.removesuffix(".weight"): value for name, value in small.named_parameters() if value.dim() == 1}
    buffers, gradients = dict(big.named_buffers()), dict(big.named_parameters())
    for name, buffer in small.named_buffers():
        owner, _, leaf = name.rpartition(".")
        if leaf in ("running_mean", "running_var"):  # of a channel without a scale they train no further
            live = scales[owner] != 0
            wanted = pruned.kept[name].apply(buffers[name])
            torch.testing.assert_close(buffer[live], wanted[live], rtol=1e-10, atol=1e-10)
    if options:  # what stays although nothing depends on it has no gradient
        return pruned
    for name, parameter in small.named_parameters():
        if name in gradients:
            assert parameter.grad is not None
            wanted = pruned.kept[name].apply(gradients[name].grad)  # type: ignore[arg-type]
            live = scales.get(name.rpartition(".")[0], torch.ones(())) != 0
            torch.testing.assert_close(parameter.grad * live, wanted * live, rtol=1e-8, atol=1e-10)
    return pruned


@pytest.mark.parametrize("mode", ["recombine", "union", "exclude"])
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_without_padding_a_constant_costs_nothing(act: type[nn.Module], mode: str) -> None:
    model = randomised(Residual(1, act))
    macs = [exact(halved(model, shift=shift), mode=mode).report.after.macs for shift in (False, True)]
    if act is not nn.Sigmoid:  # of 0 it is 1/2: without a shift the channels are constant too
        assert macs[0] == macs[1]


@pytest.mark.parametrize(
    ("act", "options"),
    [
        *((act, {}) for act in ACTIVATIONS),
        *((nn.SiLU, options) for options in ({"target": "jetson-tx2"}, {"channel_multiple": 4}, {"mode": "exclude"})),
    ],
)
def test_with_padding_one_channel_stays_for_all(act: type[nn.Module], options: dict[str, Any]) -> None:
    model = randomised(Residual(3, act))
    pruned, without = (exact(halved(model, shift=shift), **options) for shift in (False, True))
    if options or act is nn.Sigmoid:
        return
    widths = [{each.node: each.inputs[1] for each in found.report.accounts.layers} for found in (pruned, without)]
    assert all(0 <= widths[0][node] - widths[1][node] <= 1 for node in widths[1])


def test_the_report_says_where_they_went() -> None:
    report = l1rr_fx.prune(halved(randomised(Residual(3, nn.SiLU))), (X,)).report
    places = {each.place for each in report.accounts.constants}
    assert {"bias", "merged", "shift"} <= places
    assert "constant, not zero" in str(report)
    assert type(report).from_json(report.to_json()) == report


class Wrapped(nn.Module):
    """A batch norm and SiLU between a stem and something, and a head."""

    def __init__(self, middle: nn.Module, outputs: int = 8) -> None:
        super().__init__()
        self.stem, self.middle, self.head = unit(3, 8, 1, nn.SiLU), middle, nn.Conv2d(outputs, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.middle(self.stem(x)))
        return result


class Shared(nn.Module):
    """One weight reads two tensors with the same constants."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(8, 8, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.layer(x), self.layer(x.flip(2))], 1)[:, 4:12]


class Named(nn.Module):
    """Gives a function the interface of a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


MIDDLES: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "grouped": (lambda: nn.Conv2d(8, 8, 1, groups=2), 4),
    "grouped and padded": (lambda: nn.Conv2d(8, 8, 3, padding=1, groups=2), 6),
    "transposed": (lambda: nn.ConvTranspose2d(8, 8, 2, stride=2), 5),
    "transposed and grouped": (lambda: nn.ConvTranspose2d(8, 8, 3, groups=2), 6),
    "without padding": (lambda: nn.Conv2d(8, 8, 3), 4),
    "shared": (Shared, 5),
    "average pooling": (lambda: nn.AvgPool2d(3), 4),
    "padded average": (lambda: nn.AvgPool2d(3, padding=1), 5),
    "average without the padding": (lambda: nn.AvgPool2d(3, padding=1, count_include_pad=False), 4),
    "reflection": (lambda: nn.ReflectionPad2d(1), 4),
    "zero padding": (lambda: nn.ZeroPad2d(1), 5),
    "bilinear": (lambda: nn.Upsample(scale_factor=2, mode="bilinear"), 4),
    "bicubic": (lambda: nn.Upsample(scale_factor=2, mode="bicubic"), 4),
    "softmax": (lambda: nn.Softmax(1), 8),
    "maximum over channels": (lambda: Named(lambda x: x - x.amax(1, keepdim=True)), 8),
    "scale": (lambda: Named(lambda x: 2 * x + 1), 4),
    "square": (lambda: Named(lambda x: x * x), 4),
    "gate": (lambda: Named(lambda x: x * x.mean((2, 3), keepdim=True).sigmoid()), 4),
    "gate of a map": (lambda: Named(lambda x: x * x.mean(1, keepdim=True)), 8),
    "shuffle": (lambda: nn.ChannelShuffle(2), 4),
    "batch norm": (lambda: nn.BatchNorm2d(8), 8),
}


@pytest.mark.parametrize("name", MIDDLES)
def test_what_reads_a_constant(name: str) -> None:
    """The number of the stem's channels that stay, of which four are constant."""
    make, kept = MIDDLES[name]
    model = randomised(Wrapped(make()))
    model.get_parameter("stem.1.weight").data[::2] = 0
    pruned = exact(model)
    assert pruned.module.get_parameter("stem.1.weight").shape == (kept,)
    stays = [each for each in pruned.report.accounts.constants if each.place == "stays"]
    assert bool(stays) == (kept > 4)
    assert all(each.reason for each in stays)


def test_a_constant_gate_is_a_scale() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.squeeze = unit(3, 8, 1, nn.SiLU), unit(8, 4, 1, nn.ReLU)
            self.excite, self.head = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.stem(x)
            result: Tensor = self.head(x * self.excite(self.squeeze(x.mean((2, 3), keepdim=True))).sigmoid())
            return result

    model = randomised(Gated())
    model.get_parameter("squeeze.1.weight").data[:] = 0
    pruned = exact(model)
    assert not any(name.startswith("squeeze.0") for name, _ in pruned.module.named_parameters())


def test_depthwise_layers_are_named() -> None:
    model = halved(randomised(Wrapped(unit(8, 8, 3, nn.SiLU, groups=8))))
    constants = exact(model).report.accounts.constants
    assert any(each.place == "stays" and "depthwise" in each.reason for each in constants)


def test_a_linear_layer_and_a_layer_norm() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.second = nn.Linear(3, 8), nn.LayerNorm(8), nn.Linear(8, 8, bias=False)
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = x.flatten(2).transpose(1, 2)
            result: Tensor = self.head(self.second(self.norm(self.first(x))).relu())
            return result

    model = randomised(Tokens())
    model.get_parameter("norm.weight").data[:5] = 0
    pruned = exact(model)
    assert pruned.module.get_parameter("second.weight").shape == (8, 3)
    assert pruned.module.get_parameter("second.bias").shape == (8,)  # the model has none


def test_a_shared_scale_keeps_its_gradient() -> None:
    """One trained number times all channels: those that are constant have a part in its gradient, on one place."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.head = unit(3, 8, 1, nn.SiLU), nn.Conv2d(8, 2, 1)
            self.scale = nn.Parameter(torch.ones(1, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.head(self.stem(x) * self.scale)
            return result

    model = halved(randomised(Scaled()))
    pruned = exact(model)
    assert pruned.module.get_parameter("head.weight").shape[1] == 4
    assert pruned.module.get_parameter("head.weight_even").shape[1] == 4
    model.get_parameter("scale").requires_grad_(False)
    assert l1rr_fx.prune(model, (X,)).module.get_parameter("head.weight").shape[1] == 4


def test_an_optimizer_goes_on() -> None:
    model = halved(randomised(Wrapped(nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.SiLU()))))
    optimizer = torch.optim.Adam(
        [
            {"params": model.stem.parameters(), "lr": 1e-3},
            {"params": [*model.middle.parameters(), *model.head.parameters()]},
        ]
    )  # type: ignore[operator, union-attr]
    model(X).sum().backward()
    optimizer.step()
    model = halved(model)
    pruned = l1rr_fx.prune(model, (X,))
    small = pruned.module
    assert "middle.0.bias" in dict(small.named_parameters())
    names = list(dict(small.named_parameters()))
    groups = [[n for n in names if n.startswith("stem")], [n for n in names if not n.startswith("stem")]]
    parameters = dict(small.named_parameters())
    new = torch.optim.Adam([{"params": [parameters[n] for n in group]} for group in groups])
    old = torch.optim.Adam(
        [
            {"params": [p for n, p in model.named_parameters() if n.startswith("stem") is first]}
            for first in (True, False)
        ]
    )
    old.load_state_dict(optimizer.state_dict())
    new.load_state_dict(l1rr_fx.pruned_optimizer_state(pruned, model, old))
    moments = new.state[parameters["middle.0.bias"]]
    assert moments["step"] == 1 and not bool(moments["exp_avg"].any())


def test_saved_folded_and_without_change_of_the_model(tmp_path: Any) -> None:
    model = halved(randomised(Residual(3, nn.SiLU)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    pruned = l1rr_fx.prune(model, (X,))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    pruned.save(tmp_path / "net")
    loaded = l1rr_fx.load(tmp_path / "net")
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(OTHER), model(OTHER), rtol=1e-10, atol=1e-10)
    again = l1rr_fx.prune(pruned.module, (X,))
    assert again.report.after.macs == pruned.report.after.macs
    assert Constant("a", "b", 1, "bias").reason == ""


def test_a_shift_alone_is_added_after_a_depthwise_layer() -> None:
    """As in ConvNeXt: a dead input under a live bias, in front of a norm that reads all channels."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.depthwise = unit(3, 8, 1, nn.GELU), nn.Conv2d(8, 8, 7, padding=3, groups=8)
            self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.head(self.norm(self.depthwise(self.stem(x)).permute(0, 2, 3, 1)))
            return result

    pruned = exact(halved(randomised(Block()), shift=True))
    assert pruned.module.get_parameter("depthwise.weight").shape[0] == 4
    assert pruned.report.macs_over_limit == 1


class Chain(nn.Module):
    """A sum of constants that the next sum reads, while one of its operands is needed as it is by a padded layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first, self.second = unit(3, 8, 3, nn.SiLU), unit(8, 8, 3, nn.SiLU), unit(8, 8, 1, nn.SiLU)
        self.head = nn.Conv2d(24, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = x + self.first(x)
        result: Tensor = self.head(torch.cat([x, y, y + self.second(y)], 1))
        return result


def test_a_constant_sum_is_taken_out_of_the_next_sum_too() -> None:
    """Channels 0 and 1 of the first sum are constant; channel 2 has a shift added after it."""
    model = randomised(Chain())
    for block, gone in ((model.stem, [0, 1]), (model.first, [0, 1, 2]), (model.second, [3])):
        block[1].weight.data[gone] = 0
    exact(model)


def test_a_zero_that_depends_on_a_constant_stays() -> None:
    """One constant, of which a ReLU makes zero, and which another call reads as it is."""

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x)
            result: Tensor = self.head(F.relu(x * 2 + 1)) + self.second(x)
            return result

    model = randomised(Twice())
    model.get_parameter("first.weight").data[:2] = 0
    model.get_parameter("first.bias").data[:2] = torch.tensor([-3.0, 3.0], dtype=torch.float64)
    exact(model)


def test_a_plan_that_keeps_shifts_is_counted_with_them() -> None:
    model = randomised(Residual(3, nn.SiLU))
    plans = {
        shift: l1rr_fx.choose(model, (X,), budget=l1rr_fx.Budget(macs=0.4), shift=shift) for shift in ("keep", "zero")
    }
    dense = l1rr_fx.prune(model, (X,)).report.before.macs
    for plan in plans.values():
        zeroed = copy.deepcopy(model)
        plan.zero_(zeroed)
        assert l1rr_fx.prune(zeroed, (X,)).report.after.macs / dense == pytest.approx(plan.reached["macs"])
        assert plan.reached["macs"] <= 0.4
    assert plans["keep"].zeroed >= plans["zero"].zeroed
    with pytest.raises(l1rr_fx.InputError, match="make another one"):
        plans["keep"].zero_(model, "zero")
    assert l1rr_fx.Plan.from_json(plans["keep"].to_json()) == plans["keep"]


class Pair(nn.Module):
    """A function of two tensors whose channels 0 and 1 are constant, of which the second is read elsewhere too."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], again: int) -> None:
        super().__init__()
        self.first, self.second, self.function = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), function
        self.head, self.again = nn.Conv2d(4, 2, 1), nn.Conv2d(4, 2, again, padding=again // 2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.first(x), self.second(x)
        result: Tensor = self.head(self.function(a, b.abs() + 1)) + self.again(b)
        return result


@pytest.mark.parametrize("again", [1, 3])
@pytest.mark.parametrize("mode", ["recombine", "exclude"])
@pytest.mark.parametrize("function", [torch.sub, torch.div, torch.maximum, lambda a, b: a * 0.5 + a / b])
def test_two_constants_that_cancel_or_divide(function: Any, mode: str, again: int) -> None:
    """c - c is zero, and so is 0 / c, only where both are computed as they are."""
    model = randomised(Pair(function, again))
    for name, values in (("first", [3.0, 0.0]), ("second", [2.0, -1.0])):
        model.get_parameter(f"{name}.weight").data[:2] = 0
        model.get_parameter(f"{name}.bias").data[:2] = torch.tensor(values, dtype=torch.float64)
    pruned = l1rr_fx.prune(model, (X,), mode=mode)
    with torch.no_grad():
        torch.testing.assert_close(pruned.module(OTHER), model(OTHER), rtol=1e-10, atol=1e-10)


class Bottlenecks(nn.Module):
    """Sums that layers without an activation read, as in MobileNetV2: the branch of the first is constant in part."""

    def __init__(self, tail: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.stem, self.branch = unit(3, 8, 3, nn.Identity), unit(8, 8, 1, nn.Identity)
        self.expand, self.project = unit(8, 8, 1, nn.ReLU), unit(8, 8, 3, nn.Identity)
        self.last, self.head, self.tail = unit(8, 8, 1, nn.ReLU), nn.Conv2d(8, 2, 1), tail

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = x + self.branch(x)
        z = y + self.project(self.expand(y))
        result: Tensor = self.head(self.last(self.tail(z)))
        return result


@pytest.mark.parametrize(("tail", "additions"), [(lambda z: z, 2), (torch.relu, 2), (lambda z: z + z.mean(), 3)])
def test_a_shift_goes_on_to_the_readers_of_the_sum(tail: Any, additions: int) -> None:
    """`stem` is read twice, so that it cannot take the constants of `branch`; all readers of the sum can."""
    model = randomised(Bottlenecks(tail))
    model.get_parameter("branch.1.weight").data[:3] = 0
    pruned = exact(model)
    assert isinstance(pruned.module, torch.fx.GraphModule)
    sums = [node for node in pruned.module.graph.nodes if "add" in str(node.target)]
    assert len(sums) == additions
