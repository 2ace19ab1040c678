"""Checks of the arguments of public functions: each returns the value, or raises InputError and shows it."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any, TypeVar

from passes.errors import InputError

Kind = TypeVar("Kind")


def of_kind(name: str, value: Any, kind: type[Kind], hint: str = "") -> Kind:
    """The value, which is a `kind`; `hint` says where to get one."""
    if not isinstance(value, kind):
        raise InputError(f"{name} is a {type(value).__name__}; expected {_article(kind)}{hint}")
    return value


def all_of_kind(name: str, values: Any, kind: type[Kind], hint: str = "") -> tuple[Kind, ...]:
    """The values as a tuple; each is a `kind`."""
    if isinstance(values, (str, bytes)) or not hasattr(values, "__iter__"):
        raise InputError(f"{name} is {values!r:.60}; expected a sequence of {kind.__name__}{hint}")
    return tuple(of_kind(f"{name}[{n}]", value, kind, hint) for n, value in enumerate(values))


def one_of(name: str, value: Any, allowed: Sequence[Kind]) -> Kind:
    """The value, which is one of those allowed."""
    if value not in allowed:
        raise InputError(f"{name} is {value!r:.60}; expected one of {', '.join(map(str, allowed))}")
    return value  # type: ignore[no-any-return]  # it is in a sequence of Kind


def path_of(name: str, value: Any, what: str = "a folder") -> Path:
    """The value as a path that a file system can have; `what` says of what."""
    try:
        text = os.fspath(value)
    except TypeError:
        text = None
    if not isinstance(text, str):
        raise InputError(f"{name} is a {type(value).__name__}; expected a path of {what}, as text or a Path")
    if not text or "\0" in text:
        raise InputError(f"{name} is {text!r:.60}, which {'is empty' if not text else 'holds a zero character'}")
    try:
        os.fsencode(text)
    except UnicodeEncodeError as error:
        raise InputError(f"{name} is {text!r:.60}, which is no text in {sys.getfilesystemencoding()}") from error
    return Path(text)


def number(name: str, value: Any, wanted: str = "a finite number >= 0", *, least: float = 0.0) -> float:
    """The value as a finite number of at least `least`, which `wanted` says in words."""
    if isinstance(value, bool) or not isinstance(value, Real) or not least <= float(value) < math.inf:
        raise InputError(f"{name} is {value!r:.60}; expected {wanted}")
    return float(value)


def share(name: str, value: Any, wanted: str) -> float:
    """The value as a number above 0 and below 1."""
    if not 0 < number(name, value, wanted) < 1:
        raise InputError(f"{name} is {value}; expected {wanted}")
    return float(value)


def _article(kind: type) -> str:
    return f"{'an' if kind.__name__[0] in 'AEIO' else 'a'} {kind.__name__}"
