"""Every rule of the compiler is sound about the calls that the table of operators makes; and a wrong one is caught."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import Node
from torch.fx.node import map_arg

import l1rr_fx
from l1rr_fx.testing import Call, assert_prunes_exactly, assert_rule_is_sound, kill, randomised
from l1rr_fx.testing.claims import node_values
from passes.analysis.program import Program
from passes.canonical.normalise import normalise_graph
from passes.errors import InputError
from passes.frontend.capture import capture
from passes.graph.nodes import attribute, is_tensor
from passes.rules import RULES, UNKNOWN, mixing, pointwise, register_rule, rule_for, unregister_rule
from passes.rules.base import Rule
from tests.op_cases import CASES

aten = torch.ops.aten
NOT_REPEATABLE = (aten.empty_like.default, aten.new_empty.default)  # their elements are arbitrary
SINGLE = (aten.fake_quantize_per_channel_affine.default,)  # torch refuses its scales in float64
CALLS_OF_EACH = 2


def calls(limit: int | None) -> Iterator[tuple[Any, Call]]:
    """The calls of the table's networks, at most `limit` different ones of an operator that has a rule.

    With a limit, rows are left out whose operators were all met.
    """
    seen: dict[Any, set[str]] = defaultdict(set)
    met: set[str] = set()
    for case in CASES:
        if limit is not None and case.ops and set(case.ops) <= met:
            continue
        model, args = case.build()
        met |= set(case.ops)
        module = capture(model, args)
        normalise_graph(module.graph)
        program = Program(module, rule_for)
        values = node_values(module, args)
        for site in program.sites:
            target = site.node.target
            if site.rule is UNKNOWN or target in (*NOT_REPEATABLE, *SINGLE) or len(seen[target]) == limit:
                continue
            stand_in = _argument(program, values)
            call = Call(map_arg(site.node.args, stand_in), map_arg(site.node.kwargs, stand_in))
            if str(call) not in seen[target]:
                seen[target].add(str(call))
                yield target, call


def _argument(program: Program, values: Any) -> Any:
    def stand_in(node: Node) -> Any:
        if not is_tensor(node):
            return program.concrete(node)
        if node.op != "get_attr":
            return values[node]
        original = attribute(program.module, str(node.target))
        return nn.Parameter(values[node]) if isinstance(original, nn.Parameter) else nn.Buffer(values[node])

    return stand_in


def test_the_rules_are_sound() -> None:
    """A row's calls are all tried that are new; nine of ten operators of the table are met."""
    met: set[str] = set()
    for target, call in calls(CALLS_OF_EACH):
        assert_rule_is_sound(target, [call], rounds=2)
        met.add(target._schema.name.removeprefix("aten::"))
    assert len(met & set(RULES)) >= 0.9 * len(RULES), sorted(set(RULES) - met)


@pytest.mark.fuzz
def test_the_rules_are_sound_about_every_call() -> None:
    for target, call in calls(None):
        assert_rule_is_sound(target, [call], rounds=25)


