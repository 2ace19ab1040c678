"""Folding: the same results to the last digits, fewer operators, the given network unchanged, and twice is once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import event, given, settings
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.fx.passes.infra.pass_manager import PassManager
from torch.nn import functional as F

import l1rr_fx
from l1rr_fx.testing import FAMILIES, Network, differences, fresh, networks
from passes import InputError, capture, remove_zero_channels
from passes.assignment.options import Options
from passes.graph.modes import BatchNormCall
from passes.infra import FoldBatchNorm, FoldConstants
from passes.rewriting.fold import fold_batch_norm, fold_constants
from tests.op_cases import Args, Built, between, cba, conv, image, net, randoms
from tests.oracle import fresh_input, relative_error, zeroed_case
from tests.zoo import by_name

TOLERANCE = 1e-10  # float64: what is left is the reassociation of sums
aten = torch.ops.aten


def fold(module: GraphModule) -> GraphModule:
    return fold_constants(fold_batch_norm(module))


def pruned_graph(model: nn.Module, args: Args) -> GraphModule:
    module = l1rr_fx.prune(model, args, verify=False).module
    assert isinstance(module, GraphModule)
    return module


def check(module: GraphModule, model: nn.Module, args: Args) -> GraphModule:
    """The folded network, which computes what `model` does; `module` stays as it is, and folding again does nothing."""
    before = (str(module.graph), {name: value.clone() for name, value in module.state_dict().items()})
    folded = fold(module)
    assert (str(module.graph), [*module.state_dict()]) == (before[0], [*before[1]])
    assert all(torch.equal(value, before[1][name]) for name, value in module.state_dict().items())
    inputs = fresh(args, 5)
    with torch.no_grad():
        assert max(differences(folded(*inputs), model(*inputs))) <= TOLERANCE
    again = fold(folded)
    assert str(again.graph) == str(folded.graph)
    assert all(torch.equal(value, folded.state_dict()[name]) for name, value in again.state_dict().items())
    return folded


def norms(module: GraphModule) -> int:
    """How many batch norms are left."""
    owners = [module.get_submodule(str(n.target)) for n in module.graph.nodes if n.op == "call_module"]
    calls = sum(node.target is aten.batch_norm.default for node in module.graph.nodes)
    return calls + sum(isinstance(owner, (BatchNormCall, nn.modules.batchnorm._BatchNorm)) for owner in owners)


@pytest.mark.property
@settings(max_examples=60)
@given(st.data())
def test_folded_equals_zeroed(data: st.DataObject) -> None:
    network: Network = data.draw(networks(data.draw(st.sampled_from([(family,) for family in FAMILIES]))))
    model, args = network.build()
    captured = capture(model, args)
    check(captured, model, args)
    pruned = remove_zero_channels(captured, Options(data.draw(st.sampled_from(("recombine", "union"))))).module
    folded = check(pruned, model, args)
    event(f"{min(3, norms(pruned) - norms(folded))} batch norms folded")


@pytest.mark.parametrize(("name", "left"), [("tv/mobilenet_v3_small", 0), ("yolo/yolov5n", 0), ("tv/densenet121", 62)])
def test_networks_of_the_zoo(name: str, left: int) -> None:
    """What is left of DenseNet's 121 batch norms reads a concatenation, and a ReLU reads it."""
    case = zeroed_case(by_name(name), 0.5)
    folded = fold(pruned_graph(case.model, case.args))
    assert norms(folded) == left
    args = fresh_input(case.args, seed=7)
    with torch.no_grad():
        assert relative_error(folded(*args), case(args)) <= TOLERANCE


def shared(m: Any, x: Tensor) -> Tensor:
    return F.relu(m.n1(m.c(x))) + m.n2(m.c(x.flip(2)))


def read_twice(m: Any, x: Tensor) -> Tensor:
    y = m.c(x)
    return m.n(y) + y.sigmoid()


def before(m: Any, x: Tensor) -> Tensor:
    return m.c(m.n(x.relu())) + m.d(m.n2(x))


def twice_over(m: Any, x: Tensor) -> Tensor:
    y = m.n(x.relu())
    return m.c(y) + m.d(y)


def named(m: Any, x: Tensor) -> Tensor:
    return F.batch_norm(F.conv2d(input=x, bias=None, weight=m.w, groups=2), m.mean, m.variance, eps=0.1)


def computed(m: Any, x: Tensor) -> Tensor:
    return m.n(F.conv2d(x, m.w * m.scale.sigmoid().view(-1, 1, 1, 1), padding=1))


