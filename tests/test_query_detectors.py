"""DETR and its followers in transformers: pruned, written for TensorRT 8.2, read by field, without NMS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import l1rr_fx
from l1rr_fx.lowering import Nms, lower, to_onnx
from l1rr_fx.lowering.onnx.choices import deviation_given_choices
from l1rr_fx.lowering.onnx.interpret import lower_graph
from l1rr_fx.lowering.onnx.proto import model_proto
from l1rr_fx.lowering.onnx.runtime import Trial, run_onnx
from l1rr_fx.lowering.onnx.writer import Writer
from l1rr_fx.lowering.onnx_target import target_named
from passes.errors import InputError
from passes.rewriting.fold import fold_batch_norm
from tests.installed import is_installed
from tests.oracle import Case, fresh_input, relative_error, zeroed_case
from tests.query_detectors import QUERY_DETECTORS, query_detector
from tests.zoo import Entry

TOLERANCE = 1e-4  # of float32, through a network with attention
NO_NMS = "gives logits, pred_boxes.*predicts each object once.*expected no nms"
IMAGE = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


needs_transformers = pytest.mark.skipif(not is_installed("transformers"), reason="transformers is not installed")


def small_case(name: str) -> Case:
    return zeroed_case(Entry(name, lambda: query_detector(name, small=True), 96), 0.3)


@pytest.mark.fuzz  # in the zoo, too, at their full size
@needs_transformers
@pytest.mark.parametrize("name", QUERY_DETECTORS)
def test_pruned_equals_zeroed(name: str) -> None:
    case = small_case(name)
    pruned = l1rr_fx.prune(case.model, case.args, verify=False)
    args = fresh_input(case.args, seed=7)
    with torch.no_grad():
        assert relative_error(pruned.module(*args), case(args)) <= 1e-10
    assert pruned.report.after.macs < pruned.report.before.macs


@needs_transformers
@pytest.mark.parametrize(
    "name", ["detr", *(pytest.param(name, marks=pytest.mark.fuzz) for name in ("rt_detr", "d_fine"))]
)
def test_from_pruning_to_the_file(name: str, tmp_path: Path) -> None:
    case = small_case(name)
    model, args, others = case.model.float(), _float(case.args), _float(fresh_input(case.args, seed=7))
    module = l1rr_fx.prune(model, args, verify=False).module
    emitted = to_onnx(module, args, tmp_path / "m.onnx")  # judged, too: see conftest.py
    names = [port.name for port in onnx.load(emitted.path).graph.output]
    assert names == field_names(model(*args))
    assert names[:2] == ["logits", "pred_boxes"]
    assert emitted.deviation is not None and emitted.deviation <= TOLERANCE
    assert deviation_on(module, args, others) <= TOLERANCE
    with pytest.raises(InputError, match=NO_NMS):
        to_onnx(module, args, tmp_path / "nms.onnx", nms=Nms())


def test_a_network_that_predicts_a_set_is_known_by_its_fields(tmp_path: Path) -> None:
    """As DETR of its authors gives it: the names alone say that the last axis is no row of boxes and scores."""
    model = AsDetr().eval()
    for network in (model, l1rr_fx.prune(model, (IMAGE,), verify=False).module):
        with pytest.raises(InputError, match="gives pred_logits, pred_boxes.*once.*expected no nms"):
            to_onnx(network, (IMAGE,), tmp_path / "nms.onnx", nms=Nms())
    with pytest.raises(InputError, match="gives pred_logits, pred_boxes.*once.*expected no nms"):
        lower(model, (IMAGE,), out=tmp_path / "bundle", nms=Nms())
    assert not list(tmp_path.iterdir())


class AsDetr(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.scores, self.boxes = nn.Conv2d(3, 7, 1), nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        scores, boxes = (layer(x).flatten(2).mT for layer in (self.scores, self.boxes))
        return {"pred_logits": scores, "pred_boxes": boxes.sigmoid()}


def _float(args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(each.float() for each in args)


def field_names(output: Any) -> list[str]:
    """The names of the fields of a transformers output, those of lists numbered."""
    return [
        name if isinstance(value, Tensor) else f"{name}_{i}"
        for name, value in output.items()
        for i, _ in enumerate(pytree.tree_leaves(value))
    ]


def deviation_on(module: Any, args: tuple[Tensor, ...], others: tuple[Tensor, ...]) -> float:
    """By how much the file that was written by `args` deviates on `others`, where both choose alike."""
    writer = Writer(target_named("jetson-tx2"))
    lowered = lower_graph(fold_batch_norm(module), args, writer)
    proto = model_proto(lowered, writer, "m", {})
    found = deviation_given_choices(proto, lowered, module, Trial(others, {}, None))
    if found is not None:
        return found
    with torch.no_grad():
        return relative_error(run_onnx(proto.SerializeToString(), others), pytree.tree_leaves(module(*others)))
