"""What copies and multiplications cost on the machine that will run the network.

Layout assignment asks it which is cheaper where channels meet in a sum: to copy them into place, or to compute the
missing ones as zeros. `ByteCount` knows no machine: it never pays multiplications for a copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

PROHIBITIVE = 1e12


@runtime_checkable
class Target(Protocol):
    """A cost model. Its unit is up to it (seconds where it can), as long as it is one unit."""

    @property
    def name(self) -> str:
        """What the report calls it."""
        ...

    @property
    def multiple(self) -> int:
        """Channel counts that the machine likes are multiples of this; 1 if it does not care."""
        ...

    def contraction(self, macs: float, inputs: int, outputs: int) -> float:
        """The cost of a convolution or matrix product with `inputs` summed for each output and `outputs` channels."""
        ...

    def traffic(self, size: float) -> float:
        """The cost of one operator of its own that moves `size` bytes (read and written)."""
        ...

    def gather(self, size: float) -> float:
        """The same where channels are picked one by one, not as a run."""
        ...

    def meeting(self, size: float) -> float:
        """The same (of a run) for an operand of a sum that reads what a convolution gives: where the convolution would
        have done the sum itself, that is now an operator of its own, and so is the activation behind."""
        ...


@dataclass(frozen=True)
class ByteCount:
    """No machine in particular: a copy costs its bytes, and no multiplication is made to spare one."""

    name: str = "none"
    multiple: int = 1

    def contraction(self, macs: float, inputs: int, outputs: int) -> float:
        return macs * PROHIBITIVE

    def traffic(self, size: float) -> float:
        return size

    def gather(self, size: float) -> float:
        return size

    def meeting(self, size: float) -> float:
        return size
