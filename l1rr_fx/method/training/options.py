"""The options of a penalty, checked."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from l1rr_fx.support.arguments import number
from passes.errors import InputError


def rate(lr: Any) -> float:
    """A learning rate, which may be a tensor, as a number."""
    return number("the learning rate", lr.item() if isinstance(lr, Tensor) and lr.numel() == 1 else lr)


def count(name: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} is {value!r}; expected a whole number of at least 1")
    return value


def checked_share(spared: float) -> float:
    if isinstance(spared, bool) or not isinstance(spared, (int, float)) or not 0 <= spared < 1:
        raise InputError(f"spared is {spared!r}; expected a share of the channels in [0, 1)")
    return float(spared)


def checked_strength(strength: float | str) -> float | None:
    """The strength as a number, None for "auto"."""
    return None if strength == "auto" else number("strength", strength, 'a finite number >= 0 or "auto"')
