"""The sketch of a layout plan has the kernels of the network that is written from it, without writing it."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from l1rr_fx.conformance import cases_of
from l1rr_fx.latency.kernels import Kernel, canonical_kernels, kernels
from l1rr_fx.latency.prediction import Latency
from l1rr_fx.machines.by_name import machine
from l1rr_fx.testing import randomised, zeroed
from passes import LayoutPlan, Program, capture, channel_facts, normalise, plan_layouts, rewrite, rule_for
from passes.assignment.options import MODES, Options
from passes.assignment.whole import whole_layouts
from passes.rewriting.sketcher import sketch
from tests.machines import MACHINES, RUNS
from tests.zoo import by_name

CHOICES = (*product(MODES, (machine("jetson-tx2"), MACHINES[0])), ("recombine", RUNS))
PATTERNS = {case.name: case for case in cases_of("patterns") if case.name != "branch_on_values"}
NETWORKS = (
    "tv/shufflenet_v2_x1_0",
    "tv/densenet121",
    "tv/mobilenet_v3_large",
    "tv/vit_b_16",
    "tv/swin_t",
    "yolo/yolo11n",
)


def planned(model: nn.Module, args: tuple[Any, ...], options: Options, **shapes: Any) -> LayoutPlan:
    program = Program(normalise(capture(zeroed(model, 1 / 3, seed=1), args, **shapes)), rule_for)
    return plan_layouts(program, channel_facts(program), options)


def alike(kernel: Kernel) -> tuple[Any, ...]:
    """A kernel without the names of its nodes, which each capture makes."""
    return kernel.kind, kernel.elements, kernel.geometry, len(kernel.nodes)


def assert_same_kernels(plan: LayoutPlan, args: tuple[Any, ...]) -> None:
    written = kernels(capture(rewrite(plan).module, args))
    assert [*map(alike, canonical_kernels(sketch(plan).graph))] == [*map(alike, written)]
    latency = Latency("jetson-tx2")
    assert latency.of_plan(plan).ms == latency.of_kernels(written).ms


@pytest.mark.parametrize("index", range(0, len(PATTERNS), 5))
def test_patterns(index: int) -> None:
    mode, target = CHOICES[index // 5 % len(CHOICES)]
    model, args = [*PATTERNS.values()][index].build()
    assert_same_kernels(planned(model, args, Options(mode, None, target)), args)


@pytest.mark.fuzz
@pytest.mark.parametrize("case", PATTERNS)
def test_every_pattern_each_way(case: str) -> None:
    model, args = PATTERNS[case].build()
    for mode, target in CHOICES:
        assert_same_kernels(planned(model, args, Options(mode, None, target)), args)


@pytest.mark.parametrize(
    "name", ["tv/resnet18", "yolo/yolov8n", *(pytest.param(name, marks=pytest.mark.fuzz) for name in NETWORKS)]
)
def test_networks(name: str) -> None:
    model, args, _ = by_name(name).build()
    assert_same_kernels(planned(model, args, Options(target=machine("jetson-tx2"))), args)


class Sized(nn.Module):
    """Its code reads sizes, an input without a value, and an element."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor, scale: float = 2.0) -> Tensor:
        n, _, h, w = x.shape
        y = self.a(x).relu() * scale
        flat = y.view(n, 8, h * w) * x.max().item()
        found: Tensor = self.b(flat.reshape(n, 8, h, w))
        return found


def test_sizes_that_may_change_have_those_of_the_example() -> None:
    args, free = (torch.rand(2, 3, 8, 6, dtype=torch.float64),), torch.export.Dim.AUTO
    plan = planned(randomised(Sized()), args, Options(), dynamic_shapes=({0: free, 2: free, 3: free},))
    assert_same_kernels(plan, args)


def test_the_copies_are_the_recombinations_that_are_calls() -> None:
    model, args, _ = by_name("tv/resnet18").build()
    plan = planned(model, args, Options())
    written = [each for each in rewrite(plan).recombinations if each.kind != "folded"]
    assert sketch(plan).copies == len(written) > 0


@pytest.mark.parametrize("name", ["res_next_block", "shuffle_by_view", "stepped_slices", "flexible_arguments"])
def test_the_network_as_it_is(name: str) -> None:
    """Its sketch has the kernels of the model, and so has the copy that is written."""
    model, args = PATTERNS[name].build()
    model = zeroed(model, 1 / 3, seed=1)
    program = Program(normalise(capture(model, args)), rule_for)
    plan = whole_layouts(program, channel_facts(program))
    expected = [*map(alike, kernels(capture(model, args)))]
    assert [*map(alike, canonical_kernels(sketch(plan).graph))] == expected
    small = rewrite(plan)
    assert [*map(alike, kernels(capture(small.module, args)))] == expected
    torch.testing.assert_close(small.module(*args), model(*args), rtol=1e-12, atol=1e-12)  # the same calls, in float64
