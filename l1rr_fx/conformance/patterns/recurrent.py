"""Recurrent layers and cells."""

from __future__ import annotations

# mypy: no-warn-return-any
# (what a torch.nn.Module returns when it is called is Any)
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from l1rr_fx.conformance.cases import pattern
from l1rr_fx.conformance.patterns.parts import cbr


@pattern((2, 4, 5))
class LongShortTermMemory(nn.Module):
    """A recurrent layer between linear ones."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.recurrent, self.head = nn.Linear(5, 8), nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.recurrent(F.relu(self.a(x)))[0]))


@pattern((2, 4, 5))
class StackedBothWays(nn.Module):
    """Two layers of gated recurrent units in both directions, of which the last states are read."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.head = nn.Linear(5, 8), nn.Linear(12, 3)
        self.recurrent = nn.GRU(8, 6, 2, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        _, last = self.recurrent(F.relu(self.a(x)))
        return self.head(torch.cat((last[-2], last[-1]), 1))


@pattern((1, 3, 8, 16))
class TextReader(nn.Module):
    """A feature map read column by column, as text recognition has it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down = cbr(3, 8), nn.Conv2d(8, 6, (4, 1), (4, 1))
        self.recurrent, self.head = nn.LSTM(12, 8, bidirectional=True), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.down(self.stem(x))
        return self.head(self.recurrent(x.permute(3, 0, 1, 2).flatten(2))[0])


@pattern((2, 4, 5))
class CellInALoop(nn.Module):
    """A cell that is run step by step, from a state of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.cell, self.head = nn.Linear(5, 8), nn.LSTMCell(8, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in F.relu(self.a(x)).unbind(1):
            state = self.cell(step, state)
        assert state is not None
        return self.head(state[0])


@pattern((2, 4, 5))
class GivenFirstState(nn.Module):
    """The first state of a recurrent layer is computed from the input."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.first = nn.Linear(5, 8), nn.Linear(5, 6)
        self.recurrent, self.head = nn.GRU(8, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        first = torch.tanh(self.first(x.mean(1)))
        return self.head(self.recurrent(F.relu(self.a(x)), first.unsqueeze(0))[0])
