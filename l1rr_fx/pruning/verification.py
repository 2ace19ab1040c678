"""Whether the pruned network computes what the zeroed model computes, on the example."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from passes.audit.verify import drops_out, first_difference, relative_deviation, run_graph, tolerance
from passes.compile import Removed
from passes.errors import VerifyError
from passes.graph.isolation import in_float64, run_aside

log = logging.getLogger(__name__)


def check(
    model: nn.Module,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    zeroed: Any,
    removed: Removed | None = None,
) -> float:
    """The relative deviation of the pruned network from `zeroed`, the outputs of the model on the example.

    Raises VerifyError where rounding does not explain it. With `removed`, a deviation that is too large is examined in
    float64: if all nodes agree there it is rounding, and is returned; otherwise the error names the first node that
    differs.
    """
    allowed = tolerance(zeroed)
    try:
        deviation = relative_deviation(zeroed, run_aside(module, args, kwargs))
        message = f"the pruned network deviates by {deviation:.3g} from the zeroed one (allowed: {allowed:.0e})"
    except (RuntimeError, IndexError) as error:
        deviation, message = float("inf"), f"the pruned network does not run: {error}"
    if deviation <= allowed:
        return deviation
    if removed is None:
        raise VerifyError(message)
    if difference := first_difference(removed.plan, removed.rewritten, args, kwargs):
        raise VerifyError(f"{message}; in float64 the first difference is at {difference}")
    program = removed.plan.program.module
    captured = run_graph(program, args, kwargs)
    if drops_out(program):  # by a function in the model's code: only the graphs can be run without
        return relative_deviation(captured, run_graph(removed.module, args, kwargs))
    already = relative_deviation(zeroed, captured)
    if not already <= allowed:  # rounding here too? (fused kernels of eager attention)
        zeroed = run_aside(in_float64(model), *in_float64((args, dict(kwargs))))
        already = relative_deviation(zeroed, run_graph(program, args, kwargs, doubled=True))
    if not already <= allowed:
        raise VerifyError(f"{message}; the graph that was captured deviates from the model already, by {already:.3g}")
    log.warning("%s; in float64 all nodes agree, so this is rounding", message)
    return deviation


def check_pieces(
    model: nn.Module, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[float, tuple[str, ...]]:
    """As `check`, with a remark where rounding changed a decision of the model's own code, such as which box is kept.

    Networks that differ in the model's precision are run again in float64, where rounding decides nothing.
    """
    try:
        return check(model, module, args, kwargs, run_aside(model, args, kwargs)), ()
    except (AttributeError, KeyError, TypeError) as error:
        raise VerifyError(f"the model's own code reaches into a pruned submodule: {error}") from error
    except VerifyError as coarse:
        tensors = pytree.tree_leaves((args, dict(kwargs), list(model.parameters())))
        if all(t.dtype == torch.float64 for t in tensors if isinstance(t, Tensor) and t.is_floating_point()):
            raise
        zeroed, (exact_args, exact_kwargs) = in_float64(model), in_float64((args, dict(kwargs)))
        expected = run_aside(zeroed, exact_args, exact_kwargs)
        remark = f"in the model's own precision {coarse}: rounding changes decisions of its code; compared in float64"
        return check(zeroed, in_float64(module), exact_args, exact_kwargs, expected), (remark,)
