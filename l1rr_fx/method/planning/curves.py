"""Curves: the attention loss by the number of channels zeroed, for one layer at a time.

Measuring takes long. It can be interrupted and continued from a file, and the processes of a torchrun share it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import count, pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed

from l1rr_fx.method.attention.loss import FeatureAttention
from l1rr_fx.method.sites.zeroing import ChannelSite, zeroed_values
from l1rr_fx.support.arguments import path_of
from l1rr_fx.support.documents import read_as
from l1rr_fx.support.files import read_file
from l1rr_fx.support.json_text import json_value
from passes.errors import InputError

log = logging.getLogger(__name__)

LARGEST = 2**28
"""Bytes of a file of curves that are read at most."""

RATIOS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
CHUNK = 4
"""Units measured between two writes of the file. Tensors that no unit of a chunk changes are computed once a batch."""

Progress = Callable[[int, int], None]
"""Called with the number of units that are done, and the number of all."""


@dataclass(frozen=True, eq=False)
class Unit:
    """Sites that share one mask, and the order in which their channels are removed: `order`, shape (removable,)."""

    sites: tuple[ChannelSite, ...]
    order: Tensor

    @property
    def name(self) -> str:
        """The name of the first site."""
        return self.sites[0].name

    @property
    def channels(self) -> int:
        """The number of channels of each site."""
        return self.sites[0].channels

    @property
    def counts(self) -> tuple[int, ...]:
        """The numbers of channels at which the loss is measured: those of RATIOS, and all removable channels."""
        most = len(self.order)
        return tuple(sorted({n for n in (*(int(r * self.channels) for r in RATIOS), most) if 0 < n <= most}))

    def zeroing(self, count: int) -> dict[str, Tensor]:
        """The masks that zero the first `count` channels of the order."""
        mask = torch.zeros(self.channels, dtype=torch.bool)
        mask[self.order[:count]] = True
        return {site.name: mask for site in self.sites}


@dataclass(frozen=True)
class Curve:
    """The loss of one unit by the number of channels zeroed: 0 at 0, the running maximum, linear in between."""

    counts: tuple[int, ...]
    losses: tuple[float, ...]

    def __post_init__(self) -> None:
        rising = all(low < high for low, high in pairwise((0, *self.counts)))
        if not rising or len(self.losses) != len(self.counts) or not all(map(math.isfinite, self.losses)):
            raise InputError(f"the counts {self.counts} do not rise, or have other losses than finite {self.losses}")

    def at(self, count: int) -> float:
        """The loss with `count` channels zeroed."""
        low, below, worst = 0, 0.0, 0.0
        for high, loss in zip(self.counts, self.losses, strict=True):
            worst = max(worst, loss)
            if count <= high:
                return below + (worst - below) * (count - low) / (high - low)
            low, below = high, worst
        return below


def measured_curves(
    attention: FeatureAttention,
    units: Sequence[Unit],
    values: Mapping[str, Tensor],
    *,
    file: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Mapping[str, Curve]:
    """The curve of each unit by its name; `values` are the model's parameters.

    With `file`, each result is written there at once, and results in the file are not measured again. InputError if the
    file belongs to another model, other scores or other images, or cannot be written. Under torchrun each process
    measures a part, into a file of its own, and all of them return all curves.
    """
    with _processes() as (rank, world):
        record = _Record(file, rank, _fingerprint(attention, units))
        done = _together(record.read(units), world)  # before any process writes, so that all miss the same units
        missing = [unit for unit in units if unit.name not in done]
        mine = missing[rank::world]
        if mine:
            record.begin()
        for start in range(0, len(mine), CHUNK):
            if progress is not None:
                progress(len(done), len(units) - len(missing) + len(mine))
            log.info("%d of %d layers measured", start, len(mine))
            chunk = mine[start : start + CHUNK]
            found = _measured(attention, chunk, values)
            record.write(found)
            done |= found
        if progress is not None:
            progress(len(done), len(done))
        done = _together(done, world)
    return {unit.name: done[unit.name] for unit in units}


def read_curves(file: str | os.PathLike[str]) -> Mapping[str, Curve]:
    """The curves in a file that `measured_curves` wrote, by the names of their units."""
    path = _path(file)
    if not path.exists():
        raise InputError(f"there are no curves in {path}: the file is missing")
    fingerprint, curves = _read(path)
    if fingerprint is None:
        raise InputError(f"there are no curves in {path}: its first line does not say what they are of")
    return curves


def _together(curves: dict[str, Curve], world: int) -> dict[str, Curve]:
    """The curves of all processes. A barrier: no process returns before all have called it."""
    if world == 1:
        return curves
    parts: list[dict[str, Curve]] = [{}] * world
    distributed.all_gather_object(parts, curves)
    return {name: curve for part in parts for name, curve in part.items()}


def _measured(attention: FeatureAttention, units: Sequence[Unit], values: Mapping[str, Tensor]) -> dict[str, Curve]:
    changes = [zeroed_values(unit.sites, values, unit.zeroing(count)) for unit in units for count in unit.counts]
    losses = iter([loss.total for loss in attention.losses(changes)])
    return {unit.name: Curve(unit.counts, tuple(next(losses) for _ in unit.counts)) for unit in units}


@contextmanager
def _processes() -> Iterator[tuple[int, int]]:
    """The rank of this process and the number of processes; under torchrun, in a process group for the block.

    A group that is made here has its own prefix in torchrun's store, so that the user can make another afterwards."""
    made = distributed.is_available() and distributed.is_torchelastic_launched() and not distributed.is_initialized()
    if made:
        # the names are public, but not in the list of what torch.distributed exports
        store, rank, world = next(iter(distributed.rendezvous("env://")))  # type: ignore[attr-defined]
        own = distributed.PrefixStore(f"l1rr-fx curves {next(_numbers)}", store)  # type: ignore[attr-defined]
        distributed.init_process_group("gloo", store=own, rank=rank, world_size=world)
    try:
        if distributed.is_available() and distributed.is_initialized():
            yield distributed.get_rank(), distributed.get_world_size()
        else:
            yield 0, 1
    finally:
        if made:
            distributed.destroy_process_group()


