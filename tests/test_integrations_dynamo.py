"""torch.compile with our backend: it prunes what Dynamo captured, for the weights that the call has.

The next backend runs graphs as they are; with inductor it runs in `tests/test_integrations_docs.py`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, symbolic_trace
from torch.utils import _pytree as pytree

from l1rr_fx.integrations import dynamo
from l1rr_fx.integrations.dynamo import backend, refresh
from l1rr_fx.support import packages
from passes.errors import InputError
from tests.oracle import zeroed_case
from tests.torchvision_shim import import_torchvision
from tests.zoo import by_name

X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A residual sum of branches that are dead in different channels; a dictionary with a size as its result."""

    def __init__(self, *, broken: bool = False) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.b = nn.Conv2d(16, 16, 3, padding=1)
        self.c = nn.Conv2d(16, 4, 1)
        self.broken = broken
        self.scale = 0.5

    def forward(self, x: Tensor) -> dict[str, Any]:
        h = self.norm(self.a(x)).relu() * self.scale
        if self.broken:
            torch._dynamo.graph_break()
        h = h + self.b(h).relu_()
        return {"out": self.c(h).flatten(1), "height": x.shape[2]}


def zeroed(**options: Any) -> Net:
    torch.manual_seed(0)
    net = Net(**options).eval()
    with torch.no_grad():
        for module, dead in ((net.norm, slice(0, 16, 2)), (net.b, slice(0, 4))):
            for parameter in module.parameters():
                parameter[dead] = 0
    return net


class Next:
    """The next backend: it runs a graph as it is, and remembers how many weights each had."""

    def __init__(self) -> None:
        self.weights: list[int] = []

    def __call__(self, module: GraphModule, inputs: list[Any]) -> Callable[..., Any]:
        held = sum(parameter.numel() for parameter in module.parameters())
        given = (value for value in inputs if isinstance(value, nn.Parameter))
        self.weights.append(held + sum(value.numel() for value in given))
        return module.forward  # type: ignore[no-any-return]  # a Module's attributes are anything


DENSE, SMALL = 2852, 1168


@pytest.fixture
def then() -> Iterator[Next]:
    torch._dynamo.reset()
    yield Next()
    torch._dynamo.reset()


def compiled(model: nn.Module, then: Next, **options: Any) -> Any:
    return torch.compile(model, backend=backend, options={"then": then}, **options)


def agree(fast: Any, model: nn.Module, x: Tensor) -> None:
    found, wanted = fast(x), model(x)
    torch.testing.assert_close(found["out"], wanted["out"], rtol=1e-5, atol=1e-6)
    assert found["height"] == wanted["height"] == x.shape[2]


def test_the_package_registers_the_backend() -> None:
    (found,) = entry_points(group="torch_dynamo_backends", name="l1rr_fx")
    assert found.load() is backend


@torch.no_grad()
def test_the_next_backend_gets_the_small_graph(then: Next) -> None:
    net = zeroed()
    agree(compiled(net, then), net, X)
    assert sum(parameter.numel() for parameter in net.parameters()) == DENSE
    assert then.weights == [SMALL]


@torch.no_grad()
def test_nothing_zeroed_is_nothing_changed(then: Next) -> None:
    net = Net().eval()
    agree(compiled(net, then), net, X)
    assert then.weights == [DENSE]


@torch.no_grad()
@pytest.mark.parametrize("dynamic", [None, True])
def test_other_sizes(then: Next, dynamic: bool | None) -> None:
    """With dynamic=True Dynamo makes inputs of sizes, and of the epsilons of batch norms too."""
    net = zeroed()
    fast = compiled(net, then, dynamic=dynamic)
    for shape in ((2, 3, 8, 8), (3, 3, 8, 8), (4, 3, 12, 10), (5, 3, 14, 9)):
        agree(fast, net, torch.rand(shape))
    assert set(then.weights) == {SMALL} and len(then.weights) <= 3


@torch.no_grad()
def test_a_float_of_the_model_that_changes(then: Next) -> None:
    net = zeroed()
    fast = compiled(net, then, dynamic=True)
    agree(fast, net, X)
    net.scale = 0.75
    agree(fast, net, X)


@torch.no_grad()
def test_weights_that_change_are_noticed(then: Next) -> None:
    net = zeroed()
    fast = compiled(net, then)
    agree(fast, net, X)
    net.norm.weight.fill_(0.3)  # in place
    agree(fast, net, X)
    net.b.weight = nn.Parameter(torch.rand_like(net.b.weight))  # another parameter in its place
    agree(fast, net, X)
    agree(fast, net, X)
    assert then.weights[0] == SMALL < then.weights[1] < then.weights[2] == DENSE and len(then.weights) == 3
    net.load_state_dict(zeroed().state_dict())
    agree(fast, net, X)
    assert then.weights[-1] == SMALL


