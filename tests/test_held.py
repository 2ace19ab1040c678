"""Copies that need not be: orders of concatenations and what is computed anyway go on to readers that take them."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import l1rr_fx
from l1rr_fx.testing import kill, randomised
from passes.assignment.cost_model import ByteCount, Target
from passes.audit.comparison import relative_deviation
from passes.rewriting.fold import fold_batch_norm
from tests.machines import RUNS

TOLERANCE = 1e-10  # float64: what is left is the reassociation of sums
X = torch.randn(1, 3, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def shuffled(x: Tensor) -> Tensor:
    """A channel shuffle in two groups."""
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class Shuffle(nn.Module):
    """A shuffled concatenation, read by a convolution and added to a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)
        self.branch, self.head = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = shuffled(torch.cat([self.a(x), self.b(x)], 1))
        return self.head(y + self.branch(y).relu())


class Units(nn.Module):
    """Units as in ShuffleNetV2: half of the channels pass, the others go through a branch, all are shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1)
        self.branches = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(3))
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = shuffled(torch.cat([self.a(x), self.b(x)], 1))
        for branch in self.branches:
            passed, other = y.chunk(2, 1)
            y = shuffled(torch.cat([passed, branch(other).relu()], 1))
        return self.head(y)


class Dense(nn.Module):
    """Layers that read all features before them, each other channels of them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(16, 4, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(n) for n in (8, 12, 16))
        self.layers = nn.ModuleList(nn.Conv2d(n, 4, 3, padding=1) for n in (8, 12))

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, layer in zip(self.norms, self.layers, strict=False):
            features.append(layer(norm(torch.cat(features, 1)).relu()))
        return self.head(self.norms[2](torch.cat(features, 1)).relu())


class Grouped(nn.Module):
    """A grouped convolution with groups of unequal width, batch norm, and squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grouped, self.norm = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=2), nn.BatchNorm2d(8)
        self.down, self.up, self.head = nn.Conv2d(8, 3, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.grouped(self.stem(x))).relu()
        gate = self.up(self.down(F.adaptive_avg_pool2d(x, 1)).relu()).sigmoid()
        return self.head(x * gate)


def zeroed(model: nn.Module, dead: dict[str, tuple[int, ...]]) -> nn.Module:
    model = randomised(model)
    for name, rows in dead.items():
        kill(model.get_submodule(name), rows=rows)
    return model


NOTHING: dict[str, tuple[int, ...]] = {}
CASES = {
    "shuffle": (Shuffle, NOTHING, ByteCount()),
    "shuffle, dead channels": (Shuffle, {"a": (1, 4), "b": (0, 2, 5)}, RUNS),
    "units": (Units, NOTHING, ByteCount()),
    "units, dead channels": (Units, {"a": (1, 4), "b": (0, 2, 5), "branches.0": (3, 5), "branches.1": (0,)}, RUNS),
    "dense": (Dense, {"norms.0": (0, 3, 6), "norms.1": (1, 2, 6, 9), "norms.2": (2, 5, 8, 12, 14)}, RUNS),
    "grouped": (Grouped, {"norm": (1, 5, 6), "grouped": (1, 5, 6), "up": (0, 4, 7)}, RUNS),
}


@pytest.mark.parametrize("name", CASES)
def test_nothing_is_gathered(name: str) -> None:
    make, dead, target = CASES[name]
    model = zeroed(make(), dead)
    small = copies_checked(model, target)
    called = Counter(str(node.target) for node in small.graph.nodes)
    assert not called["aten.index_select.default"] + called["aten.index.Tensor"], small.code
    recombinations = l1rr_fx.prune(model, (X,), target=target, verify=False).report.accounts.recombinations
    assert {each.kind for each in recombinations} <= {"folded", "padded", "slice"}  # a slice copies nothing


def copies_checked(model: nn.Module, target: Target) -> torch.fx.GraphModule:
    """The small network, which computes what the zeroed one does."""
    small = l1rr_fx.prune(model, (X,), target=target, verify=False).module
    assert isinstance(small, torch.fx.GraphModule)
    with torch.no_grad():
        assert relative_deviation(model(X), small(X)) <= TOLERANCE
    return small


def test_a_batch_norm_behind_unequal_groups_folds() -> None:
    """The groups' fillers go through the batch norm; without a target they are gathered away, and it still folds."""
    model = zeroed(Grouped(), {"norm": (1, 5, 6), "grouped": (1, 5, 6)})
    for target in (RUNS, ByteCount()):
        folded = fold_batch_norm(copies_checked(model, target))
        assert not [node for node in folded.graph.nodes if node.op == "call_module"]
        with torch.no_grad():
            assert relative_deviation(model(X), folded(X)) <= TOLERANCE


def test_without_a_target_no_multiplication_is_added() -> None:
    """The fillers would be multiplied by columns of zeros: they are gathered away instead."""
    model = zeroed(Grouped(), {"norm": (1, 5, 6), "grouped": (1, 5, 6)})
    small = copies_checked(model, ByteCount())
    assert small.get_parameter("head.weight").shape[1] == 5


def test_a_gate_that_lacks_channels_is_padded() -> None:
    """Of a sigmoid's operand only some channels live; the others are 1/2. Zeros are appended."""
    model = zeroed(Grouped(), {"up": (0, 4, 7)})
    model.grouped.groups = 8
    model.grouped.weight = nn.Parameter(model.grouped.weight[:, :1].clone())
    small = copies_checked(model, ByteCount())
    called = Counter(str(node.target) for node in small.graph.nodes)
    assert called["aten.constant_pad_nd.default"] == 1
    assert not called["aten.index_select.default"]
