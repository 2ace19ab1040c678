"""What a pruned model may cost, and what it would cost: by the compiler's own analysis, on a graph captured once."""

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
from passes.assignment.plan import LayoutPlan
from passes.audit.costs import dense_macs, plan_macs, plan_parameters
from passes.assignment.options import Options
from passes.compile import refuse_vanished
from passes.errors import InputError
from passes.graph.layout import Layout
from passes.graph.nodes import attribute
from passes.rewriting.rewriter import rewrite
from passes.rewriting.stored_parameters import StoredParameters
from passes.rules import rule_for


@dataclass(frozen=True)
class Budget:
    """The most that may be left, as shares in (0, 1] of the dense model: parameters, MACs, predicted latency; and the
    most feature attention loss. Several hold together; None does not limit."""

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
        """The limits that are set, by name."""
        found = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: value for name, value in found.items() if value is not None}

    @classmethod
    def parse(cls, text: str) -> Budget:
        """The budget that "macs=0.35,params=0.2" says. InputError for anything else."""
        return from_text(cls, of_kind("the budget", text, str, ', such as "macs=0.35"'), "the budget")


@runtime_checkable
class LatencyPredictor(Protocol):
    """AnyLayout that says how long a network takes; only ratios of what it says are used."""

    def predict(self, module: GraphModule, args: tuple[Any, ...]) -> float:
        """How long one forward pass of `module`, as `passes.rewrite` makes it, takes on `args`; any unit."""
        ...


@dataclass(frozen=True)
class Size:
    """What a network costs: parameters, MACs of one forward pass, and predicted latency (None without a predictor)."""

    parameters: int
    macs: int
    latency: float | None = None

    def shares(self, dense: Size) -> Mapping[str, float]:
        """This size as parts of another, by the names of a budget."""
        found = {"params": self.parameters / max(1, dense.parameters), "macs": self.macs / max(1, dense.macs)}
        if self.latency is not None and dense.latency is not None:
            found["latency"] = self.latency / dense.latency
        return found


class Analysis:
    """A model captured once, and asked what it costs with some of its channels zero. The model is not changed.

    `mode` and `channel_multiple` are those of `l1rr_fx.prune`, and the counts those of its report. With `latency` each
    question also writes the small network, for the predictor to look at: as `prune` does for the target "none".
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
        self.sites = sites_of(self.program)
        self.values: Mapping[str, Tensor] = {
            name: attribute(self.program.module, name)
            for site in self.sites
            for name in (site.weight, site.bias)
            if name is not None
        }
        self.dense = self._dense()

    def size(self, zeroing: Zeroing) -> Size:
        """What the model costs with these channels zero, and pruned. VanishedError if an output would be constant."""
        plan = self.plan(zeroing)
        return Size(plan_parameters(plan), plan_macs(plan), self._predicted(plan))

    def plan(self, zeroing: Zeroing) -> LayoutPlan:
        """The compiler's plan for the model with these channels zero."""
        program = ZeroedProgram(self.program, zeroed_values(self.sites, self.values, zeroing))
        facts = channel_facts(program)
        refuse_vanished(program, facts)
        return plan_layouts(program, facts, self.options)

    def already_zero(self) -> Zeroing:
        """The channels whose parameters are zero in the model as it is."""
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
        """What the model costs if nothing is zero, whatever is zero in it now."""
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
            raise InputError(f"the latency predictor says {says!r:.60}; a positive number is wanted")
        return seconds
