"""Ten bugs that a rule could have, each put in for as long as a test lasts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from torch import Tensor, nn

import l1rr_fx
from l1rr_fx.testing import Network, differences, fresh, networks
from passes.frontend.capture import capture
from passes.graph.layout import along
from passes.rules import convolution, joins, mixing, movement, pointwise, products, reindex
from passes.rules.weights import by_channel

TOLERANCE = 1e-10  # float64: what is left is the reassociation of sums


@dataclass(frozen=True)
class Bug:
    """A wrong rule: what is wrong, the family of networks that it is looked for in, and how it is put in.

    `max_nodes`: the operators of the largest network; where few networks show the bug, smaller ones are drawn.
    """

    name: str
    family: str
    plant: Callable[[], AbstractContextManager[Any]]
    max_nodes: int = 12


def _either_is_zero(self: Any, site: Any, zeros: Sequence[Tensor]) -> Tensor:
    result = zeros[0]
    for zero in zeros[1:]:
        result = result | zero
    return result


def _without_shift(self: Any, site: Any, channels: int) -> tuple[Tensor, Tensor]:
    weight = self.slot(site, 1)
    zero = torch.zeros(channels, dtype=torch.bool) if weight is None else weight == 0
    return zero, zero


def _without_bias(self: Any, site: Any, zeros: Sequence[Tensor]) -> list[Tensor]:
    widths, axis = self.widths(site, zeros), self.axis(site)
    alive = ~by_channel(zeros[0], axis, widths.inputs, every=True)
    return [along(~widths.feed(alive), axis, len(site.out_shape))]


def _backwards(live: Tensor, groups: int, present: Tensor) -> Tensor:
    return equal_groups(live.flip(0), groups, present.flip(0))


def _stays(self: Any, site: Any, args: Any, kwargs: Any) -> Any:
    return args[0] if "flip" in str(site.node.target) else run(self, site, args, kwargs)


def _swapped(self: Any, site: Any, to: Any, ins: Any, outs: Any) -> Any:
    return list(reversed(split(self, site, to, ins, outs)))


@contextmanager
def _softmax_of_zero_is_zero() -> Iterator[None]:
    rule: Any = mixing.LINEWISE
    rule.keeps_zero = True
    try:
        yield
    finally:
        rule.keeps_zero = False


equal_groups, run, split = convolution.equal_groups, movement.Movement.run, joins.Split.emit

BUGS = (
    Bug(
        "every function keeps zero",
        "residual",
        lambda: patch.object(pointwise.Pointwise, "keeps_zero", lambda *_: True),
    ),
    Bug(
        "a sum is zero if one side is",
        "residual",
        lambda: patch.object(pointwise.Pointwise, "combine", _either_is_zero),
    ),
    Bug(
        "a batch norm without scale is zero",
        "norm",
        lambda: patch.object(pointwise.ChannelAffine, "channel_zero", _without_shift),
    ),
    Bug(
        "a bias is nothing",
        "residual",
        lambda: patch.object(convolution.Weighted, "zero", _without_bias),
    ),
    Bug(
        "groups are chosen backwards",
        "grouped",
        lambda: patch.object(convolution, "equal_groups", _backwards),
    ),
    Bug(
        "a flip moves nothing",
        "split",
        lambda: patch.object(movement.Movement, "run", _stays),
    ),
    Bug("softmax of zeros is zero", "norm", _softmax_of_zero_is_zero),
    Bug(
        "attention takes its scale from what is left",
        "attention",
        lambda: patch.object(products.Attention, "emit", lambda self, site, to, ins, outs: [to.copy()]),
        max_nodes=7,
    ),
    Bug("the parts of a split are swapped", "split", lambda: patch.object(joins.Split, "emit", _swapped)),
    Bug("padding is always with zeros", "split", lambda: patch.object(reindex.Pad, "fills_zero", lambda *_: True)),
)


@dataclass
class Hunt:
    """How a bug was found: networks drawn before the first failure, and the last one that failed (the shrunk one)."""

    drawn: int = 0
    found_after: int | None = None
    smallest: Network | None = None

    @property
    def operators(self) -> int:
        """The operators that were drawn for the smallest network."""
        assert self.smallest is not None
        return len(self.smallest.operators)

    @property
    def calls(self) -> int:
        """The calls of operators in the smallest network."""
        assert self.smallest is not None
        model, args = self.smallest.build()
        return sum(node.op == "call_function" for node in capture(model, args).graph.nodes)


def hunt(bug: Bug, *, examples: int, shrink: bool, number: int = 0) -> Hunt:
    """Look for a planted bug in so many random networks of its family; `number` is the seed that draws them."""
    result = Hunt()

    @seed(number)
    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        print_blob=False,
        phases=(Phase.generate, Phase.shrink) if shrink else (Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(networks((bug.family,), max_nodes=bug.max_nodes))
    def search(network: Network) -> None:
        result.drawn += 1
        if _is_wrong(network):
            result.found_after = result.found_after or result.drawn
            result.smallest = network
            raise AssertionError("found")

    with bug.plant():
        try:
            search()
        except AssertionError as error:
            if str(error) != "found":
                raise
    return result


def _is_wrong(network: Network) -> bool:
    """Whether the network is pruned to something else, to something that does not run, or not at all."""
    model, args = network.build()
    try:
        pruned = l1rr_fx.prune(model, args, verify=False).module
        return max(_differences(pruned, model, fresh(args, 1))) > TOLERANCE
    except (RuntimeError, IndexError, ValueError, AssertionError, l1rr_fx.L1RRError):
        return True


def _differences(pruned: nn.Module, model: nn.Module, args: Any) -> list[float]:
    with torch.no_grad():
        return differences(pruned(*args), model(*args))
