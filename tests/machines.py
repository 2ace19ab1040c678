"""Cost models for tests: they decide each question one way, so that every way of emission is seen."""

from __future__ import annotations

from dataclasses import dataclass

from passes.assignment.cost_model import ByteCount, Target


@dataclass(frozen=True)
class Biased:
    """Multiplications cost `per_mac`, copies their bytes and `launch`; odd widths cost `odd` times
    as much, copies before a sum `fused` times, and such as pick channels one by one `scattered` times."""

    name: str
    per_mac: float
    launch: float = 0.0
    multiple: int = 1
    odd: float = 1.0
    fused: float = 1.0
    scattered: float = 1.0

    def contraction(self, macs: float, inputs: int, outputs: int) -> float:
        aligned = inputs % self.multiple == 0 and outputs % self.multiple == 0
        return macs * self.per_mac * (1.0 if aligned else self.odd)

    def traffic(self, size: float) -> float:
        return self.launch + size

    def gather(self, size: float) -> float:
        return self.scattered * self.traffic(size)

    def meeting(self, size: float) -> float:
        return self.fused * self.traffic(size)


FILLS = Biased("multiplications are free", 0.0, launch=1e9)
WIDENS = Biased("odd widths are dear", 5.0, launch=100.0, multiple=4, odd=10.0)
BALANCED = Biased("both cost", 0.05, launch=1000.0, fused=3.0)
RUNS = Biased("only runs are copied", 50.0, scattered=1e9)

MACHINES: tuple[Target, ...] = (ByteCount(), FILLS, WIDENS, BALANCED, RUNS)
