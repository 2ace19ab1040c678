"""Errors put into the compiler on purpose: the node that is named is the guilty one, and rounding is not an error."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn import functional as F

import l1rr_fx
from l1rr_fx.pruning.compiler import check
from passes.audit.comparison import relative_deviation, tolerance
from passes.audit.verify import first_difference, run_graph
from passes.compile import Removed, remove_zero_channels
from passes.errors import VerifyError
from passes.frontend.capture import capture
from passes.graph.isolation import run_aside
from passes.graph.selection import Selection
from passes.rewriting.recombine import Recombiner
from passes.rewriting.rewriter import Rewriter
from passes.rules.convolution import Weighted

X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A residual net whose branches are dead in different channels."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.c = nn.Conv2d(8, 5, 1)
        self.eval()
        with torch.no_grad():
            for module, dead in ((self.norm, [0, 3, 4]), (self.b, [0, 5])):
                for parameter in module.parameters():
                    parameter[dead] = 0

    def forward(self, x: Tensor) -> Tensor:
        h = F.silu(self.norm(self.a(x)))
        h = h + self.b(h)
        return self.c(h.sigmoid())


def removed(model: nn.Module, x: Tensor = X) -> Removed:
    return remove_zero_channels(capture(model, (x,)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("training", [False, True])
def test_nothing_differs(dtype: torch.dtype, training: bool) -> None:
    model = Net().to(dtype).train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = removed(model, X.to(dtype))
    assert first_difference(found.plan, found.rewritten, (X.to(dtype),)) is None
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_every_value_of_the_small_network_is_known() -> None:
    found = removed(Net())
    assert [*found.rewritten.values] == [
        "x", "conv2d", "batch_norm", "silu", "conv2d_1", "add", "sigmoid", "conv2d_2",
    ]  # fmt: skip
    names = {node.name for node in found.module.graph.nodes}
    assert names >= {*found.rewritten.values.values()}
    assert not any("value" in node.meta for node in found.module.graph.nodes)


PARAMETERS = {
    "a.weight": "conv2d",
    "a.bias": "conv2d",
    "norm.weight": "batch_norm",
    "norm.running_var": "batch_norm",
    "b.weight": "conv2d_1",
    "c.bias": "conv2d_2",
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_wrong_parameter_is_found(name: str) -> None:
    found = removed(Net())
    with torch.no_grad():
        dict([*found.module.named_parameters(), *found.module.named_buffers()])[name].mul_(1 + 1e-6)
    difference = first_difference(found.plan, found.rewritten, (X,))
    assert difference is not None
    assert difference.node == PARAMETERS[name]
    assert 1e-10 < difference.deviation < 1e-5


def test_the_message_names_operator_module_and_line() -> None:
    found = removed(Net())
    with torch.no_grad():
        found.module.get_parameter("b.weight").mul_(2)
    message = str(first_difference(found.plan, found.rewritten, (X,)))
    assert message.startswith("conv2d_1 (aten.conv2d.default), which deviates by ")
    assert f"in b at {__file__}:" in message
    assert message.endswith("h = h + self.b(h)")


def swapped(selection: Selection, tensor: Tensor) -> Tensor:
    """What `Selection.apply` gives, its last two rows exchanged where it has many."""
    right = RIGHT_SELECTION(selection, tensor)
    return right[[*range(len(right) - 2), len(right) - 1, len(right) - 2]] if selection.shape[0] == 8 else right


def shifted(*args: Any) -> Any:
    """What `Recombiner._along` gets, its index turned by one."""
    rewriter, x, axis, index, *rest = args
    return RIGHT_RECOMBINATION(rewriter, x, axis, index.roll(1), *rest)


def not_padded(*args: Any) -> list[Node]:
    nodes = RIGHT_CONVOLUTION(*args)
    for node in nodes:
        node.args = (*node.args[:4], [0, 0], *node.args[5:]) if node.args[4:] == ([1, 1],) else node.args
    return nodes


DEVIATES = r"deviates by .* \(allowed: 1e-04\)"
RIGHT_SELECTION, RIGHT_RECOMBINATION = Selection.apply, Recombiner._along
RIGHT_CONVOLUTION = Weighted.emit
BROKEN: dict[str, tuple[type, str, Callable[..., object], str, str]] = {
    "rows of a weight": (Selection, "apply", swapped, "conv2d", DEVIATES),
    "recombination": (Recombiner, "_along", shifted, "add", DEVIATES),
    "padding of a convolution": (Weighted, "emit", not_padded, "conv2d", "does not run: The size of tensor a .*"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_rule_is_found(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, attribute, wrong, guilty, message = BROKEN[case]
    monkeypatch.setattr(owner, attribute, wrong)
    with pytest.raises(VerifyError, match=rf"{message}; in float64 the first difference is at {guilty} \(aten\."):
        l1rr_fx.prune(Net(), (X,))


def test_a_broken_output_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def doubled(self: Rewriter, node: Node) -> None:
        right(self, node)
        output = next(iter(reversed(self.graph.nodes)))
        with self.graph.inserting_before(output):
            (value,) = output.args[0]
            output.args = ((self.graph.call_function(torch.ops.aten.add.Tensor, (value, value)),),)

    right = Rewriter._output
    monkeypatch.setattr(Rewriter, "_output", doubled)
    with pytest.raises(VerifyError, match=r"is at output \(output\), which deviates by 1$"):
        l1rr_fx.prune(Net(), (X,))


class Chaos(nn.Module):
    """A network that magnifies rounding until nothing else is left of a float32."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 64, 3)
        self.b = nn.Conv2d(64, 1, 3, bias=False)
        with torch.no_grad():
            for parameter in self.a.parameters():
                parameter[::2] = 0

    def forward(self, x: Tensor) -> Tensor:
        return (self.b(self.a(x)) * 1e6).sin()


