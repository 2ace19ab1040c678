"""Weighing: how strongly what a channel saves counts against its loss of attention."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from l1rr_fx.method.planning.curves import Unit
from l1rr_fx.method.sites.budget import Analysis, Budget

EXPONENTS = (0.0, 0.25, 0.5, 0.75)
"""How strongly the cost that a channel saves is weighed against its loss. 0 ignores the cost. 1 would be right if
losses added up; they do not, and a few expensive layers would be emptied."""


def savings(analysis: Analysis, units: Sequence[Unit], budget: Budget) -> Mapping[str, Mapping[str, float]]:
    """What one channel of each unit saves of each cost that the budget limits, over the mean of all units; by the name
    of the cost. If there are several costs, also of their sum. Latency counts where the target predicts it: a predictor
    of the user's would be asked once for each unit.

    The compiler computes it with half of the removable channels of all other units zero, so that the layer that makes a
    channel and those that read it both count. A unit that saves nothing counts as a thousandth."""
    known = ("params", "macs", *(["latency"] if analysis.as_it_is is not None else []))
    limited = [name for name in known if name in budget.limits] or ["macs"]
    halves = {unit.name: (len(unit.order) + 1) // 2 for unit in units}

    def left(without: str | None) -> Mapping[str, float]:
        zeroing = {n: m for u in units if u.name != without for n, m in u.zeroing(halves[u.name]).items()}
        return analysis.estimated_size(zeroing).shares(analysis.dense)

    least, others = left(None), {unit.name: left(unit.name) for unit in units}
    found: dict[str, Mapping[str, float]] = {}
    for costs in dict.fromkeys([(*limited,), *((cost,) for cost in limited)]):
        saved = {
            name: math.fsum(shares[cost] - least[cost] for cost in costs) / halves[name]
            for name, shares in others.items()
        }
        mean = math.fsum(saved.values()) / len(saved)
        found[" + ".join(costs)] = {n: max(each / mean, 1e-3) if mean > 0 else 1.0 for n, each in saved.items()}
    return found


def weighings(savings: Mapping[str, Mapping[str, float]]) -> Mapping[str, Mapping[str, float]]:
    """The divisors of the losses of each unit, by the name of the method."""
    found: dict[str, Mapping[str, float]] = {}
    for costs, saved in savings.items():
        for exponent in EXPONENTS:
            name = f"attention by {costs} ** {exponent:g}" if exponent else "attention"
            found[name] = {unit: each**exponent for unit, each in saved.items()}
    return found
