"""The zoo: pruned equals zeroed, at the limit, for real networks. `-m zoo` runs all of it; by default, a chosen few."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

import l1rr_fx
from l1rr_fx.pruning.partition.pieces import CROSSES
from l1rr_fx.testing import numerical_limit
from passes.rules.base import GROUPS
from tests.oracle import (
    Case,
    calibrate,
    counted_macs,
    fresh_input,
    is_alive,
    prepare,
    relative_error,
    zero_channels,
    zeroed_case,
)
from tests.torchvision_shim import nms
from tests.zoo import ZOO, Entry, by_name

# Sums in another order: the zoo's deepest networks reach 1e-12 in float64, and 1e-10 is the contract.
TOLERANCE = 1e-10
LIMIT = 1.01
EXPLAINED = (GROUPS, CROSSES)  # see docs/design.md
SLOWEST = 60.0
RATIOS = (0.3, 0.5, 0.7, 0.9)

CHOSEN = (
    "tv/resnet18",
    "tv/resnet50",
    "tv/mobilenet_v3_small",
    "tv/densenet121",
    "tv/googlenet",
    "tv/shufflenet_v2_x1_0",
    "tv/efficientnet_b0",
    "tv/regnet_y_400mf",
    "tv/convnext_tiny",
    "tv/swin_t",
    "yolo/yolov5n",
    "yolo/yolov8n",
    "yolo/yolo11n",
    "yolo/yolov10n",
    "body/retinanet_resnet50_fpn",
    "pkg/facenet-pytorch/mtcnn",
)


def check(entry: Entry, ratio: float) -> None:
    case = zeroed_case(entry, ratio)
    assert is_alive(case), f"{entry.name} at {ratio}: zeroing killed the network, so it would prove nothing"
    pruned = l1rr_fx.prune(case.model, case.args, case.kwargs, verify=False)
    args = fresh_input(case.args, seed=7)
    with torch.no_grad():
        error = relative_error(pruned.module(*args, **case.kwargs), case(args))
    report = pruned.report
    assert error <= TOLERANCE, f"{entry.name} at {ratio}: relative error {error:.1e}\n{report}"
    if entry.convolutional:
        macs = counted_macs(pruned.module, case)
        explained = sum(kept.macs for kept in report.accounts.kept if kept.reason in EXPLAINED)
        assert macs - explained <= LIMIT * report.limit.macs, f"{entry.name} at {ratio}\n{report}"
    assert sum(report.accounts.seconds.values()) < SLOWEST


@pytest.mark.parametrize(("name", "ratio"), [(name, RATIOS[i % len(RATIOS)]) for i, name in enumerate(CHOSEN)])
def test_pruned_equals_zeroed_at_the_limit(name: str, ratio: float) -> None:
    check(by_name(name), ratio)


@pytest.mark.zoo
@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("entry", ZOO, ids=lambda entry: entry.name)
def test_whole_zoo(entry: Entry, ratio: float) -> None:
    check(entry, ratio)


# --- the judge itself ------------------------------------------------------------------------------------------------


class Toy(nn.Module):
    """Conv 3 -> 8, batch norm, ReLU, conv 8 -> 4."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.head(self.norm(self.conv(images)).relu())
        return out


def toy_case(ratio: float) -> tuple[Toy, Case]:
    toy = Toy().eval()
    case = prepare(Case(toy, (torch.randn(1, 3, 6, 6),), {}), seed=0)
    zero_channels(case, ratio, seed=0)
    calibrate(case)
    return toy, case


def test_zeroing_spares_the_output_layer_and_nothing_else() -> None:
    toy, case = toy_case(0.5)
    assert int(((toy.norm.weight == 0) & (toy.norm.bias == 0)).sum()) == 4
    assert bool(toy.head.weight.all())
    assert is_alive(case)


def test_numerical_limit_counts_live_inputs_times_live_outputs() -> None:
    case = toy_case(0.5)[1]
    limit = numerical_limit(case.model, case.args)
    assert limit.dense == 36 * (9 * 3 * 8 + 8 * 4)
    assert limit.macs == 36 * (9 * 3 * 4 + 4 * 4)


def test_numerical_limit_of_depthwise_and_transposed_layers() -> None:
    point, depth = nn.Conv2d(2, 6, 1), nn.Conv2d(6, 6, 3, padding=1, groups=6)
    model = nn.Sequential(point, depth, nn.ConvTranspose2d(6, 4, 2, 2)).eval()
    case = prepare(Case(model, (torch.randn(1, 2, 4, 4),), {}), seed=0)
    dead = torch.tensor([1, 4])
    for weight, bias in ((point.weight, point.bias), (depth.weight, depth.bias)):
        assert bias is not None
        weight.data[dead], bias.data[dead] = 0, 0
    limit = numerical_limit(case.model, case.args)
    assert limit.dense == 16 * (2 * 6 + 9 * 6 + 4 * 6 * 4)
    assert limit.macs == 16 * (2 * 4 + 9 * 4 + 4 * 4 * 4)


def test_a_network_without_signal_is_not_alive() -> None:
    toy, case = toy_case(0.5)
    toy.norm.weight.data.zero_()
    assert not is_alive(case)


@pytest.mark.parametrize(
    ("actual", "expected", "error"),
    [
        (torch.tensor([1.0, 4.0]), torch.tensor([1.0, 2.0]), 1.0),
        ({"a": [torch.ones(2)]}, {"a": [torch.ones(2)]}, 0.0),
        (torch.ones(2), torch.ones(3), math.inf),
        (torch.tensor([math.nan]), torch.tensor([1.0]), math.inf),
        (torch.tensor([1, 2]), torch.tensor([1, 3]), math.inf),
        ([torch.ones(1)], [torch.ones(1), torch.ones(1)], math.inf),
        (torch.empty(0, 4), torch.empty(0, 4), 0.0),
    ],
)
def test_relative_error(actual: object, expected: object, error: float) -> None:
    assert relative_error(actual, expected) == error


def test_shim_nms_keeps_the_better_of_two_overlapping_boxes() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [1, 1, 11, 11], [20, 20, 30, 30], [0, 0, 10, 5]])
    assert nms(boxes, torch.tensor([0.5, 0.9, 0.7, 0.4]), 0.5).tolist() == [1, 2, 3]
    assert nms(boxes, torch.tensor([0.5, 0.9, 0.7, 0.4]), 0.1).tolist() == [1, 2]
    assert nms(torch.empty(0, 4), torch.empty(0), 0.5).tolist() == []
