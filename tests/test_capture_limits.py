"""Numbers read out of buffers are constants of a capture, and a capture that would not end is given up."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F

import l1rr_fx
from l1rr_fx.pruning.partition import capturing
from passes.errors import CaptureError
from passes.frontend.capture import capture
from passes.frontend.constant_buffers import buffers_read
from tests.oracle import relative_error

TOLERANCE = 1e-10  # sums in another order, in float64

READS: dict[str, Callable[[Tensor], int | Tensor]] = {
    "numpy": lambda steps: int(steps.numpy()[0]),
    "array": lambda steps: int(numpy.asarray(steps)[0]),
    "cpu and detached": lambda steps: int(steps.cpu().detach().numpy()[0]),
    "int": lambda steps: int(steps[0]),
    "item": lambda steps: int(steps[0].item()),
    "computed": lambda steps: int((steps * 2 + 1).sum().item()) - 4,
    "list": lambda steps: steps.tolist()[0],
    "index": lambda steps: range(10)[steps[0]],
    "truth": lambda steps: 2 if bool((steps > 1).any()) else 1,
    "branch": lambda steps: 2 if steps.sum() == 2 else 1,
    "loop": lambda steps: [int(each) for each in steps][0],
    "chunk": lambda steps: int(steps.chunk(2)[0]),
    "maximum": lambda steps: int(torch.stack([steps, steps]).max(0)[0][0]),
    "in place": lambda steps: int(steps.clone().add_(1)[0]) - 1,
    "equal": lambda steps: 2 if torch.equal(steps, steps) else 1,
    "slice": lambda steps: steps[0],
    "a later one of a loop": lambda steps: next(step for step in steps if step > 0),
    "size": lambda steps: torch.zeros(steps[0]).shape[0],
    "size of a view": lambda steps: torch.zeros(4).view(steps[0], -1).shape[0],
    "size of its own view": lambda steps: steps.view(steps[0], 1).shape[0],
}


class Slice(nn.Module):
    def __init__(self, read: Callable[[Tensor], int | Tensor]) -> None:
        super().__init__()
        self.read = read
        self.steps: Tensor
        self.register_buffer("steps", torch.tensor([2, 0]))

    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, :: self.read(self.steps)]


def network(first: nn.Module, layers: int = 6) -> nn.Sequential:
    """`first`, then convolutions of which half of the channels are dead."""
    parts: list[nn.Module] = [first]
    for i in range(layers):
        conv = nn.Conv2d(3 if i == 0 else 8, 8, 3, padding=1)
        with torch.no_grad():
            conv.weight[4:] = 0
            conv.bias[4:] = 0  # type: ignore[index]  # it has one
        parts += [conv, nn.ReLU()]
    return nn.Sequential(*parts, nn.Conv2d(8, 4, 1)).double().eval()


def image(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", READS)
def test_numbers_out_of_buffers_are_constants(name: str) -> None:
    model, x = Slice(READS[name]), image(1, 3, 8, 8)
    assert torch.equal(capture(model, (x,))(x), x[:, :, ::2])


def test_a_network_that_reads_its_buffers_is_one_graph() -> None:
    model, x = network(Slice(READS["numpy"])), image(1, 3, 8, 8)
    pruned = l1rr_fx.prune(model, (x,))
    assert pruned.report.pieces == () and pruned.report.macs_over_limit == 1.0
    assert pruned.report.after.macs < 0.3 * pruned.report.before.macs
    with torch.no_grad():
        assert relative_error(pruned.module(image(1, 3, 8, 8)), model(image(1, 3, 8, 8))) <= TOLERANCE


class Counting(nn.Module):
    """Reads a number out of a buffer into which it writes: that is no constant."""

    def __init__(self, write: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.write = write
        self.count: Tensor
        self.register_buffer("count", torch.ones(1, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        self.write(self.count)
        return x[:, :, :: int(self.count)]


@pytest.mark.parametrize(
    "write",
    [
        lambda count: count.add_(1),
        lambda count: count.__iadd__(1),
        lambda count: count.__setitem__(0, 2),
        lambda count: count.view(1).add_(1),
        lambda count: torch.add(count, 1, out=count),
    ],
    ids=["add_", "iadd", "setitem", "view", "out"],
)
def test_a_buffer_that_is_written_into_is_no_constant(write: Callable[[Tensor], Any]) -> None:
    model, x = Counting(write), image(1, 3, 8, 8)
    assert buffers_read(model, (x,), {}).buffers == ()
    assert int(model.count) == 1
    with pytest.raises(CaptureError):
        capture(model, (x,))


def test_values_of_inputs_are_no_constants() -> None:
    class Mixed(Slice):
        def forward(self, x: Tensor) -> Tensor:
            steps = self.steps.clone()
            steps += (x.sum() > 1e9).long()
            return x[:, :, :: int(steps[0])]

    with pytest.raises(CaptureError, match="int\\(steps\\[0\\]\\)"):
        capture(Mixed(READS["int"]), (image(1, 3, 8, 8),))


# --- sizes -----------------------------------------------------------------------------------------------------------


class Same(nn.Module):
    """A convolution with the padding of TensorFlow, whose sizes are long expressions."""

    def __init__(self, channels_in: int, alive: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, 8, 3, 2)
        with torch.no_grad():
            self.conv.weight[alive:] = 0
            self.conv.bias[alive:] = 0  # type: ignore[index]  # it has one

    def forward(self, x: Tensor) -> Tensor:
        down, right = (max((math.ceil(n / 2) - 1) * 2 + 3 - n, 0) for n in x.shape[2:])
        return F.relu(self.conv(F.pad(x, [right // 2, right - right // 2, down // 2, down - down // 2])))


class Detector(nn.Module):
    """A body, and a decision on values."""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.body(x)
        return y if bool(y.sum() > 0) else -y


def test_sizes_that_would_not_end_are_fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capturing, "FREE_SECONDS", 1e6)  # however slow the machine is
    model = Detector(*(Same(8 if i else 3, 4) for i in range(5))).double().eval()
    x = image(1, 3, 64, 64)
    pruned = l1rr_fx.prune(model, (x,))
    assert pruned.report.pieces == ("body",)
    (note,) = (note for note in pruned.report.notes if note.startswith("body serves the sizes of the example only"))
    assert "expressions of more than 100 terms" in note
    with torch.no_grad():
        assert relative_error(pruned.module(x), model(x)) <= TOLERANCE
    with pytest.raises(l1rr_fx.InputError, match="cannot serve this call"):
        pruned.module(image(1, 3, 96, 64))
    with pytest.raises(CaptureError, match="expressions of more than 100 terms\n  at .*test_capture_limits.py"):
        capture(model.body, (x,), dynamic_shapes=({2: Dim.AUTO, 3: Dim.AUTO},))
    assert not vars(x)  # torch.export leaves its marks on inputs where it fails


def test_few_layers_of_it_stay_free() -> None:
    model = Detector(Same(3, 4), nn.Conv2d(8, 4, 1)).double().eval()
    pruned = l1rr_fx.prune(model, (image(1, 3, 64, 64),))
    assert not [note for note in pruned.report.notes if "sizes of the example" in note]
    with torch.no_grad():
        assert relative_error(pruned.module(image(2, 3, 37, 50)), model(image(2, 3, 37, 50))) <= TOLERANCE


def test_time_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CaptureError, match="takes more than 0 s"):
        capture(network(nn.Identity()), (image(1, 3, 8, 8),), seconds=0)
    monkeypatch.setattr(capturing, "FREE_SECONDS", 0)
    monkeypatch.setattr(capturing, "FREE_TIMES", 0)
    report = l1rr_fx.prune(Detector(network(nn.Identity(), 2)).double().eval(), (image(1, 3, 8, 8),)).report
    assert any("body serves the sizes of the example only" in note and "0 s" in note for note in report.notes)


class Deciding(nn.Module):
    """Sizes depend on values, again and again."""

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(20):
            chosen = x[x > 0]
            x = x + chosen.sum()
        return x


def test_many_sizes_that_depend_on_values_are_refused_early() -> None:
    with pytest.raises(CaptureError, match="sizes depend on the values of tensors\n  at .*chosen = x"):
        capture(Deciding(), (image(4, 4),))
