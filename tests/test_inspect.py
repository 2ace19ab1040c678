"""What could go, before anything is zeroed: the verdicts, and that what is called free does go when it is zeroed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune

import l1rr_fx
from l1rr_fx.conformance import cases_of
from l1rr_fx.conformance.cases import Case
from l1rr_fx.method.sites.blocked import COMPUTED, NETWORK_OUTPUT, NOT_ZERO, ONLY_CHANNEL, RETURNED
from l1rr_fx.method.sites.inspection import InspectedLayer, inspect
from l1rr_fx.method.sites.zeroing import evaluation_graph
from passes.analysis.coupling import channel_groups
from passes.analysis.liveness import channel_facts
from passes.analysis.program import Program
from passes.errors import CaptureError, InputError
from passes.graph.labels import labels
from passes.rules import rule_for

X = torch.rand(1, 3, 8, 8)


class Residual(nn.Module):
    """Two branches that meet, a chunk, a pixel shuffle, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.block = nn.Conv2d(8, 8, 3, padding=1)
        self.wide = nn.Conv2d(8, 32, 1)
        self.narrow = nn.Conv2d(4, 1, 1)
        self.head = nn.Conv2d(4, 6, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = F.relu(self.norm(self.stem(x)))
        h = h + self.block(h)
        a, b = F.pixel_shuffle(self.wide(h), 2).chunk(2, 1)
        gate: Tensor = self.narrow(a)
        result: Tensor = self.head(b * gate.sigmoid())
        return {"boxes": result.sigmoid().flatten(2)}


def by_name(inspection: l1rr_fx.Inspection) -> dict[str, InspectedLayer]:
    return {layer.node: layer for layer in inspection.layers}


def test_verdicts_and_groups() -> None:
    inspection = inspect(Residual(), (X,))
    stem, block, wide, narrow, head = inspection.layers
    assert [layer.blocked for layer in inspection.layers] == [None, None, None, ONLY_CHANNEL, NETWORK_OUTPUT]
    assert [layer.channels for layer in inspection.layers] == [8, 8, 32, 1, 6]
    assert stem.group == block.group == 1
    assert len({block.group, wide.group, narrow.group, head.group}) == 4
    assert (inspection.channels, inspection.free_channels, inspection.groups) == (55, 48, 4)
    assert inspection.blocked_channels == {NETWORK_OUTPUT: 6, ONLY_CHANNEL: 1}


def test_it_prints_as_a_table() -> None:
    text = str(inspect(Residual(), (X,)))
    assert text.startswith("Residual: 55 channels of 5 layers in 4 groups; 48 could go, 87.3%")
    assert "no: network output" in text


class Grouped(nn.Module):
    """Depthwise and dense convolutions, a pooling, a squeeze, tokens of one position."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.squeeze = nn.Conv2d(8, 2, 1)
        self.excite = nn.Conv2d(2, 8, 1)
        self.b = nn.Conv2d(8, 8, 1)
        self.tokens = nn.Linear(8, 8)
        self.out = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        h = F.avg_pool2d(self.depthwise(F.relu(self.a(x))), 2)
        h = h * self.excite(self.squeeze(h.mean((2, 3), keepdim=True))).sigmoid()
        t = self.b(h).mean((2, 3)).unsqueeze(1)
        t = t + self.tokens(t)
        return self.out(t)


def test_what_shares_its_channels_is_one_group() -> None:
    groups = [layer.group for layer in inspect(Grouped(), (X,)).layers]
    assert groups == [1, 1, 2, 1, 3, 4, 5]


class Head(nn.Module):
    """A convolution, whatever is to be tried on its channels, and a convolution."""

    def __init__(self, between: Callable[[Tensor], Tensor], after: int = 8) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.between = between
        self.b = nn.Conv2d(after, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.b(self.between(self.a(x)))
        return result


def heads(h: Tensor) -> Tensor:
    q = h.flatten(2).reshape(1, 2, 4, 64)
    return torch.softmax(q @ q.transpose(2, 3), -1).matmul(q).reshape(1, 8, 8, 8)


BETWEEN: dict[str, tuple[Callable[[Tensor], Tensor], int]] = {
    "nothing": (lambda h: h, 8),
    "an activation that zero does not pass": (torch.sigmoid, 8),
    "group norm": (lambda h: F.group_norm(h, 4), 8),
    "softmax": (lambda h: h.softmax(1), 8),
    "pixel shuffle": (lambda h: F.pixel_shuffle(h, 2)[..., :8, :8], 2),
    "channel shuffle": (lambda h: F.channel_shuffle(h, 2), 8),
    "a chunk": (lambda h: torch.mul(*h.chunk(2, 1)), 4),
    "glu": (lambda h: F.glu(h, 1), 4),
    "attention": (heads, 8),
    "itself": (lambda h: torch.cat([h, h], 1), 16),
}


@pytest.mark.parametrize("case", BETWEEN)
def test_what_is_free_goes_when_it_is_zeroed(case: str) -> None:
    model = Head(*BETWEEN[case])
    layer = inspect(model, (X,)).layers[0]
    assert layer.stays is None
    for dead in (range(4, 8), range(1, 8, 2)):
        zeroed = Head(*BETWEEN[case])
        with torch.no_grad():
            for parameter in zeroed.a.parameters():
                parameter[list(dead)] = 0
        kept = l1rr_fx.prune(zeroed, (X,)).kept
        if "a.weight" in kept and kept["a.weight"].new_shape[0] == 4:
            return
    pytest.fail("nothing went")


AFTER: dict[str, tuple[Callable[[Tensor], Tensor], int, str | None]] = {
    "a sigmoid": (torch.sigmoid, 8, NOT_ZERO),
    "a shift": (lambda h: h.relu() * 2 - 1, 8, NOT_ZERO),
    "a softmax": (lambda h: h.softmax(1), 8, NOT_ZERO),
    "a sigmoid among other readers": (lambda h: h * h.sigmoid(), 8, None),
    "functions that pass zero": (lambda h: F.gelu(h) / 3, 8, None),
}


@pytest.mark.parametrize("case", AFTER)
def test_a_function_that_makes_another_value_of_zero_is_a_but(case: str) -> None:
    between, after, loses_more = AFTER[case]
    model = Head(between, after)
    inspection = inspect(model, (X,))
    layer = inspection.layers[0]
    assert (layer.stays, layer.loses_more) == (None, loses_more)
    assert str(layer) == ("yes" if loses_more is None else f"yes, but: {loses_more}")
    assert inspection.free_channels == (8 if loses_more is None else 0)
    assert ("; 8 more could, at a further loss" in str(inspection)) == (loses_more is not None)
    assert l1rr_fx.channel_sites(model, (X,))[0].blocked == layer.blocked == loses_more


def test_an_unknown_operator_is_named() -> None:
    layer = inspect(Head(lambda h: h.logcumsumexp(1)), (X,)).layers[0]
    assert layer.blocked is None
    assert layer.refilled == "logcumsumexp, unknown operator"
    assert "zeros filled in for logcumsumexp" in str(inspect(Head(lambda h: h.logcumsumexp(1)), (X,))).replace(
        "\n", " "
    )


@pytest.mark.parametrize("training", [False, True])
def test_nothing_is_changed(training: bool) -> None:
    model = Residual().train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rows = inspect(model, (X,))
    assert model.training == training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert inspect(model, (X,)) == rows


def test_the_weights_do_not_matter() -> None:
    model = Residual()
    rows = inspect(model, (X,))
    with torch.no_grad():
        model.block.weight.zero_()
    assert inspect(model, (X,)) == rows


def test_bad_models_are_refused() -> None:
    class Branches(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) if x.sum() > 0 else x

    with pytest.raises(InputError, match=r"expected a torch\.nn\.Module"):
        inspect(X, (X,))  # type: ignore[arg-type]
    with pytest.raises(CaptureError, match="Branches"):
        inspect(Branches(2, 2), (torch.ones(2),))


class Dynamic(nn.Module):
    """A layer whose kernel is computed from the input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.kernel, self.head = nn.Conv2d(3, 8, 1), nn.Linear(8, 8 * 8), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        found: Tensor = self.head(F.conv2d(x, self.kernel(x.mean((2, 3))).view(8, 8, 1, 1)))
        return found


def computed(kind: str) -> nn.Module:
    """A network one of whose convolutions has a weight that is computed at each call."""
    if kind == "dynamic":
        return Dynamic().eval()
    conv = nn.Conv2d(8, 8, 3, padding=1, groups=8 if kind == "depthwise" else 1, bias=False)
    layers = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), conv, nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1)
    if kind == "mask":
        prune.ln_structured(conv, "weight", 0.5, n=2, dim=0)
    else:
        (parametrizations.spectral_norm if kind == "spectral norm" else parametrizations.weight_norm)(conv)
    return nn.Sequential(*layers).eval()


