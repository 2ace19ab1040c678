"""The judge of TensorRT 8.2's parser, held to the verdicts that the parser itself gave."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from l1rr_fx.lowering import to_onnx
from tests import trt82_parser, trt82_read_cases
from tests.trt82_cases import CASES, FLOAT, X2, c, single, z
from tests.trt82_parser import assert_accepted, judged, network, verdict_of


@pytest.mark.parametrize("name", CASES)
def test_each_verdict_is_that_of_the_parser(name: str) -> None:
    verdict, model = CASES[name]
    assert verdict_of(model()) == verdict, [str(judgement) for judgement in judged(model())]


@pytest.mark.parametrize("name", trt82_read_cases.CASES)
def test_each_verdict_is_what_the_source_implies(name: str) -> None:
    verdict, model = trt82_read_cases.CASES[name]
    assert verdict_of(model()) == verdict, [str(judgement) for judgement in judged(model())]


def test_a_network_is_the_layers_that_the_parser_sets() -> None:
    model = single("TopK", {"x": z(3, 7)}, {"v": (FLOAT, (3, 3)), "i": (7, (3, 3))}, c("k", [3]), largest=0)
    (layer,) = network(model)
    assert (layer.kind, dict(layer.parameters)) == ("TopK", {"operation": "MAX", "k": 3, "axis": 1})
    (layer,) = network(single("Celu", {"x": X2}, (2, 3)))
    assert dict(layer.parameters) == {"type": "RELU"}
    (layer,) = network(single("MatMul", {"x": X2}, (2, 4), c("w", z(3, 4))))
    assert layer.kind == "FullyConnected"


def test_what_is_refused_is_named_with_its_node_and_reason() -> None:
    model = CASES["Sign of INT64"][1]()
    with pytest.raises(AssertionError, match="refused: Sign n: unaryHelper: INT32 input"):
        assert_accepted(model)
    assert_accepted(model, but=("Sign",))
    assert_accepted(CASES["Einsum of three"][1]())


def test_emitted_files_are_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(trt82_parser.IMPORTERS, "Relu")
    with pytest.raises(AssertionError, match="no importer is registered for Relu"):
        to_onnx(nn.ReLU().eval(), (torch.ones(2),), tmp_path / "a.onnx")
    to_onnx(nn.ReLU().eval(), (torch.ones(2),), tmp_path / "a.onnx", target="onnxruntime")
