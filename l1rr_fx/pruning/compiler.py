"""`prune`: from a model with zeroed channels to a small network that computes the same."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from l1rr_fx.machines.by_name import machine
from l1rr_fx.pruning.partition.pieces import prune_pieces
from l1rr_fx.pruning.pruned import Pruned
from l1rr_fx.pruning.report import Report
from l1rr_fx.pruning.size_guards import check_sizes
from passes.assignment.cost_model import Target
from passes.assignment.options import Options
from passes.audit.accounting import bill
from passes.audit.verify import drops_out, first_difference, relative_deviation, run_graph, tolerance
from passes.compile import Removed, remove_zero_channels
from passes.errors import CaptureError, VerifyError
from passes.frontend.capture import capture, check_arguments
from passes.graph.isolation import collection_paused, copied, run_aside, run_watched

log = logging.getLogger(__name__)


def prune(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    mode: str = "recombine",
    dynamic_shapes: Any = None,
    channel_multiple: int | None = None,
    target: str | Target = "none",
    verify: bool = True,
) -> Pruned:
    """The small network that computes what `model`, with the zeros in its weights, computes.

    `args` and `kwargs` are one example input; sizes that may change later are named in `dynamic_shapes`, as for
    `torch.export.export`. `model` is not changed. `mode` says how residual branches meet ("recombine", "union" or
    "exclude"), `target` for which machine: "none", "cpu", "onnxruntime", "jetson-tx2" or a cost model of your own
    (see `l1rr_fx.machines`). A target keeps dead channels where they make the network faster; with "none" the fewest
    multiplications are made. `channel_multiple` rounds channel counts up where dead channels are left, whether it pays
    or not. With `verify` both networks are run on the example and compared.

    Raises InputError, CaptureError, VanishedError or VerifyError, each of them an L1RRError.
    """
    check_arguments(model, args, kwargs)
    options = Options(mode, channel_multiple, machine(target))
    clock = Clock()
    try:
        with clock("capture"), collection_paused():
            captured = capture(model, args, kwargs, dynamic_shapes=dynamic_shapes)
    except CaptureError as error:
        return _in_pieces(model, args, kwargs or {}, error, clock, options, verify)
    with collection_paused():
        result = remove_zero_channels(captured, options, clock=clock)
    notes: tuple[str, ...] = ()
    if dynamic_shapes is not None:
        notes = tuple(f"not checked: {each}" for each in check_sizes(result.module, captured))
    deviation = None
    if verify:
        with clock("verify"):
            zeroed, remembered = run_watched(model, args, kwargs or {})
        if remembered:
            failure = CaptureError(f"forward remembers in {', '.join(remembered)} what it saw, which a graph cannot")
            return _in_pieces(model, args, kwargs or {}, failure, clock, options, verify)
        with clock("verify"):
            deviation = check(model, result.module, args, kwargs or {}, zeroed, result)
    accounts = bill(result.plan, result.rewritten, clock.seconds)
    report = Report(accounts, options.mode, deviation, options.target.name, notes=notes)
    return Pruned(result.module, report, result.rewritten.kept)


def _in_pieces(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    failure: CaptureError,
    clock: Clock,
    options: Options,
    verify: bool,
) -> Pruned:
    """The model with its capturable parts pruned, in a copy of its own code."""
    pieces = prune_pieces(model, args, kwargs, failure, options=options, clock=clock)
    deviation, notes = None, pieces.notes
    if verify:
        with clock("verify"):
            deviation, remarks = check_pieces(model, pieces.module, args, kwargs)
            notes = (*notes, *remarks)
    accounts = replace(pieces.accounts, seconds=dict(clock.seconds))
    report = Report(accounts, options.mode, deviation, options.target.name, pieces=pieces.names, notes=notes)
    return Pruned(pieces.module, report, pieces.kept)


def check_pieces(
    model: nn.Module, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[float, tuple[str, ...]]:
    """As `check`, with a remark if rounding changed a decision of the model's own code, such as which box is kept.

    Where the networks differ in the model's precision they are run again in float64: there rounding decides nothing.
    """
    try:
        return check(model, module, args, kwargs, run_aside(model, args, kwargs)), ()
    except (AttributeError, KeyError, TypeError) as error:
        raise VerifyError(f"the model's own code reaches into a pruned submodule: {error}") from error
    except VerifyError as coarse:
        tensors = pytree.tree_leaves((args, dict(kwargs), list(model.parameters())))
        if all(t.dtype == torch.float64 for t in tensors if isinstance(t, Tensor) and t.is_floating_point()):
            raise
        zeroed, pruned = copied(model).double(), copied(module).double()
        doubled = pytree.tree_map(_double, (args, dict(kwargs)))
        remark = f"in the model's own precision {coarse}: rounding changes decisions of its code; compared in float64"
        return check(zeroed, pruned, doubled[0], doubled[1], run_aside(zeroed, *doubled)), (remark,)


def _double(leaf: Any) -> Any:
    return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def check(
    model: nn.Module,
    module: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    zeroed: Any,
    removed: Removed | None = None,
) -> float:
    """The deviation of the small network from `zeroed`, what the model gives on the example.

    Raises VerifyError if rounding does not explain it. With `removed`, a deviation that is too large is looked into
    once more, in float64: either it was rounding after all, and is returned, or the error names the node where it
    comes in.
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
        zeroed = run_aside(copied(model).double(), *pytree.tree_map(_double, (args, dict(kwargs))))
        already = relative_deviation(zeroed, run_graph(program, args, kwargs, doubled=True))
    if not already <= allowed:
        raise VerifyError(f"{message}; the graph that was captured deviates from the model already, by {already:.3g}")
    log.warning("%s; in float64 all nodes agree, so this is rounding", message)
    return deviation


class Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start
            log.debug("%s: %.3f s", phase, self.seconds[phase])