@torch.no_grad()
def test_weights_that_are_moved_are_noticed(then: Next) -> None:
    """`Module.to` and loaders give a parameter other memory, which is no write."""
    net = zeroed()
    fast = compiled(net, then)
    agree(fast, net, X)
    version = net.norm.weight._version
    net.norm.weight.data = torch.full((16,), 0.3)
    assert net.norm.weight._version == version
    agree(fast, net, X)
    assert then.weights[0] == SMALL < then.weights[1]


@torch.no_grad()
def test_what_is_written_through_data_waits_for_refresh(then: Next) -> None:
    net = zeroed()
    fast = compiled(net, then)
    before = fast(X)["out"]
    net.norm.weight.data.fill_(0.9)
    assert torch.equal(fast(X)["out"], before)
    refresh()
    agree(fast, net, X)


@torch.no_grad()
def test_one_code_with_the_weights_of_several_modules(then: Next) -> None:
    """Dynamo compiles the code of a block once; each block brings its own zeros."""
    first, second = zeroed(), Net().eval()
    for net in (first, second):
        net.compile(backend=backend, options={"then": then})
    for _ in range(2):
        agree(first, zeroed(), X)
        torch.testing.assert_close(second(X)["out"], second.forward(X)["out"])
    assert sorted(then.weights) == [SMALL, DENSE]


@torch.no_grad()
def test_weights_that_change_at_every_call_end_the_pruning(
    then: Next, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(dynamo, "MOST_VERSIONS", 3)
    net = zeroed()
    fast = compiled(net, then)
    for _ in range(6):
        net.a.weight.mul_(0.9)
        agree(fast, net, X)
    assert then.weights == [SMALL, SMALL, SMALL, DENSE]


@torch.no_grad()
def test_each_piece_of_a_broken_graph_is_pruned(then: Next) -> None:
    net = zeroed(broken=True)
    agree(compiled(net, then), net, X)
    a, norm = 8 * 27, 16  # what crosses to the second piece is whole again, so `b` keeps its columns
    b, c = 12 * 16 * 9 + 12, 4 * 16 + 4
    assert then.weights == [a + norm, b + c]


def test_gradients_are_those_of_the_model(then: Next, caplog: pytest.LogCaptureFixture) -> None:
    net = zeroed()
    fast = compiled(net, then)
    fast(X)["out"].square().sum().backward()
    found = {name: parameter.grad for name, parameter in net.named_parameters()}
    net.zero_grad()
    net(X)["out"].square().sum().backward()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)
    assert "gradients are recorded here" in caplog.text and then.weights == [DENSE]
    with torch.no_grad():
        agree(fast, net, X)
    assert then.weights == [DENSE, SMALL]


def test_frozen_weights_need_no_other_mode(then: Next) -> None:
    net = zeroed().requires_grad_(False)
    agree(compiled(net, then), net, X)
    assert then.weights == [SMALL]


@torch.inference_mode()
def test_inference_mode(then: Next) -> None:
    net = zeroed()  # its tensors are those of inference: torch does not count their changes
    agree(compiled(net, then), net, X.clone())
    assert then.weights == [SMALL]


@torch.no_grad()
def test_training_mode_is_left_as_it_is(then: Next, caplog: pytest.LogCaptureFixture) -> None:
    net = zeroed().train()
    alike = copy.deepcopy(net)
    agree(compiled(net, then), alike, X)
    torch.testing.assert_close(net.norm.running_mean, alike.norm.running_mean)
    assert int(net.norm.num_batches_tracked) == 1 and then.weights == [DENSE]
    assert "writes into an input or a buffer" in caplog.text


@torch.no_grad()
def test_running_statistics_by_the_function(then: Next, caplog: pytest.LogCaptureFixture) -> None:
    net = zeroed()

    def update(x: Tensor) -> Tensor:
        norm = net.norm
        return nn.functional.batch_norm(net.a(x), norm.running_mean, norm.running_var, training=True)

    alike = copy.deepcopy(net.norm)
    alike.train()(net.a(X))
    torch.compile(update, backend=backend, options={"then": then})(X)
    torch.testing.assert_close(net.norm.running_mean, alike.running_mean)
    assert "updates its running statistics" in caplog.text


@torch.no_grad()
def test_autocast_around_the_call(then: Next) -> None:
    net = zeroed()
    with torch.autocast("cpu", torch.bfloat16):
        found, wanted = compiled(net, then)(X)["out"], net(X)["out"]
    assert found.dtype == wanted.dtype == torch.bfloat16 and then.weights == [SMALL]
    torch.testing.assert_close(found, wanted, rtol=5e-2, atol=5e-2)


@torch.no_grad()
def test_autocast_inside_is_left_as_it_is(then: Next, caplog: pytest.LogCaptureFixture) -> None:
    net = zeroed()

    def half(x: Tensor) -> Any:
        with torch.autocast("cpu", torch.bfloat16):
            return net(x)["out"]

    found = torch.compile(half, backend=backend, options={"then": then})(X)
    assert torch.equal(found, half(X)) and "switches autocast on" in caplog.text


