"""Plans of everything below a threshold, for checkpoints whose scales are small and not zero."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import l1rr_fx
from l1rr_fx import InputError, Plan, threshold

X = torch.randn(2, 3, 9, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
SMALL = {"stem.1": (1, 4, 7), "depthwise.1": (2, 4), "project.1": (0, 5), "behind.1": (3,)}


def block(inputs: int, outputs: int, kernel: int, groups: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(outputs), nn.SiLU())


class Slimmed(nn.Module):
    """What sparse training leaves: a few scales of 1e-4 to 1e-3 with shifts, the others above 0.3. A depthwise layer, a
    sum, and a layer without a batch norm whose rows are small."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.depthwise, self.project = block(3, 8, 3), block(8, 8, 3, 8), block(8, 8, 1)
        self.behind, self.plain, self.head = block(8, 8, 3), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1)
        dice = torch.Generator().manual_seed(1)
        for name, norm in self.named_modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.weight.data.uniform_(0.3, 1.5, generator=dice).mul_(1 - 2 * (torch.arange(8) % 2))
                norm.weight.data[list(SMALL[name])] = torch.empty(len(SMALL[name])).uniform_(1e-4, 1e-3, generator=dice)
                norm.bias.data.normal_(generator=dice)
        self.plain.weight.data.mul_(1e-3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(self.depthwise(self.stem(x)))
        found: Tensor = self.head(self.plain(x + self.behind(x)))
        return found


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Slimmed().double().eval()


def zeroed(plan: Plan) -> dict[str, tuple[int, ...]]:
    return {site.name: site.zeroed for site in plan.sites if site.zeroed}


@pytest.mark.parametrize("shift", ["keep", "zero"])
def test_a_slimmed_checkpoint_is_a_plan_in_one_line(model: nn.Module, shift: Any) -> None:
    before = copy.deepcopy(model.state_dict())
    plan = threshold(model, (X,), below=0.01)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    union = (1, 2, 4, 7)  # a channel of a depthwise layer goes with its input, and its input with it
    assert zeroed(plan) == {**SMALL, "stem.1": union, "depthwise.1": union}
    assert plan.limits == {} and 1e-4 < plan.tau < 1e-3
    assert Plan.from_json(plan.to_json()) == plan
    assert "11 of 40 channels zeroed by scores below 0.01" in str(plan) and "macs: 0." in str(plan)
    assert plan.zero_(model, shift=shift) == 11
    pruned = l1rr_fx.prune(model, (X,))
    torch.testing.assert_close(pruned.module(X + 1), model(X + 1), rtol=1e-10, atol=1e-10)
    assert pruned.module.get_parameter("depthwise.0.weight").shape[0] == 4
    if shift == "zero":
        accounts = pruned.report.accounts
        assert plan.reached["macs"] == accounts.after.macs / accounts.before.macs


def test_without_an_example_each_batch_norm_is_its_own(model: nn.Module) -> None:
    plan = threshold(model, below=0.01)
    assert zeroed(plan) == SMALL and not plan.reached and not plan.inputs
    assert Plan.from_json(plan.to_json()) == plan and "scores below" in str(plan)
    plan.zero_(model)
    pruned = l1rr_fx.prune(model, (X,))
    torch.testing.assert_close(pruned.module(X), model(X), rtol=1e-10, atol=1e-10)


def test_a_layer_keeps_its_largest_channel_and_the_plan_says_so(model: nn.Module) -> None:
    with torch.no_grad():
        model.get_parameter("behind.1.weight").mul_(1e-3)
    plan = threshold(model, (X,), below=0.01)
    (behind,) = [site for site in plan.sites if site.name == "behind.1"]
    largest = int(model.get_parameter("behind.1.weight").abs().argmax())
    assert sorted({*range(8)} - {*behind.zeroed}) == [largest]
    assert "the largest stays" in str(behind.blocked) and "the largest stays" in str(plan)
    everything = threshold(model, (X,), below=100)
    assert all(len(site.zeroed) < site.channels for site in everything.sites)
    everything.zero_(model)
    assert l1rr_fx.prune(model, (X,)).report.accounts.after.macs > 0


def test_what_is_left_alone_has_its_reason(model: nn.Module) -> None:
    reasons = {site.name: site.blocked for site in threshold(model, (X,), below=0.01).sites}
    assert reasons["plain"] == "no batch norm: only if named in sites=" and reasons["head"] == "network output"
    named = threshold(model, (X,), below=0.1, sites=["plain", "depthwise.1"])
    assert {*zeroed(named)} == {"plain"} and len(zeroed(named)["plain"]) == 5
    assert {site.name: site.blocked for site in named.sites}["depthwise.1"] == (
        "one with stem.1: not among the sites given"
    )


def test_rows_are_compared_where_there_is_no_batch_norm() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)).eval()
    model[0].weight.data[[1, 3]] *= 1e-6
    assert zeroed(threshold(model, (torch.rand(2, 4),), below=1e-3)) == {"0": (1, 3)}


def test_a_score_of_your_own_is_compared(model: nn.Module) -> None:
    def rank(model: nn.Module, site: Any) -> Tensor:
        return torch.arange(site.channels)

    assert {*zeroed(threshold(model, (X,), below=2, scores=rank)).values()} == {(0, 1)}
    norms = model.get_parameter("behind.0.weight").detach().flatten(1).norm(dim=1)
    cut = float(norms.sort().values[2])
    found = zeroed(threshold(model, (X,), below=cut, scores="weight-norm", sites=["behind.1"]))
    assert found == {"behind.1": tuple(sorted(norms.argsort()[:2].tolist()))}


def test_nothing_below_is_logged_with_the_smallest(model: nn.Module, caplog: pytest.LogCaptureFixture) -> None:
    plan = threshold(model, below=1e-9)
    assert not plan.zeroed and not plan.zeroing and plan.tau == 0
    assert "no channel has a score below 1e-09; the smallest is 0.000" in caplog.text


def test_wrong_arguments_are_refused(model: nn.Module) -> None:
    calls: dict[str, Callable[[Any], Any]] = {
        "below is 0; expected a finite number above 0": lambda wrong: threshold(wrong, below=0),
        "below is -1; expected": lambda wrong: threshold(wrong, below=-1),
        "below is True; expected": lambda wrong: threshold(wrong, below=True),
        "below is nan; expected": lambda wrong: threshold(wrong, below=float("nan")),
        "below is '30 %'; expected": lambda wrong: threshold(wrong, below="30 %"),  # type: ignore[arg-type]
        "sites: 'nothing' is not a site": lambda wrong: threshold(wrong, below=1, sites=["nothing"]),
        "scores is 'gamma'; expected one of": lambda wrong: threshold(wrong, below=1, scores="gamma"),
        "model is a dict": lambda wrong: threshold({}, below=1),  # type: ignore[arg-type]
    }
    for message, call in calls.items():
        with pytest.raises(InputError, match=message):
            call(model)
    with torch.no_grad():
        model.get_parameter("behind.1.weight")[0] = float("nan")
    with pytest.raises(InputError, match="1 of them not finite"):
        threshold(model, below=0.01)
