"""The model of ONNX Runtime: its kernels are those that run, its fit is exact where the model is, its choice is used.

No test here times anything: the kernels that run are counted, and clocks are made up.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import l1rr_fx
from l1rr_fx.conformance import cases_of
from l1rr_fx.latency import cpu_model
from l1rr_fx.latency.cpu_kernels import BLOCKED_KINDS, KINDS, Convolution, Work, cpu_kernels
from l1rr_fx.latency.cpu_model import CpuModel, Sample
from l1rr_fx.lowering.onnx import timing as measuring
from l1rr_fx.machines import onnxruntime as onnxruntime_machine
from l1rr_fx.machines.by_name import machine
from l1rr_fx.machines.calibration import calibrations, samples
from l1rr_fx.machines.cpu import MeasuredCpu
from l1rr_fx.machines.onnxruntime import OnnxRuntimeCpu
from l1rr_fx.machines.profiling import Model, Timed, _least, timed_kernels
from l1rr_fx.testing import randomised, zeroed
from passes import Machine, Options, Program, capture, channel_facts, normalise, plan_layouts, rewrite, rule_for, sketch

BLOCK = 16
PRICES = MeasuredCpu(1, BLOCK, 2.0, ((1.0, 1e-9), (1e9, 1.0)), ((1.0, 1e-9), (1e9, 1.0)), True, "onnxruntime")
MADE_UP = {kind: (1e-5, 1e-11, 1e-10, 2e-11 * index, 1e-10, 1e-7, 0.0) for index, kind in enumerate(KINDS)}
FAKE = OnnxRuntimeCpu(PRICES, CpuModel(BLOCK, 1e-6, MADE_UP), 1)
OPERATORS = {
    "Conv": "convolution", "FusedConv": "convolution", "ReorderInput": "reorder", "ReorderOutput": "reorder",
    "Concat": "concatenation", "MaxPool": "pool", "GlobalAveragePool": "pool", "QuickGelu": "function", "Add": "add",
    "Mul": "add", "Pad": "pad", "Gather": "gather", "Slice": "slice", "Split": "slice", "Gemm": "matrix",
    "Upsample": "resize", "Resize": "resize", "Relu": "add", "Softmax": "softmax along columns",
}  # fmt: skip


class Mixed(nn.Module):
    """What ONNX Runtime fuses and reorders: a residual sum, a concatenation, a gate, pools, functions, odd widths."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width)
        self.a, self.b = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 3, 1, 1)
        self.depth = nn.Conv2d(width, width, 3, 1, 1, groups=width)
        self.gate, self.last = nn.Conv2d(width, width, 1), nn.Conv2d(2 * width, 48, 1)
        self.head = nn.Linear(48, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(torch.relu(self.norm(self.stem(x))), 3, 2, 1)
        y = torch.relu(x + self.b(nn.functional.silu(self.a(x))))
        gate = torch.sigmoid(self.gate(nn.functional.adaptive_avg_pool2d(y, 1)))
        z = nn.functional.interpolate(torch.cat([self.depth(y) * gate, x], 1), scale_factor=2.0)
        found: Tensor = self.head(torch.softmax(self.last(z), 1).mean((2, 3)))
        return found


@pytest.mark.parametrize("width", (64, 40, 37))
def test_the_kernels_are_those_that_run(width: int, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    model, args = randomised(Mixed(width), dtype=torch.float32).eval(), (torch.rand(1, 3, 32, 32),)
    (ran,) = timed_kernels([measuring.onnx_model(model, args, tmp_path / "a.onnx")], 1, rounds=1)
    expected = Counter(OPERATORS.get(each.operator, each.operator) for each in ran)
    block = onnxruntime_machine.block_size(1)
    found = Counter(_operator(each.kind) for each in cpu_kernels(normalise(capture(model, args)).graph, block))
    del expected["Reshape"]  # moves nothing
    assert found == expected


def _operator(kind: str) -> str:
    convolutions = (
        "blocked",
        "blocked 1x1",
        "from planes",
        "blocked depthwise",
        "planes",
        "planes 1x1",
        "grouped planes",
    )
    return "convolution" if kind in convolutions else kind.removeprefix("blocked ")


def test_a_recurrent_layer_counts_its_products() -> None:
    model = nn.LSTM(8, 6, batch_first=True).eval()
    found = cpu_kernels(normalise(capture(model, (torch.rand(1, 5, 8),))).graph, BLOCK)
    assert sum(each.work.macs for each in found) == 5 * 4 * 6 * (8 + 6)  # steps, gates


@pytest.mark.parametrize(
    ("case", "kind"),
    [
        (Convolution(64, 50, 1, 9, 100, BLOCK), "blocked"),
        (Convolution(62, 64, 1, 9, 100, BLOCK), "planes"),
        (Convolution(62, 64, 1, 1, 100, BLOCK), "planes 1x1"),
        (Convolution(3, 7, 1, 9, 100, BLOCK), "from planes"),
        (Convolution(60, 60, 60, 9, 100, BLOCK), "blocked depthwise"),
        (Convolution(62, 62, 62, 9, 100, BLOCK), "grouped planes"),
        (Convolution(64, 64, 4, 9, 100, BLOCK), "blocked"),
        (Convolution(64, 64, 1, 1, 100, 1), "planes 1x1"),
    ],
)
def test_which_convolutions_run_in_blocks(case: Convolution, kind: str) -> None:
    assert case.kind == kind


def test_channels_of_a_block_are_computed_together() -> None:
    full, odd = (Convolution(64, outputs, 1, 9, 100, BLOCK).work for outputs in (64, 50))
    assert full == odd and Convolution(64, 48, 1, 9, 100, BLOCK).work.macs < full.macs


def test_the_fit_finds_the_prices_that_made_the_samples() -> None:
    works = [Work(1e6 * n, 1e4 * (n % 3 + 1), 1e4 * (n % 5), 1e3 * (n % 2)) for n in range(1, 12)]
    truth = (2e-6, 3e-11, 0.0, 1e-10, 5e-10, 0.0, 0.0)
    model = CpuModel(1, 0.0, {**MADE_UP, "planes": truth})
    made = [Sample(kind, work, model.kernel("planes", work)) for kind in KINDS for work in works]
    found = CpuModel.fitted(1, 0.0, made).coefficients["planes"]
    assert found == pytest.approx(truth, rel=1e-6, abs=1e-16)  # least squares in float64


def test_no_price_is_negative() -> None:
    falling = [Sample("add", Work(stored=n), 1.0 / n) for n in (1.0, 2.0, 3.0)]
    assert min(cpu_model._least_squares(falling)) >= 0


@pytest.mark.parametrize(
    "wrong", [{"add": (1.0,)}, {"add": (-1.0,) * 7}, {"add": (float("nan"),) * 7}, {"add": (float("inf"),) * 7}]
)
def test_a_model_is_checked_where_it_is_made(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="coefficient"):
        CpuModel(BLOCK, 0.0, {**MADE_UP, **wrong})
    assert CpuModel(1, 0.0, {kind: MADE_UP[kind] for kind in KINDS if kind not in BLOCKED_KINDS}).block == 1


PATTERNS = {case.name: case.build for case in cases_of("patterns")}
SMALL = ("c2f_residual", "squeeze_excite", "res_next_block")


@pytest.mark.parametrize("name", SMALL)
def test_a_sketch_has_the_kernels_of_the_written_network(name: str) -> None:
    model, args = PATTERNS[name]()
    program = Program(normalise(capture(zeroed(model, 1 / 3, seed=1), args)), rule_for)
    plan = plan_layouts(program, channel_facts(program), Options(target=FAKE))
    seconds = FAKE.predict_sketch(sketch(plan))
    assert seconds == pytest.approx(FAKE.predict(rewrite(plan).module, args), rel=1e-12)


def test_the_fastest_way_is_written() -> None:
    model, args = PATTERNS["bottleneck"]()
    model = zeroed(model, 0.4, seed=1)
    pruned = l1rr_fx.prune(model, args, target=FAKE)
    first, *others = pruned.report.alternatives
    assert len(others) == 6 and first.seconds == pytest.approx(FAKE.predict(pruned.module, args), rel=1e-12)
    assert first.seconds <= FAKE.predict(model, args)
    assert l1rr_fx.inspect(model, args, target=FAKE).seconds == pytest.approx(FAKE.predict(model, args), rel=1e-12)


def test_the_calibration_has_every_kind() -> None:
    for block in (8, 16):
        known = {kind for each in calibrations(block) for kind, _ in each.known.values()}
        assert known | {"reorder"} == set(KINDS)


def test_kernels_that_onnxruntime_made_are_samples_too() -> None:
    *_, last = calibrations(BLOCK)
    name, (kind, work) = next(iter(last.known.items()))
    kernels = [
        Timed(name, "Gemm", ((1, 8),), ((1, 8),), 3e-6),
        Timed("ReorderInput_token_1", "ReorderInput", ((1, 60, 2, 2),), ((1, 64, 2, 2),), 2e-6),
        Timed("v", "ReduceMax", ((1, 60),), ((),), 1e-6),
    ]
    assert samples(last, kernels) == [Sample(kind, work, 3e-6), Sample("reorder", Work(stored=240), 2e-6)]


def test_of_each_kernel_the_least_time_counts() -> None:
    shapes = {"input_type_shape": [{"float": [2]}], "output_type_shape": [{"float": [2]}], "op_name": "Abs"}
    events = [{"cat": "Node", "name": "a_nchwc_kernel_time", "dur": each, "args": shapes} for each in (9, 5, 7)]
    other = {"cat": "Session", "name": "a_kernel_time", "dur": 1, "args": {}}
    assert [*_least([*events, other], 1e-6)] == [Timed("a", "Abs", ((2,),), ((2,),), pytest.approx(4e-6))]
    assert next(_least(events, 1.0)).seconds > 0


def test_the_machine_is_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    taken = []
    monkeypatch.setattr(onnxruntime_machine, "measure", lambda: taken.append("prices") or PRICES)
    monkeypatch.setattr(onnxruntime_machine, "measured_model", lambda: taken.append("model") or FAKE.model)
    first, second = machine("onnxruntime"), machine("onnxruntime")
    assert taken == ["prices", "model"] and isinstance(second, Machine) and second.name == "onnxruntime"
    assert asdict(first) == asdict(second) == asdict(FAKE)
    (path,) = tmp_path.rglob("*-kernels.json")
    path.write_text(json.dumps({**asdict(FAKE.model), "coefficients": {}}))
    machine("onnxruntime")
    assert taken == ["prices", "model", "model"]


def test_a_measurement_corrects_the_prediction(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnx")
    model, args = randomised(Mixed(8), dtype=torch.float32).eval(), (torch.rand(1, 3, 32, 32),)
    asked = []

    def clock(models: Sequence[Model], threads: int) -> list[float]:
        asked.append((threads, [sorted(each.feeds) for each in models]))
        return [3e-3 for _ in models]

    monkeypatch.setattr(measuring, "timed_runs", clock)
    one, two = measuring.measured([model, model], args, FAKE)
    assert one == two and one.seconds == pytest.approx(3e-3)
    assert one.predicted * one.correction == pytest.approx(one.seconds)
    assert asked == [(1, [["x"], ["x"]])]
