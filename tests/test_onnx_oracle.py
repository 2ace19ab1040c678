"""Our ONNX files against those of torch's TorchScript exporter at the same opset, and a few networks of the zoo."""

from __future__ import annotations

import io
import warnings
from pathlib import Path

import pytest
import torch

import l1rr_fx
from l1rr_fx.lowering import to_onnx
from l1rr_fx.lowering.onnx.emission import is_aten_graph
from l1rr_fx.lowering.onnx.runtime import run_onnx
from tests.oracle import fresh_input, relative_error, zeroed_case
from tests.zoo import by_name

TOLERANCE = 1e-4  # FP32
EXPORTED = ("tv/squeezenet1_1", "tv/mobilenet_v3_small", "timm/starnet_s1")
PRUNED = ("tv/mobilenet_v3_small", "yolo/yolo11n")


@pytest.mark.parametrize("name", EXPORTED)
def test_torchscript_exporter_agrees(name: str, tmp_path: Path) -> None:
    model, args, _ = by_name(name).build()
    path = tmp_path / "model.onnx"
    to_onnx(model, args, path, verify=False)
    exported = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(model, args, exported, opset_version=13, dynamo=False)
    inputs = fresh_input(args, seed=3)
    ours, theirs = (run_onnx(content, inputs) for content in (path.read_bytes(), exported.getvalue()))
    assert relative_error(ours, theirs) < TOLERANCE


@pytest.mark.parametrize("name", PRUNED)
def test_pruned_networks_of_the_zoo(name: str, tmp_path: Path) -> None:
    case = zeroed_case(by_name(name), 0.5)
    pruned = l1rr_fx.prune(case.model, case.args, case.kwargs, verify=False)
    assert is_aten_graph(pruned.module)
    emitted = to_onnx(pruned.module, case.args, tmp_path / "model.onnx", kwargs=case.kwargs)
    assert emitted.deviation is not None and emitted.deviation < TOLERANCE
    assert "capture" in emitted.seconds and emitted.seconds["capture"] < 0.5  # the graph is taken as it is
