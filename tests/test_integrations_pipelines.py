"""The compiler as a pass of Inductor, of Torch-TensorRT and of torch.fx, and what an integration says without its
package."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo import lookup_backend
from torch._inductor import config
from torch.fx import GraphModule
from torch.fx.passes.infra.pass_manager import PassManager

from l1rr_fx.integrations import inductor, torch_tensorrt
from l1rr_fx.support import packages
from passes import (
    FoldBatchNorm,
    FoldConstants,
    Functionalise,
    InputError,
    Normalise,
    RemoveZeroChannels,
    RestoreModes,
    capture,
    functionalise,
    remove_zero_channels,
)
from tests.installed import is_installed
from tests.oracle import relative_error

X = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.b = nn.ConvTranspose2d(16, 12, 2, stride=2, groups=2)
        self.c = nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Any:
        h = self.norm(self.a(x)).relu()
        return {"scores": self.c(self.b(h).mean((2, 3))), "features": [h]}


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    net = Net().eval().requires_grad_(False)
    with torch.no_grad():
        for channel in (0, 3, 4, 9, 10, 13):
            net.norm.weight[channel] = net.norm.bias[channel] = 0
        net.c.weight[:, :4] = 0  # nobody reads the first four channels of `b`
    return net


def parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# torch.fx


def test_every_pass_in_one_manager(net: Net) -> None:
    exported = torch.export.export(net, (X,), strict=False).module(check_guards=False)
    before = parameters(exported)
    steps = [Functionalise(), Normalise(), RemoveZeroChannels(), RestoreModes(), FoldBatchNorm(), FoldConstants()]
    result = PassManager(passes=steps)(exported)
    assert result.modified and parameters(result.graph_module) < before
    with torch.no_grad():
        assert relative_error(result.graph_module(X), net(X)) < 1e-6


# Inductor


@pytest.fixture
def run_pass() -> Iterator[Callable[[nn.Module], Any]]:
    """torch.compile with Inductor's pass, and then the tracing that Inductor does next: no C++ is compiled."""
    torch._dynamo.reset()

    def backend(module: GraphModule, inputs: list[Any]) -> Any:
        inductor.PruneZeroChannels()(module.graph)
        backend.left.append(parameters(module))  # type: ignore[attr-defined]
        return lookup_backend("aot_eager")(module, inputs)

    backend.left = []  # type: ignore[attr-defined]

    def compiled(model: nn.Module) -> Any:
        return torch.compile(model, backend=backend), backend.left  # type: ignore[attr-defined]

    yield compiled
    torch._dynamo.reset()


@torch.no_grad()
def test_inductors_pass_prunes_a_frozen_graph(net: Net, run_pass: Callable[[nn.Module], Any]) -> None:
    with config.patch(inductor.settings()):
        fast, left = run_pass(net)
        for image in (X, torch.rand(3, 3, 6, 8)):
            assert relative_error(fast(image), net(image)) < 1e-6
    assert left == [parameters(remove_zero_channels(capture(net, (X,))).module)] * 2 and left[0] < parameters(net)


@torch.no_grad()
def test_without_freezing_it_says_why_not(
    net: Net, run_pass: Callable[[nn.Module], Any], caplog: pytest.LogCaptureFixture
) -> None:
    with config.patch(inductor.settings() | {"freezing": False}):
        fast, _ = run_pass(net)
        assert relative_error(fast(X), net(X)) < 1e-6
    assert "config.freezing and torch.no_grad() are needed" in caplog.text


@torch.no_grad()
def test_passes_that_run_late_say_why_not(
    net: Net, run_pass: Callable[[nn.Module], Any], caplog: pytest.LogCaptureFixture
) -> None:
    with config.patch(inductor.settings() | {inductor.TIMING: "late"}):
        fast, _ = run_pass(net)
        assert relative_error(fast(X), net(X)) < 1e-6
    assert 'pre_grad_pass_timing = "early"' in caplog.text


@pytest.fixture(scope="module")
def elsewhere() -> dict[str, Any]:
    """What another process finds: the uuid, and which packages of others importing all of ours has loaded."""
    code = (
        "import json, sys, l1rr_fx.integrations.ultralytics, l1rr_fx.integrations.torch_tensorrt\n"
        "from l1rr_fx.integrations import dynamo, inductor, masks\n"
        "loaded = [name for name in ('ultralytics', 'torch_tensorrt', 'torchvision') if name in sys.modules]\n"
        "print(json.dumps({'uuid': inductor.PruneZeroChannels().uuid().hex(), 'loaded': loaded}))"
    )
    found = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True)
    return json.loads(found.stdout)