@pytest.mark.parametrize("kind", ["mask", "weight norm", "spectral norm", "depthwise", "dynamic"])
def test_weights_that_are_computed(kind: str) -> None:
    """What reads and makes which channels is asked before anything is known of their zeros."""
    model = computed(kind)
    assert inspect(model, (X,)).free_channels >= 8
    sites = l1rr_fx.channel_sites(model, (X,))
    assert all(site.filters is None for site in sites if site.name == "4")
    if kind == "depthwise":
        assert [site.unit for site in sites if site.name in ("1", "4")] == ["1", "1"]
    plan = l1rr_fx.choose(model, (X,), budget=l1rr_fx.Budget(macs=0.9))
    if kind != "dynamic":
        assert len(l1rr_fx.ReweightedL1(model, total_steps=5, args=(X,)).sites) == 2
    plan.zero_(model)
    assert l1rr_fx.prune(model, (X,)).report.after.macs <= 0.9 * l1rr_fx.prune(model, (X,)).report.before.macs


def test_what_is_asked_before_the_zeros_are_known_is_not_remembered() -> None:
    """Where channels meet is asked first; the zeros of a mask are found all the same."""
    program = Program(evaluation_graph(computed("mask"), (X,)), rule_for)
    channel_groups(program)
    facts = channel_facts(program)
    (conv,) = [site.node for site in program.sites if site.node.name == "conv2d_1"]
    assert int(facts.zero[conv].sum()) == 4


