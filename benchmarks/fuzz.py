"""Are 10,000 random networks pruned exactly? The property tests, in batches with recorded seeds.

    python -m benchmarks.fuzz [--equal 10000] [--again 1000] [--processes 2] [--seed 0] [--record build/fuzz.jsonl]

The properties are those of tests/test_properties.py: pruned equals zeroed, and pruning again changes nothing. A batch
is up to 100 networks of one property and family that its own seed gives; its line in the record has seed, CPU time and,
if it failed, the smallest network that does. A run that was stopped goes on where it was: batches that the record has
from the same code are not run again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from itertools import count
from multiprocessing import get_context
from pathlib import Path

import hypothesis.strategies as st
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from l1rr_fx.testing import FAMILIES
from tests import test_properties

ROOT = Path(__file__).resolve().parent.parent
PROPERTIES = {
    "equal": test_properties.test_pruned_equals_zeroed,
    "again": test_properties.test_pruning_again_changes_nothing,
}
BATCH = 100


@dataclass(frozen=True)
class Batch:
    """So many networks of a family, drawn from a seed, on which a property (`tries`) is tried."""

    tries: str
    family: str
    seed: int
    networks: int

    @property
    def command(self) -> str:
        """What runs it alone."""
        wanted = " ".join(f"--{name} {self.networks if name == self.tries else 0}" for name in PROPERTIES)
        return f"python -m benchmarks.fuzz --family {self.family} {wanted} --seed {self.seed}"


@dataclass(frozen=True)
class Outcome:
    """What became of a batch: networks that passed, seconds of CPU, and the failure with its smallest network."""

    batch: Batch
    code: str
    passed: int
    cpu: float
    failure: str | None

    def line(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def of(cls, line: str) -> Outcome:
        read = json.loads(line)
        return cls(**{**read, "batch": Batch(**read["batch"])})


def batches(families: Sequence[str], totals: Mapping[str, int], first_seed: int) -> Iterator[Batch]:
    """So many networks for each property, from all families alike; seeds count up."""
    seeds = count(first_seed)
    for tries, total in totals.items():
        each = -(-total // len(families))
        for begin in range(0, each, BATCH):
            for family in families:
                yield Batch(tries, family, next(seeds), min(BATCH, each - begin))


def tried(batch: Batch, code: str) -> Outcome:
    """Run a batch in this process."""
    test = PROPERTIES[batch.tries].hypothesis.inner_test  # type: ignore[attr-defined]  # Hypothesis puts it there
    passed = 0

    @seed(batch.seed)
    @settings(
        max_examples=batch.networks,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )
    @given(data=st.data())
    def search(data: st.DataObject) -> None:
        nonlocal passed
        test(family=batch.family, data=data)
        passed += 1

    start, failure = time.process_time(), None
    try:
        search()
    except Exception:  # whatever the compiler raises is a failure, and has to be shown
        failure = traceback.format_exc()
    return Outcome(batch, code, passed, round(time.process_time() - start, 2), failure)


def _start() -> None:
    """One thread, no warnings; Ctrl-C is for the process that asks."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def code_digest() -> str:
    """A digest of all sources that a result depends on."""
    digest = hashlib.sha256(torch.__version__.encode())
    for file in sorted(file for folder in ("passes", "l1rr_fx", "tests") for file in (ROOT / folder).rglob("*.py")):
        digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def recorded(record: Path, code: str) -> dict[Batch, Outcome]:
    """The batches that the record has from this code."""
    lines = record.read_text(encoding="utf-8").splitlines() if record.exists() else []
    return {outcome.batch: outcome for outcome in map(Outcome.of, lines) if outcome.code == code}


def run(wanted: Sequence[Batch], record: Path, processes: int, progress: Progress) -> list[Outcome]:
    """The outcomes of the batches, each written to the record as it is there; Ctrl-C ends with those that are."""
    code = code_digest()
    known = recorded(record, code)
    found = [known[batch] for batch in wanted if batch in known]
    left = [batch for batch in wanted if batch not in known]
    bar = progress.add_task("networks", total=sum(batch.networks for batch in wanted))
    progress.update(bar, completed=sum(outcome.batch.networks for outcome in found))
    record.parent.mkdir(parents=True, exist_ok=True)
    with (
        record.open("a", encoding="utf-8") as lines,
        ProcessPoolExecutor(processes, get_context("spawn"), _start) as pool,
    ):
        waiting = {pool.submit(tried, batch, code) for batch in left}
        while waiting:
            try:
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            except KeyboardInterrupt:
                progress.console.print(
                    "stopping once the batches that run are done; the same command goes on from there"
                )
                waiting = {future for future in waiting if not future.cancel()}
                continue
            for outcome in (future.result() for future in done):
                found.append(outcome)
                print(outcome.line(), file=lines, flush=True)
                progress.update(bar, advance=outcome.batch.networks)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--equal", type=int, default=10_000, help="networks whose pruned is held against the zeroed")
    parser.add_argument("--again", type=int, default=1_000, help="networks that are pruned twice")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the first batch; those that follow count up")
    parser.add_argument("--family", choices=FAMILIES, help="this family alone")
    parser.add_argument("--record", type=Path, default=ROOT / "build" / "fuzz.jsonl")
    options = parser.parse_args()
    totals = {"equal": options.equal, "again": options.again}
    wanted = list(batches([options.family] if options.family else FAMILIES, totals, options.seed))
    start = time.perf_counter()
    columns = (TextColumn("networks"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    with Progress(*columns) as progress:
        found = run(wanted, options.record, options.processes, progress)
    wall = time.perf_counter() - start
    for outcome in found:
        if outcome.failure:
            print(f"\n{outcome.batch.command}\n{outcome.failure}")
    for tries in PROPERTIES:
        of_it = [outcome for outcome in found if outcome.batch.tries == tries]
        failed = sum(outcome.failure is not None for outcome in of_it)
        print(f"{tries}: {sum(outcome.passed for outcome in of_it)} networks passed, {failed} batches failed")
    print(
        f"seeds {options.seed} to {options.seed + len(wanted) - 1} in {options.record}; {wall:.0f} s, of CPU "
        f"{sum(outcome.cpu for outcome in found):.0f} s"
    )
    if len(found) < len(wanted) or any(outcome.failure for outcome in found):
        sys.exit(1)


if __name__ == "__main__":
    main()
