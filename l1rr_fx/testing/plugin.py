"""A pytest plugin: `pytest_plugins = ["l1rr_fx.testing.plugin"]` in your conftest.py.

    def test_my_detector_stays_prunable(prunable):
        prunable(Detector(), (torch.rand(1, 3, 64, 64),), at_least=0.4)

It is not loaded by itself, so that no test run pays for torch that does not use it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from l1rr_fx.pruning.pruned import Pruned
from l1rr_fx.testing.assertions import assert_prunes_exactly, assert_stays_prunable


@pytest.fixture
def prunable(record_property: Callable[[str, object], None]) -> Iterator[Callable[..., Pruned]]:
    """`l1rr_fx.testing.assert_stays_prunable`; the share that went is recorded as the property `macs_gone`."""

    def check(*args: object, **options: object) -> Pruned:
        pruned = assert_stays_prunable(*args, **options)  # type: ignore[arg-type]  # the same arguments
        report = pruned.report
        record_property("macs_gone", f"{1 - report.after.macs / max(1, report.before.macs):.3f}")
        return pruned

    yield check


@pytest.fixture
def prunes_exactly() -> Callable[..., Pruned]:
    """`l1rr_fx.testing.assert_prunes_exactly`."""
    return assert_prunes_exactly
