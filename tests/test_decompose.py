"""Operators that no rule knows are taken apart where that helps, and left alone where it does not."""

from __future__ import annotations

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from passes.canonical.normalise import normalise
from passes.frontend.capture import capture
from tests.op_cases import CASES, net, randoms
from tests.test_op_cases import _open_batch

X = randoms((2, 4, 6, 6))

APART: dict[str, tuple[Callable[[Tensor], Tensor], set[str]]] = {
    "tile": (lambda x: x.tile(1, 2, 1, 1), {"repeat"}),
    "expand_as": (lambda x: x[:, :1].expand_as(x), {"slice", "expand"}),
    "and": (lambda x: (x > 0) & (x < 1), {"gt", "lt", "bitwise_and"}),
    "rsub": (lambda x: torch.rsub(x, x), {"sub"}),
    "addcmul": (lambda x: torch.addcmul(x, x, x), {"mul", "add"}),
    "addmm": (lambda x: torch.addmm(*[x.sum((0, 1))] * 3), {"sum", "mm", "add"}),
    "difference": (lambda x: x.diff(dim=1), {"slice", "sub"}),
}
WHOLE: dict[str, Callable[[Tensor], Tensor]] = {
    "bilinear": lambda x: nn.functional.bilinear(x, x, torch.ones(2, 6, 6, dtype=torch.float64)),
    "alpha_dropout": lambda x: torch.alpha_dropout(x, 0.5, False),
    "cdist": lambda x: torch.cdist(x, x),
}


def operators(function: Callable[[Tensor], Tensor]) -> set[str]:
    """The names of the operators that a function is made of, its layer apart."""
    model, args = net(lambda m, x: function(m.first(x)), X, first=nn.Conv2d(4, 4, 1))
    module = capture(model, args)
    expected = module(*args)
    torch.testing.assert_close(normalise(module)(*args), expected)
    called = (node.target for node in module.graph.nodes if node.op == "call_function")
    return {target.__name__.split(".")[0] for target in called} - {"conv2d"}  # type: ignore[union-attr]


@pytest.mark.parametrize("name", APART)
def test_taken_apart(name: str) -> None:
    function, parts = APART[name]
    assert operators(function) == parts


@pytest.mark.parametrize("name", WHOLE)
def test_left_whole(name: str) -> None:
    assert name in operators(WHOLE[name])


def test_it_is_quiet_where_torch_has_no_way(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    log = logging.getLogger("torch._subclasses.fake_tensor")
    monkeypatch.setattr(log, "handlers", [caplog.handler])
    model, args = next(case for case in CASES if case.name == "linear_bilinear").build()
    module = capture(model, args, dynamic_shapes=_open_batch(args))
    normalise(module)
    assert any(node.target is torch.ops.aten.bilinear.default for node in module.graph.nodes)
    assert [each for each in caplog.records if each.name == log.name] == []
