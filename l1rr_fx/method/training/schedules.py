"""Schedules of the penalty: a factor of its strength, as a function of the fraction t of training that is done."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from l1rr_fx.support.arguments import number
from passes.errors import InputError

Schedule = Callable[[float], float]

WARM_UP = 0.1
"""The part of training in which "warm-linear" and "ramp-up" rise."""
LEFT = 0.1
"""The value at which falling schedules end."""


def constant(t: float) -> float:
    """1 throughout: Network Slimming."""
    return 1.0


def linear(t: float) -> float:
    """From 1 to LEFT in a straight line."""
    return 1 - (1 - LEFT) * t


def step(t: float) -> float:
    """1 in the first half, a hundredth in the second."""
    return 1.0 if t < 0.5 else 0.01


def cosine(t: float) -> float:
    """From 1 to LEFT along half a cosine."""
    return LEFT + (1 - LEFT) * (1 + math.cos(math.pi * t)) / 2


def ramp_up(t: float) -> float:
    """From LEFT to 1 in a straight line: the mirror image of "linear"."""
    return LEFT + (1 - LEFT) * t


def warm_linear(t: float) -> float:
    """From 0 to 1 in the first WARM_UP, then in a straight line to LEFT.

    During the rise the scales learn how much they matter before any reaches zero; during the fall precision recovers.
    """
    return t / WARM_UP if t < WARM_UP else linear((t - WARM_UP) / (1 - WARM_UP))


SCHEDULES: Mapping[str, Schedule] = {
    "constant": constant,
    "linear": linear,
    "step": step,
    "cosine": cosine,
    "ramp-up": ramp_up,
    "warm-linear": warm_linear,
}


def schedule_named(schedule: str | Schedule) -> Schedule:
    """The schedule of that name, or the callable itself. InputError if it is neither, or is 0 throughout."""
    if isinstance(schedule, str):
        if schedule not in SCHEDULES:
            raise InputError(f"schedule is {schedule!r}; expected one of {', '.join(SCHEDULES)} or a function of t")
        return SCHEDULES[schedule]
    if not callable(schedule):
        raise InputError(f"schedule is a {type(schedule).__name__}; expected a name or a function of t in [0, 1]")
    mean_factor(schedule)
    return schedule


def factor_at(schedule: Schedule, t: float) -> float:
    """The value of a schedule at t. InputError if it raises, or is not a finite number of at least 0."""
    try:
        value = float(schedule(t))
    except (ArithmeticError, ValueError, TypeError) as error:
        raise InputError(f"the schedule raises {type(error).__name__} at t = {t:g}: {error}") from error
    return number(f"the schedule at t = {t:g}", value)


def mean_factor(schedule: Schedule, *, points: int = 1000) -> float:
    """The mean of a schedule over training. InputError where it has no value (also at 0 and 1), or is 0 throughout."""
    for end in (0.0, 1.0):
        factor_at(schedule, end)
    values = [factor_at(schedule, (n + 0.5) / points) for n in range(points)]
    if not any(values):
        raise InputError("the schedule is 0 throughout training: nothing would ever be pushed to zero")
    return math.fsum(values) / points
