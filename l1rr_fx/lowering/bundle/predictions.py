"""`predictions`, `dense_predictions`: the latencies that are predicted for a network, and for it before pruning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from l1rr_fx.latency.kernels import Kernel, kernels
from l1rr_fx.latency.prediction import DEVICES, Latency, Prediction
from l1rr_fx.lowering.onnx.emission import check_module, in_order
from l1rr_fx.pruning.dense import shapes
from l1rr_fx.pruning.pruned import Pruned
from l1rr_fx.pruning.report import Report
from passes.errors import CaptureError, first_line
from passes.frontend.capture import capture

NOT_PREDICTED = "the dense network was not predicted"


def predictions(target: str, found: tuple[Kernel, ...]) -> dict[str, Prediction]:
    """By precision; empty where the target has no latency model."""
    if target not in DEVICES:
        return {}
    return {precision: Latency(target, precision=precision).of_kernels(found) for precision in ("fp16", "fp32")}


def dense_predictions(
    dense: nn.Module | None,
    pruned: Pruned | nn.Module,
    target: str,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> tuple[dict[str, Prediction], str]:
    """The predictions for the network before pruning, given or remembered; or none, and why ("": nobody asks)."""
    if target not in DEVICES:
        return {}, ""
    if dense is None:
        return _remembered(pruned.report, target, args, kwargs) if isinstance(pruned, Pruned) else ({}, "")
    check_module(dense, args)
    try:
        return predictions(target, kernels(capture(dense, args, in_order(dense, kwargs)))), ""
    except CaptureError as error:
        return {}, f"{NOT_PREDICTED}: {first_line(error)}"


def _remembered(
    report: Report, target: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[dict[str, Prediction], str]:
    if report.dense is None:
        network = f"a network pruned in {len(report.pieces)} pieces" if report.pieces else "a report of before"
        why = f"{network} does not know it"
    elif report.dense.inputs != (given := shapes(args, kwargs)):
        why = (
            f"the network was pruned for inputs of {_listed(report.dense.inputs)}, and is lowered for {_listed(given)}"
        )
    else:
        return predictions(target, report.dense.kernels), ""
    return {}, f"{NOT_PREDICTED}: {why}; give it by dense= (--dense MODEL)"


def _listed(inputs: tuple[tuple[int, ...], ...]) -> str:
    return ", ".join("x".join(map(str, shape)) for shape in inputs)
