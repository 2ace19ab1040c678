"""What the prices and predictions of a target depend on, as data that is stored with what was made for it."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, is_dataclass
from typing import Any

from l1rr_fx.machines.jetson_tx2 import JetsonTX2
from l1rr_fx.machines.own import OwnMachine
from passes.assignment.cost_model import Target


@dataclass(frozen=True)
class MachineSettings:
    """The name of a target, and where it has them its precision, the GPU's clock in GHz, and a hash of all its numbers.

    Two targets of one name and one hash have the same prices.
    """

    target: str = "none"
    precision: str | None = None
    clock: float | None = None
    coefficients: str | None = None

    def __str__(self) -> str:
        clock = "" if self.clock is None else f" at {self.clock:.2f} GHz"
        return f"{self.target}{clock}"


def settings_of(target: Target) -> MachineSettings:
    """The settings of a target. One that is no dataclass has no hash."""
    prices = target.prices if isinstance(target, OwnMachine) else target
    hashed = _hash(prices)
    if isinstance(prices, JetsonTX2):
        return MachineSettings(prices.name, prices.precision, prices.clock or prices.device.clock, hashed)
    return MachineSettings(prices.name, coefficients=hashed)


def _hash(prices: Any) -> str | None:
    """SHA-256 of the fields of a dataclass."""
    if not is_dataclass(prices) or isinstance(prices, type):
        return None
    return hashlib.sha256(repr(sorted(asdict(prices).items())).encode()).hexdigest()
