"""ONNX's own node models through the lint and the judge: they agree, or the difference has a reason here.

`onnx.backend.test` has about 1,900 node models; 881 of them are valid at opset 13. Each is taken as it is and, where it
has several inputs, with all but the first as constants: what importers want as an initializer is one then.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from l1rr_fx.lowering import lint
from tests import trt82_read_cases
from tests.trt82_cases import CASES
from tests.trt82_parser import judged

SAMPLE = (
    "argmax", "cast", "celu", "clip", "convtranspose", "cumsum", "einsum", "equal", "flatten", "gather", "gemm",
    "logsoftmax", "matmul", "max", "nonmaxsuppression", "pad", "pow", "quantizelinear", "reducesum",
    "reduce_log_sum_exp", "reshape", "resize", "sign", "slice", "softmax", "split", "squeeze", "tile", "topk",
    "transpose", "where",
)  # fmt: skip
"""Modules of onnx.backend.test.case.node whose models are made in milliseconds; all of them take 15 seconds or more."""

DIFFERENCES: Mapping[tuple[str, str], str] = {
    ("Einsum", "lint"): "an ellipsis is read by the parser and excluded by NvInfer.h: a warning of the judge",
}
"""By operator and who alone refuses it: the reason why lint and judge differ."""

STRICTER: Mapping[str, str] = {
    "Einsum of three": "the parser reads it, and NvInfer.h excludes it: an error of the lint"
}
"""By case: the reason why the lint has an error where the parser accepted the model."""

APART: Mapping[str, str] = {
    "Einsum, a diagonal": STRICTER["Einsum of three"],
    "Gemm, K=1, a bias of two axes": "right by the rank of the bias alone, which the lint does not look at",
    "ReduceMean, all axes as an input": "right because the axes are all of them, which the lint does not look at",
    "Conv, a bias of another size": "not for the lint: no ONNX reader takes such a file",
    "two outputs that are one tensor": "unknown to the lint, which reads node by node",
}
"""By case of the source: the reason why lint and judge differ."""


def at_opset_13(model: onnx.ModelProto) -> onnx.ModelProto | None:
    """The model with opset 13; None where it is not valid then."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    if [entry.domain for entry in made.opset_import] != [""]:
        return None
    made.opset_import[0].version, made.ir_version = 13, 7
    return made if valid(made) else None


def valid(model: onnx.ModelProto) -> bool:
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


def with_constants(model: onnx.ModelProto, values: Any) -> onnx.ModelProto | None:
    """The model with all inputs but the first as constants; None where one is no tensor."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    given = list(zip(model.graph.input, values))[1:]
    if not given or not all(isinstance(value, np.ndarray | np.generic) for _, value in given):
        return None
    made.graph.initializer.extend(numpy_helper.from_array(np.asarray(value), port.name) for port, value in given)
    del made.graph.input[1:]
    return made if valid(made) else None


def models(cases: Any) -> Iterator[tuple[str, onnx.ModelProto]]:
    for case in cases:
        model = at_opset_13(case.model)
        if model is None:
            continue
        yield case.name, model
        held = with_constants(model, case.data_sets[0][0]) if case.data_sets else None
        if held is not None:
            yield f"{case.name}, constants", held


def differences(cases: Any) -> tuple[int, dict[tuple[str, str], list[str]]]:
    """The number of models, and the names of those on which lint and judge differ."""
    count, found = 0, dict[tuple[str, str], list[str]]()
    for name, model in models(cases):
        count += 1
        by_lint = any(finding.severity == "error" for finding in lint(model))
        by_judge = any(judgement.verdict != "warning" for judgement in judged(model))
        if by_lint != by_judge:
            found.setdefault((model.graph.node[0].op_type, "lint" if by_lint else "judge"), []).append(name)
    return count, found


def sample_of_cases() -> list[Any]:
    # collect_testcases makes all of them: here the modules of a few are imported, which adds theirs to the list
    node = importlib.import_module("onnx.backend.test.case.node")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in SAMPLE:
            importlib.import_module(f"onnx.backend.test.case.node.{name}")
    wanted = {name.replace("_", "") for name in SAMPLE}
    return [case for case in node._NodeTestCases if case.model.graph.node[0].op_type.lower() in wanted]


@pytest.mark.parametrize("name", CASES)
def test_the_lint_agrees_with_the_verdict_of_the_parser(name: str) -> None:
    verdict, model = CASES[name]
    severities = {finding.severity for finding in lint(model())}
    assert ("error" in severities) == (verdict in ("refused", "misread") or name in STRICTER)
    assert verdict != "warning" or severities & {"warning", "error"}


@pytest.mark.parametrize("name", trt82_read_cases.CASES)
def test_the_lint_agrees_with_the_source_of_the_parser(name: str) -> None:
    verdict, model = trt82_read_cases.CASES[name]
    error = any(finding.severity == "error" for finding in lint(model()))
    assert (error != (verdict in ("refused", "misread"))) == (name in APART)


def test_lint_and_judge_agree_on_a_sample_of_the_node_models() -> None:
    count, found = differences(sample_of_cases())
    assert count > 380
    assert found.keys() <= DIFFERENCES.keys(), found


@pytest.mark.fuzz
def test_lint_and_judge_agree_on_all_node_models() -> None:
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cases = collect_testcases(None)
    count, found = differences(cases)
    assert count > 1_400
    assert found.keys() == DIFFERENCES.keys(), found
    assert sum(len(names) for names in found.values()) < count // 50
