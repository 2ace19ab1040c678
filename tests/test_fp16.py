"""FP16: the largest numbers of each node, and a run in which each result is rounded as hardware rounds it."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import Tensor, nn
from typer.testing import CliRunner

from l1rr_fx.cli.measuring import app
from l1rr_fx.lowering import lower, to_onnx
from l1rr_fx.lowering.bundle.half_precision import HalfPrecision
from l1rr_fx.lowering.onnx.half import LARGEST, is_half, rounded_to_half
from l1rr_fx.lowering.onnx.ranges import NodeRange, node_ranges
from l1rr_fx.lowering.onnx.runtime import run_in_half, run_onnx
from passes.errors import InputError, VerifyError

EXACT = [0.0, 1.0, -2048.0, 65504.0, 2.0**-14, 2.0**-24]
"""Numbers that FP16 holds."""


def model(*nodes: Any, inputs: dict[str, list[int]], constants: tuple[Any, ...] = (), output: str = "y") -> Any:
    """A model of FLOAT tensors with one output."""
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs.items()]
    result = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    graph = helper.make_graph(list(nodes), "g", ports, [result], list(constants))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)


def node(kind: str, inputs: list[str], output: str = "y", **attributes: Any) -> Any:
    return helper.make_node(kind, inputs, [output], f"{output}/{kind}", **attributes)


def constant(name: str, values: Any) -> Any:
    return onnx.numpy_helper.from_array(numpy.asarray(values, "f"), name)


class Scaled(nn.Module):
    """Two convolutions; between them numbers go up by a factor and down again, which float32 does not notice."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.factor = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1), factor

    def forward(self, x: Tensor) -> Tensor:
        return self.second((self.first(x) * self.factor) / self.factor)


IMAGE = 9 * torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


# The run with rounding


def test_what_fp16_holds_is_not_changed() -> None:
    (found,) = run_in_half(model(node("Identity", ["x"]), inputs={"x": [len(EXACT)]}), [torch.tensor(EXACT)])
    assert found.tolist() == EXACT


def test_results_are_rounded_as_torch_rounds_to_float16() -> None:
    x = torch.rand(1000, generator=torch.Generator().manual_seed(1)) * torch.logspace(-9, 4, 1000)
    (found,) = run_in_half(model(node("Identity", ["x"]), inputs={"x": [1000]}), [x])
    assert torch.equal(found, x.half().float())


def test_each_node_rounds_and_not_only_the_last() -> None:
    """1 + 2**-12 is 1 in FP16, so that nothing is left once 1 is subtracted. In FP32 it is 2**-12."""
    one, little = constant("one", 1.0), constant("little", 2.0**-12)
    sums = model(
        node("Add", ["x", "little"], "a"), node("Sub", ["a", "one"]), inputs={"x": [1]}, constants=(one, little)
    )
    assert run_onnx(sums.SerializeToString(), [torch.ones(1)])[0].item() == 2.0**-12
    assert run_in_half(sums, [torch.ones(1)])[0].item() == 0.0


def test_numbers_saturate_and_infinities_and_nan_stay() -> None:
    x = torch.tensor([1e6, -1e6, 65519.0, math.inf, -math.inf, math.nan])
    (found,) = run_in_half(model(node("Neg", ["x"]), inputs={"x": [6]}), [x])
    assert found[:5].tolist() == [-LARGEST, LARGEST, -LARGEST, -math.inf, math.inf] and math.isnan(found[5])


def test_constants_are_rounded_and_scales_of_a_resize_are_not() -> None:
    scales = constant("scales", [1.0, 1.0, 640 / 300, 1.0])  # in FP16 639.8 rows, of which 639 are left
    rows = model(node("Resize", ["x", "", "scales"]), inputs={"x": [1, 1, 300, 1]}, constants=(scales,))
    assert run_in_half(rows, [torch.zeros(1, 1, 300, 1)])[0].shape == (1, 1, 640, 1)
    add = model(node("Mul", ["x", "c"]), inputs={"x": [1]}, constants=(constant("c", 1 / 3),))
    assert run_in_half(add, [torch.ones(1)])[0].item() == torch.tensor(1 / 3).half().item()


def test_integers_are_not_rounded() -> None:
    numbers = helper.make_tensor_value_info("x", TensorProto.INT64, [1])
    out = helper.make_tensor_value_info("y", TensorProto.INT64, [1])
    graph = helper.make_graph([node("Add", ["x", "x"])], "g", [numbers], [out])
    doubled = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    assert run_in_half(doubled, [torch.tensor([2**20 + 1])])[0].item() == 2**21 + 2


