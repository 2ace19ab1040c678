"""Every row of the table of operators as an ONNX file: ONNX Runtime computes what torch does; the lint is content."""

from __future__ import annotations

from pathlib import Path

import pytest

import l1rr_fx
from l1rr_fx.lowering import LoweringError, to_onnx
from l1rr_fx.testing import zeroed
from tests.op_cases import CASES, Case

TOLERANCE = 1e-4  # FP32 sums in another order

GAPS = {
    "conv_dynamic_filters": "TensorRT 8.2 wants the weights of convolutions as constants",
    "linear_bilinear": "torch writes it with an operator that it does not decompose",
    "unfold_fold": "fold adds up what overlaps, which ONNX says from opset 18 on",
    "binary": "atan2 has no ONNX operator",
    "batch_norm_of_batch": "with the batch's statistics there is no eval mode",
    "reductions_of_channels": "median has no ONNX operator",
    "fft": "complex numbers",
    "fft_over_channels": "complex numbers",
    "grid_sample_of_volume": "only images are sampled",
    "cdist": "torch writes it with an operator that it does not decompose",
    "scatter_add": "ScatterElements adds from opset 16 on",
    "index_add": "ScatterND adds from opset 16 on",
    "pool_indices_unpool": "TensorRT has no positions of maxima",
    "pool_indices_unpool_1d": "TensorRT has no positions of maxima",
    "pool_indices_unpool_3d": "TensorRT has no positions of maxima",
    "pool_indices_beyond_values": "TensorRT has no positions of maxima",
}
"""Rows that the target cannot have, and why. An error that names the operator is all that they get."""

NEWER = ("attention", "norm")


def rows(*families: str) -> list[Case]:
    return [case for case in CASES if case.family in families and case.name not in GAPS]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_emitted_computes_the_same(case: Case, tmp_path: Path) -> None:
    model, args = case.build()
    model.eval()
    if case.name in GAPS:
        with pytest.raises(LoweringError, match=r"has no form|the network computes|batch's statistics|no second"):
            to_onnx(model, args, tmp_path / "model.onnx")
        assert not list(tmp_path.iterdir())
        return
    emitted = to_onnx(model, args, tmp_path / "model.onnx")
    assert emitted.deviation is not None and emitted.deviation <= TOLERANCE
    assert not [finding for finding in emitted.findings if finding.severity == "error"]


@pytest.mark.parametrize("case", rows(*NEWER), ids=lambda case: case.name)
def test_newer_opset_computes_the_same(case: Case, tmp_path: Path) -> None:
    model, args = case.build()
    emitted = to_onnx(model.eval(), args, tmp_path / "model.onnx", target="onnxruntime")
    assert emitted.opset == 18
    assert emitted.deviation is not None and emitted.deviation <= TOLERANCE


@pytest.mark.parametrize("case", rows("network"), ids=lambda case: case.name)
def test_pruned_networks_emit_as_they_are(case: Case, tmp_path: Path) -> None:
    model, args = case.build()
    pruned = l1rr_fx.prune(zeroed(model, 0.5, 1).eval(), args)
    emitted = to_onnx(pruned.module, args, tmp_path / "model.onnx")
    assert emitted.deviation is not None and emitted.deviation <= TOLERANCE
