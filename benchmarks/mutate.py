"""Do the tests notice if a line of the rules is wrong? Lines are flipped one at a time, and a set of tests is run.

    python -m benchmarks.mutate [--sample 200] [--seed 0] [--only convolution] [--minutes 20] [--settings 8]

A mutant is one flip (`benchmarks.mutants`) in a file of `passes/rules`. It is noticed if one of these is then pruned to
something else, misses the limit that it is held to, raises, or takes too long: the rows of tests/op_cases.py in every
setting of tests/test_op_cases.py, random networks of l1rr_fx.testing; or if the call of an operator between masks shows
that its rule is not sound (tests/test_rules_sound.py).

All of them are captured once, and which lines of the rules each reaches is written down: a mutant is tried on those
that reach its line, at most `MOST` of them, each time in a forked process, and what noticed others comes first.
Survivors are printed with what they change. If nothing that was tried comes out otherwise than without the mutant, the
line is a shortcut there, or is not reached; if a right network comes out otherwise, the line decides what it costs.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import importlib.abc
import importlib.machinery
import importlib.util
import os
import random
import resource
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any, Protocol

import torch
from rich.progress import track

from benchmarks.mutants import Mutant, mutants

RULES = Path(__file__).resolve().parent.parent / "passes" / "rules"
OURS = ("passes", "l1rr_fx", "tests")
NETWORKS = 100
MOST = 400
TIME_LIMIT = 120  # seconds of CPU for one mutant, so that a busy machine notices nothing by itself
TOLERANCE, LIMIT = 1e-10, 1.01

Line = tuple[str, int]


class Trial(Protocol):
    """Something that may notice a mutant."""

    name: str

    def result(self) -> str:
        """What comes out, so that two outcomes can be compared; an exception if it is wrong."""


@dataclass(frozen=True)
class Pruning:
    """A network to prune: captured, with an input, and what the zeroed model makes of it; its MACs as torch counts
    them, and the least that activations and gradients leave of its convolutions and linear layers."""

    name: str
    captured: Any
    args: Any
    expected: Any
    setting: int
    at_limit: bool
    macs: int | None = None
    least: int | None = None

    def result(self) -> str:
        from l1rr_fx.conformance.judgement import counted_macs
        from l1rr_fx.testing.judging import differences
        from passes.assignment.cost_model import ByteCount
        from passes.assignment.options import Options
        from passes.audit.accounting import accounts_of
        from passes.compile import remove_zero_channels
        from tests.test_op_cases import SETTINGS, contraction_macs

        setting = SETTINGS[self.setting]
        removed = remove_zero_channels(self.captured, Options(setting.mode, setting.multiple, setting.target))
        accounts = accounts_of(removed.plan, removed.rewritten, {})
        assert max(differences(_run(removed.module, self.args), self.expected), default=0.0) <= TOLERANCE
        assert accounts.after.macs <= accounts.before.macs
        if self.at_limit and setting.mode == "recombine" and not setting.multiple and setting.target == ByteCount():
            assert accounts.after.macs <= LIMIT * accounts.limit.macs
        if self.macs is not None:
            assert self.macs == accounts.before.macs
            assert counted_macs(removed.module, self.args) == accounts.after.macs
        if self.least is not None:
            assert contraction_macs(removed.module, self.args) <= LIMIT * self.least
        digest = hashlib.sha256(removed.module.code.encode())
        for name, value in removed.module.state_dict().items():
            digest.update(f"{name} {tuple(value.shape)} {float(value.double().sum())}".encode())
        return digest.hexdigest()


@dataclass(frozen=True)
class Sound:
    """The call of an operator, whose rule is held to what it says."""

    name: str
    target: Any
    args: Any
    kwargs: Any

    def result(self) -> str:
        from l1rr_fx.testing import Call, assert_rule_is_sound

        assert_rule_is_sound(self.target, [Call(self.args, self.kwargs)], rounds=3)
        return "sound"


def trials(number_of_settings: int) -> Iterator[Trial]:
    """Every row of the table in so many settings in turn, random networks, calls of every operator."""
    from l1rr_fx.conformance.judgement import counted_macs
    from l1rr_fx.testing import FAMILIES, fresh, has_constant_output, zeroed
    from passes.frontend.capture import capture
    from tests.op_cases import CASES
    from tests.oracle import Case
    from tests.test_op_cases import SETTINGS, UNCOUNTED, _open_batch, has_limit
    from tests.test_rules_sound import CALLS_OF_EACH, calls
    from tests.test_testing import drawn

    for number, case in enumerate(CASES):
        for index in sorted((number + turn) % len(SETTINGS) for turn in range(number_of_settings)):
            setting = SETTINGS[index]
            model, args = case.build()
            model = zeroed(model, setting.ratio, setting.seed, columns=setting.columns)
            if model.training or has_constant_output(model, args):
                continue
            shapes = _open_batch(args) if setting.open_batch and case.dynamic else None
            macs = counted_macs(model, args) if index == 0 and case.name not in UNCOUNTED else None
            least = _least(Case(model, args, {})) if has_limit(case, index) else None
            captured, given = capture(model, args, dynamic_shapes=shapes), fresh(args, 1)
            name, expected = f"{case.name}-{setting}", _run(model, given)
            yield Pruning(name, captured, given, expected, index, case.at_limit, macs, least)
    for family in FAMILIES:
        for number, network in enumerate(drawn(family, NETWORKS // len(FAMILIES))):
            model, args = network.build()
            if not has_constant_output(model, args):
                captured, given = capture(model, args), fresh(args, 1)
                yield Pruning(f"{family} {number}", captured, given, _run(model, given), 0, False)
    for number, (target, call) in enumerate(calls(CALLS_OF_EACH)):
        yield Sound(f"{target} {number}", target, call.args, call.kwargs)


def _least(case: Any) -> int:
    from l1rr_fx.testing import numerical_limit
    from tests.test_op_cases import SAMPLES

    return numerical_limit(case.model, case.args, samples=SAMPLES, strict=True).macs


def _run(model: Any, args: Any) -> Any:
    with torch.no_grad():
        return copy.deepcopy(model)(*copy.deepcopy(args))


@dataclass(frozen=True)
class Known:
    """A trial, what comes out of it without any mutant, and the lines of the rules that it reaches."""

    trial: Trial
    result: str
    lines: frozenset[Line]


def known(trial: Trial) -> Known:
    """Try it as the code is; what is wrong then is raised."""
    lines: set[Line] = set()

    def in_rules(frame: FrameType, event: str, arg: Any) -> Any:
        if event == "line":
            lines.add((os.path.basename(frame.f_code.co_filename), frame.f_lineno))
        return in_rules

    def anywhere(frame: FrameType, event: str, arg: Any) -> Any:
        return in_rules if frame.f_code.co_filename.startswith(str(RULES)) else None

    sys.settrace(anywhere)
    try:
        result = trial.result()
    finally:
        sys.settrace(None)
    return Known(trial, result, frozenset(lines))


# --- one mutant in a process of its own


class _Mutated(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Imports one module from other source."""

    def __init__(self, name: str, source: str) -> None:
        self.name = name
        self.source = source

    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name != self.name:
            return None
        return importlib.util.spec_from_loader(name, self, is_package=name == "passes.rules")

    def exec_module(self, module: ModuleType) -> None:
        if module.__name__ == "passes.rules":
            module.__path__ = [str(RULES)]
        exec(compile(self.source, self.name, "exec"), vars(module))


