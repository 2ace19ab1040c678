"""Tokens are told apart while their labels are few; with many, channels alone are, and the report says so."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import l1rr_fx
from passes import Program, capture, channel_facts, normalise, rule_for
from passes.analysis import zeros
from passes.analysis.liveness import Facts
from passes.rules import products
from tests.oracle import relative_error

TOKENS, WIDTH, HEADS = 12, 8, 2
TOLERANCE = 1e-10  # sums in another order, in float64


class Tokens(nn.Module):
    """Learned positions, attention written out, a layer for each token; only the first token is read."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed, self.mixed = nn.Linear(3, WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.positions = nn.Parameter(torch.randn(1, TOKENS, WIDTH))
        self.out, self.head = nn.Linear(WIDTH, 16), nn.Linear(16, 2)
        with torch.no_grad():
            for layer, dead in ((self.mixed, (1, 9, 17, 18)), (self.out, (0, 3, 4))):
                layer.weight[list(dead)], layer.bias[list(dead)] = 0, 0
            self.positions[:, :, 2], self.embed.weight[2], self.embed.bias[2] = 0, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x) + self.positions
        query, key, value = self.mixed(x).view(-1, TOKENS, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        mixed = (query @ key.transpose(-2, -1)).softmax(-1) @ value
        found: Tensor = self.head(self.out(mixed.transpose(1, 2).flatten(2)).relu()[:, 0])
        return found


def facts(model: nn.Module, x: Tensor) -> tuple[Program, Facts]:
    program = Program(normalise(capture(model, (x,))), rule_for)
    return program, channel_facts(program)


@pytest.mark.parametrize("few", ["tensor", "in all", "product"])
def test_with_many_labels_channels_alone_are_told_apart(few: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = Tokens().double().eval(), torch.randn(1, TOKENS, 3, dtype=torch.float64)
    told_apart = l1rr_fx.prune(model, (x,))
    assert told_apart.report.notes == ()
    if few == "product":
        monkeypatch.setattr(products, "MOST_LABELS", 100)
    else:
        monkeypatch.setattr(zeros, "FEW_LABELS", 50)
        monkeypatch.setattr(zeros, "MOST_LABELS" if few == "tensor" else "MOST_IN_ALL", 150)
    _, found = facts(model, x)
    assert {node.name for node in found.merged} == (set() if few == "product" else {"positions", "x"})
    pruned = l1rr_fx.prune(model, (x,))
    assert any(note.startswith("tokens are not told apart") for note in pruned.report.notes)
    other = torch.randn(1, TOKENS, 3, dtype=torch.float64)
    with torch.no_grad():
        assert relative_error(pruned.module(other), model(other)) <= TOLERANCE
    assert told_apart.report.after.macs < pruned.report.after.macs < pruned.report.before.macs
    assert pruned.module.head.weight.shape == (2, 13)  # the dead channels go all the same


def test_facts_of_a_program_are_the_same_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zeros, "MOST_LABELS", 150)
    program, first = facts(Tokens().eval(), torch.randn(1, TOKENS, 3))
    again = channel_facts(program)
    assert first.merged == again.merged
    assert all(torch.equal(first.needed[node], again.needed[node]) for node in first.needed)