@torch.no_grad()
def test_weights_as_attributes(then: Next) -> None:
    """Under Inductor's freezing they are attributes of the graph, not inputs."""
    net = zeroed()
    with torch._inductor.config.patch(freezing=True):
        fast = compiled(net, then)
        agree(fast, net, X)
        net.norm.weight.fill_(0.3)
        agree(fast, net, X)
    assert then.weights[0] == SMALL < then.weights[1]


@torch.no_grad()
def test_a_network_of_torchvision(then: Next) -> None:
    case = zeroed_case(by_name("tv/shufflenet_v2_x0_5"), 0.5)
    model, args = case.model.float().eval(), tuple(each.float() for each in case.args)
    agree_in_all(compiled(model, then)(*args), model(*args))
    assert sum(then.weights) < 0.5 * sum(parameter.numel() for parameter in model.parameters())


@torch.no_grad()
def test_a_detector_of_ultralytics(then: Next) -> None:
    """Its head breaks the graph where it keeps its anchors; all parts together lose their zeroed weights."""
    model = small_detector()
    x = torch.rand(1, 3, 64, 64)
    agree_in_all(compiled(model, then)(x), copy.deepcopy(model)(x))
    assert len(then.weights) > 1 and sum(then.weights) < 0.5 * sum(each.numel() for each in model.parameters())


def small_detector() -> nn.Module:
    import_torchvision()
    from ultralytics.nn.tasks import DetectionModel

    layers = [[-1, 1, "Conv", [32, 3, 2]], [-1, 1, "Conv", [32, 3, 2]], [-1, 1, "C2f", [32, True]]]
    layers.append([-1, 1, "Conv", [64, 3, 2]])
    torch.manual_seed(0)
    model = DetectionModel({"nc": 2, "backbone": layers, "head": [[[2, 3], 1, "Detect", ["nc"]]]}, verbose=False).eval()
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.weight[::2] = norm.bias[::2] = 0
    return model  # type: ignore[no-any-return]  # Ultralytics has no types


def agree_in_all(found: Any, wanted: Any) -> None:
    for ours, theirs in zip(pytree.tree_leaves(found), pytree.tree_leaves(wanted), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-5 * float(theirs.abs().max()))


@pytest.mark.parametrize(
    "options", [{"then": "magic"}, {"mode": "magic"}, {"target": "magic"}, {"channel_multiple": 0}]
)
def test_options_that_make_no_sense(options: dict[str, Any]) -> None:
    graph = symbolic_trace(nn.Linear(3, 3))
    with pytest.raises(InputError, match="magic|channel_multiple"):
        backend(graph, [torch.rand(3)], options=options)


@pytest.mark.parametrize("name", dynamo.TENSORRT)
def test_a_next_backend_whose_package_is_missing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    def missing(package: str) -> str:
        raise packages.metadata.PackageNotFoundError(package)

    monkeypatch.setattr(packages.metadata, "version", missing)
    with pytest.raises(InputError, match=r"torch-tensorrt 2\.11 or newer, which is not installed"):
        backend(symbolic_trace(nn.Linear(3, 3)), [X], options={"then": name})


def test_a_graph_that_dynamo_did_not_make(caplog: pytest.LogCaptureFixture) -> None:
    linear = nn.Linear(3, 3).requires_grad_(False)
    run = backend(symbolic_trace(linear), [X[0, 0, :3]], options={"then": "eager"})
    assert torch.equal(run(X[0, :1, 0, :3]), linear(X[0, :1, 0, :3])) and "not made by torch.compile" in caplog.text


@torch.no_grad()
def test_options_reach_us_and_the_next_backend() -> None:
    torch._dynamo.reset()
    seen: dict[str, Any] = {}
    net = zeroed()

    def then(module: GraphModule, inputs: list[Any], *, options: dict[str, Any]) -> Callable[..., Any]:
        seen.update(options, width=max(len(parameter) for parameter in module.parameters()))
        return module.forward  # type: ignore[no-any-return]

    given = {"then": then, "mode": "union", "precision": "half"}
    agree(torch.compile(net, backend=backend, options=given), net, X)
    assert seen == {"precision": "half", "width": 14}


def test_another_tensor_at_the_same_address_is_another_weight() -> None:
    weight = torch.rand(3)
    version = dynamo._Version(lambda: None, False, [weight], ())
    assert version.serves([weight], ()) and not version.serves([weight.data], ())


def test_a_model_that_is_gone_is_not_held(then: Next) -> None:
    import gc
    import weakref

    net = zeroed()
    fast = compiled(net, then)
    with torch.no_grad():
        fast(X)
    weight = weakref.ref(net.a.weight)
    del net, fast
    torch._dynamo.reset()
    gc.collect()
    assert weight() is None