NOTICED, SAME, OTHER = "noticed", "survived, and nothing changes", "survived, and a right network is another"


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant, by which trial (its number), and how many were tried at most."""

    outcome: str
    by: int | None
    tried: int


def judged(mutant: Mutant, everything: Sequence[Known], order: Sequence[int]) -> Verdict:
    """Try the mutant on trials in this order."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(read)
        _child(mutant, everything, order, write)
    os.close(write)
    answer = os.read(read, 16).decode()
    os.close(read)
    os.waitpid(child, 0)
    if answer in ("same", "other"):
        return Verdict(SAME if answer == "same" else OTHER, None, len(order))
    return Verdict(NOTICED, int(answer) if answer.isdigit() else None, len(order))  # "" is the end of its time


def _child(mutant: Mutant, everything: Sequence[Known], order: Sequence[int], write: int) -> None:
    """Import everything of ours anew, with the mutant in it, and try until one notices."""
    answer = "same"
    resource.setrlimit(resource.RLIMIT_CPU, (TIME_LIMIT, TIME_LIMIT))
    try:
        for name in [name for name in sys.modules if name.split(".")[0] in OURS]:
            del sys.modules[name]
        module = "passes.rules" if mutant.file == "__init__.py" else f"passes.rules.{mutant.file.removesuffix('.py')}"
        sys.meta_path.insert(0, _Mutated(module, mutant.source))
        index = -1
        try:
            importlib.import_module("tests.test_op_cases")
            for index in order:
                if everything[index].trial.result() != everything[index].result:
                    answer = "other"
        except Exception:  # a mutant may raise anything
            answer = str(index) if index >= 0 else "import"
    finally:
        os.write(write, answer.encode())
        os._exit(0)


