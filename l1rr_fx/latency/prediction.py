"""`Latency("jetson-tx2", precision="fp16").of(module, args)`: the predicted latency of a network, kernel by kernel.

Nothing here was measured by us: the coefficients are fitted to latencies that others published (`published.py`);
`python -m benchmarks.tx2_model` fits them again and prints the error on networks that are held out.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.jupyter import JupyterMixin
from rich.table import Table
from rich.text import Text
from torch import nn

from l1rr_fx.latency.fit import Observation, Prior, fit
from l1rr_fx.latency.kernels import KINDS, Kernel, canonical_kernels, kernels
from l1rr_fx.latency.model import Coefficients, Device, Work, check_precision, seconds
from l1rr_fx.latency.published import MAXN
from l1rr_fx.latency.results import Results, read_all
from l1rr_fx.support.choices import Precision
from l1rr_fx.support.tables import numeric, printed
from passes.assignment.plan import LayoutPlan
from passes.errors import InputError
from passes.frontend.capture import capture
from passes.rewriting.sketcher import sketch

JETSON_TX2 = Device("jetson-tx2", flops_per_cycle=512, half_rate=2, clock=MAXN, bandwidth=59.7e9)
"""256 cores that multiply and add each cycle, twice as many in FP16; the clock is that of nvpmodel 0, MAXN."""

DEVICES: Mapping[str, Device] = {JETSON_TX2.name: JETSON_TX2}
BOARDS: Mapping[str, tuple[str, ...]] = {JETSON_TX2.name: ("tegra186", "tx2", "quill")}
"""Words by which a device is known: one is in what its /proc/device-tree says (NVIDIA's L4T calls the TX2 "quill")."""

FITTED = Coefficients(
    launch=34.62,
    efficiency_fp32=0.6576,
    efficiency_fp16=0.5831,
    winograd_fp32=1.232,
    winograd_fp16=0.9129,
    ramp=19.33,
    bandwidth=0.6043,
    depthwise=1.160,
)
"""`python -m benchmarks.tx2_model` prints it."""

UPDATE_SPREAD = 0.2
"""How far measurements on the reader's own device may move the logarithm of a coefficient: one standard deviation."""
SHOWN = 12


@dataclass(frozen=True)
class Predicted:
    """One kernel and its predicted milliseconds, in three parts."""

    kernel: Kernel
    launch: float
    compute: float
    traffic: float

    @property
    def ms(self) -> float:
        return self.launch + self.compute + self.traffic


@dataclass(frozen=True)
class Prediction(JupyterMixin):
    """The predicted latency of one image; `clock` is the GPU's, in GHz. Prints as a table."""

    device: str
    precision: str
    clock: float
    rows: tuple[Predicted, ...]

    @property
    def ms(self) -> float:
        """Predicted milliseconds of the whole network."""
        return sum(row.ms for row in self.rows)

    @property
    def copies(self) -> tuple[Predicted, ...]:
        """The kernels that only move data."""
        return tuple(row for row in self.rows if row.kernel.kind == "copy")

    @property
    def not_counted(self) -> tuple[str, ...]:
        """The nodes whose operators no rule knows: counted as one launch and its traffic, without what they compute."""
        return tuple(row.kernel.name for row in self.rows if row.kernel.kind == "unknown")

    def __str__(self) -> str:
        return printed(self)

    def __rich__(self) -> RenderableType:
        least = "at least " if self.not_counted else ""
        headline = (
            f"{self.device}, {self.precision.upper()}, {self.clock:.2f} GHz: predicted {least}{self.ms:.2f} ms "
            f"in {least}{len(self.rows):,} kernels, of which {len(self.copies):,} copies ({_ms(self.copies):.2f} ms)"
        )
        if self.not_counted:
            headline += f"\nnot counted: what {', '.join(self.not_counted[:SHOWN])} compute, which no rule knows"
        return Group(Text(headline), self._kinds(), self._slowest())

    def _kinds(self) -> Table:
        table = Table("kind")
        numeric(table, "kernels", "GMACs", "predicted ms", "of it launches")
        for kind in KINDS:
            if rows := [row for row in self.rows if row.kernel.kind == kind]:
                macs, launch = sum(row.kernel.macs for row in rows), sum(row.launch for row in rows)
                table.add_row(kind, f"{len(rows):,}", f"{macs / 1e9:.3f}", f"{_ms(rows):.3f}", f"{launch:.3f}")
        return table

    def _slowest(self) -> Table:
        table = Table("slowest kernels", "kind")
        numeric(table, "launch", "compute", "traffic", "predicted ms")
        for row in sorted(self.rows, key=lambda row: -row.ms)[:SHOWN]:
            parts = (row.launch, row.compute, row.traffic, row.ms)
            table.add_row(Text(row.kernel.name), row.kernel.kind, *(f"{part:.3f}" for part in parts))
        return table


@dataclass(frozen=True)
class Latency:
    """The latency model of a device at a precision, "fp16" or "fp32". `clock` is the GPU's in GHz (None: its highest).

    Raises InputError for a device or a precision that it does not know.
    """

    device: str
    precision: Precision = "fp16"
    clock: float | None = None
    coefficients: Coefficients = FITTED

    def __post_init__(self) -> None:
        _device(self.device)
        check_precision(self.precision)
        if self.clock is not None and not (isinstance(self.clock, (int, float)) and 0 < self.clock < 10):
            raise InputError(f"clock is {self.clock}; it is meant in GHz, such as {MAXN}")

    @classmethod
    def from_results(
        cls, paths: Sequence[str | os.PathLike[str]], *, device: str = "jetson-tx2", precision: Precision = "fp16"
    ) -> Latency:
        """The model fitted further, to results.json files that TensorRT measured on the device, of any precision.

        The coefficients start from the published ones, and move as far as the measurements say so: a few networks shift
        them, many replace them. Raises InputError for results of another engine or board, LoadError for files that are
        none.
        """
        observations = [each for results in read_all(paths) for each in _observations(results, _device(device))]
        prior = Prior(FITTED, (UPDATE_SPREAD,) * len(astuple(FITTED)))
        return cls(device, precision, coefficients=fit(observations, _device(device), prior).coefficients)

    def of(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> Prediction:
        """The prediction for a network on one example input. Raises InputError and CaptureError as `capture` does."""
        return self.of_kernels(kernels(capture(module, args, kwargs)))

    def of_plan(self, plan: LayoutPlan) -> Prediction:
        """The prediction for the network that a layout plan describes, before it is written: that of `of`, sooner."""
        return self.of_kernels(canonical_kernels(sketch(plan).graph))

    def predict(self, module: nn.Module, args: tuple[Any, ...]) -> float:
        """The predicted seconds of one forward pass: `Latency` is a latency predictor for budgets."""
        return self.of(module, args).ms * 1e-3

    def of_kernels(self, found: Sequence[Kernel]) -> Prediction:
        """The prediction for kernels that are known."""
        device = _device(self.device)
        clock = self.clock or device.clock
        parts = seconds(Work.of(found), device, self.precision, clock, self.coefficients.logarithms())
        columns = zip(found, *((part * 1e3).tolist() for part in (parts.launch, parts.compute, parts.traffic)))
        return Prediction(self.device, self.precision, clock, tuple(Predicted(*column) for column in columns))


def _device(name: str) -> Device:
    if not isinstance(name, str) or name not in DEVICES:
        raise InputError(f"there is no latency model of {name!r}; there is one of {', '.join(DEVICES)}")
    return DEVICES[name]


def _observations(results: Results, device: Device) -> list[Observation]:
    if not results.on_tensorrt:
        raise InputError(f"{results.label} was measured with {results.engine}, not with TensorRT on the device")
    board = " ".join(str(results.environment.get(key, "")) for key in ("board", "compatible")).strip()
    if not any(word in board.lower() for word in BOARDS[device.name]):
        raise InputError(
            f"{results.label} was measured on {board or 'a board that its environment does not name'}, "
            f"not on a {device.name}: measure there, where /proc/device-tree can be read"
        )
    if not results.kernels:
        raise InputError(f"{results.label} has no kernels, so that its times explain nothing: lower the network again")
    work = Work.of(results.kernels)
    if any(run.nms for run in results.runs):
        raise InputError(f"{results.label} was measured with NMS, which is not predicted: lower the network without it")
    runs = [run for run in results.runs if run.agrees]
    if not runs:
        raise InputError(f"{results.label}: no run computed what is expected, so that its times mean nothing")
    return [Observation(work, check_precision(run.precision), run.gpu_ghz or device.clock, run.ms) for run in runs]


def _ms(rows: Sequence[Predicted]) -> float:
    return sum(row.ms for row in rows)
