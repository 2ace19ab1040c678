"""Bundles that end with NMS: what they hold, what is measured where the plugin is not known, and that its detections
are judged rightly.

The plugin needs TensorRT proper and a GPU: here it never runs. Detections come from an NMS of these tests instead.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from typer.testing import CliRunner

from l1rr_fx.cli.measuring import app
from l1rr_fx.latency.results import read_results
from l1rr_fx.lowering import Nms, lower
from l1rr_fx.lowering.bundle import build_and_measure
from l1rr_fx.lowering.bundle.writing import BEFORE_NMS, DETECTION_TOLERANCE, SCRIPT
from l1rr_fx.lowering.tensorrt import build_engine
from passes.errors import InputError, LoweringError
from tests.torchvision_shim import nms as torchvisions_nms

IMAGE = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
NMS = Nms(score=0.4, overlap=0.6, most=20)


class Head(nn.Module):
    """(1, 4 + 3, 64) detections, and a feature map."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.gain = nn.Conv2d(3, 7, 3, 2, 1), gain

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        return torch.cat([y[:, :4].exp(), self.gain * y[:, 4:].sigmoid()], 1).flatten(2), y


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lower(Head().eval(), (IMAGE,), out=tmp_path_factory.mktemp("bundles") / "nms", nms=NMS).path


# What it holds


def test_each_file_is_there_with_the_plugin_and_without(bundle: Path) -> None:
    for name, before in BEFORE_NMS.items():
        whole, raw = (onnx.load(str(bundle / each)) for each in (name, before))
        *same, transpose, split, plugin = whole.graph.node
        assert same == list(raw.graph.node)
        assert (transpose.op_type, split.op_type, plugin.op_type) == ("Transpose", "Split", "EfficientNMS_TRT")
        names = [output.name for output in whole.graph.output]
        assert names == ["num_dets", "det_boxes", "det_scores", "det_classes", raw.graph.output[1].name]
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert set(BEFORE_NMS.values()) < manifest["files"].keys()
    tolerance = dict(DETECTION_TOLERANCE)
    assert manifest["nms"] == {"output": "output0", "score": 0.4, "overlap": 0.6, "most": 20, "tolerance": tolerance}


def test_the_nodes_of_the_plugin_are_counted(tmp_path: Path) -> None:
    plain, ended = (
        lower(Head().eval(), (IMAGE,), out=tmp_path / str(nms), half_model=False, nms=nms).emitted
        for nms in (None, NMS)
    )
    assert ended.nodes == plain.nodes + 3
    assert ended.introduced == (*plain.introduced, "nms/Transpose")
    assert ended.deviation == plain.deviation


def test_the_expected_output_is_torchs_before_nms(bundle: Path) -> None:
    with torch.no_grad():
        output = Head().eval()(IMAGE)[0]
    expected = numpy.load(bundle / "expected.npz")
    assert torch.equal(torch.from_numpy(expected["output0"]), output)


def test_the_readme_says_what_is_accepted(bundle: Path) -> None:
    text = " ".join((bundle / "README.md").read_text().split())
    assert "In place of the output output0" in text and "scores may be off by 1e-02 (fp32), 5e-02 (fp16)" in text


def test_inputs_without_objects_are_noted(tmp_path: Path) -> None:
    found = lower(Head(1e-3).eval(), (IMAGE,), out=tmp_path / "b", half_model=False, nms=NMS)
    for text in (str(found), (found.path / "README.md").read_text()):
        assert "no score reaches 0.4 for these inputs (the best is 0.000" in text


class Logits(Head):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.conv(x)
        return y.flatten(2), y


