"""The budget of a pruned model, and the cost of a model with some channels zero: by the compiler's own analysis."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from numbers import Real
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule

from l1rr_fx.latency.prediction import Latency
from l1rr_fx.machines.by_name import machine
from l1rr_fx.machines.jetson_tx2 import JetsonTX2
from l1rr_fx.machines.own import LatencyPredictor, predicted
from l1rr_fx.method.sites.channel_sites import sites_of
from l1rr_fx.method.sites.zeroing import (
    Shift,
    ZeroedProgram,
    Zeroing,
    evaluation_body,
    keeps_shift,
    unwrapped,
    zeroed_values,
)
from l1rr_fx.support.arguments import of_kind
from l1rr_fx.support.choices import TargetName
from l1rr_fx.support.documents import from_text
from passes.absorption.absorb import absorb_constants
from passes.analysis.liveness import Facts, channel_facts
from passes.analysis.program import Program
from passes.assignment.assign import plan_layouts
from passes.assignment.cost_model import Target
from passes.assignment.options import Options
from passes.assignment.plan import LayoutPlan
from passes.assignment.whole import whole_layouts
from passes.audit.costs import dense_macs, not_counted, plan_macs, plan_parameters
from passes.choices import Mode
from passes.compile import Assigned, fastest_plan, refuse_vanished
from passes.errors import InputError, VanishedError
from passes.graph.nodes import attribute, place_tensor
from passes.rewriting.rewriter import rewrite
from passes.rewriting.sketcher import Machine, sketch
from passes.rules import rule_for

KEPT = 4
"""Layout plans of one model that are kept at a time."""


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

    `mode`, `channel_multiple` and `target` are those of `l1rr_fx.prune`, and the costs are those of the network that it
    writes. A target that predicts whole networks predicts their latency too, before anything is written. With a
    predictor `latency` the small network is written for each question, and given to it. `shift="keep"`: shifts and
    biases of zeroed channels stay, so that the sites have none. Then, and where the model has constants already, they
    are absorbed for each question.
    """

    def __init__(
        self,
        model: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any] | None = None,
        *,
        mode: Mode = "recombine",
        channel_multiple: int | None = None,
        target: TargetName | Target | Latency = "none",
        latency: LatencyPredictor | None = None,
        shift: Shift = "zero",
    ) -> None:
        self.shift, keep = shift, keeps_shift(shift)
        self.model = of_kind("model", unwrapped(model), nn.Module)
        self.args, self.kwargs = args, kwargs or {}
        self.options, self.latency = Options(mode, channel_multiple, machine(target, args)), latency
        body = evaluation_body(model, args, kwargs)
        captured, self.pieces = body.module, body.pieces
        self._parameters = sum(p.numel() for p in captured.parameters())
        absorbed = absorb_constants(GraphModule(captured, deepcopy(captured.graph)), rule_for)
        self._canonical = captured if keep or absorbed.constants else None
        self.program = absorbed.program if self._canonical is None else Program(captured, rule_for)
        self.not_counted = not_counted(self.program)
        sites = sites_of(self.program)
        self.sites = tuple(replace(site, bias=None) for site in sites) if keep else sites
        # `own`: of the model as it is; `values`: with the constants that have gone into shifts
        self.values: Mapping[str, Tensor] = {
            name: attribute(self.program.module, name)
            for site in self.sites
            for name in (site.weight, site.bias)
            if name is not None
        }
        state = self.model.state_dict(keep_vars=True)
        self.own: Mapping[str, Tensor] = {name: state.get(name, value) for name, value in self.values.items()}
        self._facts = channel_facts(self.program)
        self._constant = _constant_outputs(self.program, self._facts)
        self._assigned: dict[tuple[tuple[str, bytes], ...], Assigned] = {}
        self.as_it_is = self._as_it_is()
        self.dense = self._dense()

    def size(self, zeroing: Zeroing) -> Size:
        """The cost of the pruned model with these channels zero. VanishedError if an output would be constant."""
        return self.planned_size(zeroing)[1]

    def planned_size(self, zeroing: Zeroing) -> tuple[LayoutPlan, Size]:
        """The layout plan of the pruned model with these channels zero, and its cost. VanishedError as from `size`."""
        assigned = self.assigned(zeroing)
        plan = assigned.plan
        return plan, Size(plan_parameters(plan), plan_macs(plan), self._predicted(assigned))

    def estimated_size(self, zeroing: Zeroing) -> Size:
        """The cost of the network that the target's prices alone give, without the other ways to write it.

        For weights and orders: it takes a fifth of the time of `size` where the target predicts whole networks.
        """
        plan, target = plan_layouts(*self.liveness(zeroing), self.options), self.options.target
        latency = target.predict_sketch(sketch(plan)) if isinstance(target, Machine) else None
        return Size(plan_parameters(plan), plan_macs(plan), latency)

    def is_possible(self, zeroing: Zeroing) -> bool:
        """Whether no output becomes constant with these channels zero."""
        try:
            self.liveness(zeroing)
        except VanishedError:
            return False
        return True

    def plan(self, zeroing: Zeroing) -> LayoutPlan:
        """The layout plan of the pruned model with these channels zero. VanishedError as from `size`."""
        return self.assigned(zeroing).plan

    def assigned(self, zeroing: Zeroing) -> Assigned:
        """The layout plan, and the ways to write the network from which the target chose it.

        The last ones are kept, because a search, revival and explanation ask for the same."""
        key = tuple((name, mask.numpy().tobytes()) for name, mask in sorted(zeroing.items()) if bool(mask.any()))
        if key not in self._assigned:
            self._assigned[key] = fastest_plan(*self.liveness(zeroing), self.options, as_it_is=self.as_it_is)
            if len(self._assigned) > KEPT:
                self._assigned.pop(next(iter(self._assigned)))
        return self._assigned[key]

    def liveness(self, zeroing: Zeroing) -> tuple[Program, Facts]:
        """The program with these channels zero, and its liveness. VanishedError as from `size`."""
        values = zeroed_values(self.sites, self.values, zeroing)
        if self._canonical is None:
            program: Program = ZeroedProgram(self.program, values)
            facts = channel_facts(program)
        else:
            program, facts = self._absorbed(self._canonical, values)
        refuse_vanished(program, facts)
        if lost := sorted(_constant_outputs(program, facts) - self._constant):
            raise VanishedError(f"the outputs {', '.join(lost)} are the same for every input: zero fewer channels")
        return program, facts

    def _absorbed(self, canonical: GraphModule, values: Mapping[str, Tensor]) -> tuple[Program, Facts]:
        """The program with other values for some parameters, without its constant channels."""
        module = GraphModule(canonical, deepcopy(canonical.graph))
        replaced = {self.values[name].data_ptr(): nn.Parameter(value) for name, value in values.items()}
        for node in module.graph.nodes:
            if node.op == "get_attr" and isinstance(old := attribute(module, str(node.target)), Tensor):
                place_tensor(module, str(node.target), replaced.get(old.data_ptr(), old))
        absorbed = absorb_constants(module, rule_for, prices=self.options.target)
        return absorbed.program, absorbed.facts

    def latency_of(self) -> str:
        """Whose latency the sizes have, for messages, with the share of it that no plan saves where that is known."""
        target = self.options.target
        if self.latency is not None or not isinstance(target, JetsonTX2) or not self.dense.latency:
            return f'Latency is that of the network that prune(target="{target.name}") writes'
        started = target.launches(sketch(self.whole())) / self.dense.latency
        return (
            f"Latency is predicted for {target.name}, where to start the kernels of the dense network takes "
            f"{started:.3f} of its time however small they are"
        )

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

    def _as_it_is(self) -> float | None:
        """What the target predicts for the dense network."""
        target = self.options.target
        return target.predict_sketch(sketch(self.whole())) if isinstance(target, Machine) else None

    def _dense(self) -> Size:
        """The cost of the model if nothing in it were zero."""
        macs = dense_macs(self.program)
        latency = self.as_it_is if self.latency is None else self._predicted(Assigned(self.whole()))
        return Size(self._parameters, macs, latency)

    def whole(self) -> LayoutPlan:
        """The plan of the dense network."""
        return whole_layouts(self.program, self._facts, self.options)

    def _predicted(self, assigned: Assigned) -> float | None:
        """The latency of a network, in seconds or in the unit of the predictor; None where nothing predicts it."""
        target = self.options.target
        if self.latency is not None and not isinstance(self.latency, Latency):
            return predicted(self.latency, rewrite(assigned.plan).module, self.args)
        if assigned.alternatives and self.latency is None:
            return assigned.alternatives[0].seconds
        judge = target if self.latency is None else machine(self.latency)
        return judge.predict_sketch(sketch(assigned.plan)) if isinstance(judge, Machine) else None


def _constant_outputs(program: Program, facts: Facts) -> frozenset[str]:
    """The names of the outputs that are computed from inputs and depend on none of them.

    They need not be uniform: behind padding a constant differs at the border."""
    varies = {node for node in facts.needed if node.op == "placeholder" and bool(facts.live(node).any())}
    for site in program.sites:
        given = zip(site.inputs, facts.asked[site.node], strict=True)
        if any(node in varies and bool((asked & ~facts.zero[node]).any()) for node, asked in given):
            varies |= {out for out in site.outputs if out is not None and bool(facts.live(out).any())}
    return frozenset(node.name for node in program.output_tensors if node in program.at and node not in varies)
