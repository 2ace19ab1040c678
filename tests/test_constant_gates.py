"""Constants times a live gate, and scales without their shifts, on the way to a device: folded, in ONNX, saved."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

import l1rr_fx
from l1rr_fx.lowering import to_onnx
from l1rr_fx.lowering.onnx.runtime import run_onnx
from l1rr_fx.testing import randomised
from passes.rewriting.fold import fold_batch_norm
from tests.test_constants import OTHER, Wrapped, X, exact, halved, unit


class Gated(nn.Module):
    """Squeeze and excitation in front of a convolution, as in EfficientNet; `middle` is between the gate and it."""

    def __init__(self, middle: Callable[[Tensor], Tensor] = lambda x: x, kernel: int = 1) -> None:
        super().__init__()
        self.stem, self.squeeze, self.excite = unit(3, 8, 3, nn.SiLU), nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.middle, self.project, self.head = middle, unit(8, 6, kernel, nn.Identity), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        gate = self.excite(self.squeeze(x.mean((2, 3), keepdim=True)).relu()).sigmoid()
        result: Tensor = self.head(self.project(self.middle(x * gate)))
        return result


def test_a_constant_times_a_live_gate_is_a_product_on_one_place() -> None:
    pruned = exact(halved(randomised(Gated())))
    shapes = {name: tuple(value.shape) for name, value in pruned.module.named_parameters()}
    assert shapes["project.0.weight"] == shapes["project.0.weight_even"] == (3, 4, 1, 1)
    assert shapes["stem.0.weight"][0] == 4
    assert any(each.place == "gate" and each.channels == 4 for each in pruned.report.accounts.constants)
    assert isinstance(pruned.module, GraphModule)
    folded = fold_batch_norm(pruned.module)
    assert not any("batch_norm" in str(node) or node.op == "call_module" for node in folded.graph.nodes)
    with torch.no_grad():
        torch.testing.assert_close(folded(OTHER), pruned.module(OTHER), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("middle", "kernel", "splits"),
    [
        (lambda x: x, 3, False),  # the border would be another value
        (lambda x: x * 2 + 1, 1, True),
        (lambda x: 1 / x, 1, False),  # 1 / 0 in other channels
        (lambda x: F.avg_pool2d(x, 3, 1), 1, False),  # even too, but not element by element
    ],
)
def test_what_is_between_the_gate_and_the_convolution(middle: Any, kernel: int, splits: bool) -> None:
    model = halved(randomised(Gated(middle, kernel)))
    constants = exact(model).report.accounts.constants
    assert any(each.place == "gate" for each in constants) == splits


def test_moments_of_columns_beside_a_gate_are_those_of_the_weight() -> None:
    model = halved(randomised(Gated()))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0)
    model(X).sum().backward()
    optimizer.step()
    pruned = l1rr_fx.prune(model, (X,))
    parameters = dict(pruned.module.named_parameters())
    new = torch.optim.Adam(pruned.module.parameters())
    new.load_state_dict(l1rr_fx.pruned_optimizer_state(pruned, model, optimizer))
    old = optimizer.state[model.get_parameter("project.0.weight")]["exp_avg"]
    for name, columns in (("project.0.weight", slice(1, None, 2)), ("project.0.weight_even", slice(None, None, 2))):
        found = new.state[parameters[name]]["exp_avg"]
        torch.testing.assert_close(found, pruned.kept[name].apply(old), rtol=0, atol=0)
        assert bool(torch.isin(found, old[:, columns]).all())


@pytest.mark.parametrize("target", ["jetson-tx2", "onnxruntime"])
@pytest.mark.parametrize("make", [Gated, lambda: Wrapped(unit(8, 8, 3, nn.SiLU))])
def test_the_file_computes_the_same(make: Callable[[], nn.Module], target: str, tmp_path: Path) -> None:
    model = halved(randomised(make(), dtype=torch.float32))
    image, other = X.float()[:1], OTHER.float()[:1]
    pruned = l1rr_fx.prune(model, (image,), target=target)
    path = tmp_path / "net.onnx"
    to_onnx(pruned.module, (image,), path, target=target)
    with torch.no_grad():
        wanted = model(other)
    torch.testing.assert_close(run_onnx(path.read_bytes(), (other,))[0], wanted, rtol=1e-4, atol=1e-4)  # float32


def test_plans_name_no_weight_that_the_model_has_not() -> None:
    """Costs of a model that has constants already are those of the network that `prune` writes."""
    model = halved(randomised(Gated()))
    plan = l1rr_fx.choose(model, (X,), budget=l1rr_fx.Budget(macs=0.9))
    names = dict(model.named_parameters())
    assert all(site.weight in names and (site.bias is None or site.bias in names) for site in plan.sites)
    plan.zero_(model)
    report = l1rr_fx.prune(model, (X,)).report
    assert report.after.macs / report.before.macs == pytest.approx(plan.reached["macs"])
    dense = l1rr_fx.prune(randomised(Gated()), (X,)).report.before
    assert (report.before.macs, report.before.parameters) == (dense.macs, dense.parameters)
