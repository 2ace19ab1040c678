"""What `lint` reads: branches, data in other files, damaged files; and how it says what it found."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from l1rr_fx.lowering import lint
from passes.errors import InputError, LoadError
from tests.lint_models import BOOL, FLOAT, FLOAT16, Model, f32, i64, node, said

WEIGHT = f32(4, 4, 3, 3)


def test_errors_come_first_and_name_the_node() -> None:
    findings = lint(Model(node("ReduceMean", "x", "a"), constants={"a": i64(2)}, opset=18, ir_version=10).proto())
    assert [finding.severity for finding in findings] == ["error", "warning", "warning"]
    assert (findings[0].node, findings[0].operator) == ("n", "ReduceMean")
    assert str(findings[0]).startswith("error: ReduceMean n: axes as an input (opset 18) are ignored")
    assert (findings[0].source, findings[0].basis) == ("builtin_op_importers.cpp: importReduceMean", "certain")


def branches(*then: onnx.NodeProto, held: Sequence[TensorProto] = ()) -> onnx.ModelProto:
    """A choice between these nodes, which write t, and a Relu."""
    inner = helper.make_graph(then, "then", [], [helper.make_tensor_value_info("t", FLOAT, None)], held)
    other = helper.make_graph([helper.make_node("Relu", ["x"], ["e"])], "else", [], [
        helper.make_tensor_value_info("e", FLOAT, None)])  # fmt: skip
    choice = node("If", "c", then_branch=inner, else_branch=other)
    return Model(choice, {"c": (), "x": (1, 4, 8, 8)}, kinds={"c": BOOL}, opset=14).proto()


def test_nodes_inside_a_branch_are_read() -> None:
    model = branches(helper.make_node("HardSwish", ["x"], ["t"], name="deep"))
    assert [finding.node for finding in lint(model) if finding.severity == "error"] == ["deep"]


def test_control_flow_is_a_warning_by_name() -> None:
    """The emitter writes none: cond, while_loop and scan have no form."""
    assert said(lint(branches(helper.make_node("Relu", ["x"], ["t"]))), "importer asks of it is not judged", "warning")


def test_a_branch_has_constants_of_its_own() -> None:
    convolution, weight = helper.make_node("Conv", ["x", "w"], ["t"]), numpy_helper.from_array(WEIGHT, "w")
    assert not [finding for finding in lint(branches(convolution, held=[weight])) if finding.severity == "error"]
    assert said(lint(branches(convolution)), "computes its weight", "error")


def test_sparse_constants_are_not_read() -> None:
    values, indices = (numpy_helper.from_array(array, "w") for array in (f32(1), i64(0)))
    model = Model(node("Add", "x", "w")).proto()
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, [8]))
    assert said(lint(model), "its sparse constants (w) are not read", "error")


# Data in another file


def saved_apart(path: Path, model: Model) -> Path:
    """The model with all of its constants in a file beside it, as torch.onnx.export writes large ones."""
    onnx.save(model.proto(), path, save_as_external_data=True, size_threshold=0, location=f"{path.stem}.data")
    return path


def test_data_in_another_file_is_read_wherever_lint_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved_apart(tmp_path / "m.onnx", Model(node("Gather", "x", "i"), {"x": (9, 4)}, {"i": i64(2**40)}))
    monkeypatch.chdir("/")
    assert said(lint(path), "constant i has values beyond 32 bits", "error") == list(lint(path))
    (tmp_path / "m.data").unlink()
    with pytest.raises(LoadError, match=r"m\.onnx: constant i \(INT64 \[1\]\) cannot be read: .*m\.data"):
        lint(path)
    with pytest.raises(LoadError, match="the model: constant i is in another file, .* give the model's path"):
        lint(path.read_bytes())


def test_half_precision_in_another_file_is_not_in_int32_data(tmp_path: Path) -> None:
    half = Model(node("Add", "x", "c"), constants={"c": np.ones(1, np.float16)}, kinds={"x": FLOAT16, "y": FLOAT16})
    assert [finding.problem for finding in lint(saved_apart(tmp_path / "m.onnx", half))] == [
        "constant c is FLOAT16, which is read natively only since 8.4"
    ]


def test_a_path_and_bytes_are_read(tmp_path: Path) -> None:
    proto = Model(node("HardSwish", "x"), opset=14).proto()
    path = tmp_path / "model.onnx"
    path.write_bytes(proto.SerializeToString())
    assert lint(path) == lint(str(path)) == lint(path.read_bytes()) == lint(proto)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="cannot be read"):
        lint(tmp_path / "missing.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(LoadError, match=r"text.onnx: is no ONNX file"):
        lint(tmp_path / "text.onnx")
    with pytest.raises(LoadError, match="the model: is no ONNX model: it names no opset"):
        lint(b"")
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(LoadError, match=r"empty.onnx: is no ONNX model: it names no opset"):
        lint(tmp_path / "empty.onnx")
    with pytest.raises(LoadError, match="cannot be read: embedded null byte"):
        lint("a\0b")


def test_a_model_without_nodes_is_one() -> None:
    proto = Model(node("Relu", "x")).proto()
    del proto.graph.node[:]
    assert lint(proto) == ()


@pytest.mark.parametrize("model", [None, 5, bytearray(b""), ["model.onnx"], Model(node("Relu", "x")).proto().graph])
def test_an_argument_of_another_type_is_refused(model: Any) -> None:
    with pytest.raises(
        InputError, match=f"model is a {type(model).__name__}; expected the path of an ONNX file, its bytes"
    ):
        lint(model)


def test_a_constant_that_contradicts_itself_is_told() -> None:
    proto = Model(node("Gather", "x", "i"), constants={"i": i64(1, 2)}).proto()
    for change in ({"raw_data": b"123"}, {"dims": [3]}, {"dims": [2**60]}):
        damaged = onnx.ModelProto.FromString(proto.SerializeToString())
        damaged.graph.initializer[0].ClearField(next(iter(change)))
        damaged.graph.initializer[0].MergeFrom(TensorProto(**change))
        with pytest.raises(LoadError, match=r"the model: constant i \(INT64 .*cannot be read"):
            lint(damaged)


def test_a_name_that_is_no_text_is_told() -> None:
    content = Model(node("Gather", "x", "indices"), constants={"indices": i64(1)}).proto().SerializeToString()
    with pytest.raises(LoadError, match="the model: is damaged: the name .* is no text in UTF-8"):
        lint(content.replace(b"indices", b"indi\xff\xff\xff"))


def test_a_target_without_a_table_is_refused() -> None:
    proto = Model(node("Relu", "x")).proto()
    with pytest.raises(InputError, match="no table of what onnxruntime refuses"):
        lint(proto, "onnxruntime")
    with pytest.raises(InputError, match="no target 'tx3'; there are jetson-tx2"):
        lint(proto, "tx3")