class Corners(Head):
    """Boxes with a height below zero."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        detections, y = super().forward(x)
        return torch.cat([detections[:, :3], -detections[:, 3:4], detections[:, 4:]], 1), y


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (Logits(), {}, r"output 'output0' has scores from -\d.* they must lie in \[0, 1\]: end the network with their"),
        (Corners(), {}, r"output 'output0' has a box of width or height -\d"),
        (Head(), {"nms": Nms(output=1)}, r"output 'output1' is \(1, 7, 8, 8\); .* pick another one"),
        (Head(), {"nms": Nms(output=5)}, "the file has no output 5; it has 2"),
        (Head(), {"target": "onnxruntime"}, "the target 'onnxruntime' has none: leave it out"),
    ],
)
def test_what_cannot_be_suppressed_leaves_nothing(
    module: nn.Module, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        lower(module.eval(), (IMAGE,), out=tmp_path / "b", half_model=False, **{"nms": NMS, **options})
    assert not [*tmp_path.iterdir()]


# Measuring where the plugin is not known


def test_the_network_before_nms_is_measured_and_said(bundle: Path, tmp_path: Path) -> None:
    """TensorRT for RTX builds both files, and ONNX Runtime measures, since there is no GPU."""
    copied = Path(shutil.copytree(bundle, tmp_path / "copy"))
    command = [sys.executable, str(copied / SCRIPT), "--iterations", "5", "--warmup", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found, document = read_results(copied / "results.json"), json.loads((copied / "results.json").read_text())
    (run,) = found.runs
    assert document["runs"][0]["model"] == "model_before_nms.onnx"
    assert run.agrees and not run.nms and document["runs"][0]["tolerance"] == 1e-4
    assert [run["model"] for run in document["built"]["runs"]] == [
        "model_fp16_before_nms.onnx",
        "model_before_nms.onnx",
    ]
    for engine in ("this TensorRT", "ONNX Runtime"):
        assert f"{engine} has no plugin EfficientNMS_TRT: the network before NMS was taken" in " ".join(found.notes)


def test_tensorrt_for_rtx_has_other_plugins_only(bundle: Path, tmp_path: Path) -> None:
    """Its registry is real; and its parser says the same of the file."""
    import tensorrt_rtx as trt

    logger = trt.Logger(trt.Logger.ERROR)
    assert build_and_measure.has_plugin(trt, logger, "ROIAlign_TRT")
    assert not build_and_measure.has_plugin(trt, logger, build_and_measure.PLUGIN)
    with pytest.raises(LoweringError, match="EfficientNMS_TRT .*Plugin not found"):
        build_engine(bundle / "model.onnx", tmp_path / "engine")


# Detections, judged


Arrays = dict[str, numpy.ndarray]


def manifest(score: float = 0.25, overlap: float = 0.5, most: int = 200) -> dict[str, Any]:
    return {"output": "y", "score": score, "overlap": overlap, "most": most}


def heads_output(seed: int, classes: int = 3, anchors: int = 60, images: int = 2) -> numpy.ndarray:
    """Boxes of 10 to 40 pixels that crowd an image of 64, and scores, some of which are equal."""
    draw = numpy.random.default_rng(seed)
    boxes = numpy.concatenate(
        [draw.uniform(0, 64, (images, 2, anchors)), draw.uniform(10, 40, (images, 2, anchors))], 1
    )
    return numpy.concatenate([boxes, draw.uniform(0, 1, (images, classes, anchors)).round(2)], 1)


def suppressed(output: numpy.ndarray, nms: Mapping[str, Any], pool: int = 2000) -> Arrays:
    """What the plugin gives, from torchvision's NMS: best first, classes apart, padded with zeros. It looks at the
    `pool` best scores of an image."""
    most = nms["most"]
    shapes = {"num_dets": (1,), "det_boxes": (most, 4), "det_scores": (most,), "det_classes": (most,)}
    found = {name: numpy.zeros((len(output), *shape)) for name, shape in shapes.items()}
    for image, raw in enumerate(output):
        boxes, rows = build_and_measure.corners(raw[:4].T), []
        least = max(nms["score"], numpy.sort(raw[4:], axis=None)[-min(pool, raw[4:].size)])
        for number, scores in enumerate(raw[4:]):
            (asked,) = numpy.nonzero(scores >= least)
            kept = torchvisions_nms(torch.tensor(boxes[asked]), torch.tensor(scores[asked]), nms["overlap"])
            rows += [(scores[i], number, i) for i in asked[kept.numpy()]]
        rows = sorted(rows, reverse=True)[:most]
        found["num_dets"][image] = len(rows)
        for place, (score, number, anchor) in enumerate(rows):
            found["det_scores"][image, place], found["det_classes"][image, place] = score, number
            found["det_boxes"][image, place] = boxes[anchor]
    return found


def off(found: Arrays, output: numpy.ndarray, nms: dict[str, Any]) -> float:
    return build_and_measure.deviation(found, {"y": output}, nms)


@given(st.integers(0, 10**6), st.sampled_from([0.1, 0.5, 0.9]), st.sampled_from([3, 100]))
def test_the_result_of_nms_is_not_off(seed: int, overlap: float, most: int) -> None:
    output, nms = heads_output(seed), manifest(overlap=overlap, most=most)
    assert off(suppressed(output, nms), output, nms) <= 1e-12


@given(
    st.integers(0, 10**6), st.sampled_from([0.01, 0.05, 0.2]), st.sampled_from([3, 200]), st.sampled_from([40, 2000])
)
def test_nms_of_rounded_values_is_off_by_the_rounding(seed: int, most_off: float, most: int, pool: int) -> None:
    """Whichever detections come and go: what scores are off by, or a fourth of what boxes are. 1 - IoU is a metric."""
    output, nms, draw = heads_output(seed), manifest(most=most), numpy.random.default_rng(seed)
    moved = output.copy()
    moved[:, :4] += draw.uniform(-10, 10, moved[:, :4].shape) * most_off
    moved[:, 4:] += draw.uniform(-most_off, most_off, moved[:, 4:].shape)
    boxes = [
        1 - build_and_measure.iou(*(build_and_measure.corners(each[:4].T) for each in pair)).diagonal().min()
        for pair in zip(output, moved, strict=True)
    ]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(build_and_measure, "POOL", pool)
        found = off(suppressed(moved, nms, pool), output, nms)
    assert found <= max(most_off, *(box / 4 for box in boxes)) + 1e-12


def test_the_last_that_the_plugin_looks_at_is_rounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the two best by 0.05 more or less, the best of all may be none, though it is better by 0.079."""
    monkeypatch.setattr(build_and_measure, "POOL", 2)
    output = numpy.array([[[10, 30, 50], [10, 10, 10], [8, 8, 8], [8, 8, 8], [0.599, 0.52, 0.50]]])
    moved = output + numpy.array([0, 0, 0, 0, 0.05])[:, None] * [-1, 1, 1]
    assert off(suppressed(moved, manifest(), pool=2), output, manifest()) == pytest.approx(0.05)


