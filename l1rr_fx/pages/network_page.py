"""`page_of(pruned)`: what a pruning did, as one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from l1rr_fx.latency.prediction import DEVICES, Latency, Prediction
from l1rr_fx.pages.drawing import Drawing, drawing_of
from l1rr_fx.pruning.pruned import Pruned
from l1rr_fx.pruning.report import Report
from l1rr_fx.support.tables import with_unit
from l1rr_fx.version import __version__
from passes.errors import CaptureError, first_line

TEMPLATE = "report.html.j2"


@dataclass(frozen=True)
class Times:
    """Predicted milliseconds on a device by part, before pruning (None: not known) and after."""

    device: str
    rows: tuple[tuple[str, float | None, float], ...]


def page_of(pruned: Pruned, title: str) -> str:
    """The page of a small network: costs, times, layers, copies, what stays and why, and a drawing of the network.

    What cannot be shown is said on the page: times and the drawing need the sizes of the inputs, which networks in
    pieces and those that an older l1rr-fx saved do not hold.
    """
    environment = Environment(
        loader=PackageLoader("l1rr_fx.pages", "."),
        autoescape=select_autoescape(default=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["unit"] = with_unit
    drawing, times, missing = _of_inputs(pruned)
    report = pruned.report
    return environment.get_template(TEMPLATE).render(
        title=title,
        version=__version__,
        report=report,
        costs=(
            ("parameters", *_shares(report, "parameters")),
            ("MACs", *_shares(report, "macs")),
            ("channels", *_shares(report, "channels")),
            ("activation bytes", *_shares(report, "activation_bytes")),
        ),
        most=max((layer.outputs[0] for layer in report.accounts.layers), default=1),
        drawing=drawing,
        times=times,
        missing=missing,
    )


def _shares(report: Report, name: str) -> tuple[int, ...]:
    return tuple(getattr(cost, name) for cost in (report.before, report.after, report.limit))


def _of_inputs(pruned: Pruned) -> tuple[Drawing | None, Times | None, str]:
    """What needs an example input, or why it is missing."""
    if pruned.example is None:
        return None, None, "this network does not know the sizes of its inputs"
    call = pruned.example.for_module(pruned.module)
    module = pruned.module.eval()
    try:
        drawing = drawing_of(module, call.args, dict(call.kwargs))
        times = tuple(_times(pruned, name, call.args, dict(call.kwargs)) for name in DEVICES)
    except CaptureError as error:
        return None, None, f"this network cannot be captured again: {first_line(error)}"
    return drawing, times[0], ""


def _times(pruned: Pruned, device: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Times:
    latency = Latency(device)
    after = _parts(latency.of(pruned.module, args, kwargs))
    dense = pruned.report.dense
    names = ("the whole", "launches", "compute", "traffic", "of all this, copies")
    before: Sequence[float | None] = (None,) * len(names)
    if dense is not None:
        before = _parts(latency.of_kernels(dense.kernels))
    return Times(f"{device}, FP16", tuple(zip(names, before, after, strict=True)))


def _parts(found: Prediction) -> tuple[float, ...]:
    parts = (sum(getattr(row, part) for row in found.rows) for part in ("launch", "compute", "traffic"))
    return (found.ms, *parts, sum(row.ms for row in found.copies))
