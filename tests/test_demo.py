"""The demo: its detector, boxes, data and checkpoint. (Its whole run is the main job: `make demo`.)"""

from __future__ import annotations

import io
import json
from copy import deepcopy
from importlib import metadata
from pathlib import Path

import pytest
import torch
from rich.console import Console

import l1rr_fx
from l1rr_fx.demo import measure, run, training, trees, views
from l1rr_fx.demo.boxes import Detections, average_precision, decode, detections, iou
from l1rr_fx.demo.detector import TreeDetector
from l1rr_fx.demo.picture import Panel, write_side_by_side
from l1rr_fx.method.planning.plan import Plan
from passes.errors import InputError
from tests.yolo_trees import needs_trees


@pytest.fixture(scope="module")
def detector() -> TreeDetector:
    return run.load_detector()


def test_maps_have_one_cell_for_each_stride() -> None:
    maps = TreeDetector().eval()(torch.rand(2, 3, 64, 96))
    assert {name: tuple(each.shape) for name, each in maps.items()} == {
        "score_8": (2, 1, 8, 12),
        "sides_8": (2, 4, 8, 12),
        "score_16": (2, 1, 4, 6),
        "sides_16": (2, 4, 4, 6),
    }


def test_size_is_that_of_a_small_detector() -> None:
    assert 300_000 <= measure.parameters(TreeDetector()) <= 700_000


