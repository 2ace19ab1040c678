"""Checks of what was read from a file: each returns the value, or raises LoadError with what is there instead."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn, TypeVar

from passes.errors import LoadError

MAX_DEPTH = 32  # of nested arguments, inputs and outputs
T = TypeVar("T")


@contextlib.contextmanager
def naming(place: object) -> Iterator[None]:
    """Errors from inside begin with the place, a file or a part of one."""
    try:
        yield
    except LoadError as error:
        raise LoadError(f"{place}: {error}") from error


def expect(value: Any, wanted: type[T], what: str) -> T:
    """`value`, which must be of exactly the type `wanted`."""
    if type(value) is not wanted:
        raise LoadError(f"{what} is {short(value)}; expected a value of type {wanted.__name__}")
    return value


def fields(value: Any, names: set[str], what: str) -> dict[str, Any]:
    """`value`, which must be an object with exactly the fields `names`."""
    found = expect(value, dict, what)
    if unexpected := sorted(names ^ found.keys()):
        raise LoadError(f"{what}: the field {short(unexpected[0])} is missing or unknown")
    return found


def short(value: object) -> str:
    """The value as it is shown in a message: at most 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def parsed(content: bytes) -> Mapping[str, Any]:
    """The JSON object that a file holds."""

    def refuse(constant: str) -> NoReturn:
        raise LoadError(f"{constant} is not JSON")

    try:
        document = json.loads(content.decode("utf-8"), parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise LoadError(f"is not JSON: {error}") from error
    return expect(document, dict, "the document")
