"""Bundles: images as example inputs, the dense network beside the pruned one, and the machine it was pruned for."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from typer.testing import CliRunner

import l1rr_fx
from l1rr_fx.cli.measuring import app
from l1rr_fx.lowering import Latency, lower
from l1rr_fx.lowering.bundle.examples import with_image
from l1rr_fx.pruning.report import Report
from passes.errors import InputError

BLACK = torch.zeros(1, 3, 8, 16)


def model() -> nn.Module:
    torch.manual_seed(0)
    found = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    found[1].weight.data[:4] = found[1].bias.data[:4] = 0
    return found


def dense() -> tuple[nn.Module, tuple[Tensor]]:
    return model(), (BLACK,)


def pruned(target: str) -> l1rr_fx.Pruned:
    return l1rr_fx.prune(model(), (BLACK,), target=target)


def picture(path: Path, size: tuple[int, int], colour: Any, mode: str = "RGB") -> Path:
    """A picture of one colour; `size` is width and height."""
    Image.new(mode, size, colour).save(path)
    return path


# Images


def test_a_picture_keeps_its_proportions_on_gray(tmp_path: Path) -> None:
    (found,) = with_image((BLACK,), picture(tmp_path / "a.png", (32, 32), (255, 0, 51)))
    assert found.shape == BLACK.shape
    middle, left, right = found[0, :, :, 4:12], found[0, :, :, :4], found[0, :, :, 12:]
    assert torch.allclose(middle, torch.tensor([1.0, 0.0, 0.2])[:, None, None], atol=1e-6)  # float32
    assert torch.allclose(torch.cat([left, right], 2), torch.tensor(114 / 255), atol=1e-6)


def test_the_top_of_a_picture_is_the_first_row(tmp_path: Path) -> None:
    pixels = numpy.zeros((8, 16, 3), "uint8")
    pixels[0, :, 0] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    for given in (tmp_path / "a.png", str(tmp_path / "a.png"), pixels, torch.from_numpy(pixels)):
        (found,) = with_image((BLACK,), given)
        assert found[0, 0, 0].min() == 1 and found[0, :, 1:].max() == found[0, 1:].max() == 0


def test_gray_networks_get_gray_and_batches_the_same_image(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", (4, 4), (255, 255, 255))
    found, other = with_image((torch.zeros(2, 1, 4, 4), "other"), path)
    assert other == "other" and torch.equal(found, torch.ones(2, 1, 4, 4))


def test_floating_point_is_taken_as_it_is() -> None:
    image = torch.randn(3, 8, 16, generator=torch.Generator().manual_seed(0))
    for given in (image, image[None], image.numpy()):
        assert torch.equal(with_image((BLACK,), given)[0][0], image)
    assert with_image((BLACK,), None) == (BLACK,)


@pytest.mark.parametrize(
    ("args", "image", "message"),
    [
        ((BLACK,), "nowhere.png", "nowhere.png: there is no such file"),
        ((BLACK,), __file__, "no picture that can be read"),
        ((BLACK,), numpy.zeros((8, 8, 4), "uint8"), r"\(8, 8, 4\) of uint8; expected \(height, width, 3\)"),
        ((BLACK,), torch.zeros(1, 3, 8, 8), r"\(1, 3, 8, 8\) of torch.float32; expected .* shape, \(1, 3, 8, 16\)"),
        ((BLACK,), torch.zeros(3, 8, 16, dtype=torch.int64), "of torch.int64; expected"),
        ((BLACK,), object(), "image is a object; expected a path"),
        ((torch.zeros(1, 8),), numpy.zeros((8, 8, 3), "uint8"), r"the first input is \(1, 8\); expected"),
        ((), numpy.zeros((8, 8, 3), "uint8"), "the first input is NoneType; expected"),
    ],
)
def test_what_is_no_image_of_the_shape_is_refused(args: tuple[Any, ...], image: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        with_image(args, image)


def test_lower_stores_the_image_and_says_if_there_is_none(tmp_path: Path) -> None:
    path = picture(tmp_path / "a.png", (16, 8), (255, 0, 0))
    black = lower(model(), (BLACK,), out=tmp_path / "black", half_model=False)
    shown = lower(model(), (BLACK,), out=tmp_path / "shown", half_model=False, image=path)
    (note,) = black.notes
    assert "the example input is constant" in note and "--image FILE" in note and not shown.notes
    with numpy.load(tmp_path / "shown" / "inputs.npz") as stored:
        (name,) = stored
        assert stored[name][0, :, 0, 0].tolist() == [1, 0, 0]


# Dense beside pruned


def test_the_dense_network_is_predicted_beside(tmp_path: Path) -> None:
    args = (torch.rand(1, 3, 64, 64),)
    found = lower(pruned("jetson-tx2"), args, out=tmp_path / "b", half_model=False, dense=model())
    alone = lower(model(), args, out=tmp_path / "dense", half_model=False)
    assert {name: each.ms for name, each in found.dense.items()} == {n: p.ms for n, p in alone.predictions.items()}
    assert f"FP16 predicted {found.predictions['fp16'].ms:.2f} ms (dense {found.dense['fp16'].ms:.2f} ms)" in str(found)
    assert f"(dense: {found.dense['fp16'].ms:.2f} ms)." in (tmp_path / "b" / "README.md").read_text()
    assert json.loads((tmp_path / "b" / "manifest.json").read_text())["dense"]["fp32"]["ms"] == found.dense["fp32"].ms
    assert not alone.dense and "dense" not in str(alone).removeprefix(str(alone.path))
    small = l1rr_fx.prune(model(), args, target="jetson-tx2")
    remembered = lower(small, args, out=tmp_path / "remembered", half_model=False)
    assert {n: each.ms for n, each in remembered.dense.items()} == {n: each.ms for n, each in found.dense.items()}
    assert not remembered.notes


def test_a_saved_network_knows_the_dense_one(tmp_path: Path) -> None:
    pruned("jetson-tx2").save(tmp_path / "net")
    loaded = l1rr_fx.load(tmp_path / "net")
    found = lower(loaded, (BLACK + 1,), out=tmp_path / "b", half_model=False)
    assert (
        found.dense["fp16"].ms
        == Latency("jetson-tx2", precision="fp16").of(model(), (BLACK,)).ms
        > found.predictions["fp16"].ms
    )


def test_a_dense_network_that_is_not_known_is_a_note_that_names_the_option(tmp_path: Path) -> None:
    found = pruned("jetson-tx2")
    other = lower(found, (torch.ones(1, 3, 9, 16),), out=tmp_path / "b", half_model=False)
    assert not other.dense
    assert any(
        "pruned for inputs of 1x3x8x16, and is lowered for 1x3x9x16; give it by dense=" in n for n in other.notes
    )
    old = dataclasses.replace(found, report=dataclasses.replace(found.report, dense=None))
    unknown = lower(old, (BLACK,), out=tmp_path / "c", half_model=False)
    assert not unknown.dense and any("does not know it; give it by dense= (--dense" in note for note in unknown.notes)
    elsewhere = lower(old, (BLACK,), target="onnxruntime", out=tmp_path / "d", half_model=False)
    assert not any("dense" in note for note in elsewhere.notes)  # no latency model, so that nothing is left out


def test_sizes_that_no_kernel_has_are_refused_where_a_report_is_read() -> None:
    report = pruned("none").report
    assert Report.from_json(report.to_json()) == report
    with pytest.raises(InputError, match="kernel '0' has the size"):
        Report.from_json(re.sub(r'"elements": \d+', '"elements": -1', report.to_json(), count=1))


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else -x


def test_a_dense_network_that_cannot_be_captured_is_a_note(tmp_path: Path) -> None:
    found = lower(model(), (BLACK + 1,), out=tmp_path / "b", half_model=False, dense=Branching().eval())
    assert not found.dense and any("the dense network was not predicted" in note for note in found.notes)


# The machine


@pytest.mark.parametrize(
    ("chosen", "target", "expected"),
    [
        ("jetson-tx2", "jetson-tx2", None),
        ("none", "jetson-tx2", r"pruned for none, and is lowered for jetson-tx2: prune(..., target='jetson-tx2')"),
        ("jetson-tx2", "tensorrt-11", "pruned for jetson-tx2-fp16, and is lowered for tensorrt-11, which has no"),
        ("none", "tensorrt-11", None),
    ],
)
def test_another_machine_than_it_was_pruned_for_is_said(
    chosen: str, target: str, expected: str | None, tmp_path: Path
) -> None:
    args = (torch.rand(1, 3, 8, 16),)
    found = lower(pruned(chosen), args, target=target, out=tmp_path / "b", half_model=False)
    machine = {"jetson-tx2": "jetson-tx2-fp16"}.get(chosen, chosen)  # the cost model, whose precision is in its name
    assert found.pruned_for == machine and f"for {target} (pruned for {machine})" in str(found)
    assert [expected in note for note in found.notes] == [True] if expected else not found.notes


def test_the_command_takes_an_image_and_the_dense_network(tmp_path: Path) -> None:
    pruned("none").save(tmp_path / "small")
    path = picture(tmp_path / "a.png", (16, 8), (255, 0, 0))
    options = ["--shape", "1x3x8x16", "--image", str(path), "--dense", "tests.test_bundle_examples:dense"]
    done = CliRunner().invoke(app, ["lower", str(tmp_path / "small"), "-o", str(tmp_path / "b"), *options])
    assert done.exit_code == 0, done.output
    text = " ".join(done.output.split())
    assert "(pruned for none)" in text and "(dense " in text and "pruned for none, and is lowered for" in text
    with numpy.load(tmp_path / "b" / "inputs.npz") as stored:
        assert stored[next(iter(stored))][0, :, 0, 0].tolist() == [1, 0, 0]
