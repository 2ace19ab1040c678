"""Forms: an operator of the user's own goes to ONNX; an operator's form stands in the file named for its rule's."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import l1rr_fx
from l1rr_fx import InputError, Latency
from l1rr_fx.latency.kernels import Kernel, kernels
from l1rr_fx.lowering import LoweringError, Symbol, Writer, register_form, to_onnx, unregister_form
from l1rr_fx.lowering.onnx import operators
from l1rr_fx.lowering.onnx.runtime import run_onnx
from l1rr_fx.testing import assert_prunes_exactly, differences, zeroed
from passes import capture, rules

aten = torch.ops.aten
PAGE = Path(__file__).resolve().parent.parent / "docs" / "lowering.md"
TOLERANCE = 1e-4  # FP32 sums in another order


@torch.library.custom_op("l1rr_tests::halves", mutates_args=())
def halves(x: Tensor, *, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    first, second = x.chunk(2, 1)
    return first * scale, second.clone()


halves.register_fake(lambda x, scale=1.0: tuple(torch.empty_like(each) for each in x.chunk(2, 1)))


@torch.library.custom_op("l1rr_tests::overwrite", mutates_args=("x",))
def overwrite(x: Tensor) -> None:
    x.zero_()


@torch.library.custom_op("l1rr_tests::conv2d", mutates_args=())
def conv2d(x: Tensor) -> Tensor:
    return x + 1


conv2d.register_fake(lambda x: torch.empty_like(x))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.ops.mylib.gate(self.first(x), 1.5))


class Halved(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        first, second = halves(x, scale=2.0)
        return first - second


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The operator of the documented block, with its rule and its form until the test ends."""
    monkeypatch.setattr("passes.rules.REGISTERED", {})
    monkeypatch.setattr("l1rr_fx.lowering.onnx.operators.REGISTERED", {})
    return block()["gate"]


@pytest.fixture
def forms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("l1rr_fx.lowering.onnx.operators.REGISTERED", {})


