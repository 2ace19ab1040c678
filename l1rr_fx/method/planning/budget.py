"""The budget of a pruned model, and the cost of a model with some channels zero: by the compiler's own analysis."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from numbers import Real
from typing import Any, Protocol, SupportsFloat, runtime_checkable

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from l1rr_fx.method.sites.channel_sites import sites_of
from l1rr_fx.method.sites.zeroing import ZeroedProgram, Zeroing, evaluation_graph, unwrapped, zeroed_values
from l1rr_fx.support.arguments import of_kind
from l1rr_fx.support.documents import from_text
from passes.analysis.liveness import channel_facts
from passes.analysis.program import Program
from passes.assignment.assign import plan_layouts
from passes.assignment.options import Options
from passes.assignment.plan import LayoutPlan
from passes.audit.costs import dense_macs, not_counted, plan_macs, plan_parameters
from passes.compile import refuse_vanished
from passes.errors import InputError
from passes.graph.nodes import attribute
from passes.rewriting.rewriter import rewrite
from passes.rules import rule_for


@dataclass(frozen=True)
class Budget:
    """The limits that a plan must meet: parameters, MACs and predicted latency as shares of the dense model, and the
    feature attention loss.

    Each is a number in (0, 1], or None for no limit. If several are given, all must be met. InputError for other
    numbers, and for a budget without a limit.
    """

    params: float | None = None
    macs: float | None = None
    latency: float | None = None
    attention: float | None = None

    def __post_init__(self) -> None:
        for name in self.limits:
            value: Any = getattr(self, name)
            number = isinstance(value, Real) and not isinstance(value, bool)
            if not number or not 0 < value <= 1:
                raise InputError(f"the budget {name}={value} is not a share in (0, 1]; 0.35 leaves 35 % of the dense")
            object.__setattr__(self, name, float(value))
        if not self.limits:
            raise InputError("an empty budget: give at least one of params, macs, latency, attention")

    @property
    def limits(self) -> Mapping[str, float]:
        """The limits that are given, by name."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in found.items() if value is not None}

    @classmethod
    def parse(cls, text: str) -> Budget:
        """The budget that a text such as "macs=0.35,params=0.2" describes. InputError for any other text."""
        return from_text(cls, of_kind("the budget", text, str, ', such as "macs=0.35"'), "the budget")


@runtime_checkable
class LatencyPredictor(Protocol):
    """Predicts how long a network takes. Only ratios of its predictions are used, so that the unit does not matter."""

    def predict(self, module: GraphModule, args: tuple[Any, ...]) -> float:
        """The duration of one forward pass of `module`, a graph as `passes.rewrite` gives it, on `args`; any unit."""
        ...


@dataclass(frozen=True)
class Size:
    """The cost of a network: parameters, MACs of one forward pass, predicted latency (None without a predictor)."""

    parameters: int
    macs: int
    latency: float | None = None

    def shares(self, dense: Size) -> Mapping[str, float]:
        """This cost as shares of the cost of the dense network, by the names of a budget."""
        found = {"params": self.parameters / max(1, dense.parameters), "macs": self.macs / max(1, dense.macs)}
        if self.latency is not None and dense.latency is not None:
            found["latency"] = self.latency / dense.latency
        return found


class Analysis:
    """The cost of a model with any of its channels zero. The model is captured once and not changed.

    `mode` and `channel_multiple` are those of `l1rr_fx.prune`, and the counts are those of its report. With `latency`
    the small network is written for each question, as `prune` writes it for the target "none", and given to the
    predictor.
    """

    def __init__(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any] | None = None,
        *,
        mode: str = "recombine",
        channel_multiple: int | None = None,
        latency: LatencyPredictor | None = None,
    ) -> None:
        self.model = of_kind("model", unwrapped(model), nn.Module)
        self.args = args
        self.options, self.latency = Options(mode, channel_multiple), latency
        self.program = Program(evaluation_graph(model, args, kwargs), rule_for)
        self.not_counted = not_counted(self.program)
        self.sites = sites_of(self.program)
        self.values: Mapping[str, Tensor] = {
            name: attribute(self.program.module, name)
            for site in self.sites
            for name in (site.weight, site.bias)
            if name is not None
        }
        self.dense = self._dense()

    def size(self, zeroing: Zeroing) -> Size:
        """The cost of the pruned model with these channels zero. VanishedError if an output would be constant."""
        plan = self.plan(zeroing)
        return Size(plan_parameters(plan), plan_macs(plan), self._predicted(plan))

    def plan(self, zeroing: Zeroing) -> LayoutPlan:
        """The compiler's layout plan for the model with these channels zero. VanishedError as from `size`."""
        program = ZeroedProgram(self.program, zeroed_values(self.sites, self.values, zeroing))
        facts = channel_facts(program)
        refuse_vanished(program, facts)
        return plan_layouts(program, facts, self.options)

    def already_zero(self) -> Zeroing:
        """The channels whose parameters are zero in the model now."""
        found: dict[str, Tensor] = {}
        for site in self.sites:
            other = [a for a in range(self.values[site.weight].dim()) if a != site.axis]
            dead = self.values[site.weight].detach() == 0
            dead = dead.all(dim=other) if other else dead
            if site.bias is not None:
                dead = dead & (self.values[site.bias].detach() == 0)
            if bool(dead.any()):
                found[site.name] = dead.cpu()
        return found

    def _dense(self) -> Size:
        """The cost of the model if nothing in it were zero."""
        macs = dense_macs(self.program)
        parameters = sum(p.numel() for p in self.program.module.parameters())
        if self.latency is None:
            return Size(parameters, macs)
        alive = {name: torch.where(v.detach() == 0, 1, v.detach()) for name, v in self.values.items()}
        program = ZeroedProgram(self.program, alive)
        return Size(parameters, macs, self._predicted(plan_layouts(program, channel_facts(program), self.options)))

    def _predicted(self, plan: LayoutPlan) -> float | None:
        if self.latency is None:
            return None
        says: object = self.latency.predict(rewrite(plan).module, self.args)
        seconds = float(says) if isinstance(says, SupportsFloat) else math.nan
        if not 0 < seconds < math.inf:
            raise InputError(f"the latency predictor says {says!r:.60}; expected a positive number")
        return seconds
