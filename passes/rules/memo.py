"""What rules have computed for one call site: each thing once, and typed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")


class Key(Generic[T]):
    """Names one thing of type `T` in a memo."""


class Memo:
    """Values by key. Calls that differ only in which of their results are used share one."""

    def __init__(self) -> None:
        self._values: dict[Key[Any], Any] = {}

    def __contains__(self, key: Key[Any]) -> bool:
        return key in self._values

    def once(self, key: Key[T], compute: Callable[[], T]) -> T:
        """The value of `key`, computed when it is first asked for."""
        if key not in self._values:
            self._values[key] = compute()
        return cast(T, self._values[key])
