"""What rules have computed for one call site: each thing once, and typed."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Generic, TypeVar, cast

T = TypeVar("T")


class Key(Generic[T]):
    """Names one thing of type `T` in a memo."""


class Memo:
    """Values by key. Calls that differ only in which of their results are used share one."""

    def __init__(self) -> None:
        self._values: dict[Key[Any], Any] = {}
        self._basis: Hashable = None

    def rest_on(self, basis: Hashable) -> None:
        """Forget all values if they were computed on another basis: the labels of the inputs."""
        if self._basis != basis:
            self._values, self._basis = {}, basis

    def __contains__(self, key: Key[Any]) -> bool:
        return key in self._values

    def once(self, key: Key[T], compute: Callable[[], T]) -> T:
        """The value of `key`, computed when it is first asked for."""
        if key not in self._values:
            self._values[key] = compute()
        return cast(T, self._values[key])
