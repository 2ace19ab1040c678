"""Fits the coefficients of the latency model to measured latencies of whole networks.

The fit is one of least squares on log(predicted / measured), with a prior: every logarithm is pulled to where it
started. What belongs to a source of measurements and not to the device is fitted beside: a factor (its software) and a
constant (what it measured besides the network), each pulled to 1 and to a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from l1rr_fx.latency.model import Coefficients, Device, Work, seconds

MEASUREMENT_SPREAD = 0.08
"""Relative: what the same network differs by from page to page."""
FACTOR_SPREAD = 0.10
CONSTANT_SPREAD = 0.7
STEPS = 60
CONVERGED = 1e-9


@dataclass(frozen=True, eq=False)
class Observation:
    """A measured latency in ms of the kernels `work`, at `clock` GHz; `source` names where it comes from."""

    work: Work
    precision: str
    clock: float
    ms: float
    source: str = ""


@dataclass(frozen=True)
class Prior:
    """Where the fit starts and how far it may go: one standard deviation of each logarithm.

    `constants` gives the guess in ms for each source that measured more than the network; a source that is not named
    has neither constant nor factor.
    """

    coefficients: Coefficients
    spread: tuple[float, ...]
    constants: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Fit:
    """Fitted coefficients, and the factor and the constant (ms) of each source."""

    device: Device
    coefficients: Coefficients
    factors: Mapping[str, float]
    constants: Mapping[str, float]

    def ms(self, observation: Observation) -> float:
        """What the source of the observation would measure, in ms."""
        parts = seconds(
            observation.work, self.device, observation.precision, observation.clock, self.coefficients.logarithms()
        )
        factor = self.factors.get(observation.source, 1.0)
        return factor * float(parts.total.sum()) * 1e3 + self.constants.get(observation.source, 0.0)


def fit(observations: Sequence[Observation], device: Device, prior: Prior) -> Fit:
    """The most probable coefficients given the prior and the observations (Levenberg-Marquardt)."""
    sources = tuple(prior.constants)
    count = len(prior.spread)
    start = torch.cat(
        [
            prior.coefficients.logarithms(),
            torch.zeros(len(sources), dtype=torch.float64),
            torch.tensor([*prior.constants.values()], dtype=torch.float64).log(),
        ]
    )
    spread = torch.tensor(
        [*prior.spread, *[FACTOR_SPREAD] * len(sources), *[CONSTANT_SPREAD] * len(sources)], dtype=torch.float64
    )
    measured = torch.tensor([each.ms for each in observations], dtype=torch.float64)

    def residuals(x: Tensor) -> Tensor:
        factors, constants = x[count:].exp().reshape(2, -1)
        predicted = []
        for each in observations:
            total = 1e3 * seconds(each.work, device, each.precision, each.clock, x[:count]).total.sum()
            if each.source in sources:
                index = sources.index(each.source)
                total = total * factors[index] + constants[index]
            predicted.append(total)
        off = (torch.stack(predicted) / measured).log() / MEASUREMENT_SPREAD if predicted else x[:0]
        return torch.cat([off, (x - start) / spread])

    found = _least_squares(residuals, start)
    factors, constants = found[count:].exp().reshape(2, -1).tolist()
    return Fit(
        device,
        Coefficients.of_logarithms(found[:count]),
        dict(zip(sources, factors, strict=True)),
        dict(zip(sources, constants, strict=True)),
    )


def _least_squares(residuals: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    damping, cost = 1e-3, float(residuals(x).square().sum())
    for _ in range(STEPS):
        jacobian = torch.autograd.functional.jacobian(residuals, x, strategy="forward-mode", vectorize=True)
        assert isinstance(jacobian, Tensor)
        normal, slope = jacobian.T @ jacobian, jacobian.T @ residuals(x)
        while damping < 1e9:
            moved = x - torch.linalg.solve(normal + damping * torch.diag(normal.diagonal()), slope)
            if (better := float(residuals(moved).square().sum())) < cost:
                break
            damping *= 4
        else:
            return x
        gain, x, cost, damping = cost - better, moved, better, damping / 8
        if gain < CONVERGED * cost:
            return x
    return x