def test_runs_in_float64(detector: TreeDetector) -> None:
    image = torch.rand(1, 3, 64, 64)
    single, double = detector(image), deepcopy(detector).double()(image.double())
    for name, each in double.items():
        assert each.dtype == torch.float64
        # float32's rounding, some 20 layers deep
        torch.testing.assert_close(single[name].double(), each, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dynamic", [False, True])
def test_exports_whole(detector: TreeDetector, dynamic: bool) -> None:
    shapes = ({0: torch.export.Dim("batch")},) if dynamic else None
    program = torch.export.export(detector, (torch.rand(2, 3, 64, 64),), strict=False, dynamic_shapes=shapes)
    image = torch.rand(5 if dynamic else 2, 3, 64, 64)
    for name, each in program.module()(image).items():
        torch.testing.assert_close(each, detector(image)[name])


def test_decode_puts_a_box_around_its_cell() -> None:
    maps = {f"score_{s}": torch.full((1, 1, 32 // s, 64 // s), -9.0) for s in (8, 16)}
    maps |= {f"sides_{s}": torch.zeros(1, 4, 32 // s, 64 // s) for s in (8, 16)}
    maps["score_8"][0, 0, 1, 5] = 9.0
    maps["sides_8"][0, :, 1, 5] = torch.tensor([1.0, 0.5, 2.0, 1.5]).expm1().log()  # their softplus is 1, .5, 2, 1.5
    logits, boxes = decode(maps)
    assert logits.shape == (1, 32 + 8) and boxes.shape == (1, 40, 4)
    found = detections(maps, (32, 60))
    torch.testing.assert_close(found.boxes, torch.tensor([[36.0, 8.0, 60.0, 24.0]]))


def test_suppression_keeps_the_better_of_two_boxes_and_every_lone_one() -> None:
    maps = {f"score_{s}": torch.full((1, 1, 64 // s, 64 // s), -9.0) for s in (8, 16)}
    maps |= {f"sides_{s}": torch.full((1, 4, 64 // s, 64 // s), 2.0) for s in (8, 16)}
    for row, column, logit in ((1, 1, 1.0), (1, 2, 2.0), (6, 6, 0.0)):
        maps["score_8"][0, 0, row, column] = logit
    found = detections(maps, (64, 64))
    torch.testing.assert_close(found.scores, torch.tensor([2.0, 0.0]).sigmoid())


def test_precision_of_a_worked_example() -> None:
    truth = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 30.0, 30.0]])
    found = Detections(
        torch.tensor([[0.0, 0.0, 10.0, 10.0], [50.0, 50.0, 60.0, 60.0], [20.0, 20.0, 30.0, 26.0]]),
        torch.tensor([0.9, 0.8, 0.7]),
    )
    precision = average_precision(found, truth, (0.5, 0.7))
    # Recalls 0 to .5 at precision 1 (51 of 101 points); the third detection, IoU .6: recalls up to 1 at 2/3.
    assert precision[0.5] == pytest.approx((51 + 50 * 2 / 3) / 101)
    assert precision[0.7] == pytest.approx(51 / 101)


def test_precision_of_small_boxes_leaves_out_the_others() -> None:
    small, large = [0.0, 0.0, 10.0, 10.0], [20.0, 20.0, 60.0, 60.0]
    truth = torch.tensor([small, large])
    found = Detections(torch.tensor([large, small, [70.0, 70.0, 99.0, 99.0]]), torch.tensor([0.9, 0.8, 0.95]))
    # The large tree and what found it do not count, nor does the false alarm of 841 square pixels.
    assert average_precision(found, truth, (0.5,), sizes=(0, 150)) == {0.5: pytest.approx(1.0)}
    assert average_precision(found, truth, (0.5,), sizes=(0, 50)) == {0.5: 0.0}, "no tree is so small"
    assert average_precision(found, truth, (0.5,))[0.5] < 1, "all sizes: the false alarm counts"


def test_nothing_found_has_no_precision() -> None:
    assert average_precision(Detections(torch.zeros(0, 4), torch.zeros(0)), torch.ones(1, 4), (0.5,)) == {0.5: 0.0}


def test_iou_of_touching_and_nested_boxes() -> None:
    box = torch.tensor([0.0, 0.0, 4.0, 4.0])
    others = torch.tensor([[4.0, 0.0, 8.0, 4.0], [0.0, 0.0, 2.0, 2.0], [0.0, 0.0, 4.0, 4.0]])
    torch.testing.assert_close(iou(box, others), torch.tensor([0.0, 0.25, 1.0]))


def test_a_missing_or_broken_checkpoint_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no checkpoint .*missing.*train_trees"):
        run.load_detector(tmp_path / "missing.safetensors")
    (tmp_path / "broken.safetensors").write_bytes(b"not a checkpoint")
    with pytest.raises(InputError, match="broken.*is not a checkpoint"):
        run.load_detector(tmp_path / "broken.safetensors")


def test_a_missing_wheel_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "files", missing)
    with pytest.raises(InputError, match=f"pip install --no-deps {trees.WHEEL}"):
        trees.test_scene()


def test_a_wheel_without_the_image_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "files", lambda name: [])
    monkeypatch.setattr(metadata, "version", lambda name: "9.9")
    with pytest.raises(InputError, match=f"{trees.TEST_IMAGE} is not among the files of deepforest 9.9"):
        trees.test_scene()


def test_a_window_moves_its_trees_and_drops_those_mostly_outside() -> None:
    boxes = torch.tensor([[10.0, 10.0, 20.0, 20.0], [0.0, 0.0, 6.0, 6.0], [2.0, 10.0, 10.0, 20.0]])
    inside = trees.window(trees.Scene(torch.zeros(3, 40, 40, dtype=torch.uint8), boxes), (5, 5, 30, 25))
    assert inside.size == (20, 25)
    assert inside.boxes.tolist() == [[5, 5, 15, 15], [0, 5, 5, 15]]


def test_the_picture_has_a_panel_for_each_set_of_boxes(tmp_path: Path) -> None:
    from PIL import Image

    one = Panel("one", torch.tensor([[2.0, 2.0, 9.0, 9.0]]), (255, 0, 0))
    panels = [one, Panel("none", torch.zeros(0, 4), (0, 0, 0))]
    write_side_by_side(torch.zeros(3, 20, 30, dtype=torch.uint8), panels, tmp_path / "p.png", width=60)
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.size == (60 + 8 + 60, 40 + 40)
        assert picture.getpixel((4, 44)) == (255, 0, 0)
    assert [p.name for p in tmp_path.iterdir()] == ["p.png"]


@needs_trees
def test_scenes_hold_the_trees_that_were_drawn() -> None:
    learn, choose = trees.training_scenes()
    test = trees.test_scene()
    assert (learn.size, choose.size, test.size) == ((2016, 2299), (456, 2299), (1035, 1249))
    assert (len(learn.boxes), len(choose.boxes), len(test.boxes)) == (460, 114, 279)
    for scene in (learn, choose, test):
        assert (scene.boxes[:, :2] >= 0).all() and (scene.boxes[:, 2] <= scene.size[1]).all()


@needs_trees
def test_the_checkpoint_finds_the_trees(detector: TreeDetector) -> None:
    dense = measure.precision(detector, trees.test_scene())
    assert dense[0.3] >= 0.66 and dense[0.4] >= 0.55 and dense[0.5] >= 0.38, dense  # measured: .682, .575, .399


@needs_trees
def test_views_are_the_same_for_the_same_seed_and_hold_trees() -> None:
    learn, _ = trees.training_scenes()
    first, again, other = (next(views.random_batches(learn, 1, size=4, crop=64, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first.images, again.images) and not torch.equal(first.images, other.images)
    assert first.images.shape == (4, 3, 64, 64) and 0 <= first.images.min() and first.images.max() <= 1
    assert any(len(each) for each in first.trees)
    for each in first.trees:
        assert (each >= 0).all() and (each <= 64).all() and (each[:, :2] < each[:, 2:]).all()


def test_a_step_of_training_lowers_the_loss_on_its_batch() -> None:
    torch.manual_seed(0)
    trees_of = (torch.tensor([[8.0, 8.0, 40.0, 40.0]]), torch.tensor([[20.0, 4.0, 60.0, 50.0]]))
    batch = views.Batch(torch.rand(2, 3, 64, 64), trees_of, (torch.zeros(0, 4), torch.zeros(0, 4)))
    lesson = training.Training(TreeDetector(), training.Settings(30, 1e-3, warm_up=5))
    losses = [lesson.advance(batch) for _ in range(30)]
    assert losses[-1] < 0.7 * losses[0], losses


def test_a_training_goes_on_where_it_stopped() -> None:
    batch = views.Batch(torch.rand(1, 3, 64, 64), (torch.tensor([[8.0, 8.0, 40.0, 40.0]]),), (torch.zeros(0, 4),))

    def fresh() -> training.Training:
        torch.manual_seed(0)
        return training.Training(TreeDetector(), training.Settings(6, 1e-3, warm_up=2))

    whole, first, second = fresh(), fresh(), fresh()
    for _ in range(3):
        first.advance(batch)
    second.load_state(deepcopy(first.state()))
    losses = [whole.advance(batch) for _ in range(6)]
    assert [second.advance(batch) for _ in range(3)] == losses[3:]


@needs_trees
def test_the_whole_demo_on_a_corner_of_the_test_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corner = trees.window(trees.test_scene(), (300, 0, 700, 400))
    monkeypatch.setattr("l1rr_fx.demo.run.test_scene", lambda: corner)
    monkeypatch.setattr("l1rr_fx.demo.measure.find_spec", lambda name: None)  # exporting to ONNX takes most of the time
    monkeypatch.setattr("l1rr_fx.method.planning.weighing.EXPONENTS", (0.25,))  # one way to weigh, of four
    printed = io.StringIO()
    effort = run.Effort(attention=1, steps=2, batch=2, crop=128)
    summary = run.run(tmp_path / "new" / "folder", effort=effort, console=Console(file=printed, width=120))
    assert summary.deviation <= run.TOLERANCE
    assert summary.precision["pruned"] == pytest.approx(summary.precision["zeroed"], abs=1e-3)
    assert summary.macs[1] < 0.5 * summary.macs[0] and summary.parameters[1] < 0.6 * summary.parameters[0]
    assert 0.69 <= summary.predicted[1] / summary.predicted[0] <= run.BUDGET.limits["latency"] == 0.7
    names = ["detections.png", "curves.png", "scales.png", "kept.png", "before-after.jpg"]
    assert [path.name for path in summary.pictures] == names
    assert all(path.stat().st_size > 10_000 for path in summary.pictures)
    folder = summary.pictures[0].parent
    assert json.loads((folder / "summary.json").read_text())["zeroed"] == summary.zeroed
    plan = Plan.from_json((folder / "plan.json").read_text())
    assert plan.zeroed == summary.zeroed and plan.budget == run.BUDGET
    text = printed.getvalue().replace("\n", "")
    assert str(summary.pictures[0]) in text and text.index("removing what is zero ...") < text.index("drawing ...")
    assert (folder / "report.html").is_file() and l1rr_fx.load(folder / "small").report.target.startswith("jetson-tx2")