def test_an_fp16_file_is_checked_with_rounding(tmp_path: Path) -> None:
    """ONNX Runtime alone computes it in FP32 between the casts and finds nothing."""
    with pytest.raises(VerifyError, match=r"deviates by 0\.\d+ from the module in ONNX Runtime \(allowed: 5e-02\)"):
        to_onnx(Scaled(2e4).eval(), (IMAGE,), tmp_path / "m.onnx", precision="fp16")
    done = to_onnx(Scaled(2e2).eval(), (IMAGE,), tmp_path / "m.onnx", precision="fp16")
    assert done.deviation is not None and 1e-5 < done.deviation < 5e-3


def test_the_rounded_copy_of_an_fp16_file_is_valid_and_the_file_stays(tmp_path: Path) -> None:
    to_onnx(Scaled(2.0).eval(), (IMAGE,), tmp_path / "m.onnx", precision="fp16")
    file = onnx.load(str(tmp_path / "m.onnx"))
    before = file.SerializeToString()
    rounded = rounded_to_half(file)
    onnx.checker.check_model(rounded, full_check=True)
    assert file.SerializeToString() == before and is_half(file)
    assert not any(each.data_type == TensorProto.FLOAT16 for each in rounded.graph.initializer)


# The largest numbers


def ranges(network: Any, *inputs: Tensor, modules: tuple[str, ...] = ()) -> list[NodeRange]:
    return list(node_ranges(network, inputs, modules))


def test_a_partial_sum_is_the_largest_that_an_order_of_summation_reaches() -> None:
    """3 * 10 - 2 * 20 + 1 = -9, but 31 is reached with the positive terms first, and -40 with the negative one."""
    weight, bias = constant("w", [[3.0], [-2.0]]), constant("b", [1.0])
    gemm = model(node("Gemm", ["x", "w", "b"]), inputs={"x": [1, 2]}, constants=(weight, bias))
    (found,) = ranges(gemm, torch.tensor([[10.0, 20.0]]))
    assert found == NodeRange("y/Gemm", "Gemm", "", True, 9.0, 3.0, 40.0)


@pytest.mark.parametrize(
    ("kind", "attributes", "expected"),
    [
        ("ReduceMean", {"axes": [2, 3]}, 16.0),
        ("GlobalAveragePool", {}, 16.0),
        ("AveragePool", {"kernel_shape": [2, 2], "strides": [2, 2]}, 4.0),
    ],
)
def test_a_mean_adds_before_it_divides(kind: str, attributes: dict[str, Any], expected: float) -> None:
    mean = model(node(kind, ["x"], **attributes), inputs={"x": [1, 1, 4, 4]})
    (found,) = ranges(mean, torch.ones(1, 1, 4, 4))
    assert (found.activation, found.partial_sum) == (1.0, expected)


def test_infinities_of_a_mask_do_not_count() -> None:
    mask = constant("m", [0.0, -math.inf])
    masked = model(node("Add", ["x", "m"]), inputs={"x": [2]}, constants=(mask,))
    (found,) = ranges(masked, torch.tensor([-7.0, 3.0]))
    assert (found.activation, found.weight) == (7.0, 0.0)


def test_a_value_without_axes_has_a_range() -> None:
    (found,) = ranges(model(node("ReduceSum", ["x"], keepdims=0), inputs={"x": [3]}), torch.tensor([1.0, 2.0, 3.0]))
    assert found.activation == 6.0


def test_a_node_without_parameters_belongs_to_the_module_before() -> None:
    first, second = constant("a.weight", [[1.0]]), constant("b.weight", [[2.0]])
    nodes = (
        helper.make_node("MatMul", ["x", "a.weight"], ["h"], "a/MatMul"),
        helper.make_node("Mul", ["h", "h"], ["g"], "mul/Mul"),
        helper.make_node("MatMul", ["g", "b.weight"], ["y"], "b/MatMul"),
    )
    found = ranges(model(*nodes, inputs={"x": [1, 1]}, constants=(first, second)), torch.ones(1, 1), modules=("a", "b"))
    assert [(each.module, each.after) for each in found] == [("a", False), ("a", True), ("b", False)]


# The report