def weights_of(model: nn.Module, args: tuple[Any, ...]) -> dict[str, str]:
    """The name of the weight of each layer by what reports call it, where it is not computed."""
    graph = evaluation_graph(model, args).graph
    names = labels(graph)
    calls = [node for node in graph.nodes if node.op == "call_function"]
    pairs = [(call, call.args[1]) for call in calls if len(call.args) > 1]
    return {names[call.name]: str(a.target) for call, a in pairs if isinstance(a, Node) and a.op == "get_attr"}


WITHOUT_SITE = {"standardised_weight": 1, "constant_blur": 1}
"""Patterns with layers that have no parameter in which a channel can be zeroed: it is computed, or a buffer."""


@pytest.mark.parametrize("case", cases_of("patterns"), ids=lambda case: case.name)
def test_inspect_and_channel_sites_say_one_thing(case: Case) -> None:
    """For every layer of every pattern, matched by its weight, or by the batch norm behind it."""
    model, args = case.build()
    if case.name == "branch_on_values":  # taken apart: both answer for its pieces
        assert inspect(model, args).pieces and l1rr_fx.channel_sites(model, args)
        return
    weights, sites = weights_of(model, args), l1rr_fx.channel_sites(model, args)
    alone = 0
    for layer in inspect(model, args).layers:
        weight = weights.get(layer.node)
        answers = {site.blocked for site in sites if weight is not None and weight in (site.weight, site.filters)}
        alone += not answers
        assert answers <= {layer.blocked}, f"{layer.node}: {layer.blocked} and {answers}"
    assert alone == WITHOUT_SITE.get(case.name, 0)


