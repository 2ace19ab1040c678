"""This machine as a target: convolutions and copies, timed once with torch and remembered."""

from __future__ import annotations

import json
import logging
import math
import os
import platform
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, TypeVar, cast

import torch

from l1rr_fx.support.files import read_file, write_file
from l1rr_fx.support.json_text import json_value
from passes.errors import InputError

log = logging.getLogger(__name__)
Measured = TypeVar("Measured")

CHANNELS = (16, 32, 64, 128, 256)
ODD = 127
AREA = 28
COPIED = (1 << 16, 1 << 19, 1 << 22, 1 << 25)
COLD = 1 << 26
ROUNDS = 15
MOST_ODD = 4.0
LARGEST = 2**20
"""Bytes of a measurement that are read at most."""


@dataclass(frozen=True)
class MeasuredCpu:
    """The cost model of a CPU, in seconds, with `threads` threads.

    `contractions` and `copies` are pairs (MACs or bytes, seconds), ascending; between them times follow a power law.
    Kernels compute channels in blocks of `multiple`: what is left over in a block is computed in vain, and `odd` is
    how much longer the same number of blocks takes if the last one is not full.
    """

    threads: int
    multiple: int
    odd: float
    contractions: tuple[tuple[float, float], ...]
    copies: tuple[tuple[float, float], ...]
    fuses: bool
    name: str

    def contraction(self, macs: float, inputs: int, outputs: int) -> float:
        blocks = self._blocks(inputs) * self._blocks(outputs)
        seconds = interpolated(self.contractions, macs * blocks)
        return seconds if outputs % self.multiple == 0 and inputs % self.multiple == 0 else seconds * self.odd

    def _blocks(self, channels: int) -> float:
        return math.ceil(channels / self.multiple) * self.multiple / max(1, channels)

    def traffic(self, size: float) -> float:
        return interpolated(self.copies, size)

    def gather(self, size: float) -> float:
        return self.traffic(size)  # both copy whole images of a channel

    def meeting(self, size: float) -> float:
        """The copy; where convolutions do sums in their own order of memory, also the other operand brought out of
        it, a sum (two tensors read, one written) and an activation."""
        return 3 * self.traffic(size) + self.traffic(1.5 * size) if self.fuses else self.traffic(size)


def interpolated(points: Sequence[tuple[float, float]], at: float) -> float:
    """The value of a power law between neighbouring points; beyond the last proportional, before the first constant."""
    if at <= points[0][0]:
        return points[0][1]
    if at >= points[-1][0]:
        return points[-1][1] * at / points[-1][0]
    index = bisect_left(points, (at, 0.0))
    (x0, y0), (x1, y1) = points[index - 1], points[index]
    return math.exp(math.log(y0) + (math.log(at) - math.log(x0)) / (math.log(x1) - math.log(x0)) * math.log(y1 / y0))


def this_cpu() -> MeasuredCpu:
    """The model of this machine under torch, at its present number of threads."""
    return remembered(f"torch-{torch.__version__}-{torch.get_num_threads()}", measure, MeasuredCpu)


def remembered(name: str, measure: Callable[[], Measured], kind: Callable[..., Measured]) -> Measured:
    """The measurement of that name from the cache; the first time it is taken (some seconds). `kind` is its dataclass.

    What `kind` refuses with a ValueError or a TypeError is measured again.
    """
    path = cache_path(name)
    try:
        stored = json_value(read_file(path, LARGEST))
        return kind(**{k: _tuples(v) for k, v in stored.items()})
    except FileNotFoundError:
        log.info("measuring this CPU once; the result is kept in %s", path)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        log.warning("%s is not a measurement of a CPU (%s): measuring again", path, error)
    measured = measure()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps(asdict(cast(Any, measured))).encode())
    except (OSError, InputError) as error:  # a home that is read-only, for instance: nothing depends on the cache
        log.warning("the measurement of this CPU is not kept: %s", error)
    return measured


def cache_path(name: str) -> Path:
    """Where a measurement of this processor is kept: below XDG_CACHE_HOME, or ~/.cache."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    processor = f"{platform.machine()}-{torch.backends.cpu.get_cpu_capability()}".replace(" ", "-").lower()
    return home / "l1rr-fx" / f"{processor}-{name}.json"


@torch.no_grad()
def measure() -> MeasuredCpu:
    """Time convolutions of growing width, and copies of growing size, with torch's present number of threads."""
    sizes = [float(n * n * 9 * AREA * AREA) for n in CHANNELS]
    seconds = seconds_of(*(_convolution(n, n) for n in CHANNELS), _convolution(ODD, ODD))
    contractions, odd = list(zip(sizes, seconds, strict=False)), seconds[-1] / seconds[CHANNELS.index(ODD + 1)]
    copies = [(2.0 * size, seconds_of(_copy(size))[0]) for size in COPIED]
    return measured_cpu("cpu", contractions, copies, odd, fuses=False)


Points = Sequence[tuple[float, float]]


def measured_cpu(name: str, contractions: Points, copies: Points, odd: float, *, fuses: bool) -> MeasuredCpu:
    """The model that measurements give. A time that falls as the work grows was disturbed, and is made to rise."""
    multiple = 16 if "AVX512" in torch.backends.cpu.get_cpu_capability() else 8
    odd = max(1.0, min(odd, MOST_ODD))
    return MeasuredCpu(
        torch.get_num_threads(), multiple, odd, _increasing(contractions), _increasing(copies), fuses, name
    )


def _convolution(inputs: int, outputs: int) -> Callable[[], object]:
    x, weight = torch.randn(1, inputs, AREA, AREA), torch.randn(outputs, inputs, 3, 3)
    return lambda: torch.conv2d(x, weight, padding=1)


def _copy(size: int) -> Callable[[], object]:
    """A gather of channels between buffers that are in no cache, into memory that is there, as runtimes do."""
    index = torch.arange(63, -1, -1)
    pairs = cycle([(torch.randn(1, 64, size // 256), torch.zeros(1, 64, size // 256)) for _ in range(-(-COLD // size))])

    def work() -> object:
        source, moved = next(pairs)
        return torch.index_select(source, 1, index, out=moved)

    return work


def seconds_of(*works: Callable[[], object]) -> list[float]:
    """The least seconds of each, in rounds in which each runs once: others who use the machine only ever add."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(ROUNDS + 1):
        for work, taken in zip(works, times, strict=True):
            started = time.perf_counter()
            work()
            taken.append(time.perf_counter() - started)
    return [min(taken[1:]) for taken in times]


def _increasing(points: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    """The points with times that never fall: a smaller one that took longer was disturbed."""
    found: list[tuple[float, float]] = []
    for size, seconds in reversed(points):
        found.append((size, min(seconds, found[-1][1]) if found else seconds))
    return tuple(reversed(found))


def _tuples(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _tuples(each) for key, each in value.items()}
    return tuple(map(_tuples, value)) if isinstance(value, list) else value