def image(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


X = (2, 6, 4, 4)


class TooZero(pointwise.Pointwise):
    """Wrong: sigmoid of zero is a half."""

    def keeps_zero(self, site: Any) -> bool:
        return True


class TooEmpty(pointwise.Pointwise):
    """Wrong: the logarithm of zero, which stands in for what nobody needs, is not finite."""

    def stand_in(self, site: Any, index: int) -> float:
        return 0.0


class TooSmall(mixing.Normalisation):
    """Wrong: it takes the statistics over what is kept alone."""

    def gives(self, site: Any, outs: Any) -> list[Any]:
        return list(outs)


@pytest.mark.parametrize(
    ("target", "call", "rule", "complaint"),
    [
        (aten.sigmoid.default, (image(*X),), TooZero(), "calls element .* of result 0 zero, which is 0.5"),
        (aten.log.default, (image(*X).abs() + 1,), TooEmpty(), "is -inf with the stand-in for what it calls unneeded"),
        (
            aten.softmax.int,
            (image(*X), 1),
            mixing.Mixing(mixing.spatial, keeps_zero=False),
            "that the rule calls unneeded",
        ),
        (
            aten.layer_norm.default,
            (image(2, 5, 6), [6], nn.Parameter(torch.ones(6)), nn.Parameter(torch.ones(6))),
            TooSmall(mixing.normalised, (2, 3), mixing.normalised),
            "small network|normalized_shape",
        ),
    ],
    ids=["zero", "finite", "needed", "layout"],
)
def test_a_wrong_rule_is_caught(target: Any, call: tuple[Any, ...], rule: Rule, complaint: str) -> None:
    with pytest.raises((AssertionError, RuntimeError), match=complaint):
        assert_rule_is_sound(target, [call], rule=rule, rounds=20)
    assert_rule_is_sound(target, [call], rounds=20)


# --- operators of one's own


@torch.library.custom_op("l1rr_tests::swish", mutates_args=())
def swish(x: Tensor, beta: float) -> Tensor:
    return x * torch.sigmoid(beta * x)


@torch.library.custom_op("l1rr_tests::rescale", mutates_args=())
def rescale(x: Tensor) -> Tensor:
    return x / (x.abs().mean(1, keepdim=True) + 1)


@torch.library.custom_op("l1rr_tests::write", mutates_args=("x",))
def write(x: Tensor) -> None:
    x.add_(1)


swish.register_fake(lambda x, beta: torch.empty_like(x))
rescale.register_fake(lambda x: torch.empty_like(x))


class Custom(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(rescale(F.relu(self.b(swish(self.a(x), 1.5)))))


@pytest.fixture
def custom() -> tuple[nn.Module, tuple[Tensor, ...]]:
    model = randomised(Custom())
    kill(model.get_submodule("a"), [0, 2, 5])
    kill(model.get_submodule("b"), [1, 2, 3])
    return model, (image(2, 3, 4, 4),)


@pytest.fixture
def registered() -> Iterator[None]:
    register_rule(swish, pointwise.POINTWISE)
    register_rule(torch.ops.l1rr_tests.rescale, mixing.Mixing(mixing.channel, keeps_zero=True))
    yield
    unregister_rule(swish)
    unregister_rule(torch.ops.l1rr_tests.rescale.default)


def test_without_a_rule_it_costs_channels_and_nothing_else(custom: Any) -> None:
    pruned = assert_prunes_exactly(*custom, at_limit=False)
    assert pruned.report.macs_over_limit == 1  # as far as is known, everything is needed
    assert any("l1rr_tests" in kept.reason for kept in pruned.report.accounts.kept)
    with pytest.raises(InputError, match="has no rule"):
        assert_rule_is_sound(swish, [(image(*X), 1.0)])


@pytest.mark.usefixtures("registered")
def test_a_registered_rule_is_followed(custom: Any) -> None:
    without = 2 * 16 * (3 * 5 + 5 * 8 + 8 * 2)
    pruned = assert_prunes_exactly(*custom)
    assert pruned.report.after.macs < without
    assert_rule_is_sound(swish, [(image(*X), 1.0), (image(2, 3, 8), -2.0)])
    assert_rule_is_sound(torch.ops.l1rr_tests.rescale, [(image(*X),)])


@pytest.mark.usefixtures("registered")
def test_a_registered_rule_that_is_wrong_is_caught(custom: Any) -> None:
    wrong = pointwise.POINTWISE  # of `rescale`: it reads all channels
    with pytest.raises(AssertionError, match="unneeded"):
        assert_rule_is_sound(rescale, [(image(*X),)], rule=wrong, rounds=20)
    with patch.dict("passes.rules.REGISTERED", {"l1rr_tests::rescale": wrong}):
        model, args = custom
        kill(model.get_submodule("c"), columns=[0, 4])
        with pytest.raises(AssertionError, match=r"(?s)rule at fault: passes.rules.pointwise.Pointwise.*unneeded"):
            assert_prunes_exactly(model, args)
    l1rr_fx.prune(model, args)


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize("shape", [X, (2, 3, 8), (2, 6)])
def test_it_is_caught_whatever_the_seed(shape: tuple[int, ...]) -> None:
    """Each axis of each tensor has its turn, before anything is left to chance."""
    for seed in range(10):
        with pytest.raises(AssertionError, match="unneeded"):
            assert_rule_is_sound(rescale, [(image(*shape),)], rule=pointwise.POINTWISE, rounds=0, seed=seed)


@pytest.mark.parametrize(
    ("operator", "samples", "complaint"),
    [
        (aten.relu.default, [], "no samples"),
        (aten.relu.default, (image(*X),), r"samples\[0\] is a Tensor; expected a Call or a tuple of arguments"),
        (aten.relu.default, [()], "aten.relu.default does not run on"),
        (aten.add.Tensor, [(image(2, 3), image(2, 4))], r"does not run on \(tensor\[2, 3\], tensor\[2, 4\]\): "),
        ("aten::relu", [(image(*X),)], "operator is a str; expected an OpOverload, such as "),
        (F.relu, [(image(*X),)], "operator is a function; expected an OpOverload"),
    ],
)
def test_samples_that_are_none(operator: Any, samples: Any, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        assert_rule_is_sound(operator, samples)


@pytest.mark.parametrize(
    ("operator", "rule", "complaint"),
    [
        (aten.relu.default, pointwise.POINTWISE, "has a rule already"),
        (torch.ops.aten.conv2d, pointwise.POINTWISE, "has a rule already"),
        (write, pointwise.POINTWISE, "writes to its arguments"),
        (swish, pointwise.Pointwise, "an instance of"),
        ("l1rr_tests::swish", pointwise.POINTWISE, "the operator is a str"),
    ],
)
def test_what_cannot_be_registered(operator: Any, rule: Any, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        register_rule(operator, rule)


@pytest.mark.usefixtures("registered")
def test_a_rule_is_registered_once() -> None:
    with pytest.raises(InputError, match="already"):
        register_rule(swish, pointwise.POINTWISE)
    with pytest.raises(InputError, match="no rule was registered"):
        unregister_rule(aten.relu.default)


def test_a_rule_with_names_of_before_is_refused() -> None:
    class Old(pointwise.Pointwise):
        def wants(self) -> None: ...

    with pytest.raises(InputError, match="Old defines wants; expected requests, its name since version 0.2"):
        register_rule(torch.ops.aten.bernoulli, Old())


@torch.library.custom_op("l1rr_tests::by_vector", mutates_args=())
def by_vector(x: Tensor, scale: Sequence[float]) -> Tensor:
    return x * torch.tensor(scale, dtype=x.dtype).view(-1, *[1] * (x.dim() - 2))


by_vector.register_fake(lambda x, scale: torch.empty_like(x))


@pytest.mark.parametrize("seed", range(4))
def test_facts_that_hold_with_a_network_that_does_not_run(seed: int) -> None:
    """Element by element is right about zeros and needs; the small network has fewer channels than the vector."""
    with pytest.raises(AssertionError, match="does not run"):
        assert_rule_is_sound(
            by_vector, [(image(2, 6, 4, 4), [1.0, 0.0, 2.0, 0.5, 0.0, 3.0])], rule=pointwise.POINTWISE, seed=seed
        )
