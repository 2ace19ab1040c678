"""What of the YOLO integration needs no YOLO: sizes of images, and the average at the end of an epoch."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from l1rr_fx.integrations.ultralytics.networks import pixels
from l1rr_fx.integrations.ultralytics.training import _Sparse
from l1rr_fx.method.training.sparsity import ReweightedL1
from passes.errors import InputError


@pytest.mark.parametrize(
    ("imgsz", "wanted"), [(64, (64, 64)), ((32, 64), (32, 64)), ([32, 64], (32, 64))], ids=["number", "tuple", "list"]
)
def test_sizes(imgsz: Any, wanted: tuple[int, int]) -> None:
    assert pixels(imgsz) == wanted


@pytest.mark.parametrize("imgsz", ["64", None, 64.0, (64,), (64, 64, 3), -1, 0, (64, 0), True, ("6", "4")])
def test_what_is_no_size_is_refused(imgsz: Any) -> None:
    """A text of two digits among them, which is a sequence of two."""
    with pytest.raises(InputError, match=r"imgsz is .*; expected a whole number of pixels, or \(height, width\)"):
        pixels(imgsz)


def test_scales_and_shifts_that_are_zero_become_zero_in_the_average() -> None:
    """A channel whose scale alone is zero would leave a constant in the checkpoint, which is made of the average."""
    model = nn.Sequential(nn.BatchNorm2d(4))
    callbacks = _Sparse({})
    callbacks.penalty = ReweightedL1(model, total_steps=10)
    average = copy.deepcopy(model)
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([0.0, 0.0, 1.0, 1.0]))
        model[0].bias.copy_(torch.tensor([0.0, 0.5, 0.5, 0.5]))
        average[0].weight.fill_(0.25)
        average[0].bias.fill_(0.25)
    callbacks.on_train_epoch_end(SimpleNamespace(model=model, ema=SimpleNamespace(ema=average)))
    assert average[0].weight.tolist() == [0.0, 0.0, 0.25, 0.25]
    assert average[0].bias.tolist() == [0.0, 0.25, 0.25, 0.25]
