"""Frozen dataclasses of numbers, written in one line: "score=0.3,most=100"."""

from __future__ import annotations

from dataclasses import fields
from typing import Any, TypeVar

from passes.errors import InputError

Settings = TypeVar("Settings")


def from_text(cls: type[Settings], text: str, what: str) -> Settings:
    """The settings that "name=number,..." says; fields that are not named keep their defaults.

    InputError, beginning with `what`, for a name that `cls` has not or that comes twice, and for what is no number.
    """
    kinds = {each.name: int if each.type == "int" else float for each in fields(cls)}  # type: ignore[arg-type]  # one
    values: dict[str, Any] = {}
    for part in text.split(","):
        name, _, number = part.strip().partition("=")
        if name not in kinds or name in values:
            raise InputError(f"{what} {text!r}: {part.strip()!r} is not one of {'=, '.join(kinds)}=, given once")
        try:
            values[name] = kinds[name](number)
        except ValueError as error:
            wanted = "whole number" if kinds[name] is int else "number"
            raise InputError(f"{what} {text!r}: {number!r} is no {wanted}") from error
    return cls(**values)
