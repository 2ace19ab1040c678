"""The interface of a cost model: what copies and multiplications cost on the machine that will run the network.

Layout assignment asks it which is cheaper where channels meet in a sum: to copy them into place, or to compute the
missing ones as zeros. `ByteCount` knows no machine: it never adds multiplications to avoid a copy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

PROHIBITIVE = 1e12


@runtime_checkable
class Target(Protocol):
    """A cost model of a machine. All its methods use one unit, seconds where it can."""

    @property
    def name(self) -> str:
        """The name of the machine in reports."""
        ...

    @property
    def multiple(self) -> int:
        """The machine computes channel counts that are a multiple of this fastest; 1 if they make no difference."""
        ...

    def contraction(self, macs: float, inputs: int, outputs: int) -> float:
        """The cost of a convolution or matrix product of `macs` multiply-accumulates.

        `inputs` is how many elements one output element sums, `outputs` the number of output channels.
        """
        ...

    def traffic(self, size: float) -> float:
        """The cost of one kernel that only moves data; `size` is the bytes read plus the bytes written."""
        ...

    def gather(self, size: float) -> float:
        """The cost of such a kernel that picks channels one by one instead of a run."""
        ...

    def meeting(self, size: float) -> float:
        """The cost of a copy that prevents a convolution from fusing the following sum and activation.

        The copy writes a run into an operand of the sum. The kernels of the sum and of the activation are included.
        """
        ...


@dataclass(frozen=True)
class ByteCount:
    """No machine in particular: a copy costs its bytes, and a multiplication more than any copy."""

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