def block() -> dict[str, Any]:
    """The names that the block under "An operator of your own" defines."""
    section = PAGE.read_text(encoding="utf-8").partition("## An operator of your own")[2].partition("\n## ")[0]
    (code,) = re.findall(r"^```python\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)
    namespace: dict[str, Any] = {}
    exec(compile(code, PAGE.name, "exec"), namespace)
    return namespace


# An operator of the user's own


@pytest.mark.usefixtures("gate")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
@pytest.mark.parametrize("target", ["jetson-tx2", "onnxruntime"])
def test_the_documented_operator_goes_to_onnx(tmp_path: Path, target: str, precision: str) -> None:
    model, image = zeroed(Gated().eval(), ratio=0.5, seed=0), torch.rand(1, 3, 8, 8)
    pruned = l1rr_fx.prune(model, (image,))
    assert pruned.report.after.macs < 0.75 * pruned.report.before.macs
    for module in (model, pruned.module):
        emitted = to_onnx(module, (image,), tmp_path / "m.onnx", target=target, precision=precision, overwrite=True)
        assert emitted.operators["Sigmoid"] == 1
        assert emitted.operators["Mul"] == 2
        assert not emitted.findings or precision == "fp16"
        assert {finding.severity for finding in emitted.findings} <= {"warning"}
        (found,) = run_onnx((tmp_path / "m.onnx").read_bytes(), [image])
        assert max(differences(found, module(image))) < (TOLERANCE if precision == "fp32" else 5e-2)


@pytest.mark.usefixtures("gate")
def test_the_documented_operator_prunes_exactly() -> None:
    assert_prunes_exactly(zeroed(Gated().eval(), ratio=0.5, seed=0), (torch.rand(1, 3, 8, 8),))


def test_a_form_that_is_wrong_is_not_written(gate: Any, tmp_path: Path) -> None:
    unregister_form(gate)
    register_form(gate, lambda w, out, x, beta: w.op("Mul", x, w.op("Sigmoid", x)))  # beta is left out
    with pytest.raises(l1rr_fx.VerifyError, match="Nothing was written"):
        to_onnx(Gated().eval(), (torch.rand(1, 3, 8, 8),), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_without_a_form_the_error_says_how_to_register_one(gate: Any, tmp_path: Path) -> None:
    unregister_form(gate)
    with pytest.raises(LoweringError, match=r"gate.default has no form (?s:.*)l1rr_fx\.lowering\.register_form"):
        to_onnx(Gated().eval(), (torch.rand(1, 3, 8, 8),), tmp_path / "m.onnx")


@pytest.mark.usefixtures("forms")
def test_a_form_may_have_several_results(tmp_path: Path) -> None:
    def form(w: Writer, out: list[Tensor], x: Symbol, scale: float) -> tuple[str, str]:
        width = x.shape[1] // 2
        first, second = w.split(x, [width, width], 1)
        return w.op("Mul", first, w.number(scale)), second

    register_form(torch.ops.l1rr_tests.halves, form)
    emitted = to_onnx(Halved().eval(), (torch.rand(1, 6, 4),), tmp_path / "m.onnx")
    assert emitted.deviation is not None and emitted.deviation < TOLERANCE


@pytest.mark.usefixtures("forms")
@pytest.mark.parametrize(
    ("returned", "complaint"),
    [
        (lambda x: x, "for 2 results"),
        (lambda x: (x, x, x), "for 2 results"),
        (lambda x: "sum", "returned 'sum' for 2 results"),
        (lambda x: (x, 3), "a form returned 3"),
        (lambda x: (x, "sum"), "a form returned 'sum'"),
    ],
)
def test_what_a_form_may_not_return(returned: Any, complaint: str, tmp_path: Path) -> None:
    register_form(halves, lambda w, out, x, scale: returned(x))
    with pytest.raises(InputError, match=complaint + r"(?s:.*)node halves"):
        to_onnx(Halved().eval(), (torch.rand(1, 6, 4),), tmp_path / "m.onnx")


def unused(w: Writer, out: Tensor, x: Symbol) -> Symbol:
    return x


@pytest.mark.parametrize(
    ("operator", "form", "complaint"),
    [
        (aten.relu.default, unused, "aten.relu.default has a form already"),
        (aten.add, unused, "aten.add.Tensor has a form already"),
        (overwrite, unused, "writes to its arguments"),
        (halves, "Split", "the form is a str"),
        (halves, None, "the form is a NoneType"),
        ("l1rr_tests::halves", unused, "the operator is a str"),
        (torch.relu, unused, "the operator is a builtin_function_or_method"),
    ],
)
@pytest.mark.usefixtures("forms")
def test_what_cannot_be_registered(operator: Any, form: Any, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        register_form(operator, form)
    assert not operators.REGISTERED


@pytest.mark.usefixtures("forms")
def test_a_form_is_registered_once() -> None:
    register_form(halves, unused)
    with pytest.raises(InputError, match="already; unregister_form"):
        register_form(torch.ops.l1rr_tests.halves.default, unused)
    unregister_form(torch.ops.l1rr_tests.halves)
    with pytest.raises(InputError, match="no form was registered for"):
        unregister_form(halves)
    with pytest.raises(InputError, match="no form was registered for"):
        unregister_form(aten.relu)


@pytest.mark.usefixtures("forms")
def test_one_overload_may_have_a_form_of_its_own() -> None:
    register_form(aten.scatter.value, unused)
    assert set(operators.REGISTERED) == {"aten::scatter.value"}
    with pytest.raises(InputError, match="scatter.value has a form already"):
        register_form(aten.scatter, unused)


# Latency


@pytest.mark.usefixtures("gate")
def test_the_documented_operator_is_a_pointwise_kernel() -> None:
    image = torch.rand(1, 3, 8, 8)
    assert [each.kind for each in predicted(Gated().eval(), image)] == ["convolution", "pointwise", "convolution"]
    assert Latency("jetson-tx2").of(Gated().eval(), (image,)).ms > 0


def test_an_operator_without_a_rule_is_a_kernel_of_its_own() -> None:
    assert [each.kind for each in predicted(Halved().eval(), torch.rand(1, 6, 4))] == ["unknown", "pointwise"]


def test_an_operator_with_the_name_of_one_of_atens_is_another() -> None:
    class Other(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(conv2d(x))

    assert [each.kind for each in predicted(Other().eval(), torch.rand(1, 3, 4, 4))] == ["unknown", "pointwise"]


def test_a_number_has_no_elements() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * x.sum().item()

    *_, number, _ = predicted(Scaled().eval(), torch.rand(1, 3, 4, 4))
    assert number.elements == 1  # the sum is read


def predicted(model: nn.Module, image: Tensor) -> tuple[Kernel, ...]:
    return kernels(capture(model, (image,)))


# The files


FAMILIES = (
    "pointwise",
    "affine",
    "convolution",
    "products",
    "mixing",
    "reindex",
    "reshape",
    "joins",
    "sampling",
    "windows",
)
SEVERAL = {
    "pointwise": {"pointwise", "activations", "logic", "copies"},
    "mixing": {"mixing", "normalisation", "pooling", "resizing", "padding"},
    "reindex": {"reindex", "padding"},
    "products": {"products", "einsum"},
}
"""Families of rules whose forms fill several files; the docstring of `operators` says which."""


@pytest.mark.parametrize("family", FAMILIES)
def test_forms_stand_in_the_files_of_their_rules(family: str) -> None:
    names = importlib.import_module(f"passes.rules.{family}").RULES
    found = {
        stem
        for stem, file in files().items()
        for operator in file.FORMS
        if operator.namespace == "aten" and operator._schema.name.removeprefix("aten::") in names
        and operator._overloadname not in OTHER_RULES.get(operator._schema.name, ())
    }  # fmt: skip
    assert found == SEVERAL.get(family, {family})


OTHER_RULES = {"aten::max": ("other",), "aten::min": ("other",)}
"""Overloads that have another rule than the rest of their operator."""


def files() -> dict[str, ModuleType]:
    found = {path.stem for path in Path(operators.__file__ or "").parent.glob("*.py")} - {"__init__", "base"}
    return {stem: importlib.import_module(f"{operators.__name__}.{stem}") for stem in sorted(found)}


def test_no_operator_has_two_forms() -> None:
    assert sum(len(file.FORMS) for file in files().values()) == len(operators.FORMS)
    assert {f"aten::{name.partition('.')[0]}" for name in rules.OVERLOADS} >= set(OTHER_RULES)
