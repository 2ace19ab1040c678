"""`benchmarks.fuzz`: batches have seeds of their own, a failure is recorded with its network, what passed is kept."""

from __future__ import annotations

from pathlib import Path

from benchmarks.fuzz import PROPERTIES, Batch, Outcome, batches, recorded, tried
from l1rr_fx.testing import FAMILIES
from tests.planted import BUGS


def test_batches_hold_all_networks_and_no_seed_twice() -> None:
    found = list(batches(FAMILIES, {"equal": 10_000, "again": 1_000}, 7))
    assert sum(batch.networks for batch in found if batch.tries == "equal") == 10_000
    assert sum(batch.networks for batch in found if batch.tries == "again") == 1_000
    assert [batch.seed for batch in found] == list(range(7, 7 + len(found)))
    assert {(batch.tries, batch.family) for batch in found} == {(t, f) for t in PROPERTIES for f in FAMILIES}


def test_a_bug_is_a_failure_with_its_network() -> None:
    bug = next(bug for bug in BUGS if bug.name == "the parts of a split are swapped")
    with bug.plant():
        outcome = tried(Batch("equal", bug.family, 0, 100), "code")
    assert outcome.failure is not None
    assert "class Net(nn.Module)" in outcome.failure
    assert "pruned differs from zeroed" in outcome.failure
    assert outcome.batch.command.endswith(f"--family {bug.family} --equal 100 --again 0 --seed 0")


def test_a_batch_without_a_bug_passes() -> None:
    outcome = tried(Batch("again", "split", 3, 3), "code")
    assert (outcome.failure, outcome.passed) == (None, 3)


def test_the_record_gives_what_the_same_code_did(tmp_path: Path) -> None:
    record = tmp_path / "fuzz.jsonl"
    assert recorded(record, "now") == {}
    old, new = Batch("equal", "split", 0, 5), Batch("equal", "split", 1, 5)
    outcomes = [Outcome(old, "before", 5, 0.1, None), Outcome(new, "now", 2, 0.1, "wrong\n")]
    record.write_text("".join(f"{outcome.line()}\n" for outcome in outcomes), encoding="utf-8")
    assert recorded(record, "now") == {new: outcomes[1]}