def test_the_uuid_is_that_of_the_options_and_of_the_code(elsewhere: dict[str, Any]) -> None:
    here = inductor.PruneZeroChannels()
    assert here.uuid().hex() == elsewhere["uuid"]
    assert here.uuid() != inductor.PruneZeroChannels(mode="union").uuid()


# Torch-TensorRT


def decomposed(model: nn.Module, args: tuple[Any, ...]) -> GraphModule:
    """What Torch-TensorRT's passes get: core ATen, weights as attributes."""
    module = torch.export.export(model, args, strict=False).run_decompositions().module()
    assert isinstance(module, GraphModule)
    return module


def operators(module: GraphModule) -> set[str]:
    return {str(node.target) for node in module.graph.nodes if node.op == "call_function"}


def test_decomposed_graphs_lose_as_much_as_captured_ones(net: Net) -> None:
    whole = remove_zero_channels(capture(net, (X,))).module
    small = remove_zero_channels(functionalise(decomposed(net, (X,)))).module
    assert parameters(small) == parameters(whole)
    assert relative_error(small(X), net(X)) < 1e-6


def test_torch_tensorrts_pass_gives_core_aten_back(net: Net) -> None:
    module = decomposed(net, (X,))
    before = operators(module) | {"aten.native_batch_norm.default", "aten.empty.memory_format"}
    small = torch_tensorrt.pruning_pass()(module, SimpleNamespace())
    assert {node.op for node in small.graph.nodes} <= {"placeholder", "get_attr", "call_function", "output"}
    assert operators(small) - before <= {"aten.index_select.default", "aten.constant_pad_nd.default", "aten.mm.default",
                                         "aten.add.Tensor", "aten.slice.Tensor", "aten.cat.default"}  # fmt: skip
    assert parameters(small) < parameters(net)
    assert relative_error(small(X), net(X)) < 1e-6


def test_a_graph_that_cannot_be_pruned_comes_back(net: Net, caplog: pytest.LogCaptureFixture) -> None:
    with torch.no_grad():
        net.norm.weight.zero_()
        net.norm.bias.zero_()
    same = torch_tensorrt.pruning_pass()(decomposed(net, (X,)))
    assert relative_error(same(X), net(X)) < 1e-6 and "not pruned" in caplog.text


def test_the_pass_is_registered_and_taken_out_again(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = [len]
    module = SimpleNamespace(ATEN_POST_LOWERING_PASSES=SimpleNamespace(passes=theirs))
    monkeypatch.setattr(torch_tensorrt, "required", lambda *given, **named: module)
    with torch_tensorrt.lowering_pass(mode="union"):
        assert len(theirs) == 2 and theirs[1] is len
    assert theirs == [len]
    del module.ATEN_POST_LOWERING_PASSES
    with pytest.raises(InputError, match="keeps no ATEN_POST_LOWERING_PASSES"), torch_tensorrt.lowering_pass():
        pass


@pytest.mark.skipif(not is_installed("torch-tensorrt"), reason="torch-tensorrt needs an NVIDIA GPU; never run so far")
def test_torch_tensorrt_itself(net: Net) -> None:
    trt = packages.required("torch-tensorrt", torch_tensorrt.OLDEST)
    with torch_tensorrt.lowering_pass():
        engine = trt.compile(net.cuda(), ir="dynamo", arg_inputs=(X.cuda(),))
    assert relative_error(engine(X.cuda()), net(X.cuda())) < 1e-3


# Missing packages


def test_importing_the_integrations_loads_no_package_of_others(elsewhere: dict[str, Any]) -> None:
    assert elsewhere["loaded"] == []


def test_a_package_that_is_missing_is_named_with_its_version() -> None:
    if is_installed("torch-tensorrt"):
        pytest.skip("torch-tensorrt is installed")
    with pytest.raises(
        InputError, match=r"torch-tensorrt 2\.11 or newer, which is not installed; install it with: pip"
    ):
        with torch_tensorrt.lowering_pass():
            pass


@pytest.mark.parametrize(
    "version, wanted", [("8.2.103", "this needs ultralytics 8.3.0 or newer; 8.2.103 is installed"), ("8.10.0", None)]
)
def test_a_package_that_is_too_old(monkeypatch: pytest.MonkeyPatch, version: str, wanted: str | None) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: version)
    if wanted is None:
        assert packages.required("ultralytics", "8.3.0", module="json").dumps(1) == "1"
        return
    with pytest.raises(InputError, match=wanted):
        packages.required("ultralytics", "8.3.0", note="AGPL-3.0")


def test_a_package_that_does_not_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "9.0")
    with pytest.raises(InputError, match=r"no_such_package 1\.0 or newer, which cannot be imported \(No module named"):
        packages.required("no_such_package", "1.0")
