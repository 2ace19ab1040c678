"""What holds for every test: one thread, float32 by default, Hypothesis profiles, files that TensorRT 8.2 reads.

`HYPOTHESIS_PROFILE=smoke` runs a few examples of each property; `ci`, the default, 2,000 in all. More: `make fuzz`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, Phase, settings

PROPERTIES = 10  # parametrised property tests that share a profile's examples

_COMMON = settings(
    deadline=None,  # the first capture in a process takes seconds, the rest milliseconds
    print_blob=True,
    suppress_health_check=(HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much),
    # all but `explain`: it runs a failing network for minutes more, to name lines of torch
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.target, Phase.shrink),
)
settings.register_profile("ci", _COMMON, max_examples=2_000 // PROPERTIES)
settings.register_profile("smoke", _COMMON, max_examples=5)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Every Hypothesis test is a property test."""
    for item in items:
        if getattr(getattr(item, "function", None), "is_hypothesis_test", False):
            item.add_marker("property")


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Small networks gain nothing from threads, and timings and sums become reproducible."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def every_emitted_file_is_judged() -> Iterator[None]:
    """What `to_onnx` writes for the Jetson TX2 goes through the judge of TensorRT 8.2's parser, apart from the lint."""
    if find_spec("onnx") is None:
        yield
        return
    from l1rr_fx.lowering.onnx import emission
    from l1rr_fx.lowering.parsers.lint import lint
    from tests.trt82_parser import assert_accepted

    def lint_and_judge(model: Any, target: str) -> Any:
        findings = lint(model, target)
        if all(finding.severity != "error" for finding in findings):
            assert_accepted(model)
        return findings

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(emission, "lint", lint_and_judge)
        yield


@pytest.fixture(autouse=True)
def clean_torch_state() -> Iterator[None]:
    """Every test starts with float32 as the default type, gradients on and the same random numbers."""
    torch.manual_seed(0)
    yield
    left_over = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    torch.set_grad_enabled(True)
    assert left_over == torch.float32, f"the test left {left_over} as the default dtype"
