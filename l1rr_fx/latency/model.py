"""The time of one kernel on a small GPU, from eight coefficients.

    seconds = launch + compute + traffic
    compute = 2 * padded MACs / (peak * efficiency)       padded: rows to whole tiles, depth + ramp
    traffic = bytes / (bandwidth * share)

A product is computed in tiles, so that rows are rounded up; each tile fills and drains a pipeline, which costs as much
as `ramp` more terms. Thus efficiency depends on size without a table of sizes. 3x3 convolutions at stride 1 have an
efficiency of their own, above 1 where Winograd's algorithm multiplies less than is counted. Depthwise convolutions have
a cost per element that is read or written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from l1rr_fx.latency.kernels import Kernel
from l1rr_fx.support.choices import Precision
from passes.errors import InputError

ROW_TILE = 32
"""Channels that are computed together. The published networks hardly tell 16, 32 and 64 apart (most of their widths
are multiples of each); steps of 32 channels are what others report of Winograd's kernels."""
PRECISIONS: tuple[Precision, ...] = ("fp16", "fp32")


@dataclass(frozen=True)
class Device:
    """A GPU: floating-point operations a clock cycle in FP32 (FP16: `half_rate` times that), GHz, bytes a second."""

    name: str
    flops_per_cycle: int
    half_rate: int
    clock: float
    bandwidth: float

    def peak(self, precision: str, clock: float) -> float:
        """Floating-point operations a second at `clock` GHz."""
        return self.flops_per_cycle * clock * 1e9 * (self.half_rate if precision == "fp16" else 1)


@dataclass(frozen=True)
class Coefficients:
    """What is fitted; all are positive.

    Efficiencies are shares of the peak of their precision, `bandwidth` is a share of the memory's; `depthwise` is in
    nanoseconds an element at the device's clock, `launch` in microseconds, `ramp` in terms of a sum.
    """

    launch: float
    efficiency_fp32: float
    efficiency_fp16: float
    winograd_fp32: float
    winograd_fp16: float
    ramp: float
    bandwidth: float
    depthwise: float

    def logarithms(self) -> Tensor:
        """The fitted variables, float64, shape (8,)."""
        return torch.tensor([math.log(value) for value in astuple(self)], dtype=torch.float64)

    @classmethod
    def of_logarithms(cls, values: Tensor) -> Coefficients:
        return cls(*values.exp().tolist())


@dataclass(frozen=True, eq=False)
class Work:
    """Kernels as columns of numbers, float64, each of shape (number of kernels,).

    `padded` is the padded MACs for each term of depth: MACs = padded * depth where nothing is padded.
    """

    padded: Tensor
    depth: Tensor
    winograd: Tensor
    depthwise: Tensor
    moved: Tensor

    @classmethod
    def of(cls, kernels: Sequence[Kernel]) -> Work:
        rows = []
        for kernel in kernels:
            size, is_depthwise = kernel.geometry, kernel.kind == "depthwise"
            padded, depth, winograd = 0, 0, False
            if size is not None and not is_depthwise:
                padded = tiled(size.rows) * size.columns * size.groups
                depth, winograd = size.depth, size.winograd
            moved = kernel.elements + kernel.weights
            rows.append((padded, depth, winograd, kernel.elements if is_depthwise else 0, moved))
        return cls(*torch.tensor(rows, dtype=torch.float64).reshape(-1, 5).unbind(1))


@dataclass(frozen=True, eq=False)
class Seconds:
    """The three parts of each kernel's time, each of shape (number of kernels,)."""

    launch: Tensor
    compute: Tensor
    traffic: Tensor

    @property
    def total(self) -> Tensor:
        return self.launch + self.compute + self.traffic


def tiled(rows: int) -> int:
    """Rows rounded up to whole tiles."""
    return -(-rows // ROW_TILE) * ROW_TILE


def seconds(work: Work, device: Device, precision: str, clock: float, logarithms: Tensor) -> Seconds:
    """The time of each kernel; differentiable in the logarithms of the coefficients."""
    launch, single, half, winograd_single, winograd_half, ramp, share, depthwise = logarithms.exp().unbind()
    is_half = precision == "fp16"
    plain, winograd = (half, winograd_half) if is_half else (single, winograd_single)
    efficiency = torch.where(work.winograd > 0, winograd, plain)
    compute = 2 * work.padded * (work.depth + ramp) / (device.peak(precision, clock) * efficiency)
    compute = compute + work.depthwise * depthwise * 1e-9 * (device.clock / clock)
    traffic = work.moved * (2 if is_half else 4) / (device.bandwidth * share)
    return Seconds(launch * 1e-6 * torch.ones_like(work.moved), compute, traffic)


def check_precision(precision: str) -> Precision:
    """`precision` itself; InputError unless the model knows it."""
    for each in PRECISIONS:
        if precision == each:
            return each
    raise InputError(f"precision is {precision!r}; expected {' or '.join(PRECISIONS)}")
