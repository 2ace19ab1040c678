"""`prune`: from a model with zeroed channels to a small network that computes the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import nn
from torch.fx import GraphModule

from l1rr_fx.latency.prediction import Latency
from l1rr_fx.machines.by_name import machine
from l1rr_fx.pruning.dense import dense_of
from l1rr_fx.pruning.modules import keep_types, name_holders
from l1rr_fx.pruning.partition.agreement import check_pieces
from l1rr_fx.pruning.partition.pieces import prune_pieces
from l1rr_fx.pruning.pruned import Pruned
from l1rr_fx.pruning.pt2_file import Example, float_type
from l1rr_fx.pruning.report import Report
from l1rr_fx.pruning.size_guards import check_sizes
from l1rr_fx.pruning.unusual import what_is_unusual
from l1rr_fx.pruning.verification import Verified, check
from l1rr_fx.support.choices import TargetName
from l1rr_fx.support.clock import Clock
from passes.assignment.cost_model import Target
from passes.assignment.options import Options
from passes.audit.accounting import accounts_of
from passes.choices import Mode
from passes.compile import remove_zero_channels
from passes.errors import CaptureError, InputError
from passes.frontend.capture import capture, check_arguments
from passes.graph.isolation import collection_paused, run_watched


def prune(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    mode: Mode = "recombine",
    dynamic_shapes: Any = None,
    channel_multiple: int | None = None,
    target: TargetName | Target | Latency = "none",
    inference: bool = False,
    verify: bool = True,
) -> Pruned:
    """The small network that computes what `model`, with the zeros in its weights, computes.

    `args` and `kwargs` are one example input; sizes that may change later are named in `dynamic_shapes`, as for
    `torch.export.export`. `model` is not changed. `mode` says how residual branches meet ("recombine", "union" or
    "exclude"), `target` for which machine: "none", "cpu", "onnxruntime", "jetson-tx2", a `Latency` or a cost model of
    your own (see `l1rr_fx.machines`). A target keeps dead channels where they make the network faster; with "none" the
    fewest multiplications are made. A target that predicts whole networks, as "jetson-tx2" and "onnxruntime" do, is
    asked about the network written in each mode, and about the network as it is: the fastest is returned.
    `channel_multiple` rounds channel counts up where dead channels are left, whether it pays or not. `inference` asks
    for a network for evaluation alone: more channels are constant there, because batch norms use their running
    statistics. With `verify` both networks are run on the example and compared.

    Raises InputError, CaptureError, VanishedError or VerifyError, each of them an L1RRError.
    """
    check_arguments(model, args, kwargs)
    if inference and model.training:
        raise InputError("inference=True with a model in training mode; expected one in evaluation: call model.eval()")
    options = Options(mode, channel_multiple, machine(target, args), inference)
    clock = Clock()
    captured = _captured(model, args, kwargs, dynamic_shapes, clock)
    if isinstance(captured, CaptureError):
        return _in_pieces(model, args, kwargs or {}, captured, clock, options, verify)
    with collection_paused():
        result = remove_zero_channels(captured, options, clock=clock)
    notes: tuple[str, ...] = ()
    if dynamic_shapes is not None:
        notes = tuple(f"not checked: {each}" for each in check_sizes(result.module, captured))
    verified = Verified(None, 0)
    if verify:
        with clock("verify"):
            zeroed, remembered = run_watched(model, args, kwargs or {})
        if remembered:
            failure = CaptureError(f"forward remembers in {', '.join(remembered)} what it saw, which a graph cannot")
            return _in_pieces(model, args, kwargs or {}, failure, clock, options, verify)
        with clock("verify"):
            verified = check(model, result.module, args, kwargs or {}, zeroed, result)
    accounts = accounts_of(result.plan, result.rewritten, clock.seconds, result.constants)
    notes = (*what_is_unusual(model, accounts, {"": result}), *notes, *verified.notes)
    report = Report(
        accounts,
        options.mode,
        verified.deviation,
        options.target.name,
        notes=notes,
        compared=verified.compared,
        dense=dense_of(captured, args, kwargs or {}),
        alternatives=result.alternatives,
    )
    keep_types(result.module, model)
    name_holders(result.module)
    example = Example(args, kwargs or {}, dynamic_shapes, float_type(result.module)).without_values()
    return Pruned(result.module, report, result.rewritten.kept, example)


def _captured(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None, dynamic_shapes: Any, clock: Clock
) -> GraphModule | CaptureError:
    """The graph of the model, or the error that says why there is none: what is raised later is not caused by it."""
    try:
        with clock("capture"), collection_paused():
            return capture(model, args, kwargs, dynamic_shapes=dynamic_shapes)
    except CaptureError as error:
        return error


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
    verified = Verified(None, 0)
    if verify:
        with clock("verify"):
            verified = check_pieces(model, pieces, args, kwargs)
    accounts = replace(pieces.accounts, seconds=dict(clock.seconds))
    notes = (*pieces.notes, *what_is_unusual(model, accounts, pieces.removed), *verified.notes)
    report = Report(
        accounts, options.mode, verified.deviation, options.target.name, pieces.names, notes, verified.compared
    )
    name_holders(pieces.module)
    return Pruned(pieces.module, report, pieces.kept)