def test_rounding_is_not_an_error(caplog: pytest.LogCaptureFixture) -> None:
    model = Chaos()
    with caplog.at_level(logging.WARNING):
        pruned = l1rr_fx.prune(model, (X,))
    assert pruned.report.deviation is not None
    assert pruned.report.deviation > tolerance(X)
    assert "so this is rounding" in caplog.text
    assert l1rr_fx.prune(model.double(), (X.double(),)).report.deviation is not None


class Random(nn.Module):
    """Dropout as a module and as a function, and noise for each image."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 8, 1)
        self.drop = nn.Dropout2d(0.5)
        self.b = nn.Conv2d(8, 4, 1)
        with torch.no_grad():
            for parameter in self.a.parameters():
                parameter[:4] = 0

    def forward(self, x: Tensor) -> Tensor:
        h = self.drop(self.a(x)) + torch.rand(len(x), 1, 1, 1)
        return self.b(h + torch.rand_like(x[:, :1])) * self.scale(x)

    def scale(self, x: Tensor) -> Tensor:
        return torch.ones(1)


class Functional(Random):
    def scale(self, x: Tensor) -> Tensor:
        return F.dropout(x[:, :1], 0.5, self.training)


@pytest.mark.parametrize("model", [Random, Functional])
def test_random_numbers_are_not_an_error(model: type[nn.Module]) -> None:
    before = torch.random.get_rng_state()
    pruned = l1rr_fx.prune(model().train(), (X,))
    deviation = pruned.report.deviation
    assert deviation is not None
    assert deviation < 1e-5
    assert [each.training for each in pruned.module.modules() if isinstance(each, nn.Dropout2d)] == [True]
    found = removed(model().train())
    assert first_difference(found.plan, found.rewritten, (X,)) is None
    torch.random.set_rng_state(before)


def test_a_wrong_capture_is_not_taken_for_rounding() -> None:
    found = removed(Net())
    other = Net()
    with pytest.raises(VerifyError, match="captured deviates from the model already"):
        check(other, found.module, (X,), {}, run_aside(other, (X,), {}), found)


def test_a_graph_runs_without_its_code() -> None:
    model = Net().train()
    before = model.state_dict()["norm.running_mean"].clone()
    (found,) = run_graph(capture(model, (X,)), (X,), {})
    assert torch.equal(model.state_dict()["norm.running_mean"], before)
    assert relative_deviation(model(X), found) < 1e-6


@pytest.mark.parametrize(
    ("zeroed", "pruned", "deviation"),
    [
        ([torch.ones(2)], [torch.ones(2)], 0.0),
        (torch.tensor([4.0, 2.0]), torch.tensor([4.0, 1.0]), 0.25),
        (torch.zeros(2), torch.full((2,), 0.5), 0.5),
        (torch.ones(2), torch.ones(3), float("inf")),
        (torch.ones(2), [torch.ones(2), torch.ones(2)], float("inf")),
        (torch.ones(1), torch.tensor([torch.nan]), float("inf")),
        (torch.tensor([torch.nan, 2.0]), torch.tensor([torch.nan, 2.0]), 0.0),
        (torch.tensor([torch.inf, 2.0]), torch.tensor([torch.inf, 1.0]), 0.5),
        (torch.ones(0), torch.ones(0), 0.0),
        (3, 3, 0.0),
        (torch.ones(1), 1.0, float("inf")),
    ],
)
def test_relative_deviation(zeroed: object, pruned: object, deviation: float) -> None:
    assert relative_deviation(zeroed, pruned) == deviation


def test_the_least_precise_output_sets_the_tolerance() -> None:
    assert tolerance([torch.ones(1, dtype=torch.float64), torch.ones(1)]) == 1e-4
    assert tolerance(torch.ones(1, dtype=torch.int64)) == 1e-10


def test_keywords_may_come_in_any_order() -> None:
    class Keywords(nn.Module):
        def forward(self, x: Tensor, *, factor: Tensor, offset: Tensor) -> Tensor:
            return x * factor - offset

    given = {"offset": torch.full((1,), 5.0), "factor": torch.full((1,), 2.0)}
    graph = capture(Keywords(), (torch.ones(1),), given)
    for keywords in (given, dict(reversed(given.items()))):
        assert [float(each) for each in run_graph(graph, (torch.ones(1),), keywords)] == [-3.0]


# --- what was compared, and what is said -----------------------------------------------------------------------------


def test_the_numbers_compared_are_counted_and_printed() -> None:
    report = l1rr_fx.prune(Net(), (X,)).report
    assert report.compared == 2 * 5 * 8 * 8
    assert "640 numbers compared" in str(report)
    assert report.notes == ()
    unverified = l1rr_fx.prune(Net(), (X,), verify=False).report
    assert (unverified.compared, unverified.deviation) == (0, None)


class Empty(Net):
    """What an NMS gives that keeps nothing."""

    def forward(self, x: Tensor) -> Any:
        return {"boxes": super().forward(x)[:0]}


def test_outputs_without_numbers_are_not_called_equal() -> None:
    report = l1rr_fx.prune(Empty(), (X,)).report
    assert (report.compared, report.deviation) == (0, None)
    assert "nothing of them was compared" in report.notes[-1]
    assert "nothing of them was compared" in str(report) and "not verified" in str(report)


class Chain(nn.Module):
    """Three convolutions, of which the second gives `constant` and nothing else."""

    def __init__(self, constant: float, *, branch: bool = False) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.branch = branch
        nn.init.zeros_(self.b.weight)
        nn.init.constant_(self.b.bias, constant)  # type: ignore[arg-type]  # it has one

    def forward(self, x: Tensor) -> Any:
        h = self.a(x)
        out = self.c(self.b(h))
        return (out, h, torch.ones(3)) if self.branch else out


@pytest.mark.parametrize("constant", [0.0, 0.5])
def test_a_network_that_depends_on_nothing_is_said_to(constant: float) -> None:
    report = l1rr_fx.prune(Chain(constant), (X,)).report
    (line,) = report.notes
    assert "the network's outputs do not depend on its inputs" in line
    assert "do not depend on its inputs" in str(report).replace("\n", " ")


def test_one_output_that_depends_on_nothing_is_named() -> None:
    report = l1rr_fx.prune(Chain(0.5, branch=True), (X,)).report
    assert [note for note in report.notes if "depend" in note] == [
        "output 0 does not depend on the inputs: zeros cut all ways to it"
    ]


def test_a_model_in_which_nothing_is_zero_is_said_to_be() -> None:
    dense = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    (line,) = l1rr_fx.prune(dense, (X,)).report.notes
    assert line.startswith("nothing was removed: no channel is zero") and "none is" in line
    with torch.no_grad():
        dense[0].weight[:, 0] *= torch.rand(8, 3, 3).round()
        zeros = int((dense[0].weight == 0).sum())
    (line,) = l1rr_fx.prune(dense, (X,)).report.notes
    assert f"({zeros:,} of 516 parameters are zero, but they make up no whole channel)" in line


def test_constant_channels_are_counted_because_training_does_not_follow_them() -> None:
    model = Net()
    with torch.no_grad():
        model.norm.bias[[0, 3]] = 0.5
    (line,) = l1rr_fx.prune(model, (X,)).report.notes
    assert line.startswith("2 channels of batch norms are constant but not zero")
