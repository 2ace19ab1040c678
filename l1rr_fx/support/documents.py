"""Frozen dataclasses as text and back: as JSON documents, and as one line of numbers (`from_text`).

What does not fit is named by its field.
"""

from __future__ import annotations

import functools
import json
import math
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, Field, asdict, fields, is_dataclass
from typing import Any, Literal, TypeVar

from l1rr_fx.support.arguments import of_kind
from l1rr_fx.support.json_text import json_value
from passes.errors import InputError

Kind = TypeVar("Kind")
Settings = TypeVar("Settings")
MOST = 10**100
"""A whole number in a document is at most this: a float holds it, and ratios of two."""


def to_json(value: Any, what: str, version: int) -> str:
    """A dataclass as a JSON document that says it is an l1rr-fx `what`; `from_json` gives an equal one back."""
    document = {"format": f"l1rr-fx {what}", "version": version, **_plain(asdict(value))}
    return json.dumps(document, indent=1, allow_nan=False)


def list_json(values: Iterable[Any]) -> str:
    """Dataclasses as a JSON list, for programs to read."""
    return json.dumps([_plain(asdict(value)) for value in values], indent=1, allow_nan=False)


def from_json(kind: type[Kind], text: str, what: str, version: int) -> Kind:
    """The dataclass that `to_json` wrote. Raises InputError, naming the field, where the text is anything else."""
    of_kind(f"the {what}", text, str, ", the text of a JSON document")
    try:
        document = json_value(text)
    except ValueError as error:
        raise InputError(f"the {what} is not JSON that is read here: {error}") from error
    if not isinstance(document, dict) or document.pop("format", None) != f"l1rr-fx {what}":
        raise InputError(f'this is not a {what}: "format" is not "l1rr-fx {what}"')
    if (found := document.pop("version", None)) != version:
        raise InputError(f"the {what} has version {found!r}; this l1rr-fx reads version {version}")
    result = read_as(kind, document, what)
    assert isinstance(result, kind)
    return result


def from_text(cls: type[Settings], text: str, what: str) -> Settings:
    """A dataclass of numbers out of one line, such as "score=0.3,most=100"; fields not named keep their defaults.

    Raises InputError, beginning with `what`, for a name that `cls` lacks, one that comes twice, or no number.
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


def _plain(value: Any) -> Any:
    """`value` with infinities and NaN as the strings "inf", "-inf" and "nan", which JSON lacks."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def read_as(wanted: Any, value: Any, where: str) -> Any:
    """`value`, out of JSON, as the annotated type `wanted`; InputError names the place where it does not fit."""
    origin, arguments = typing.get_origin(wanted), typing.get_args(wanted)
    if is_dataclass(wanted):
        return _read_dataclass(wanted, value, where)
    if origin is Literal:
        return value if value in arguments else _misfit(f"one of {', '.join(arguments)}", value, where)
    if origin in (typing.Union, types.UnionType):  # X | None is the only union of a report
        return None if value is None else read_as(arguments[0], value, where)
    if origin is tuple:
        return _read_tuple(arguments, value, where)
    if origin is Mapping:
        items = value.items() if isinstance(value, dict) else _misfit("an object", value, where)
        return {key: read_as(arguments[1], item, f"{where}.{key}") for key, item in items}
    if type(value) is int and abs(value) > MOST:
        return _misfit(f"a number of at most {MOST:.0e}", value, where)
    if wanted is float and (type(value) in (int, float) or value in ("inf", "-inf", "nan")):
        return float(value)
    return value if type(value) is wanted else _misfit(f"a value of type {wanted.__name__}", value, where)


def _read_dataclass(wanted: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        return _misfit("an object", value, where)
    names = [field.name for field in fields(wanted) if field.name in value or _is_required(field)]
    if unexpected := [*(set(names) ^ set(value))]:  # a document of before may lack a field that has a default
        raise InputError(f"{where}: the field {sorted(unexpected)[0]!r} is missing or unknown")
    hints = _hints(wanted)
    return wanted(**{name: read_as(hints[name], value[name], f"{where}.{name}") for name in names})


def _is_required(field: Field[Any]) -> bool:
    return field.default is MISSING and field.default_factory is MISSING


@functools.cache
def _hints(wanted: Any) -> Mapping[str, Any]:
    """The annotations of a dataclass; to evaluate them takes longer than to read a value."""
    return typing.get_type_hints(wanted)


def _read_tuple(arguments: tuple[Any, ...], value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, list):
        _misfit("a list", value, where)
    if arguments[-1] is not Ellipsis and len(value) != len(arguments):
        _misfit(f"{len(arguments)} values", value, where)
    types_ = [arguments[0]] * len(value) if arguments[-1] is Ellipsis else arguments
    return tuple(read_as(each, item, f"{where}[{i}]") for i, (each, item) in enumerate(zip(types_, value, strict=True)))


def _misfit(wanted: str, value: Any, where: str) -> typing.NoReturn:
    raise InputError(f"{where}: expected {wanted}, not {str(value)[:40]!r}")
