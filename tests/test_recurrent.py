"""Recurrent layers: pruned equals zeroed, units that stay at zero go in every gate, and the costs are all there."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import l1rr_fx
from l1rr_fx.latency.prediction import FITTED
from l1rr_fx.lowering import Latency, to_onnx
from l1rr_fx.pruning.pruned import Pruned
from l1rr_fx.testing import Call, assert_rule_is_sound, kill, randomised
from passes import Program, capture, channel_facts, normalise, plan_layouts, rewrite, rule_for

aten = torch.ops.aten
TOLERANCE = 1e-10  # float64: what is left is the reassociation of sums
SOURCES = {"LSTM": (4, 2), "GRU": (3, 2), "RNN_TANH": (1, 0), "RNN_RELU": (1, 0)}
"""By the mode of a module: its gates, and the one that makes a unit zero where it is."""


class Net(nn.Module):
    """A linear layer, a recurrent layer, a linear layer on its outputs and one on each of its last states."""

    def __init__(self, layer: nn.RNNBase, *, given: bool = False, read: Sequence[int] = (0, 1, 2)) -> None:
        super().__init__()
        outputs = layer.proj_size or layer.hidden_size
        self.stem, self.layer = nn.Linear(5, layer.input_size), layer
        self.head = nn.Linear(outputs * (2 if layer.bidirectional else 1), 3)
        self.ends = nn.ModuleList([nn.Linear(outputs, 2), nn.Linear(layer.hidden_size, 2)])
        self.given, self.read = given, read

    def forward(self, x: Tensor, *states: Tensor) -> list[Tensor]:
        start = (states if isinstance(self.layer, nn.LSTM) else states[0]) if self.given else None
        y, last = self.layer(torch.relu(self.stem(x)), start)
        last = last if isinstance(last, tuple) else (last,)
        found = [self.head(y), *(end(state) for end, state in zip(self.ends, last, strict=False))]
        return [found[i] for i in self.read if i < len(found)]


def silence(layer: nn.RNNBase, units: Sequence[int], suffix: str) -> None:
    """Make units zero at every step by their source gate alone."""
    gates, source = SOURCES[layer.mode]
    rows = torch.tensor(units, dtype=torch.int64) + source * layer.hidden_size
    assert layer.weight_ih_l0.shape[0] == gates * layer.hidden_size
    with torch.no_grad():
        for name, parameter in layer.named_parameters():
            if name.endswith(f"_{suffix}") and "_hr_" not in name:
                parameter[rows] = 0


def suffixes(layer: nn.RNNBase) -> list[str]:
    """What the names of the weights of each layer and direction end in."""
    return [f"l{i}{end}" for i in range(layer.num_layers) for end in ("", "_reverse")[: 1 + layer.bidirectional]]


def drawn(seed: int) -> tuple[Net, tuple[Tensor, ...]]:
    """A random recurrent network with dead inputs, silent units and unread outputs, and its inputs."""
    chance = random.Random(seed)
    kind: Any = chance.choice((nn.LSTM, nn.GRU, nn.RNN))
    options: dict[str, Any] = {"proj_size": chance.choice((0, 0, 3))} if kind is nn.LSTM else {}
    options |= {"nonlinearity": chance.choice(("tanh", "relu"))} if kind is nn.RNN else {}
    layers, both = chance.choice((1, 1, 2, 3)), chance.random() < 0.4
    layer = kind(
        8, 6, layers, bias=chance.random() < 0.7, batch_first=chance.random() < 0.5, bidirectional=both, **options
    )
    given, read = chance.random() < 0.4, sorted(chance.sample(range(3), chance.choice((1, 2, 3))))
    torch.manual_seed(seed)
    model = randomised(Net(layer, given=given, read=read if read != [2] else [0])).eval()
    kill(model.stem, rows=chance.sample(range(8), 3))
    with torch.no_grad():
        for suffix in suffixes(layer):
            silence(layer, chance.sample(range(6), chance.choice((0, 1, 3))), suffix)
        unread = chance.sample(range(model.head.in_features), 2)
        for head in (model.head, *model.ends):
            head.weight[:, [u for u in unread if u < head.in_features]] = 0
        for parameter in layer.parameters():  # few connections, so that units live and die through others
            if parameter.dim() == 2 and chance.random() < 0.5:
                parameter *= torch.rand(parameter.shape) < 0.3
    return model, inputs(model, 4, 2)


def inputs(model: Net, steps: int, batch: int) -> tuple[Tensor, ...]:
    """Random inputs of that size; first states of which some units are zero."""
    layer, double = model.layer, torch.float64
    x = torch.randn(*((batch, steps) if layer.batch_first else (steps, batch)), 5, dtype=double)
    if not model.given:
        return (x,)
    count = layer.num_layers * (2 if layer.bidirectional else 1)
    widths = (layer.proj_size or layer.hidden_size, layer.hidden_size)[: 2 if isinstance(layer, nn.LSTM) else 1]
    return (x, *(torch.randn(count, batch, width, dtype=double) for width in widths))


def deviation(pruned: Pruned, model: nn.Module, args: tuple[Any, ...]) -> float:
    """The largest difference of an output, relative to the largest value."""
    with torch.no_grad():
        pairs = zip(pruned.module(*args), model(*args), strict=True)
        return max(float((a - b).abs().max() / (1e-30 + b.abs().max())) for a, b in pairs)


@pytest.mark.parametrize("seed", range(8))
def test_random_recurrent_networks_stay_exact(seed: int) -> None:
    model, args = drawn(seed)
    free = seed % 4 == 0 and not model.given  # the batch: torch.export fixes the number of steps
    axis = 0 if model.layer.batch_first else 1
    pruned = l1rr_fx.prune(model, args, dynamic_shapes=({axis: Dim.AUTO},) if free else None)
    assert deviation(pruned, model, args) <= TOLERANCE
    assert deviation(pruned, model, inputs(model, 4, 3 if free else 2)) <= TOLERANCE
    assert pruned.report.after.macs < pruned.report.before.macs


@pytest.mark.fuzz
@pytest.mark.parametrize("seed", range(8, 500))
def test_more_random_recurrent_networks_stay_exact(seed: int) -> None:
    test_random_recurrent_networks_stay_exact(seed)


@pytest.mark.parametrize("seed", range(4))
def test_recurrent_networks_stay_exact_for_a_machine(seed: int) -> None:
    model, args = drawn(seed)
    pruned = l1rr_fx.prune(model, args, target="jetson-tx2")
    assert deviation(pruned, model, args) <= TOLERANCE


LAYERS: tuple[tuple[Any, dict[str, Any]], ...] = (
    (nn.LSTM, {}),
    (nn.LSTM, {"proj_size": 3}),
    (nn.GRU, {}),
    (nn.RNN, {}),
    (nn.RNN, {"nonlinearity": "relu"}),
)
NAMES = ("lstm", "lstm with projection", "gru", "rnn", "rnn with relu")


def calls(kind: Any, options: dict[str, Any]) -> Iterator[Call]:
    """Calls of the operator of a layer: one direction and both, batch first or not, with biases or without."""
    for number in (0, 3):
        both, batch_first, bias = number > 1, number % 2 == 1, number == 3
        layer = kind(5, 4, bidirectional=both, batch_first=batch_first, bias=bias, **options).double()
        states = [torch.randn(1 + both, 3 if batch_first else 2, n) for n in (layer.proj_size or 4, 4)]
        weights = [nn.Parameter(weight.detach()) for weight in layer._flat_weights]
        state = states if kind is nn.LSTM else states[0]
        yield Call((torch.randn(3, 2, 5), state, weights, bias, 1, 0.0, False, both, batch_first))


@pytest.mark.parametrize(("kind", "options"), LAYERS, ids=NAMES)
def test_the_rule_is_sound(kind: Any, options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    name = {"LSTM": "lstm", "GRU": "gru", "RNN": f"rnn_{options.get('nonlinearity', 'tanh')}"}[kind.__name__]
    assert_rule_is_sound(getattr(aten, name).input, calls(kind, options), rounds=1)


@pytest.mark.parametrize(("kind", "options"), LAYERS, ids=NAMES)
def test_a_unit_whose_source_gate_is_zero_goes_in_every_gate(kind: Any, options: dict[str, Any]) -> None:
    model = randomised(Net(kind(8, 6, 2, **options)))
    silence(model.layer, (1, 4), "l0")
    silence(model.layer, (0,), "l1")
    kill(model.stem, rows=(2, 3, 5))
    args = inputs(model, 4, 2)
    pruned = l1rr_fx.prune(model, args)
    gates, projection = SOURCES[model.layer.mode][0], options.get("proj_size")
    state = pruned.module.state_dict()
    assert state["layer.weight_ih_l0"].shape == (4 * gates, 5)
    assert state["layer.weight_hh_l0"].shape == (4 * gates, projection or 4)
    assert state["layer.weight_ih_l1"].shape == (5 * gates, projection or 4)
    assert state["layer.bias_hh_l1"].shape == (5 * gates,)
    assert pruned.report.macs_over_limit == 1.0
    assert deviation(pruned, model, inputs(model, 4, 2)) <= TOLERANCE


ALMOST = {
    "a bias of the source gate": lambda layer: layer.bias_hh_l0[13].fill_(0.5),
    "a live input": lambda layer: layer.weight_ih_l0[13, 0].fill_(0.5),
    "a live unit": lambda layer: layer.weight_hh_l0[13, 0].fill_(0.5),
}


@pytest.mark.parametrize("change", ALMOST.values(), ids=ALMOST)
def test_a_unit_that_something_wakes_stays(change: Any) -> None:
    """Rows 12 to 17 are the source gate of an LSTM with six units; row 13 is that of unit 1."""
    model = randomised(Net(nn.LSTM(8, 6)))
    silence(model.layer, (1, 4), "l0")
    with torch.no_grad():
        change(model.layer)
    args = inputs(model, 4, 2)
    pruned = l1rr_fx.prune(model, args)
    assert pruned.module.state_dict()["layer.weight_ih_l0"].shape == (20, 8)
    assert deviation(pruned, model, args) <= TOLERANCE


def test_units_that_wake_each_other_only_go_together() -> None:
    model = randomised(Net(nn.GRU(8, 6)))
    silence(model.layer, (1, 4), "l0")
    with torch.no_grad():
        model.layer.weight_hh_l0[12 + 1, 4] = model.layer.weight_hh_l0[12 + 4, 1] = 0.5
    args = inputs(model, 4, 2)
    assert l1rr_fx.prune(model, args).module.state_dict()["layer.weight_ih_l0"].shape == (12, 8)


def test_a_state_that_is_given_keeps_its_units() -> None:
    """A unit whose source gate is zero decays from the state that it starts with."""
    model = randomised(Net(nn.LSTM(8, 6), given=True))
    silence(model.layer, (1, 4), "l0")
    args = inputs(model, 4, 2)
    pruned = l1rr_fx.prune(model, args)
    assert pruned.module.state_dict()["layer.weight_ih_l0"].shape == (24, 8)
    assert deviation(pruned, model, args) <= TOLERANCE


@pytest.mark.parametrize("dead", (0, 1))
@pytest.mark.parametrize(("kind", "options"), LAYERS, ids=NAMES)
def test_a_direction_that_nobody_reads_goes(kind: Any, options: dict[str, Any], dead: int) -> None:
    model = randomised(Net(kind(8, 6, bidirectional=True, **options), read=(0,)))
    half = model.head.in_features // 2
    with torch.no_grad():
        model.head.weight[:, dead * half : (dead + 1) * half] = 0
    args = inputs(model, 4, 2)
    pruned = l1rr_fx.prune(model, args)
    assert pruned.report.macs_over_limit == 1.0
    assert deviation(pruned, model, inputs(model, 4, 2)) <= TOLERANCE


class Loop(nn.Module):
    """A cell run step by step."""

    def __init__(self, cell: Any) -> None:
        super().__init__()
        self.stem, self.cell, self.head = nn.Linear(5, 8), cell, nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in self.stem(x).unbind(0):
            state = self.cell(step, state)
        assert state is not None
        return self.head(state[0] if isinstance(state, tuple) else state)


CELLS = (nn.LSTMCell(8, 6), nn.GRUCell(8, 6), nn.RNNCell(8, 6), nn.RNNCell(8, 6, bias=False, nonlinearity="relu"))


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_the_units_of_a_cell_go(cell: Any) -> None:
    model = randomised(Loop(cell))
    gates = cell.weight_ih.shape[0] // 6
    source = {4: 2, 3: 2, 1: 0}[gates]
    kill(model.stem, rows=(0, 6))
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter[source * 6 + torch.tensor([1, 4])] = 0
    x = torch.randn(4, 2, 5, dtype=torch.float64)
    pruned = l1rr_fx.prune(model, (x,))
    assert pruned.module.state_dict()["cell.weight_hh"].shape == (4 * gates, 4)
    assert pruned.module.state_dict()["cell.weight_ih"].shape == (4 * gates, 6)
    with torch.no_grad():
        assert float((pruned.module(x) - model(x)).abs().max()) <= TOLERANCE
    assert pruned.report.before.macs == 8 * 8 * 5 + 4 * 2 * gates * 6 * (8 + 6) + 2 * 6 * 3


@pytest.mark.parametrize("target", ("onnxruntime", "jetson-tx2"))
@pytest.mark.parametrize(("kind", "options"), LAYERS, ids=NAMES)
def test_a_layer_is_one_onnx_node(kind: Any, options: dict[str, Any], target: str, tmp_path: Path) -> None:
    """Two layers in both directions, from states that are given or not; ONNX has no projection, it is written out."""
    given = target == "onnxruntime"
    layer = kind(8, 6, 2, bidirectional=True, batch_first=not given, bias=given, **options)
    model = randomised(Net(layer, given=given)).float()
    args = tuple(value.float() for value in inputs(model, 4, 2))
    emitted = to_onnx(model, args, tmp_path / "net.onnx", target=target)  # compared in ONNX Runtime
    assert emitted.deviation is not None and emitted.deviation < 1e-5
    assert emitted.operators.get(kind.__name__) == (None if options.get("proj_size") else 2)
    assert emitted.operators.get("Tanh", 0) > 0 or not options.get("proj_size")


def test_each_step_of_a_layer_is_predicted() -> None:
    """40 steps of two products, and the linear layer behind them; TensorRT launches the gates once a step."""
    model = nn.Sequential(Outputs(nn.LSTM(64, 64)), nn.Linear(64, 30)).eval()
    prediction = Latency("jetson-tx2").of(model, (torch.randn(40, 1, 64),))
    kinds = Counter(row.kernel.kind for row in prediction.rows)
    assert kinds == {"matrix": 81, "pointwise": 40}
    assert sum(row.kernel.macs for row in prediction.rows) == 40 * (4 * 64 * 128 + 64 * 30)
    assert prediction.ms > 81 * FITTED.launch * 1e-3


def test_each_step_of_a_loop_is_predicted() -> None:
    """A cell written out: the first step has no state to multiply, and TensorRT launches four more kernels a step."""
    prediction = Latency("jetson-tx2").of(Loop(nn.LSTMCell(8, 6)).eval(), (torch.randn(40, 1, 5),))
    kinds = Counter(row.kernel.kind for row in prediction.rows)
    assert kinds["matrix"] == 40 + 39 + 2
    assert kinds["pointwise"] >= 4 * 39


@pytest.mark.parametrize("seed", range(4))
def test_a_plan_predicts_what_its_network_takes(seed: int) -> None:
    model, args = drawn(seed)
    program = Program(normalise(capture(model, args)), rule_for)
    plan = plan_layouts(program, channel_facts(program))
    latency = Latency("jetson-tx2")
    assert latency.of_plan(plan).ms == pytest.approx(latency.of(rewrite(plan).module, args).ms, rel=1e-12)


def test_dropout_between_layers_can_be_switched_on() -> None:
    model = randomised(Net(nn.GRU(8, 6, 2, dropout=0.5), read=(0,))).eval()
    (x,) = args = inputs(model, 4, 2)
    pruned = l1rr_fx.prune(model, args).module
    assert torch.equal(pruned(x)[0], pruned(x)[0])
    pruned.train()
    assert not torch.equal(pruned(x)[0], pruned(x)[0])


def test_the_costs_of_a_recurrent_layer_count() -> None:
    """20 steps of Linear(8, 8), GRU(8, 64), Linear(64, 2): 1,280 + 276,480 + 2,560; four dead channels of the first."""
    model = randomised(nn.Sequential(nn.Linear(8, 8), Outputs(nn.GRU(8, 64)), nn.Linear(64, 2)))
    kill(model[0], rows=(0, 2, 5, 7))
    report = l1rr_fx.prune(model, (torch.randn(20, 1, 8, dtype=torch.float64),)).report
    assert (report.before.macs, report.after.macs) == (280_320, 280_320 - 640 - 20 * 4 * 3 * 64)
    assert report.after.macs == report.limit.macs


class Outputs(nn.Module):
    """What a recurrent layer returns first."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Any:
        return self.layer(x)[0]
