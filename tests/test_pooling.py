"""A max pooling of an image that is padded with -inf pads by itself where it then has the same windows."""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import l1rr_fx
from l1rr_fx.testing import kill, randomised
from passes.canonical.pooling import Window


def test_a_pooling_that_fits_has_the_same_windows() -> None:
    """Against torch, for all small sizes, kernels, strides, dilations, paddings and both ways to round."""
    fitted = 0
    for size, kernel, stride, dilation in itertools.product((5, 8), (1, 2, 3, 4), (1, 2, 3), (1, 2)):
        x, reach = torch.randn(1, 1, size, dtype=torch.float64), dilation * (kernel - 1) + 1
        for before, after, own, ceil in itertools.product((0, 1, 2), (0, 1, 2, 3), (0, 1), (False, True)):
            if own > kernel // 2 or size + before + after + 2 * own < reach:
                continue
            padded = F.pad(x, [before, after], value=-torch.inf)
            expected = F.max_pool1d(padded, kernel, stride, own, dilation, ceil)
            window = Window(size, expected.shape[-1], kernel, reach, stride, before + own)
            for rounded in (False, True):
                if window.fits(ceil=rounded):
                    fitted += 1
                    assert torch.equal(F.max_pool1d(x, kernel, stride, before + own, dilation, rounded), expected)
    assert fitted > 500


class Same(nn.Module):
    """The pooling of EfficientDet: as many results as half the pixels, padded at the end."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.first, self.last, self.value = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), value

    def forward(self, x: Tensor) -> Tensor:
        return self.last(F.max_pool2d(F.pad(self.first(x), [0, 1, 0, 1], value=self.value), 3, 2))


def test_dead_channels_go_through_padding_with_infinity() -> None:
    x = torch.randn(1, 3, 8, 8, dtype=torch.float64)
    for value, kept in ((-torch.inf, 5), (torch.finfo(torch.float64).min, 5), (-1.0, 8)):
        model = randomised(Same(value))
        kill(model.first, rows=(1, 4, 6))
        pruned = l1rr_fx.prune(model, (x,)).module
        assert pruned.get_parameter("last.weight").shape[1] == kept
        assert torch.allclose(pruned(x), model(x), rtol=1e-12, atol=1e-12)
