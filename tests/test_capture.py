"""Capture leaves the model as it found it, and tells its inputs apart."""

from __future__ import annotations

import io
import logging

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from passes.errors import InputError
from passes.frontend.capture import capture


class Caching(nn.Module):
    """Keeps what it computed on itself, in a dictionary and in a list, as detectors keep their anchors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.last: Tensor | None = None
        self.by_size: dict[int, Tensor] = {}
        self.seen = [torch.zeros(1)]

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        self.last = y
        self.by_size[x.shape[-1]] = y.mean()
        self.seen.append(y)
        return y * self.seen[0].add(1)


def test_what_forward_keeps_on_the_model_is_undone() -> None:
    model, x = Caching().eval(), torch.rand(1, 3, 4, 4)
    seen = model.seen
    captured = capture(model, (x,))
    assert model.last is None
    assert model.by_size == {}
    assert model.seen is seen
    assert len(seen) == 1
    torch.testing.assert_close(captured(x), model(x))


class Difference(nn.Module):
    """Of two images; with a third in a buffer."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.register_buffer("mean", torch.rand(1, 3, 4, 4))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        difference: Tensor = self.conv(x) - 2 * self.conv(y) * self.mean.sum()
        return difference


def test_a_failed_capture_logs_nothing() -> None:
    class Mismatched(Caching):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat((x, self.conv(x)[..., :2]), 1)

    said = io.StringIO()
    handler = logging.StreamHandler(said)
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    logger.addHandler(handler)
    try:
        with pytest.raises(InputError, match="Sizes of tensors must match"):
            capture(Mismatched().eval(), (torch.rand(1, 3, 4, 4),))
        assert said.getvalue() == ""
        logger.error("said again")
        assert said.getvalue() == "said again\n"
    finally:
        logger.removeHandler(handler)


def test_why_a_size_cannot_change_is_said() -> None:
    with pytest.raises(InputError, match=r"constant \(1\) \(of an example of size 1 .* give one of 2 or more"):
        capture(Caching().eval(), (torch.rand(1, 3, 4, 4),), dynamic_shapes=({0: Dim("n")},))


class Overwritten(nn.Module):
    """Reads a view of what it has written since, which torch refuses while gradients are recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        first, second = y.chunk(2, 1)
        y[:, 1:3] += 1
        return first - 2 * second


def test_what_runs_without_gradients_alone_is_captured() -> None:
    model, x = Overwritten().eval(), torch.rand(1, 3, 4, 4)
    with pytest.raises(RuntimeError, match="modified inplace"):
        model(x)
    captured = capture(model, (x,))
    with torch.no_grad():
        torch.testing.assert_close(captured(x), model(x))
    captured(x).sum().backward()
    assert model.conv.weight.grad is not None


def test_inputs_that_are_one_tensor_in_the_example_stay_two() -> None:
    model, x, y = Difference().eval(), torch.rand(1, 3, 4, 4), torch.rand(1, 3, 4, 4)
    torch.testing.assert_close(capture(model, (x, x))(x, y), model(x, y))
    torch.testing.assert_close(capture(model, (x,), {"y": x})(x, y=y), model(x, y))
    torch.testing.assert_close(capture(model, (x, model.mean))(x, y), model(x, y))
