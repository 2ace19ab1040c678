"""The compiler in one call: normalise a captured graph, analyse it, assign layouts and rewrite it.

Layout assignment decides tensor by tensor, by prices that hold in between. Where the target predicts whole networks
(`Machine`), the network is planned in several ways, and the one that is predicted fastest is written.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from torch.fx import GraphModule

from passes.absorption.absorb import absorb_constants
from passes.accounts import AS_IT_IS, Alternative, Constant
from passes.analysis.liveness import Facts
from passes.analysis.program import Program
from passes.assignment.assign import plan_layouts
from passes.assignment.cost_model import ByteCount
from passes.assignment.options import MODES, Options
from passes.assignment.plan import LayoutPlan
from passes.assignment.whole import whole_layouts
from passes.canonical.normalise import normalise_graph
from passes.errors import VanishedError
from passes.rewriting.rewriter import Rewritten, rewrite
from passes.rewriting.sketcher import Machine, sketch
from passes.rules import rule_for

Phase = Callable[[str], AbstractContextManager[Any]]
"""Makes the context in which the phase of that name runs; a clock measures it."""


NEAR = 0.005
"""A prediction does not tell networks apart whose times differ by less; the one with fewer copies is written."""


@dataclass(frozen=True, eq=False)
class Assigned:
    """A layout plan, and the ways to write the network among which it was chosen, its own first.

    `alternatives` is empty where the target predicts no whole networks, and where the mode leaves no choice.
    """

    plan: LayoutPlan
    alternatives: tuple[Alternative, ...] = ()


@dataclass(frozen=True, eq=False)
class Removed:
    """The small network, the layout plan that it was made from, and the record of the rewrite.

    `alternatives` are those of `Assigned`; `constants` says where channels went that are constant and not zero.
    """

    module: GraphModule
    plan: LayoutPlan
    rewritten: Rewritten
    alternatives: tuple[Alternative, ...] = ()
    constants: tuple[Constant, ...] = ()


def remove_zero_channels(
    captured: GraphModule, options: Options | None = None, *, clock: Phase | None = None
) -> Removed:
    """The network without its zeroed channels.

    `captured` (from `passes.capture`) is normalised in place. `clock` is called with "analysis" and "rewrite". Raises
    VanishedError if an output would be zero for every input.
    """
    phase = clock or (lambda name: nullcontext())
    with phase("analysis"):
        normalise_graph(captured.graph)
        options = options or Options()
        absorbed = absorb_constants(captured, rule_for, inference=options.inference, prices=options.target)
        program, facts = absorbed.program, absorbed.facts
        refuse_vanished(program, facts)
        assigned = fastest_plan(program, facts, options)
    with phase("rewrite"):
        rewritten = rewrite(assigned.plan)
    return Removed(rewritten.module, assigned.plan, rewritten, assigned.alternatives, absorbed.constants)


def fastest_plan(
    program: Program, facts: Facts, options: Options | None = None, *, as_it_is: float | None = None
) -> Assigned:
    """The layout plan of the network that runs fastest on the target, of all ways to write it.

    These are the three modes, with the target's prices and without, and the network as it is, whose seconds are
    `as_it_is` where they are known. There is one way only where the target is no `Machine`, and in the modes "union"
    and "exclude", which say how to write it.
    """
    options = options or Options()
    machine = options.target
    if not isinstance(machine, Machine) or options.mode != "recombine":
        return Assigned(plan_layouts(program, facts, options))
    found = _predicted(program, facts, options, machine)
    whole = None if as_it_is is not None else whole_layouts(program, facts, options)
    if whole is not None:
        as_it_is = machine.predict_sketch(sketch(whole))
    assert as_it_is is not None
    found.append((Alternative(AS_IT_IS, as_it_is, 0), whole))
    chosen = fastest([each for each, _ in found])
    plan = next(plan for each, plan in found if each is chosen)
    others = sorted((each for each, _ in found if each is not chosen), key=lambda each: each.seconds)
    return Assigned(plan or whole_layouts(program, facts, options), (chosen, *others))


def fastest(ways: Sequence[Alternative]) -> Alternative:
    """The way with the least seconds; of those that are as fast but for `NEAR`, the one with the fewest copies.

    The network as it is has no copies of the compiler's, so that nothing slower than it is ever chosen.
    """
    least = min(each.seconds for each in ways)
    near = (each for each in ways if each.seconds <= least * (1 + NEAR))
    return min(near, key=lambda each: (each.copies, each.seconds))


def _predicted(
    program: Program, facts: Facts, options: Options, machine: Machine
) -> list[tuple[Alternative, LayoutPlan | None]]:
    """The ways to write the small network, predicted. Of plans that are alike one is drawn."""
    found: list[tuple[Alternative, LayoutPlan | None]] = []
    for name, way in _ways(options).items():
        plan = plan_layouts(program, facts, way)
        twin = next((each for each, other in found if other is not None and plan.same(other)), None)
        if twin is not None:
            found.append((replace(twin, name=name), plan))
            continue
        drawn = sketch(plan)
        found.append((Alternative(name, machine.predict_sketch(drawn), drawn.copies), plan))
    return found


def _ways(options: Options) -> dict[str, Options]:
    """The ways to write the small network, by name."""
    found = {mode: replace(options, mode=mode) for mode in reversed(MODES)}
    return found | {f"{mode} without a target": replace(way, target=ByteCount()) for mode, way in found.items()}


def refuse_vanished(program: Program, facts: Facts) -> None:
    """Raise VanishedError if an output would be zero for every input."""
    for index, node in enumerate(program.output_tensors):
        if node not in facts.zero or node.op in ("placeholder", "get_attr"):
            continue
        site = program.at.get(node)
        if bool(facts.zero[node].all()) and site is not None and site.inputs:
            raise VanishedError(
                f"output {index} ({node.name}, shape {program.shape(node)}) is zero for every input: "
                "all channels that lead to it are zeroed. Zero fewer of them."
            )
