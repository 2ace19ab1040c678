"""NVIDIA's Jetson TX2 as a target: the prices of single decisions, and the latency model of whole networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from l1rr_fx.latency.kernels import canonical_kernels
from l1rr_fx.latency.model import Coefficients, Device, check_precision, tiled
from l1rr_fx.latency.prediction import FITTED, JETSON_TX2, Latency
from l1rr_fx.support.choices import Precision
from passes.assignment.cost_model import PROHIBITIVE
from passes.rewriting.sketcher import Sketch

MULTIPLE = 8
"""Channels come in pairs in FP16, and TensorRT takes other kernels for multiples of 8: no rule is published."""


@dataclass(frozen=True)
class JetsonTX2:
    """A Jetson TX2 as the compiler's target; all costs are predicted seconds.

    `clock` is the GPU's in GHz (None: its highest).
    """

    name: str
    multiple: int
    precision: Precision
    device: Device = JETSON_TX2
    coefficients: Coefficients = FITTED
    clock: float | None = None

    @property
    def latency(self) -> Latency:
        """The model that predicts whole networks."""
        return Latency(self.device.name, self.precision, self.clock, self.coefficients)

    def predict(self, module: nn.Module, args: tuple[Any, ...]) -> float:
        """The predicted seconds of one forward pass of a network."""
        return self.latency.predict(module, args)

    def predict_sketch(self, sketch: Sketch) -> float:
        """The predicted seconds of one forward pass of the network of a sketch: those of `predict`, sooner."""
        return self.latency.of_kernels(canonical_kernels(sketch.graph)).ms * 1e-3

    def launches(self, sketch: Sketch) -> float:
        """The predicted seconds that the network's kernels take to start, however small they are."""
        return len(canonical_kernels(sketch.graph)) * self.coefficients.launch * 1e-6

    def contraction(self, macs: float, inputs: int, outputs: int) -> float:
        """What `macs` multiplications for `outputs` channels add to a kernel that runs anyway; rows come in tiles."""
        half = self.precision == "fp16"
        efficiency = self.coefficients.efficiency_fp16 if half else self.coefficients.efficiency_fp32
        padded = macs * tiled(outputs) / outputs if outputs else 0.0
        return 2 * padded / (self.device.peak(self.precision, self.clock or self.device.clock) * efficiency)

    def traffic(self, size: float) -> float:
        """A kernel that only reads and writes, `size` bytes in all, its launch included.

        Bytes are those of the network in FP32, as the compiler counts them; an FP16 engine moves half of them."""
        moved = size / 2 if self.precision == "fp16" else size
        return self.coefficients.launch * 1e-6 + moved / (self.device.bandwidth * self.coefficients.bandwidth)

    def gather(self, size: float) -> float:
        """A prohibitive price: TensorRT fuses nothing with a gather and runs it in linear order only.

        No timing of that on a TX2 is published. Zeros are computed instead, which by our model costs between -0.6 and
        2 % (docs/tx2.md)."""
        return PROHIBITIVE + self.traffic(size)

    def meeting(self, size: float) -> float:
        """The copy, then a sum (two tensors read, one written) and an activation that no longer fuse."""
        return self.traffic(size) + self.traffic(1.5 * size) + self.traffic(size)


def jetson_tx2_target(precision: Precision = "fp16") -> JetsonTX2:
    """A Jetson TX2 as a target at a precision, "fp16" or "fp32"; InputError for any other."""
    return target_of(Latency(JETSON_TX2.name, check_precision(precision)))


def target_of(latency: Latency) -> JetsonTX2:
    """A latency model, such as one that was fitted to measurements, as a target."""
    return JetsonTX2(
        f"{latency.device}-{latency.precision}",
        MULTIPLE,
        latency.precision,
        coefficients=latency.coefficients,
        clock=latency.clock,
    )
