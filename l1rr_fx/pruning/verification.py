"""Whether the pruned network computes what the zeroed model computes, on the example, and what was compared."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from passes.audit.comparison import Comparison, compare, tolerance
from passes.audit.verify import drops_out, first_difference, run_graph
from passes.compile import Removed
from passes.errors import InputError, VerifyError
from passes.graph.isolation import in_float64, run_aside

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verified:
    """What a verification found: no error, or it would have been raised.

    `deviation` is the largest relative deviation of the `compared` numbers (None: there are none), and `notes` say what
    was not compared.
    """

    deviation: float | None
    compared: int
    notes: tuple[str, ...] = ()

    @classmethod
    def by(cls, comparison: Comparison, notes: tuple[str, ...] = ()) -> Verified:
        """What a comparison found that is close enough, or is explained."""
        compared = comparison.compared
        return cls(comparison.deviation if compared else None, compared, (*comparison.notes(), *notes))


def check(
    model: nn.Module,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    zeroed: Any,
    removed: Removed | None = None,
) -> Verified:
    """The pruned network compared with `zeroed`, the outputs of the model on the example.

    Raises VerifyError where rounding does not explain a deviation. With `removed`, one that is too large is examined in
    float64: if all nodes agree there it is rounding, and is returned; otherwise the error names the first node that
    differs.
    """
    allowed = tolerance(zeroed, model.parameters())
    try:
        comparison = compare(zeroed, run_aside(module, args, kwargs))
        message = f"the pruned network {comparison} from the zeroed one (allowed: {allowed:.0e})"
    except (RuntimeError, IndexError, InputError) as error:
        comparison, message = None, f"the pruned network does not run: {error}"
    if comparison is not None and comparison.within(allowed):
        return Verified.by(comparison)
    if removed is None:
        raise VerifyError(message)
    if difference := first_difference(removed.plan, removed.rewritten, args, kwargs):
        raise VerifyError(f"{message}; in float64 the first difference is at {difference}")
    if comparison is None:
        raise VerifyError(message)
    program = removed.plan.program.module
    captured = run_graph(program, args, kwargs)
    if drops_out(program):  # by a function in the model's code: only the graphs can be run without
        return Verified.by(compare(captured, run_graph(removed.module, args, kwargs)))
    already = compare(zeroed, captured)
    if not already.within(allowed):  # rounding here too? (fused kernels of eager attention)
        zeroed = run_aside(in_float64(model), *in_float64((args, dict(kwargs))))
        already = compare(zeroed, run_graph(program, args, kwargs, doubled=True))
    if not already.within(allowed):
        by = f"{already.deviation:.3g}"
        raise VerifyError(f"{message}; the graph that was captured deviates from the model already, by {by}")
    log.warning("%s; in float64 all nodes agree, so this is rounding", message)
    return Verified.by(comparison)
