"""A target whose prices of single decisions are those of another."""

from __future__ import annotations

from dataclasses import dataclass

from passes.assignment.cost_model import Target


@dataclass(frozen=True, eq=False)
class Priced:
    """Has the name and the prices of the cost model `prices`."""

    prices: Target

    @property
    def name(self) -> str:
        return self.prices.name

    @property
    def multiple(self) -> int:
        return self.prices.multiple

    def contraction(self, macs: float, inputs: int, outputs: int) -> float:
        return self.prices.contraction(macs, inputs, outputs)

    def traffic(self, size: float) -> float:
        return self.prices.traffic(size)

    def gather(self, size: float) -> float:
        return self.prices.gather(size)

    def meeting(self, size: float) -> float:
        return self.prices.meeting(size)