def test_a_feature_that_is_returned_besides_can_go() -> None:
    """A layer reads it too, so it is no prediction. What is returned has zeros where channels went."""

    class Shown(Residual):
        def forward(self, x: Tensor) -> Any:
            h = F.relu(self.norm(self.stem(x)))
            return h, self.block(h)

    stem, block = inspect(Shown(), (X,)).layers
    assert (stem.blocked, stem.refilled, block.blocked) == (None, RETURNED, NETWORK_OUTPUT)
    assert str(stem) == "yes (zeros filled in for the network's output)"
    model = Shown().eval()
    nn.init.zeros_(model.norm.weight[:4]), nn.init.zeros_(model.norm.bias[:4])
    pruned = l1rr_fx.prune(model, (X,))
    assert pruned.kept["stem.weight"].new_shape[0] == 4
    assert pruned.module(X)[0].shape == (1, 8, 8, 8) and not pruned.module(X)[0][:, :4].any()


class Scaled(nn.Module):
    """A grouped convolution with a weight that is computed, and perhaps a batch norm after it."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 1)
        self.grouped = parametrizations.weight_norm(nn.Conv2d(8, 8, 1, groups=2))
        self.norm, self.head = norm, nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.norm(self.grouped(self.first(x))))
        return found


def test_a_computed_weight_in_groups() -> None:
    """Its layer computes everything; a batch norm after it can lose channels all the same."""
    first, grouped, _ = inspect(Scaled(nn.Identity()), (X,)).layers
    assert (first.blocked, grouped.stays) == (None, COMPUTED)
    first, grouped, _ = inspect(Scaled(nn.BatchNorm2d(8)).eval(), (X,)).layers
    assert str(first) == str(grouped) == f"yes (zeros filled in for conv2d, {COMPUTED})"
    assert {site.blocked for site in l1rr_fx.channel_sites(Scaled(nn.BatchNorm2d(8)), (X,))} == {None, NETWORK_OUTPUT}


def test_two_norms_behind_one_layer() -> None:
    """The layer stays if one of them does."""

    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.one, self.other = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.BatchNorm2d(8)
            self.head = nn.Conv2d(8, 2, 1)

        def forward(self, x: Tensor) -> Any:
            x = self.a(x)
            return self.head(self.one(x)), self.other(x)

    assert [site.blocked for site in l1rr_fx.channel_sites(Two(), (X,))] == [None, NETWORK_OUTPUT, NETWORK_OUTPUT]
    assert [layer.blocked for layer in inspect(Two(), (X,)).layers] == [NETWORK_OUTPUT, NETWORK_OUTPUT]


def test_a_mask_on_a_batch_norm_scale() -> None:
    """No site: the layer before it is one, and both say the same of it."""
    norm = nn.BatchNorm2d(8)
    nn.init.uniform_(norm.bias, 0.5, 1)
    prune.l1_unstructured(norm, "weight", 0.5)
    model = nn.Sequential(nn.Conv2d(3, 8, 1), norm, nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()
    answers = [layer.blocked for layer in inspect(model, (X,)).layers]
    assert answers == [site.blocked for site in l1rr_fx.channel_sites(model, (X,))] == [None, NETWORK_OUTPUT]


def test_training_mode_makes_no_difference() -> None:
    for case in ("squeeze_excite", "depthwise", "shared_head", "returned_features"):
        model, args = next(each for each in cases_of("patterns") if each.name == case).build()
        assert inspect(model.train(), args) == inspect(model.eval(), args)


class SumOverChannels(nn.Module):
    """A dead channel adds nothing to the sum, so that nothing more is lost."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(1, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(self.first(x).sum(1, keepdim=True))
        return result


class SoftmaxOverChannels(SumOverChannels):
    """A dead channel still takes its share of one."""

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.second(self.first(x).softmax(1).sum(1, keepdim=True))
        return result


def test_a_sum_over_channels_loses_nothing_more() -> None:
    images = (torch.randn(1, 3, 8, 8),)
    assert l1rr_fx.inspect(SumOverChannels(), images).layers[0].blocked is None
    assert l1rr_fx.inspect(SoftmaxOverChannels(), images).layers[0].loses_more is not None
    sites = {site.name: site.blocked for site in l1rr_fx.channel_sites(SumOverChannels(), images)}
    assert sites["first"] is None