def test_lower_names_the_module_and_says_what_to_do(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bundle = lower(Scaled(2e4).eval(), (IMAGE,), out=tmp_path / "b")
    half = bundle.half
    assert half is not None and not half.holds
    assert [(each.node, each.module, each.after) for each in half.beyond] == [("mul/Mul", "first", True)]
    largest = float((Scaled(2e4).first(IMAGE).detach() * 2e4).abs().max())
    assert half.beyond[0].activation == pytest.approx(largest, rel=1e-4)  # sums of 27 terms in float32
    first, second = half.advice
    assert "outputs deviate by" in first and "--precision fp32" in first
    assert f"after first (mul/Mul: {largest:.3g}, factor {2 ** math.ceil(math.log2(largest / LARGEST))})" in second
    assert first in caplog.text and "FP16 does not hold its numbers" in str(bundle)
    assert first in (tmp_path / "b" / "README.md").read_text()
    manifest = json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert [each["name"] for each in manifest["half"]["nodes"]] == ["first/Conv", "mul/Mul", "div/Div", "second/Conv"]
    assert not (tmp_path / "b" / "model_fp16.onnx").exists()


def test_a_network_that_fp16_holds_has_no_advice(tmp_path: Path) -> None:
    bundle = lower(Scaled(2.0).eval(), (IMAGE,), out=tmp_path / "b")
    assert bundle.half is not None and bundle.half.holds and not bundle.half.advice
    assert not bundle.notes and "FP16 does not" not in str(bundle)
    table = str(bundle.half)
    assert "FP16 ends at 65504" in table and "after first" in table and "│ second " in table


def test_partial_sums_alone_are_named_too() -> None:
    sums = NodeRange("head/Conv", "Conv", "head", False, 100.0, 1.0, 200_000.0)
    half = HalfPrecision((sums, NodeRange("stem/Conv", "Conv", "stem", False, 1.0, 1.0, 2.0)), 1e-3)
    (line,) = half.advice
    assert "partial sums of 1 node(s)" in line and "head (head/Conv: 2e+05, factor 4)" in line
    assert half.sums_beyond == (sums,) and half.beyond == ()


def test_a_network_that_chooses_is_not_called_wrong() -> None:
    (line,) = HalfPrecision((), 0.7, choosing=True).advice
    assert "the network chooses" in line and "accuracy on labelled data" in line


def scaled() -> tuple[nn.Module, tuple[Tensor]]:
    return Scaled(2e4).eval(), (IMAGE,)


def test_the_largest_numbers_are_those_of_any_example(tmp_path: Path) -> None:
    """What one example alone does not show: the first is small, the third too large for FP16."""
    net = Scaled(1.0).eval()
    examples = [(0.1 * IMAGE,), (100 * IMAGE,), (1e5 * IMAGE,)]
    alone = [lower(net, each, out=tmp_path / str(i), half_model=False).half for i, each in enumerate(examples)]
    found = lower(net, examples[0], out=tmp_path / "b", half_model=False, examples=examples[1:]).half
    assert found is not None and alone[0] is not None and alone[2] is not None
    assert found.nodes == alone[2].nodes and found.nodes != alone[0].nodes
    assert found.examples == 3 and found.deviation == max(each.deviation for each in alone if each is not None)
    assert alone[0].holds and not found.holds and found.beyond
    assert "on any of 3 examples" in str(found) and "on the example " in str(alone[0])
    assert json.loads((tmp_path / "b" / "manifest.json").read_text())["half"]["examples"] == 3


def test_an_image_is_an_example_too(tmp_path: Path) -> None:
    pixels = torch.full((8, 8, 3), 255, dtype=torch.uint8)
    found = lower(Scaled(1.0).eval(), (IMAGE / 9,), out=tmp_path / "b", half_model=False, examples=[pixels]).half
    white = lower(Scaled(1.0).eval(), (torch.ones_like(IMAGE),), out=tmp_path / "c", half_model=False).half
    assert found is not None and white is not None and found.examples == 2
    assert all(a.activation >= b.activation for a, b in zip(found.nodes, white.nodes, strict=True))


@pytest.mark.parametrize(
    ("examples", "message"),
    [
        (5, "examples is a int; expected a list"),
        ([(IMAGE[..., :7],)], r"number 0 has the inputs .*\(1, 3, 8, 7\) of float32.*expected .*\(1, 3, 8, 8\)"),
        ([(IMAGE,), ()], "number 1 has the inputs"),
        (["nowhere.png"], "nowhere.png: there is no such file"),
    ],
)
def test_examples_that_are_none(examples: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        lower(Scaled(1.0).eval(), (IMAGE,), out=tmp_path / "b", examples=examples)
    assert not list(tmp_path.iterdir())


def test_the_command_prints_it(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["lower", "tests.test_fp16:scaled", "-o", str(tmp_path / "b")])
    assert done.exit_code == 0, done.output
    text = " ".join(done.output.split())
    assert "FP16 ends at 65504" in text and "after first (mul/Mul" in text and "--precision fp32" in text
