"""A hostile ONNX file costs little: functions are counted before they are expanded, inference has its own process."""

from __future__ import annotations

import os
import signal
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from l1rr_fx import InputError, LoadError
from l1rr_fx.cli.subject import load_subject
from l1rr_fx.lowering import lint
from l1rr_fx.lowering.parsers import inference, onnx_file
from l1rr_fx.lowering.parsers.inference import MOST_NODES, Inference

OPSETS = [helper.make_opsetid("", 13), helper.make_opsetid("f", 1)]
Calls = dict[str, Sequence[str]]


def model(calls: Calls, first: str = "Relu") -> Any:
    """A model that calls `first`; `calls` has the operators of each function's body, one after the other."""
    functions = []
    for name, body in calls.items():
        names = ["a", *(f"v{i}" for i in range(len(body) - 1)), "b"]
        nodes = [node(operator, *names[i : i + 2], calls) for i, operator in enumerate(body)]
        functions.append(helper.make_function("f", name, ["a"], ["b"], nodes, OPSETS))
    value = helper.make_tensor_value_info
    ports = [value("x", TensorProto.FLOAT, [1, 4])], [value("y", TensorProto.FLOAT, None)]
    graph = helper.make_graph([node(first, "x", "y", calls)], "g", *ports)
    return helper.make_model(graph, functions=functions, opset_imports=OPSETS, ir_version=8)


def node(operator: str, source: str, result: str, calls: Calls) -> Any:
    return helper.make_node(operator, [source], [result], domain="f" if operator in calls else "")


def doubling(count: int) -> Calls:
    """Functions that call the next twice: `count` of them stand for about 2 ** count nodes."""
    return {f"F{i}": (f"F{i + 1}",) * 2 for i in range(count - 1)} | {f"F{count - 1}": ("Relu",)}


def test_functions_that_stand_for_too_many_nodes_are_not_expanded() -> None:
    with pytest.raises(LoadError, match=rf"stand for 25,165,823 nodes; at most {MOST_NODES:,} are read"):
        lint(model(doubling(24), "F0"))
    with pytest.raises(LoadError, match="stand for over 1,000,000,000,000 nodes"):
        lint(model(doubling(2000), "F0"))
    assert lint(model(doubling(8), "F0"))


def test_functions_that_nobody_calls_count_nothing() -> None:
    assert lint(model(doubling(24)))


@pytest.mark.parametrize(
    ("calls", "circle"),
    [
        ({"A": ("A",)}, "A -> A"),
        ({"A": ("Relu", "B"), "B": ("A",)}, "A -> B -> A"),
        ({"A": ("B",), "B": ("C", "Neg"), "C": ("B",)}, "B -> C -> B"),
    ],
)
def test_a_function_that_calls_itself_is_named(calls: Calls, circle: str) -> None:
    for first in ("A", "Relu"):
        with pytest.raises(LoadError, match=f"the function . calls itself: {circle}$"):
            lint(model(calls, first))


def test_a_function_that_calls_itself_in_a_branch_is_named() -> None:
    body = helper.make_graph([helper.make_node("A", ["a"], ["c"], domain="f")], "branch", [], [])
    proto = model({"A": ("Relu",)}, "A")
    proto.functions[0].node.append(helper.make_node("If", ["a"], ["d"], then_branch=body, else_branch=body))
    with pytest.raises(LoadError, match="the function A calls itself: A -> A"):
        lint(proto)


def test_a_long_chain_of_functions_is_no_recursion_of_ours() -> None:
    assert lint(model({f"C{i}": (f"C{i + 1}",) for i in range(3000)} | {"C3000": ("Relu",)}, "C0"))


def test_an_operator_beside_a_function_of_its_name_is_itself() -> None:
    """The function Relu of another domain calls the standard one."""
    assert lint(model({"F": ("Relu",)}, "F"))
    function = helper.make_function("g", "Relu", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], OPSETS[:1])
    proto = model({}, "Relu")
    proto.functions.append(function)
    proto.opset_import.append(helper.make_opsetid("g", 1))
    assert lint(proto)


def test_inference_that_does_not_end_is_stopped_and_said(monkeypatch: pytest.MonkeyPatch) -> None:
    infer = Inference()
    slow = model(doubling(24), "F0").SerializeToString()
    assert infer(slow, seconds=0.5) == (b"", "did not end within 0 s")
    content, failure = infer(model({}, "Relu").SerializeToString())
    assert failure == ""
    assert onnx.ModelProto.FromString(content).graph.output[0].type.tensor_type.shape.dim[1].dim_value == 4
    monkeypatch.setattr(onnx_file, "infer", lambda content: (b"", "did not end within 60 s"))
    warning = next(each for each in lint(model({}, "Relu")) if "inference" in each.problem)
    assert (warning.severity, warning.node) == ("warning", "")
    assert "did not end within 60 s; its values are read with the types that the file states" in warning.problem
    infer.stop()


def test_a_process_that_died_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    infer = Inference()
    good = model({}, "Relu").SerializeToString()
    assert infer(good)[1] == ""
    assert infer._process is not None
    os.kill(infer._process.pid, signal.SIGSEGV)
    infer._process.wait()
    assert infer(good)[1] == ""
    write = inference.inference_worker.write
    monkeypatch.setattr(
        inference.inference_worker, "write", lambda stream, message: (infer._process.kill(), write(stream, message))
    )
    assert infer(good) == (b"", "crashed")
    infer.stop()


def test_an_archive_that_unpacks_to_more_than_it_holds_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pt2", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data", bytes(2**26))
    with pytest.raises(InputError, match=r"bomb\.pt2: it unpacks to 67,108,864 bytes"):
        load_subject(str(tmp_path / "bomb.pt2"))
