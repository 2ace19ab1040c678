"""What TensorRT 8.2 refuses or misreads is written otherwise; the file computes what torch does on other values too."""

from __future__ import annotations

import math
from collections import namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import l1rr_fx
from l1rr_fx.lowering import LoweringError, to_onnx
from l1rr_fx.lowering.onnx.runtime import run_onnx
from l1rr_fx.lowering.onnx.writer import Writer
from l1rr_fx.lowering.onnx_target import target_named
from tests.trt82_parser import assert_accepted, judged
from tests.zoo import by_name

TARGETS = ("jetson-tx2", "onnxruntime")


class Function(nn.Module):
    """A function as a network, with a weight for those that read one."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.linspace(-1, 2, 40 * 7).view(7, 40).sin())

    def forward(self, *args: Tensor) -> Any:
        return self.function(self.weight, *args)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    """Numbers from a normal distribution."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


ROWS = (drawn(3, 40),), (4 * drawn(3, 40, seed=1),)
COUNTS = (torch.arange(12).reshape(3, 4),), (torch.tensor([[7, -7, 0, 7], [-9, 3, -9, 3], [-1, -1, -1, -1]]),)
PAIRS = (*COUNTS[0], COUNTS[0][0] + 1), (*COUNTS[1], torch.tensor([[2, 2, -5, -2], [4, -2, -3, 1], [9, -9, 1, -1]]))
SMALL = (drawn(3, 4),), (drawn(3, 4, seed=1),)
LARGE = (120 * drawn(3, 40),), (-500 * drawn(3, 40, seed=1),)
TRUTHS = (drawn(3, 4).round(),), (0.4 * drawn(3, 4, seed=1).round(),)
CUBES = (drawn(5, 3, 4),), (drawn(5, 3, 4, seed=1),)


@dataclass(frozen=True)
class Case:
    """A function of a weight (7, 40) and some inputs; the operators of its file for the TX2, where they matter."""

    function: Callable[..., Any]
    inputs: tuple[tuple[Tensor, ...], tuple[Tensor, ...]]
    operators: dict[str, int] | None = None


def einsum(equation: str, *shapes: tuple[int, ...], operators: dict[str, int] | None = None) -> Case:
    examples, others = (tuple(drawn(*shape, seed=seed + i) for i, shape in enumerate(shapes)) for seed in (0, 50))
    return Case(lambda w, *args: torch.einsum(equation, *args), (examples, others), operators)


