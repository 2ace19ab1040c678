"""Checks of what was read from a file: each returns the value, or raises LoadError with what is there instead."""

from __future__ import annotations

import contextlib
import reprlib
from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from l1rr_fx.support.json_text import json_value
from passes.errors import LoadError

MAX_DEPTH = 32  # of nested arguments, inputs and outputs
OUTLINE = reprlib.Repr()
OUTLINE.maxlist = OUTLINE.maxtuple = OUTLINE.maxdict = OUTLINE.maxstring = OUTLINE.maxother = OUTLINE.maxlong = 60
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


def fields(value: Any, names: set[str], what: str, optional: frozenset[str] = frozenset()) -> dict[str, Any]:
    """`value`, which must be an object with exactly the fields `names`, and may have the `optional` ones."""
    found = expect(value, dict, what)
    if unexpected := sorted(names ^ (found.keys() - optional)):
        raise LoadError(f"{what}: the field {short(unexpected[0])} is missing or unknown")
    return found


def short(value: object) -> str:
    """The value as it is shown in a message: at most 60 characters, of however large a value."""
    if isinstance(value, str):
        text = repr(value[:60])
    else:
        text = OUTLINE.repr(value) if isinstance(value, (list, tuple, dict)) else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def parsed(content: bytes) -> Mapping[str, Any]:
    """The JSON object that a file holds."""
    try:
        document = json_value(content)
    except ValueError as error:
        raise LoadError(f"is not JSON that is read here: {error}") from error
    return expect(document, dict, "the document")