_numbers = count()


class _Record:
    """Curves in a file of JSON lines, one file for each process. The first line identifies model, scores and images."""

    def __init__(self, file: str | os.PathLike[str] | None, rank: int, fingerprint: str) -> None:
        self.base = None if file is None else _path(file)
        self.own = None if self.base is None else self._of(rank)
        self.fingerprint = fingerprint

    def _of(self, rank: int) -> Path:
        assert self.base is not None
        return self.base if rank == 0 else self.base.with_name(f"{self.base.name}.{rank}")

    def read(self, units: Sequence[Unit]) -> dict[str, Curve]:
        """The curves of the units that any process has written, without a last line that was cut off."""
        if self.base is None:
            return {}
        found: dict[str, Curve] = {}
        with _blamed(self.base):
            paths = [path for path in {self.base, *self.base.parent.glob(f"{self.base.name}.[0-9]*")} if path.exists()]
        for path in sorted(paths):
            fingerprint, curves = _read(path)
            if fingerprint != self.fingerprint:
                raise InputError(f"{path} holds no curves, or those of another model, score or data; remove it")
            found |= curves
        return {unit.name: found[unit.name] for unit in units if unit.name in found}

    def begin(self) -> None:
        """Write the first line of this process's file, or end a line of it that was cut off."""
        if self.own is not None:
            with _blamed(self.own):
                is_new = not self.own.exists()
            self._append([{"curves of": self.fingerprint}] if is_new else [])

    def write(self, curves: Mapping[str, Curve]) -> None:
        """Add curves to this process's file."""
        self._append([{"unit": name, **asdict(curve)} for name, curve in curves.items()])

    def _append(self, lines: Sequence[Mapping[str, Any]]) -> None:
        if self.own is not None:
            with _blamed(self.own), self.own.open("a", encoding="utf-8") as file:
                file.write("\n".join(map(json.dumps, lines)) + "\n")


def _path(file: str | os.PathLike[str]) -> Path:
    return path_of("curves", file, "a file")


@contextmanager
def _blamed(path: Path) -> Iterator[None]:
    """Turns errors of reading and writing inside the block into an InputError that names the file."""
    try:
        yield
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"curves: {path} cannot be used: {getattr(error, 'strerror', None) or error}") from error


def _read(path: Path) -> tuple[str | None, dict[str, Curve]]:
    """The fingerprint in the first line of a file (None: there is none), and its curves by the names of their units,
    without a line that was cut off."""
    with _blamed(path):
        head, *lines = read_file(path, LARGEST).decode("utf-8").split("\n")
    found: dict[str, Curve] = {}
    for number, line in enumerate(lines, start=2):
        if (values := _parsed(line, f"{path}, line {number}")) is None:
            continue
        try:
            name = read_as(str, values.pop("unit", None), "unit")
            found[name] = read_as(Curve, values, "curve")
        except InputError as error:
            raise InputError(f"{path}, line {number}: {error}") from error
    return (_parsed(head, f"{path}, line 1") or {}).get("curves of"), found


def _parsed(line: str, where: str) -> dict[str, Any] | None:
    try:
        found = json_value(line)
    except json.JSONDecodeError:  # cut off
        return None
    except ValueError as error:
        raise InputError(f"{where}: {error}") from error
    return found if isinstance(found, dict) else None


def _fingerprint(attention: FeatureAttention, units: Sequence[Unit]) -> str:
    """A hash of what curves depend on: the attention, and the order of the channels."""
    orders = [([site.name for site in unit.sites], unit.order.tolist(), unit.counts) for unit in units]
    return hashlib.sha256(f"{attention.fingerprint()} {orders}".encode()).hexdigest()