def order_for(
    mutant: Mutant, everything: Sequence[Known], kills: Mapping[int, int], chance: random.Random
) -> list[int]:
    """The trials that reach the mutant's line: those that noticed most others first, then at random, at most `MOST`."""
    wanted = None if mutant.lines is None else {(mutant.file, line) for line in mutant.lines}
    reaching = [i for i, each in enumerate(everything) if wanted is None or not each.lines.isdisjoint(wanted)]
    chance.shuffle(reaching)
    return sorted(reaching, key=lambda i: -kills.get(i, 0))[:MOST]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sample", type=int, default=200, help="how many mutants, chosen at random (0: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="only files whose name contains this")
    parser.add_argument("--settings", type=int, default=8, help="of each row of the table")
    parser.add_argument("--minutes", type=float, default=0.0, help="stop after so many (0: never)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = [m for file in sorted(RULES.glob("*.py")) if options.only in file.name for m in mutants(file)]
    chance = random.Random(options.seed)
    chosen = chance.sample(found, min(options.sample or len(found), len(found)))
    start = time.perf_counter()
    everything = [known(trial) for trial in track(trials(options.settings), "as the code is", total=None)]
    nothing = _nothing()
    checked = judged(nothing, everything, order_for(nothing, everything, {}, chance))
    if checked.outcome != SAME:
        sys.exit(f"without any mutant: {checked}")
    print(
        f"{len(chosen)} of {len(found)} mutants, {len(everything)} trials, {time.perf_counter() - start:.0f} s so far"
    )
    _report(_judged_all(chosen, everything, chance, options.minutes), start)


def _judged_all(
    chosen: Sequence[Mutant], everything: Sequence[Known], chance: random.Random, minutes: float
) -> list[tuple[Mutant, Verdict]]:
    """The verdicts, in the order of the sample; survivors are printed. Ctrl-C ends with those that are there."""
    kills: Counter[int] = Counter()
    verdicts: list[tuple[Mutant, Verdict]] = []
    end = time.perf_counter() + 60 * minutes if minutes else float("inf")
    try:
        for mutant in track(chosen, "mutants"):
            if time.perf_counter() > end:
                break
            verdict = judged(mutant, everything, order_for(mutant, everything, kills, chance))
            verdicts.append((mutant, verdict))
            if verdict.by is not None:
                kills[verdict.by] += 1
            if verdict.outcome != NOTICED:
                where = f"{mutant.file}:{mutant.line}, {verdict.tried} tried"
                print(f"{verdict.outcome}: {where}: {mutant.before}  ->  {mutant.after}", flush=True)
    except KeyboardInterrupt:
        print("stopped")
    return verdicts


def _report(verdicts: Sequence[tuple[Mutant, Verdict]], start: float) -> None:
    for file in sorted({mutant.file for mutant, _ in verdicts}):
        of_file = [verdict.outcome for mutant, verdict in verdicts if mutant.file == file]
        print(f"{file:16} {of_file.count(NOTICED):4} of {len(of_file):4}  {of_file.count(NOTICED) / len(of_file):.0%}")
    counts = Counter(verdict.outcome for _, verdict in verdicts)
    for outcome in (NOTICED, OTHER, SAME):
        print(f"{outcome}: {counts[outcome]} of {len(verdicts)}, {counts[outcome] / max(1, len(verdicts)):.1%}")
    print(f"in {time.perf_counter() - start:.0f} s, of CPU {sum(os.times()[:4]):.0f} s")


def _nothing() -> Mutant:
    """A mutant that changes nothing."""
    file = RULES / "movement.py"
    return Mutant(file.name, 0, None, "", "", file.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
