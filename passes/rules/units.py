"""The units of one direction of a recurrent layer: which are zero at every step, and which depend on which.

A unit has a row in every gate. With the source gate s (`passes.rules.recurrent` says which one that is), a unit is zero
at every step if s is, and the state that it carries over starts at zero. The source gate is zero if it has no bias and
reads only zeros: of the input, and of outputs that start at zero and are zero at every step. The largest set of units
of which this holds is right by induction over the steps.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Connections:
    """Which weights of one direction are not zero.

    `inputs` (gates, units, channels) and `outputs` (gates, units, outputs): what each gate reads. `biased` (units): the
    source gate is not zero although it reads zeros. `projection` (outputs, units): what an output is made of (None: of
    its own unit).
    """

    source: int
    inputs: Tensor
    outputs: Tensor
    biased: Tensor
    projection: Tensor | None

    def made(self, units: Tensor) -> Tensor:
        """The outputs that some of `units` makes."""
        return units if self.projection is None else (self.projection & units).any(1)

    def makers(self, outputs: Tensor) -> Tensor:
        """The units that make some of `outputs`."""
        return outputs if self.projection is None else (self.projection & outputs.view(-1, 1)).any(0)

    def silence(self, alive: Tensor, carried: Tensor, given: Tensor) -> Silence:
        """What is zero at every step, if the channels `alive`, and of the first states `carried` (by unit) and `given`
        (by output), are not zero."""
        units = ~carried & ~self.biased & ~(self.inputs[self.source] & alive).any(1)
        while True:
            made = self.made(~units)
            left = units & ~(self.outputs[self.source] & (made | given)).any(1)
            if torch.equal(left, units):
                return Silence(units, ~made, ~(made | given))
            units = left

    def kept(self, units: Tensor, outputs: Tensor, silence: Silence) -> tuple[Tensor, Tensor]:
        """The units and the outputs that `units` and `outputs` depend on, themselves included."""
        while True:
            more = (units | self.makers(outputs)) & ~silence.units
            read = outputs | ((self.outputs & more.view(1, -1, 1)).any(1).any(0) & ~silence.read)
            if torch.equal(more, units) and torch.equal(read, outputs):
                return units, outputs
            units, outputs = more, read


@dataclass(frozen=True, eq=False)
class Silence:
    """What is zero in one direction: units and outputs at every step, and outputs (`read`) also before the first."""

    units: Tensor
    outputs: Tensor
    read: Tensor


@dataclass(frozen=True, eq=False)
class Needs:
    """What one direction needs: `units` that compute, `outputs` that are read, by the layer itself or by others."""

    units: Tensor
    outputs: Tensor
    connections: Connections

    @property
    def channels(self) -> Tensor:
        """The channels of the input that the units read."""
        return (self.connections.inputs & self.units.view(1, -1, 1)).any(1).any(0)

    @property
    def stored(self) -> tuple[Tensor, Tensor]:
        """The units and the outputs that the small layer has; without a projection they are the same."""
        if self.connections.projection is not None:
            return self.units, self.outputs
        return self.units | self.outputs, self.units | self.outputs