def test_what_the_plugin_does_not_look_at_is_missed_by_others() -> None:
    output, nms = heads_output(0), manifest(overlap=1.0)
    assert off(suppressed(output, nms, pool=40), output, nms) > 0.1


def drop(found: Arrays) -> None:
    """The best one, which no other covers."""
    found["num_dets"][0] -= 1
    for name in ("det_boxes", "det_scores", "det_classes"):
        found[name][0] = numpy.roll(found[name][0], -1, axis=0)


def keep_twice(found: Arrays) -> None:
    count = int(found["num_dets"][0, 0])
    found["num_dets"][0] += 1
    for name in ("det_boxes", "det_scores", "det_classes"):
        found[name][0, count] = found[name][0, 0]


def set_to(name: str, change: Callable[[numpy.ndarray], Any]) -> Callable[[Arrays], None]:
    def changed(found: Arrays) -> None:
        found[name][0, 0] = change(found[name][0, 0])

    return changed


WRONG = {
    "missing": drop,
    "twice": keep_twice,
    "score": set_to("det_scores", lambda score: score - 0.1),
    "class": set_to("det_classes", lambda number: (number + 1) % 3),
    "no class": set_to("det_classes", lambda _: 3),
    "box": set_to("det_boxes", lambda box: box + 8),
    "centre": set_to("det_boxes", lambda box: [*(box[:2] + box[2:]) / 2, *(box[2:] - box[:2])]),
    "no number": set_to("det_boxes", lambda _: numpy.nan),
    "nothing": lambda found: found["num_dets"].fill(0),
    "too many": lambda found: found["num_dets"].fill(201),
    "absent": lambda found: found.pop("det_scores"),
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_other_detections_are_off_by_more_than_is_tolerated(wrong: Callable[[Arrays], Any]) -> None:
    output, nms = heads_output(0), manifest()
    found = suppressed(output, nms)
    wrong(found)
    assert off(found, output, nms) > max(DETECTION_TOLERANCE.values())


@pytest.mark.parametrize("changed", [{"score": 0.5}, {"overlap": 0.9}, {"overlap": 0.1}, {"most": 10}])
def test_nms_with_other_options_is_off(changed: dict[str, Any]) -> None:
    output = heads_output(0)
    assert off(suppressed(output, manifest(**changed)), output, manifest()) > max(DETECTION_TOLERANCE.values())


def test_other_outputs_are_compared_beside_detections() -> None:
    output, nms = heads_output(0), manifest()
    found = {**suppressed(output, nms), "map": numpy.full(4, 1.5)}
    assert build_and_measure.deviation(found, {"y": output, "map": numpy.ones(4)}, nms) == 0.5
    assert build_and_measure.deviation(found, {"y": output}, None) == build_and_measure.WRONG


# The command


MODELS = "from tests.test_bundle_nms import Head, IMAGE\n\ndef net():\n    return Head().eval(), (IMAGE,)\n"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "nms_models", raising=False)
    (tmp_path / "nms_models.py").write_text(MODELS)
    return tmp_path


def call(*options: str) -> Any:
    return CliRunner().invoke(app, ["lower", "nms_models:net", "-o", "b", "--no-half-model", *options])


def test_the_command_ends_the_network_with_nms(here: Path) -> None:
    done = call("--nms", "score=0.4,most=7")
    assert done.exit_code == 0, done.output
    written = json.loads((here / "b" / "manifest.json").read_text())["nms"]
    assert (written["score"], written["overlap"], written["most"]) == (0.4, 0.7, 7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("score=2", "nms: the score is 2.0; expected a threshold from 0 to 1"),
        ("overlap=0", "nms: the overlap is 0.0; expected an IoU above 0"),
        ("most=0", "nms: most is 0"),
        ("colour=1", "--nms 'colour=1': 'colour=1' is not one of output=, score=, overlap=, most=, given once"),
        ("most=1,most=2", "'most=2' is not one of"),
        ("most=1.5", "'1.5' is no whole number"),
        ("score=high", "'high' is no number"),
    ],
)
def test_the_command_says_what_is_wrong(here: Path, options: str, message: str) -> None:
    done = call("--nms", options)
    assert done.exit_code == 2
    assert message in " ".join(done.output.split())
    assert not (here / "b").exists()
