"""Seconds by phase, and how long the rest will take."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

log = logging.getLogger(__name__)


class Clock:
    """Adds up the seconds of named phases: `with clock("capture"): ...`; `seconds` has them by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[phase] = self.seconds.get(phase, 0.0) + time.perf_counter() - start
            log.debug("%s: %.3f s", phase, self.seconds[phase])


EVERY = 10.0
"""Seconds between two lines about a long work."""


def logged(doing: str, now: Callable[[], float] = time.monotonic) -> Callable[[int, int], None]:
    """A function of how much is done, and of how much there is: it logs both, and an estimate of the rest, at times."""
    start = last = now()
    first: int | None = None

    def progress(done: int, total: int) -> None:
        nonlocal last, first
        first = done if first is None else first  # what an interrupted work had done already takes no time
        time_now = now()
        if done < total and time_now - last < EVERY:
            return
        last = time_now
        pace = (time_now - start) / (done - first) if done > first else None
        rest = "" if pace is None or done >= total else f", about {(total - done) * pace:.0f} s left"
        log.info("%s: %d of %d%s", doing, done, total, rest)

    return progress
