"""Cases judged in a process of their own, which is killed where one takes too long."""

from __future__ import annotations

import logging
import multiprocessing
import multiprocessing.connection
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout, suppress

import torch

from l1rr_fx.conformance.cases import PATTERNS, Case
from l1rr_fx.conformance.judgement import Judgement, Verdict, judge
from l1rr_fx.conformance.tools import TOOLS
from passes.errors import InputError

log = logging.getLogger(__name__)

TIME_LIMIT = 60.0
START_LIMIT = 300.0

Source = str
"""Where cases come from: "patterns", "zoo", or package.module:function, which returns cases."""


def cases_of(source: Source) -> tuple[Case, ...]:
    """The cases of a source."""
    if source == "patterns":
        import l1rr_fx.conformance.patterns  # noqa: F401  registers them

        return tuple(PATTERNS.values())
    if source == "zoo":
        from l1rr_fx.conformance.zoo import zoo

        return zoo()
    from l1rr_fx.support.functions import called

    found = called(source, "--cases")
    if not (isinstance(found, (tuple, list)) and all(isinstance(case, Case) for case in found)):
        raise InputError(f"{source} returned a {type(found).__name__}; expected a list of l1rr_fx.conformance.Case")
    return tuple(found)


def judgements(
    tool: str, sources: Sequence[Source], names: Sequence[str], *, time_limit: float = TIME_LIMIT
) -> Iterator[Judgement]:
    """The verdicts of a tool on the cases of these names, one after the other."""
    worker: _Worker | None = None
    try:
        for name in names:
            worker = worker or _Worker(tool, sources)
            found = worker.judged(name, time_limit)
            if found is None:
                worker = None
                found = Judgement(tool, name, Verdict.hangs, f"no result in {time_limit:.0f} s", seconds=time_limit)
            elif isinstance(found, int):
                worker = None
                found = Judgement(tool, name, Verdict.raises, f"the process ended with exit code {found}")
            yield found
    finally:
        if worker is not None:
            worker.end()


class _Worker:
    """A process that judges one case after the other."""

    def __init__(self, tool: str, sources: Sequence[Source]) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, tool, tuple(sources)), daemon=True)
        self.process.start()
        other.close()
        self._answer(START_LIMIT)

    def judged(self, name: str, time_limit: float) -> Judgement | int | None:
        """The verdict; the exit code if the process died; None if it took too long and was killed."""
        self.connection.send(name)
        return self._answer(time_limit)

    def _answer(self, time_limit: float) -> Judgement | int | None:
        try:
            if self.connection.poll(time_limit):
                answer: Judgement | None = self.connection.recv()
                return answer
        except EOFError:
            self.process.join()
            return self.process.exitcode or 0
        self.end()
        return None

    def end(self) -> None:
        """Stop the process, whatever it does."""
        self.process.kill()
        self.process.join()
        self.connection.close()


def _serve(connection: multiprocessing.connection.Connection, tool: str, sources: Sequence[Source]) -> None:
    """Judge what comes in; what the tool prints and warns of is not shown."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        cases = {case.name: case for source in sources for case in cases_of(source)}
        connection.send(None)
        with suppress(EOFError, BrokenPipeError):  # whoever asks has ended
            while True:
                name = connection.recv()
                connection.send(judge(TOOLS[tool], cases[name]))


def _end_with_parent() -> None:
    """A case that hangs does not notice that whoever asked was killed."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    multiprocessing.connection.wait([parent.sentinel])
    os._exit(1)
