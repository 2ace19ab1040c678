"""What a pruner made of a case, held against the network whose removed entries are zero.

A case is built, about half of the channels of its layers are zeroed at random, and the tool is given a copy. What it
removed is read off the parameters: the entries of the original that are no longer there. A tool that removes entries
claims that the small network computes what the original does with those entries zero; one that removes dead channels
alone, that it computes what it was given.
"""

from __future__ import annotations

import copy
import logging
import math
import time
import traceback
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from l1rr_fx.conformance.cases import Args, Case
from l1rr_fx.pruning.compiler import prune
from l1rr_fx.testing.judging import differences, fresh, has_constant_output
from l1rr_fx.testing.zeros import zeroed
from passes.errors import L1RRError, first_line

log = logging.getLogger(__name__)

RATIO = 0.5
SEEDS = 20
TOLERANCE = 1e-9  # float64: what is left is the reassociation of sums
INPUTS = 3
NOTHING = "the outputs hold no number: nothing was compared"


class Verdict(str, Enum):
    """What became of a case."""

    exact = "exact"
    refused = "refused"
    untouched = "untouched"
    wrong = "wrong"
    raises = "raises"
    hangs = "hangs"

    @property
    def is_safe(self) -> bool:
        """Whether the user has a right network, or knows that there is none."""
        return self in (Verdict.exact, Verdict.refused, Verdict.untouched)


MEANING = {
    Verdict.exact: "smaller, and computes the same",
    Verdict.refused: "the tool itself says in an error what it cannot do",
    Verdict.untouched: "nothing was removed although channels could be",
    Verdict.wrong: "runs and computes something else, without an error or a warning",
    Verdict.raises: "an error from inside, or a network that does not run",
    Verdict.hangs: "no result within the time limit: stuck or slow",
}


class Tool(Protocol):
    """A pruner. `prune` may change the model that it is given; `refusals` are the errors by which it says no.

    `removes_dead_only`: whether it claims to compute exactly what the given model computes.
    """

    name: str
    removes_dead_only: bool

    @property
    def version(self) -> str: ...

    @property
    def refusals(self) -> tuple[type[Exception], ...]: ...

    def prune(self, model: nn.Module, args: Args) -> nn.Module: ...


@dataclass(frozen=True)
class Judgement:
    """The verdict on one case. `macs`: before, after, and the least that any exact method must make (None: unknown)."""

    tool: str
    case: str
    verdict: Verdict
    detail: str = ""
    deviation: float | None = None
    macs: tuple[int, int, int | None] | None = None
    seconds: float = 0.0

    @property
    def over_limit(self) -> float | None:
        """MACs after, divided by the limit."""
        if self.verdict is not Verdict.exact or self.macs is None or not self.macs[2]:
            return None
        return self.macs[1] / self.macs[2]


def judge(tool: Tool, case: Case) -> Judgement:
    """The verdict of a case on a tool; the time is that of `tool.prune` alone."""
    model, args = zeroed_network(case)
    start = time.perf_counter()
    try:
        small = tool.prune(copy.deepcopy(model), copy.deepcopy(args))
    except tool.refusals as error:
        seconds = time.perf_counter() - start
        return Judgement(tool.name, case.name, Verdict.refused, _described(error), seconds=seconds)
    except Exception as error:  # a tool may raise anything
        log.debug("%s", traceback.format_exc())
        return Judgement(tool.name, case.name, Verdict.raises, _described(error), seconds=time.perf_counter() - start)
    seconds = time.perf_counter() - start
    reference = model if tool.removes_dead_only else without_removed(model, small)
    return _compared(tool, case, (model, reference, small), args, seconds)


def _compared(
    tool: Tool, case: Case, networks: tuple[nn.Module, nn.Module, nn.Module], args: Args, seconds: float
) -> Judgement:
    model, reference, small = networks
    try:
        deviations = [
            each
            for seed in range(INPUTS)
            for each in _deviations(small, reference, args if seed == 0 else fresh(args, seed))
        ]
    except Exception as error:  # whatever is wrong with the network that a tool made
        log.debug("%s", traceback.format_exc())
        detail = f"the pruned network does not run: {_described(error)}"
        return Judgement(tool.name, case.name, Verdict.raises, detail, seconds=seconds)
    macs = (counted_macs(model, args), counted_macs(small, args), limit(reference, args))
    deviation = max(deviations, default=math.nan)
    if not deviation <= TOLERANCE:
        detail = f"outputs deviate by {deviation:.2g}, relative to the largest" if deviations else NOTHING
        return Judgement(tool.name, case.name, Verdict.wrong, detail, deviation, macs, seconds)
    untouched = macs[1] >= macs[0] and _size(small) >= _size(model)
    verdict = Verdict.untouched if untouched and macs[2] != macs[0] else Verdict.exact
    return Judgement(tool.name, case.name, verdict, "", deviation, macs, seconds)


def zeroed_network(case: Case) -> tuple[nn.Module, Args]:
    """The case's network with about half of the channels of its layers zero, such that its outputs still live."""
    model, args = case.build()
    for seed in range(SEEDS):
        result = zeroed(model, RATIO, seed)
        if not has_constant_output(result, args):
            return result, args
    return model, args


def without_removed(model: nn.Module, small: nn.Module) -> nn.Module:
    """A copy of `model` in which every parameter entry is zero that `small` does not have.

    Entries are recognised by their values, which are random numbers; a tool that changes values is found wrong.
    """
    kept = dict(small.named_parameters(remove_duplicate=False))
    result = copy.deepcopy(model)
    for name, parameter in list(result.named_parameters(remove_duplicate=False)):
        there = torch.isin(parameter.data, kept[name].data) if name in kept else torch.zeros(())
        module, _, leaf = name.rpartition(".")
        single = nn.Parameter(parameter.data * there, requires_grad=parameter.requires_grad)
        setattr(result.get_submodule(module), leaf, single)  # tied parameters may have lost different entries
    return result


def counted_macs(model: nn.Module, args: Args) -> int:
    """The MACs that a model really executes, counted by torch."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(model)(*copy.deepcopy(args))
    return int(counter.get_total_flops()) // 2


def limit(model: nn.Module, args: Args) -> int | None:
    """The least MACs of a zeroed network: live inputs times live outputs of every contraction.

    None if it cannot be captured, or if some of its work is in no figure.
    """
    try:
        report = prune(model, args, verify=False).report
    except L1RRError as error:
        log.debug("no limit: %s", error)
        return None
    whole = not report.not_counted and report.before.macs == counted_macs(model, args)
    return report.limit.macs if whole else None


def _deviations(small: nn.Module, reference: nn.Module, args: Args) -> list[float]:
    torch.manual_seed(0)
    with torch.no_grad():
        expected = copy.deepcopy(reference)(*copy.deepcopy(args))
        torch.manual_seed(0)
        return differences(copy.deepcopy(small)(*copy.deepcopy(args)), expected)


def _size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _described(error: Exception) -> str:
    """The error's class and the first line of its message, if it has one."""
    name, line = type(error).__name__, first_line(error)
    return name if line == name else f"{name}: {line}"