def dropped(m: Any, x: Tensor) -> Tensor:
    return m.n(m.drop(m.c(x)))


def joined(m: Any, x: Tensor) -> Tensor:
    return m.n(torch.cat([m.c(x), m.d(x)], 1)).relu()


def picked(m: Any, x: Tensor) -> Tensor:
    return m.n(m.c(x).index_select(1, m.order)).relu()


def padded_channels(m: Any, x: Tensor) -> Tensor:
    return m.n(F.pad(m.c(x), (0, 0, 0, 0, 1, 0))).relu()


def read_around(m: Any, x: Tensor) -> Tensor:
    y = m.c(x)
    return m.n(torch.cat([y[:, 4:], y[:, :4]], 1)) * y


def half_of_it(m: Any, x: Tensor) -> Tensor:
    y = m.n(x.sigmoid())
    return m.c(y[:, 2:6]) + m.d(y.index_select(1, m.order))


BN = nn.BatchNorm2d
ORDER = torch.tensor([5, 1, 7, 0, 2, 6])
CASES: dict[str, tuple[Callable[[], Built], int]] = {
    "convolution": (lambda: between(lambda m, x: x, i=8, o=8), 0),
    "bias": (lambda: between(lambda m, x: m.n(m.c(x)), c=conv(8, 8), n=BN(8)), 0),
    "grouped": (lambda: between(lambda m, x: m.n(m.c(x)), c=conv(8, 8, g=4), n=BN(8)), 0),
    "transposed": (lambda: between(lambda m, x: m.n(m.c(x)), c=nn.ConvTranspose2d(8, 8, 2, 2), n=BN(8)), 0),
    "grouped transposed": (
        lambda: between(lambda m, x: m.n(m.c(x)), o=12, c=nn.ConvTranspose2d(8, 12, 3, groups=2, bias=False), n=BN(12)),
        0,
    ),
    "same padding": (lambda: between(lambda m, x: m.n(m.c(x)), c=nn.Conv2d(8, 8, 3, padding="same"), n=BN(8)), 0),
    "one dimension": (
        lambda: net(lambda m, x: m.n(m.c(x)), randoms((2, 3, 9)), c=nn.Conv1d(3, 4, 3), n=nn.BatchNorm1d(4)),
        0,
    ),
    "three dimensions": (
        lambda: net(lambda m, x: m.n(m.c(x)), randoms((2, 3, 4, 4, 4)), c=nn.Conv3d(3, 4, 3), n=nn.BatchNorm3d(4)),
        0,
    ),
    "linear": (lambda: net(lambda m, x: m.n(m.l(x)), randoms((4, 3)), l=nn.Linear(3, 6), n=nn.BatchNorm1d(6)), 0),
    "linear over tokens, whose axis 1 is no channel": (
        lambda: net(lambda m, x: m.n(m.l(x)), randoms((4, 6, 3)), l=nn.Linear(3, 6), n=nn.BatchNorm1d(6)),
        1,
    ),
    "two in a row": (lambda: between(lambda m, x: m.b(m.a(m.c(x))), c=conv(8, 8), a=BN(8), b=BN(8)), 0),
    "two in a row before a convolution": (
        lambda: between(lambda m, x: m.c(m.b(m.a(x.sigmoid()))), c=conv(8, 8, 1), a=BN(8), b=BN(8)),
        0,
    ),
    "without affine": (lambda: between(lambda m, x: m.n(m.c(x)), c=conv(8, 8), n=BN(8, affine=False)), 0),
    "without statistics": (
        lambda: between(lambda m, x: m.n(m.c(x)), c=conv(8, 8), n=BN(8, track_running_stats=False)),
        1,
    ),
    "one layer called twice": (lambda: between(shared, c=conv(8, 8), n1=BN(8), n2=BN(8)), 0),
    "read by another": (lambda: between(read_twice, c=conv(8, 8), n=BN(8)), 1),
    "before convolutions, one padded": (
        lambda: between(before, c=nn.Conv2d(8, 8, 1), d=conv(8, 8), n=BN(8), n2=BN(8)),
        1,
    ),
    "before two convolutions, grouped": (
        lambda: between(twice_over, o=4, c=nn.Conv2d(8, 4, 3, groups=2), d=nn.Conv2d(8, 4, 3, bias=False), n=BN(8)),
        0,
    ),
    "before a convolution of one pixel, with same padding": (
        lambda: between(lambda m, x: m.c(m.n(x.relu())), c=nn.Conv2d(8, 8, 1, padding="same"), n=BN(8)),
        0,
    ),
    "before a linear layer": (
        lambda: net(lambda m, x: m.l(m.n(x)), randoms((4, 6)), l=nn.Linear(6, 2, bias=False), n=nn.BatchNorm1d(6)),
        0,
    ),
    "before a transposed convolution": (
        lambda: between(lambda m, x: m.t(m.n(x.relu())), c=conv(8, 8), t=nn.ConvTranspose2d(8, 8, 3), n=BN(8)),
        1,
    ),
    "arguments by name": (
        lambda: net(
            named, image(4), w=nn.Parameter(torch.zeros(6, 2, 3, 3)), mean=torch.rand(6), variance=torch.rand(6) + 1
        ),
        0,
    ),
    "computed weight": (
        lambda: between(computed, w=nn.Parameter(torch.zeros(8, 8, 3, 3)), scale=nn.Parameter(torch.zeros(8)), n=BN(8)),
        0,
    ),
    "dropout between": (lambda: between(dropped, c=conv(8, 8), drop=nn.Dropout2d(), n=BN(8)), 0),
    "through a concatenation": (
        lambda: between(joined, o=12, c=conv(8, 8), d=nn.ConvTranspose2d(8, 4, 1), n=BN(12)),
        0,
    ),
    "through a gather": (lambda: between(picked, o=6, c=conv(8, 8), order=ORDER, n=BN(6)), 0),
    "through a gather that picks one channel twice": (
        lambda: between(picked, o=6, c=conv(8, 8), order=ORDER[[0, 0, 1, 2, 3, 4]], n=BN(6)),
        1,
    ),
    "zeros beside the channels, which it shifts": (lambda: between(padded_channels, o=9, c=conv(8, 8), n=BN(9)), 1),
    "slices of what another reads": (lambda: between(read_around, c=conv(8, 8), n=BN(8)), 1),
    "into readers through copies": (
        lambda: between(half_of_it, o=5, c=nn.Conv2d(4, 5, 1), d=nn.Conv2d(6, 5, 1), order=ORDER, n=BN(8)),
        0,
    ),
    "convolution of a single image": (
        lambda: net(
            lambda m, x: F.batch_norm(m.c(x), m.mean, m.variance, training=m.training),
            randoms((3, 6, 6)),
            c=conv(3, 6),
            mean=torch.rand(6),
            variance=torch.rand(6) + 1,
        ),
        1,
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("pruned", [False, True], ids=["captured", "pruned"])
def test_batch_norms_left(name: str, pruned: bool) -> None:
    make, left = CASES[name]
    model, args = make()
    module = pruned_graph(model, args) if pruned else capture(model, args)
    assert norms(check(module, model, args)) == left


def scale_of(norm: nn.Module) -> Tensor:
    return norm.get_parameter("weight") * (norm.get_buffer("running_var") + 1e-5).rsqrt()


def test_a_batch_norm_without_shift_goes_into_a_padded_convolution() -> None:
    model, args = between(lambda m, x: m.c(m.n(x)), c=conv(8, 8), n=BN(8))
    norm = model.get_submodule("n")
    with torch.no_grad():
        norm.get_parameter("bias").copy_(norm.get_buffer("running_mean") * scale_of(norm))
    assert norms(check(capture(model, args), model, args)) == 0


def test_a_reader_that_nobody_reads_is_not_in_the_way() -> None:
    model, args = net(lambda m, x: m.n(m.c(x)), image(), c=conv(3, 4), n=BN(4))
    module = capture(model, args)
    made = next(node for node in module.graph.nodes if node.target is aten.conv2d.default)
    with module.graph.inserting_after(made):
        module.graph.call_function(aten.relu.default, (made,))
    assert norms(check(module, model, args)) == 0


def test_weights_keep_their_names() -> None:
    model, args = net(lambda m, x: m.head(m.stem(x)), image(), stem=cba(3, 4), head=nn.Conv2d(4, 2, 1))
    folded = fold_batch_norm(pruned_graph(model, args))
    assert {*folded.state_dict()} == {"stem.0.weight", "stem.0.bias", "head.weight", "head.bias"}
    assert all(parameter.requires_grad for name, parameter in folded.named_parameters() if name != "stem.0.bias")


def test_a_shared_weight_becomes_two() -> None:
    model, args = net(shared, image(4), c=conv(4, 4, bias=False), n1=BN(4), n2=BN(4))
    folded = fold_batch_norm(capture(model, args))
    assert {*folded.state_dict()} == {"c.weight", "c.bias", "c.weight_0", "c.bias_0"}


def test_folding_in_float32_rounds_once() -> None:
    model, args = net(lambda m, x: m.n(m.c(x)), image(), c=conv(3, 4, bias=False), n=BN(4))
    exact = fold_batch_norm(capture(model, args)).state_dict()
    single = fold_batch_norm(capture(model.float(), (args[0].float(),))).state_dict()
    model.double()
    expected = model.get_parameter("c.weight") * scale_of(model.get_submodule("n")).view(-1, 1, 1, 1)
    assert single["c.weight"].dtype == torch.float32
    assert torch.equal(single["c.weight"], expected.float())
    assert exact["c.weight"].dtype == torch.float64


def test_a_folded_network_can_be_pruned() -> None:
    model, args = net(lambda m, x: m.head(m.stem(x)), image(), stem=cba(3, 6), head=nn.Conv2d(6, 2, 1))
    with torch.no_grad():
        for parameter in model.get_submodule("stem.1").parameters():
            parameter[2:5] = 0
    small = remove_zero_channels(fold_batch_norm(capture(model, args))).module
    assert small.get_parameter("stem.0.weight").shape == (3, 3, 3, 3)
    check(small, model, args)


def constants(module: GraphModule) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in module.state_dict().items() if name.startswith("_constant")}


def test_constants_are_computed_once() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        grid = torch.stack(torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij"))
        number = m.scale.sum().item()
        return m.c(x).relu() * m.scale.exp().view(1, -1, 1, 1) + grid.sum(0) + number

    model, args = net(forward, image(), c=conv(3, 4), scale=torch.linspace(0, 1, 4))
    module = capture(model, args)
    graph, names = str(module.graph), [*module.state_dict()]
    folded = fold_constants(module)
    assert (str(module.graph), [*module.state_dict()]) == (graph, names)
    assert str(check(module, model, args).graph) == str(folded.graph)
    assert sorted(constants(folded).values()) == [(1, 4, 1, 1), (8, 8)]
    assert sum(node.op == "call_function" for node in folded.graph.nodes) == 5


def test_what_would_be_large_is_computed_at_each_call() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.c(x) + m.scale.exp().view(1, 4, 1, 1).expand(600, 4, 16, 16).sum(0) + torch.zeros(2**19).sum()

    model, args = net(forward, image(size=16), c=conv(3, 4), scale=torch.linspace(0, 1, 4))
    folded = check(capture(model, args), model, args)
    assert constants(folded) == {"_constant_0": (1, 4, 1, 1)}


def test_random_numbers_are_no_constants() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.c(x) + torch.rand(4, 1, 1)

    model, args = net(forward, image(), c=conv(3, 4))
    folded = fold_constants(capture(model, args))
    assert not torch.equal(folded(*args), folded(*args))


@pytest.mark.parametrize("pruned", [False, True], ids=["captured", "pruned"])
@pytest.mark.parametrize(("layer", "what"), [(BN(4), "the batch's statistics"), (nn.Dropout(), "drops out")])
def test_training_mode_is_refused(layer: nn.Module, what: str, pruned: bool) -> None:
    model, args = net(lambda m, x: m.layer(m.c(x)).relu(), image(), c=conv(3, 4), layer=layer)
    model.train()
    module = pruned_graph(model, args) if pruned else capture(model, args)
    with pytest.raises(InputError, match=rf"{what}.*only a network in eval mode can be folded"):
        fold_batch_norm(module)
    if pruned:
        module.eval()
        check(module, model.eval(), args)


def test_as_passes() -> None:
    model, args = net(lambda m, x: m.p(x) * m.s.exp(), image(), p=cba(3, 4), s=torch.ones(()))
    manager = PassManager(passes=[FoldBatchNorm(), FoldConstants()])
    module = capture(model, args)
    result = manager(module)
    assert result.modified
    assert str(result.graph_module.graph) == str(fold(module).graph)
    again = manager(result.graph_module)
    assert not again.modified
    assert again.graph_module is result.graph_module
    for each in (FoldBatchNorm(), FoldConstants()):
        with pytest.raises(InputError, match=r"expected a torch\.fx\.GraphModule, not a Net"):
            each(model)  # type: ignore[arg-type]
