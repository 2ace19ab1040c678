"""JSON texts of others, read within limits: a hostile one is refused before it is built, in little memory and time."""

from __future__ import annotations

import json
import math
import re
from typing import Any, NoReturn

MAX_DEPTH = 128
"""Of nested lists and objects: far below what Python's recursion allows, in this reader and in those of its result."""
MAX_VALUES = 2**22
"""Of values and keys in one text: those of a network of 100,000 operators; built, they take 0.6 GB at most."""
MAX_DIGITS = 1000
"""Of a whole number, which Python reads and prints in no time."""

STRING = re.compile(rb'"[^"]*"')
BRACKETS = bytes.maketrans(b"{}", b"[]")
NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def json_value(text: str | bytes) -> Any:
    """The value of a JSON text; ValueError, with the reason, where it is none or goes beyond the limits.

    Stricter than `json`: keys of an object differ, numbers are finite, and there is no NaN.
    """
    check_size(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    return json.loads(
        text.decode("utf-8") if isinstance(text, bytes) else text,
        parse_constant=_refuse_constant,
        parse_float=_float,
        parse_int=_int,
        object_pairs_hook=_object,
    )


def check_size(text: bytes) -> None:
    """Raise ValueError where a JSON text holds too many values or levels; nothing is built to count them."""
    plain = text.replace(b"\\\\", b"").replace(b'\\"', b"")  # no quote is left but those around strings
    if plain.count(b'"') > 2 * MAX_VALUES:
        _refuse_values()
    outline = STRING.sub(b"", plain)
    nested = outline.translate(BRACKETS, NO_BRACKETS)
    if outline.count(b",") + outline.count(b":") + len(nested) // 2 > MAX_VALUES:
        _refuse_values()
    for _ in range(MAX_DEPTH):
        nested = nested.replace(b"[]", b"")  # the innermost level
    if b"[]" in nested or nested.count(b"[") > MAX_DEPTH:
        raise ValueError(f"its nesting is deeper than {MAX_DEPTH} levels")


def _refuse_values() -> NoReturn:
    raise ValueError(f"it holds more than {MAX_VALUES:,} values")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON, whose numbers are finite")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]} is beyond the range of numbers")
    return value


def _int(text: str) -> int:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a whole number of {len(text):,} digits is beyond the range of numbers")
    return int(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]  # None
        raise ValueError(f"the key {twice[:60]!r} comes twice in one object")
    return found