CASES: dict[str, Case] = {
    # misread
    "the smallest": Case(
        lambda w, x: (*x.topk(5, largest=False), x.topk(2, dim=0, largest=False)[1]), ROWS, {"TopK": 2, "Neg": 3}
    ),
    "ascending": Case(lambda w, x: (*x.sort(1), x.argsort(1), torch.msort(x)), ROWS, {"TopK": 3, "Neg": 5}),
    "ascending, stable": Case(lambda w, x: x.round().sort(stable=True, dim=1), SMALL,
        {"Round": 1, "TopK": 1, "Neg": 2}),
    "descending": Case(lambda w, x: x.sort(1, descending=True), ROWS, {"TopK": 1}),
    "integers in order": Case(
        lambda w, i: (i.sort(1)[0], i.topk(2)[0], i.int().topk(2, largest=False)[0], i.sort(0, descending=True)[0]),
        COUNTS, {"TopK": 4, "Neg": 4, "Cast": 9},
    ),
    "k-th": Case(
        lambda w, x: (*x.kthvalue(3), *x.kthvalue(2, 0, keepdim=True), x[:, :1].kthvalue(1)[0], x[0, 0].sort()[0]), ROWS
    ),
    "celu": Case(lambda w, x: (F.celu(x, 0.7), F.celu(x)), ROWS, {"Elu": 2, "Mul": 2}),
    "integers padded by a number": Case(
        lambda w, i: (F.pad(i + 0, (1, 2), value=5), F.pad(i + 0, (2, 0, 1, 1), value=-3), F.pad(i + 0, (1, 1))), COUNTS
    ),
    "booleans padded": Case(lambda w, x: (F.pad(x > 0, (1, 2), value=True), F.pad(x > 0, (1, 2))), SMALL),
    "logs of sums of exponentials": Case(
        lambda w, x: (torch.logsumexp(x, 1), torch.logsumexp(x, (0, 1), keepdim=True), F.log_softmax(x, 0)), LARGE
    ),
    "logs of sums of nothing but -inf": Case(
        lambda w, x: torch.logsumexp(x.masked_fill(x < 0, -math.inf), 1), (SMALL[0], (-SMALL[1][0].abs(),)),
    ),
    # refused
    "linear without a bias": Case(lambda w, x: F.linear(x, w), ROWS, {"MatMul": 1}),
    "linear": Case(lambda w, x: F.linear(x, w, w[:, 0]), ROWS, {"Gemm": 1}),
    "linear to one": Case(lambda w, x: F.linear(x, w[:1], w[0, :1]), ROWS, {"Gemm": 1}),
    "linear of one": Case(lambda w, x: (F.linear(x[:, :1], w[:, :1]), F.linear(x[:, :1], w[:, :1], w[:, 0])), ROWS),
    "linear, a bias of one element": Case(lambda w, x: F.linear(x, w, w[0, :1]), ROWS, {"MatMul": 1, "Add": 1}),
    "linear, a computed bias": Case(lambda w, x: F.linear(x, w, x[0, :7]), ROWS),
    "integers divided by a number": Case(lambda w, i: (i // 3, i % 3, i // -4, i % -4), COUNTS),
    "integers divided by constants": Case(
        lambda w, i: (i // torch.tensor([3, -2, 1, -7]), i % torch.tensor([3, -2, 1, -7]), i % torch.tensor([5])),
        COUNTS,
    ),
    "integers divided by integers": Case(
        lambda w, i, j: (i // j, i % j, i.fmod(j), torch.div(i, j, rounding_mode="trunc")), PAIRS
    ),
    "along an axis": Case(lambda w, x: torch.take_along_dim(x, x.topk(3)[1], 1), ROWS),
    "signs of integers": Case(lambda w, i: (i.sign(), i.int().sign(), i.trunc(), i.floor(), i.round()), COUNTS),
    "booleans compared": Case(
        lambda w, x: ((x > 0) ^ (x > 1), (x > 0) == (x > 1), (x > 0) != (x > 1), (x > 0).logical_xor(x < 1)), SMALL
    ),
    "places of integers": Case(
        lambda w, i: (i.argmax(1), i.argmin(0, keepdim=True), i.argmax(), *i.max(1), *i.min(0, keepdim=True)), COUNTS
    ),
    "powers of integers": Case(lambda w, i: (i**3, i**5, i.int() ** 7, torch.tensor(2) ** i.clamp(min=0)), COUNTS),
    "relu of integers": Case(lambda w, i: F.relu(i), COUNTS, {"Max": 1}),
    "numbers as truth": Case(lambda w, x: (x.bool(), x.bool().float(), x.any(1), x.all(0), x.logical_not()), TRUTHS),
    "booleans in order": Case(lambda w, x: (*(x > 0).sort(dim=1, stable=True), *(x > 0).max(1)), TRUTHS),
    "an axis before the last four": Case(
        lambda w, x: (*x.topk(2, 0), *x.max(0), x.topk(1, 0, largest=False)[1], x.argmin(0, True), x.long().argmax(0)),
        ((drawn(4, 3, 2, 1, 2),), (drawn(4, 3, 2, 1, 2, seed=1),)),
    ),
    "a vector by a batch": Case(
        lambda w, x: (x[0, 0] @ x.mT, x @ x[0, 0], x[0, 0] @ x[0].T, x[0, 0] @ x[0, 0]), CUBES
    ),
    "one number reduced": Case(
        lambda w, x: (x[0, 0].sum(), x[0, 0].amax(), x[0, 0].mean(), x[0, 0].logsumexp(0), (x[0, 0] > 0).any()), SMALL
    ),
    "layers along one axis": Case(
        lambda w, x: (
            F.conv1d(x, w[:, :9].view(7, 3, 3), w[:, 9], 2, 1),
            F.conv1d(x[0], w[:3, :3].view(3, 1, 3), padding=2, dilation=2, groups=3),
            F.conv_transpose1d(x, w[:3, :9].view(3, 3, 3), w[:3, 9], 2, 1), F.max_pool1d(x, 3, 2, 1, ceil_mode=True),
            F.avg_pool1d(x, 2), F.adaptive_avg_pool1d(x, 1), F.adaptive_max_pool1d(x[0], 1),
        ),
        CUBES,
        {"Conv": 2, "ConvTranspose": 1, "MaxPool": 1, "AveragePool": 1, "GlobalAveragePool": 1, "GlobalMaxPool": 1,
         "Slice": 2, "Reshape": 6},
    ),
    "transposed convolutions that are longer at the end": Case(
        lambda w, x: (
            F.conv_transpose1d(x, w[:3, :9].view(3, 3, 3), w[:3, 9], 2, 1, 1),
            F.conv_transpose1d(x, w[:3, :9].view(3, 3, 3), w[:3, 9], 3, 1, 2),
            F.conv_transpose2d(x[None], w[:5, :8].view(5, 2, 2, 2), w[:2, 0], 2, 0, 1),
            F.conv_transpose3d(x[None, None], w[:1, :27].view(1, 1, 3, 3, 3), w[:1, 0], (2, 2, 1), 1, (1, 1, 0)),
            F.conv_transpose3d(x[None, None], w[:1, :27].view(1, 1, 3, 3, 3), w[:1, 0], 2, (1, 0, 0), (1, 0, 1)),
        ), CUBES,
    ),
    "convolutions with a computed bias": Case(
        lambda w, x: (
            F.conv1d(x, w[:, :9].view(7, 3, 3), x[0, 0, :1].repeat(7)),
            F.conv2d(x, w[:3, :5].view(3, 5, 1, 1), x[0, :, 0]),
            F.conv_transpose1d(x, w[:3, :9].view(3, 3, 3), x[0, :, 0], 2, 1, 1),
        ), CUBES,
    ),
    "empty parts": Case(
        lambda w, x: (torch.cat([x, torch.zeros(0, 4)]), torch.cat([x, x[:, :0], x], 1), x.repeat(2, 1)), SMALL
    ),
    "einsum, capitals": einsum("...IJ,...JK->...IK", (2, 3, 4), (2, 4, 5), operators={"Einsum": 1}),
    "einsum of three": einsum("ij,jk,kl->il", (2, 3), (3, 4), (4, 5), operators={"Einsum": 2}),
    "einsum of four, implicit": einsum("Bj,ja,k,kc", (2, 3), (3, 4), (5,), (5, 2), operators={"Einsum": 3}),
    "einsum, a diagonal": einsum("ii,ij->ij", (3, 3), (3, 4)),
    "einsum, diagonals": einsum("ijiji->ji", (3, 2, 3, 2, 3)),
    "einsum, a trace": einsum("ii", (4, 4)),
    "einsum, a transposition": einsum("Zab->bZa", (2, 3, 4), operators={"Einsum": 1}),
    "einsum that broadcasts": einsum("aij,ajk->aik", (1, 3, 4), (5, 4, 2)),
    "einsum, dots that broadcast": einsum("...ij,...j->...i", (2, 1, 3, 4), (5, 4)),
    "einsum, all summed": einsum("ij->", (3, 4)),
    "einsum, all ones": einsum("ij,jk->ik", (1, 1), (1, 1)),
    "einsum, a number": einsum(",ij->j", (), (3, 4)),
    "einsum, an outer product": einsum("i,j->ji", (3,), (4,), operators={"Einsum": 1}),
}  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", CASES)
def test_other_values_than_the_examples(name: str, target: str, tmp_path: Path) -> None:
    case = CASES[name]
    model = Function(case.function).eval()
    emitted = to_onnx(model, case.inputs[0], tmp_path / "model.onnx", target=target)
    content = emitted.path.read_bytes()
    for args in case.inputs:
        with torch.no_grad():
            wanted = model(*args)
        for ours, theirs in zip(
            run_onnx(content, args), [wanted] if isinstance(wanted, Tensor) else wanted, strict=True
        ):
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5, check_dtype=False, equal_nan=True)
    if target == "jetson-tx2":
        assert [str(each) for each in judged(emitted.path)] == []
        assert case.operators is None or emitted.operators == case.operators  # no more nodes than needed


HALF: dict[str, Callable[..., Any]] = {
    "padded by a number": lambda w, x: F.pad(x, (1, 2), value=1.0),
    "bounds": lambda w, x: (x.clamp(-1, 1), F.relu6(x), x.clamp(min=0.5), x.clamp(max=0.5), F.normalize(x)),
    "groups": lambda w, x: (F.group_norm(x[None], 5), F.instance_norm(x)),
    "orders": lambda w, x: (x.sort(1)[0], x.logsumexp(1), F.log_softmax(20 * x, 1), (2 * x).long().sort(1)[0]),
}


@pytest.mark.parametrize("name", HALF)
def test_constants_of_half_precision(name: str, tmp_path: Path) -> None:
    model = Function(HALF[name]).eval()
    emitted = to_onnx(model, CUBES[0], tmp_path / "model.onnx", precision="fp16", verify=False)
    assert_accepted(emitted.path)
    for ours, theirs in zip(
        run_onnx(emitted.path.read_bytes(), CUBES[1]), pytree.tree_leaves(model(*CUBES[1])), strict=True
    ):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-2, atol=1e-2)


# Limits


def test_more_than_the_target_sorts_is_refused(tmp_path: Path) -> None:
    path, args = tmp_path / "model.onnx", (drawn(1, 5000),)
    for order in (lambda w, x: x.sort(1), lambda w, x: x.argsort(1), lambda w, x: x.topk(3841, 1)[0]):
        with pytest.raises(
            LoweringError, match=r"the first \d+ of 5000 .* expected at most 3840 .* take fewer with topk"
        ):
            to_onnx(Function(order).eval(), args, path)
    assert_accepted(to_onnx(Function(lambda w, x: x.topk(3840, 1)[0]).eval(), args, path, verify=False).path)


AXES: dict[str, Callable[..., Any]] = {
    "a value": lambda w, x: x.view(1, 2, 1, 2, 1, 2, 1, 2, 1) * 2,
    "a constant": lambda w, x: x.view(2, 2, 2, 2) * w[:1, :1].view(1, 1, 1, 1, 1, 1, 1, 1, 1),
    "an inner value": lambda w, x: x.view(1, 2, 1, 2, 1, 2, 1, 2).repeat_interleave(2, 0),
}


@pytest.mark.parametrize("name", AXES)
def test_more_than_eight_axes_are_refused(name: str, tmp_path: Path) -> None:
    model = Function(AXES[name]).eval()
    with pytest.raises(
        LoweringError, match=r"a tensor of 9 axes, sizes \[.*\]; expected at most 8 on jetson-tx2.*\n  node "
    ):
        to_onnx(model, (drawn(16),), tmp_path / "model.onnx")
    to_onnx(model, (drawn(16),), tmp_path / "model.onnx", target="onnxruntime")


def test_an_input_of_nine_axes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoweringError, match="a tensor of 9 axes"):
        to_onnx(Function(lambda w, x: x.flatten()).eval(), (drawn(*[1] * 8, 2),), tmp_path / "model.onnx")


# Names


def ports(path: Path) -> tuple[list[str], list[str]]:
    graph = onnx.load(path).graph
    return [port.name for port in graph.input], [port.name for port in graph.output]


def test_engine_inputs_keep_their_names(tmp_path: Path) -> None:
    def unmoved(w: Tensor, x: Tensor) -> Any:
        return x.permute(0, 1).relu(), x.flatten(1).tanh(), x.transpose(0, 0).float() + 1, x.view(3, 4), x

    path = to_onnx(Function(unmoved).eval(), SMALL[0], tmp_path / "model.onnx", input_names=("image",)).path
    assert ports(path)[0] == ["image"]
    assert_accepted(path)


def test_a_transposition_that_keeps_the_order_is_not_written() -> None:
    writer = Writer(target_named("jetson-tx2"))
    assert writer.op("Transpose", "x", perm=[0, 1, 2]) == "x" and not writer.calls
    assert writer.op("Transpose", "x", perm=[0, 2, 1]) != "x"
    assert writer.op("Transpose", "x") != "x"  # without a permutation the axes are reversed


@dataclass
class Detections:
    """What a detector returns."""

    logits: Tensor
    pred_boxes: Tensor
    note: Any = None


pytree.register_dataclass(Detections)
Pair = namedtuple("Pair", "low high")
RETURNED: dict[str, tuple[Callable[[Tensor], Any], list[str]]] = {
    "a tensor": (lambda x: x + 1, ["output0"]),
    "a dictionary": (lambda x: {"logits": x + 1, "pred_boxes": x - 1}, ["logits", "pred_boxes"]),
    "a dataclass": (lambda x: Detections(x + 1, x - 1), ["logits", "pred_boxes"]),
    "a named tuple": (lambda x: Pair(x - 1, x + 1), ["low", "high"]),
    "a tensor and a dictionary": (lambda x: (x * 2, {"logits": x + 1}), ["output0", "logits"]),
    "lists in a dictionary": (lambda x: {"maps": [x, x * 2], "logits": x + 1}, ["maps_0", "maps_1", "logits"]),
    "dictionaries in a list": (lambda x: [{"a": x + 1}, {"a": x + 2}], ["output_0_a", "output_1_a"]),
    "numbers as keys": (lambda x: {"0": x + 1, "pool": x * 2}, ["output_0", "pool"]),
    "the name of an input": (lambda x: {"x": x + 1, "args_0": x * 2}, ["x", "args_0_"]),
    "one value twice": (lambda x: (lambda y: {"a": y, "b": y})(x + 1), ["a", "b"]),
    "names of inner values": (lambda x: {"mul": x + 1, "add": x * 2, "relu": x.relu() + 1}, ["mul", "add", "relu"]),
}


@pytest.mark.parametrize("name", RETURNED)
def test_outputs_have_the_names_of_their_fields(name: str, tmp_path: Path) -> None:
    function, names = RETURNED[name]
    model = Function(lambda w, x: function(x)).eval()
    emitted = to_onnx(model, SMALL[0], tmp_path / "model.onnx")
    assert ports(emitted.path)[1] == names
    found = run_onnx(emitted.path.read_bytes(), SMALL[1])
    for ours, theirs in zip(found, pytree.tree_leaves(model(*SMALL[1])), strict=False):
        torch.testing.assert_close(ours, theirs)


def test_picked_outputs_keep_their_names(tmp_path: Path) -> None:
    model = Function(lambda w, x: {"logits": x + 1, "boxes": x - 1, "extra": (x, x * 2)}).eval()
    to_onnx(model, SMALL[0], tmp_path / "model.onnx", outputs=(3, 1))
    assert ports(tmp_path / "model.onnx")[1] == ["extra_1", "boxes"]


class TwoHeads(nn.Module):
    """A detector in small, three of whose channels are dead."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.scores, self.boxes = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 2, 1)
        for parameter in self.stem.parameters():
            parameter.data[:3] = 0

    def forward(self, x: Tensor) -> dict[str, Any]:
        x = self.stem(x).relu()
        return {"logits": self.scores(x), "note": None, "pred_boxes": self.boxes(x)}


def test_a_pruned_network_has_the_same_names(tmp_path: Path) -> None:
    model, args = TwoHeads().eval(), (drawn(1, 3, 8, 8),)
    for network in (model, l1rr_fx.prune(model, args).module):
        to_onnx(network, args, tmp_path / "model.onnx", overwrite=True)
        assert ports(tmp_path / "model.onnx")[1] == ["logits", "pred_boxes"]


# Detectors that end with an order of their candidates


@pytest.mark.fuzz
@pytest.mark.parametrize("name", ["yolov10n.yaml", "yolo26n.yaml"])
def test_end_to_end_detectors(name: str, tmp_path: Path) -> None:
    from ultralytics import YOLO

    torch.manual_seed(0)
    model: Any = YOLO(name).model
    model.eval().model[-1].end2end = True
    emitted = to_onnx(model, (torch.rand(1, 3, 160, 160),), tmp_path / "model.onnx")
    assert emitted.deviation is not None and emitted.operators["TopK"] == 2
    assert_accepted(emitted.path)


@pytest.mark.fuzz
def test_transformer_detectors(tmp_path: Path) -> None:
    model, args, _ = by_name("yolo/yolov8n-rtdetr").build()
    assert_accepted(to_onnx(model.eval(), args, tmp_path / "model.onnx", verify=False).path)
