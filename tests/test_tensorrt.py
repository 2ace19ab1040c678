"""NVIDIA's own parser and builder read what we emit: TensorRT for RTX builds engines on machines without a GPU."""

from __future__ import annotations

import sys
from pathlib import Path

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import l1rr_fx
from l1rr_fx.lowering import LoweringError, to_onnx, to_tensorrt
from l1rr_fx.lowering.tensorrt import build_engine
from passes.errors import InputError
from tests.op_cases import CASES
from tests.oracle import zeroed_case
from tests.zoo import by_name

NETWORKS = ("tv/resnet18", "yolo/yolov8n", "timm/edgenext_xx_small")
NO_MOVES = ("tv/resnet18", "yolo/yolov8n")  # the third has attention, whose keys are transposed
IMAGE = (torch.rand(1, 3, 16, 16),)


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.SiLU(), nn.Conv2d(8, 4, 1)).eval()


@pytest.mark.parametrize("name", NETWORKS)
def test_file_for_the_tx2_builds(name: str, tmp_path: Path) -> None:
    case = zeroed_case(by_name(name), 0.5)
    pruned = l1rr_fx.prune(case.model, case.args, target="jetson-tx2", verify=False)
    emitted = to_onnx(pruned.module, case.args, tmp_path / "model.onnx", verify=False)
    assert name not in NO_MOVES or emitted.introduced == ()
    engine = build_engine(tmp_path / "model.onnx", tmp_path / "model.engine")
    assert engine.package in ("tensorrt", "tensorrt_rtx")
    assert engine.bytes == (tmp_path / "model.engine").stat().st_size > 10_000


DECOMPOSED = [
    case for case in CASES if case.family in ("norm", "attention") and case.name.endswith(("norm", "sdpa", "mha"))
]


@pytest.mark.parametrize("case", DECOMPOSED, ids=lambda case: case.name)
def test_decompositions_build(case: object, tmp_path: Path) -> None:
    model, args = case.build()  # type: ignore[attr-defined]
    to_onnx(model.eval(), args, tmp_path / "model.onnx", verify=False)
    assert build_engine(tmp_path / "model.onnx", tmp_path / "model.engine").bytes


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_an_engine_from_a_module(precision: str, tmp_path: Path) -> None:
    engine = to_tensorrt(small(), IMAGE, tmp_path / "model.engine", precision=precision)
    assert engine.path.read_bytes() and "built by" in str(engine)
    with pytest.raises(InputError, match="exists already"):
        to_tensorrt(small(), IMAGE, engine.path)
    to_tensorrt(small(), IMAGE, engine.path, overwrite=True)


def test_what_tensorrt_refuses_is_said_in_its_words(tmp_path: Path) -> None:
    ports = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (1, 4)) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Nonsense", ["x"], ["y"], name="odd")], "g", ports[:1], ports[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7), tmp_path / "m.onnx")
    with pytest.raises(LoweringError, match=r"TensorRT .* refuses the network:\n  Nonsense odd: .*Plugin not found"):
        build_engine(tmp_path / "m.onnx", tmp_path / "m.engine")
    assert not (tmp_path / "m.engine").exists()


def test_missing_files_and_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"none\.onnx: cannot be read"):
        build_engine(tmp_path / "none.onnx", tmp_path / "m.engine")
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match="no TensorRT is installed"):
        to_tensorrt(small(), IMAGE, tmp_path / "m.engine")
