"""Kinds of calls, each by all functions of a list: integers and truth values where numbers are meant, numbers without
axes, moves of truth values. The file is accepted by the judge, without a warning, and computes what torch does on other
values than the example's; or the operator is refused by name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from l1rr_fx.lowering import LoweringError, to_onnx
from l1rr_fx.lowering.onnx.runtime import run_onnx
from tests.trt82_parser import judged

FUNCTIONS = (
    "abs acos asin asinh atan ceil cos deg2rad erf erfc exp exp2 expm1 floor frac isfinite isinf isnan log log10 log1p "
    "log2 logical_not logit neg positive rad2deg reciprocal relu round rsqrt sigmoid sign sgn sin sinc sinh sqrt "
    "square tan tanh trunc nan_to_num"
).split()
ALONG = (
    "softmax log_softmax cumsum argmax argmin sort argsort logsumexp sum mean prod amax amin max min any all median"
).split()
PAIRS = (
    "add sub mul div floor_divide remainder fmod maximum minimum eq ne lt le gt ge pow logical_and logical_or "
    "logical_xor"
).split()
COUNTS = torch.arange(12).reshape(3, 4), torch.tensor([[7, -7, 0, 7], [-9, 3, -9, 3], [-1, -1, -1, -1]])
ROWS = torch.linspace(-2, 2, 12).view(3, 4), torch.linspace(-3, 2, 12).sin().view(3, 4)
NUMBERS = torch.tensor(0.7), torch.tensor(-0.3)


class Function(nn.Module):
    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Tensor) -> Any:
        return self.function(*args)


def check(function: Callable[..., Any], examples: tuple[Tensor, ...], others: tuple[Tensor, ...], path: Path) -> None:
    """The file for the TX2 is read as it is meant, and equals torch on other values."""
    model = Function(function).eval()
    emitted = to_onnx(model, examples, path)
    assert [str(each) for each in judged(emitted.path)] == []
    found = run_onnx(emitted.path.read_bytes(), others)
    for ours, theirs in zip(found, pytree.tree_leaves(model(*others)), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, equal_nan=True, check_dtype=ours.dtype.is_signed)


def all_of(names: list[str], call: Callable[[Callable[..., Any], Tensor], Any], like: Tensor) -> Callable[..., Any]:
    """The functions that torch has for this type, neg of truth values it has not, as one network."""
    known = []
    for name in names:
        with contextlib.suppress(RuntimeError, TypeError):
            call(getattr(torch, name), like)
            known.append(name)
    assert known
    return lambda x: [call(getattr(torch, name), x) for name in known]


@pytest.mark.parametrize("part", range(4))
@pytest.mark.parametrize("kind", ["integers", "truths", "one number"])
def test_functions_of_what_is_no_row_of_numbers(kind: str, part: int, tmp_path: Path) -> None:
    example, other = NUMBERS if kind == "one number" else COUNTS
    made = (lambda x: x > 0) if kind == "truths" else (lambda x: x)
    function = all_of(FUNCTIONS[part::4], lambda f, x: f(x), made(example))
    check(lambda x: function(made(x)), (example,), (other,), tmp_path / "m.onnx")


def test_functions_along_an_axis_of_one_number(tmp_path: Path) -> None:
    calls = all_of(ALONG, lambda f, x: (f(x, dim=0), f(x, dim=-1)), NUMBERS[0])
    check(calls, NUMBERS[:1], NUMBERS[1:], tmp_path / "m.onnx")


@pytest.mark.parametrize("kind", ["integers", "truths"])
def test_functions_along_an_axis(kind: str, tmp_path: Path) -> None:
    values = torch.tensor([[3, 1, 2, 0], [4, 9, 1, -7]]), torch.tensor([[-3, 5, 2, 0], [8, -9, 1, 3]])
    made = (lambda x: x > 1) if kind == "truths" else (lambda x: x)
    names = [name for name in ALONG if kind == "integers" or "arg" not in name and name not in ("max", "min", "sort")]
    function = all_of(names, lambda f, x: f(x, dim=1), made(values[0]))  # of equal ones another may come first
    check(lambda x: function(made(x)), values[:1], values[1:], tmp_path / "m.onnx")


def test_other_calls_along_an_axis_of_one_number(tmp_path: Path) -> None:
    def calls(x: Tensor) -> Any:
        first = torch.tensor(0)
        return (
            x.topk(1), x.kthvalue(1), x.std(0, unbiased=False), x.var(0, unbiased=False), x.flip(()), x.flip(0),
            x.index_select(0, torch.tensor([0])), x.gather(0, first), F.softmin(x, 0), x.norm(dim=0), x.squeeze(0),
            x.unsqueeze(0), x.unsqueeze(-1), x.transpose(0, -1), x.permute(()), x.sum(()), x.expand(2, 3),
        )  # fmt: skip

    check(calls, NUMBERS[:1], NUMBERS[1:], tmp_path / "m.onnx")


@pytest.mark.parametrize("kind", ["integers", "an integer and a number", "small integers", "a number first"])
def test_pairs_of_types(kind: str, tmp_path: Path) -> None:
    def calls(i: Tensor) -> Any:
        if kind == "a number first":
            size = i.abs() + 1
            return 7 // size, 7 % size, 2 ** (i.abs() % 5), 2 / size, 2 - i, 7 % (size + 0.5), 2.0 ** (i / 4)
        j = {"integers": i.roll(1, 1) * 2 + 1, "an integer and a number": i / 2 + 0.25, "small integers": i.int() + 20}
        other = j[kind].abs() if kind == "integers" else j[kind]
        return [getattr(torch, name)(i, other % 4 + 1 if name == "pow" else other) for name in PAIRS]

    check(calls, COUNTS[:1], COUNTS[1:], tmp_path / "m.onnx")


def test_truth_values_are_moved_as_integers(tmp_path: Path) -> None:
    """A Slice or an Expand of BOOL was reported to fail in the builder of TensorRT 8.2."""

    def calls(given: Tensor, x: Tensor) -> Any:
        mask = x > 0
        return (
            mask.T, mask.view(4, 3), mask[:, 1:], mask.expand(2, 3, 4), mask.repeat(1, 2), mask.flip(0),
            mask.roll(1, 1), mask[torch.tensor([2, 0])], *mask.split(2, 1), mask.unsqueeze(0), torch.cat([mask, x > 1]),
            torch.stack([mask, torch.ones(3, 4, dtype=torch.bool).tril()]), mask.gather(1, torch.zeros(3, 2).long()),
            torch.where(mask[:, None].expand(3, 2, 4).transpose(1, 2), x[..., None], 0.0), given.T, given[:, 1:], given,
        )  # fmt: skip

    check(calls, (ROWS[0] > 1, ROWS[0]), (ROWS[1] < 0, ROWS[1]), tmp_path / "m.onnx")


def test_moves_in_a_row_share_their_casts(tmp_path: Path) -> None:
    model = Function(lambda x: torch.where((x > 0)[None].expand(2, 3, 4)[:, 1:].transpose(0, 1), 1.0, 0.0)).eval()
    emitted = to_onnx(model, ROWS[:1], tmp_path / "m.onnx")
    assert emitted.operators["Cast"] == 2
    kinds = [node.op_type for node in onnx.load(emitted.path).graph.node]
    assert kinds[:2] == ["Greater", "Cast"] and kinds[-2:] == ["Cast", "Where"]
    elsewhere = to_onnx(model, ROWS[:1], tmp_path / "n.onnx", target="onnxruntime")
    assert "Cast" not in elsewhere.operators


@pytest.mark.parametrize("name", ["digamma", "lgamma", "signbit", "cummax", "cumprod", "bitwise_and"])
def test_what_has_no_form_is_refused_by_name(name: str, tmp_path: Path) -> None:
    calls: dict[str, Callable[[Tensor], Any]] = {
        "cummax": lambda i: i.cummax(1), "cumprod": lambda i: i.cumprod(1), "bitwise_and": lambda i: i & 3,
    }  # fmt: skip
    with pytest.raises(LoweringError, match="no form on jetson-tx2") as raised:
        to_onnx(Function(calls.get(name, getattr(torch, name))).eval(), COUNTS[:1], tmp_path / "m.onnx")
    assert name.removeprefix("bitwise_") in str(raised.value)
