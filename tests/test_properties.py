"""Random networks, random channels zeroed: pruned equals zeroed, costs no more, and pruning again changes nothing.

`HYPOTHESIS_PROFILE` picks how many: see conftest. A failing network is printed as a script that can be pasted.
"""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import event, given, note, settings
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import l1rr_fx
from l1rr_fx.testing import FAMILIES, Network, differences, fresh, networks
from tests.machines import MACHINES

TOLERANCE = 1e-10  # float64: what is left is the reassociation of sums

MODES = st.sampled_from(("recombine", "union", "exclude"))
MULTIPLES = st.sampled_from((None, 4, 2, 3))
TARGETS = st.sampled_from(MACHINES)
pytestmark = pytest.mark.property
EXAMPLES = settings.default.max_examples if settings.default else 1


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
def test_pruned_equals_zeroed(family: str, data: st.DataObject) -> None:
    network: Network = data.draw(networks(_with_others(family, data)), label="network")
    model, args = network.build()
    mode, multiple = data.draw(MODES, label="mode"), data.draw(MULTIPLES, label="channel_multiple")
    target = data.draw(TARGETS, label="target")
    for operator in network.operators:
        event(operator)
    pruned = l1rr_fx.prune(model, args, mode=mode, channel_multiple=multiple, target=target, verify=False)
    note(f"{pruned.module.code if isinstance(pruned.module, torch.fx.GraphModule) else ''}")
    for seed, batch in ((1, None), (2, None)):
        _assert_equal(pruned.module, model, fresh(args, seed, batch))
    assert pruned.report.after.macs <= pruned.report.before.macs


@pytest.mark.parametrize("family", FAMILIES)
@settings(max_examples=max(1, EXAMPLES // 10))
@given(data=st.data())
def test_pruning_again_changes_nothing(family: str, data: st.DataObject) -> None:
    network: Network = data.draw(networks((family,), max_nodes=4), label="network")
    model, args = network.build()
    mode = data.draw(MODES, label="mode")
    once = l1rr_fx.prune(model, args, mode=mode, verify=False)
    twice = l1rr_fx.prune(once.module, args, mode=mode, verify=False)
    idle = any("do not depend on its inputs" in each for each in once.report.notes)
    if mode == "recombine" and not idle:
        assert twice.report.after.macs == once.report.after.macs
    else:  # what is excluded or united is read off the graph; and what no input reaches is evaluated the second time
        assert twice.report.after.macs <= once.report.after.macs
    _assert_equal(twice.module, model, fresh(args, 3))


@settings(max_examples=max(1, EXAMPLES // 4))
@given(network=networks())
def test_drawn_networks_are_valid(network: Network) -> None:
    """The strategies' own promise: the source runs, and gives a float64 model that computes finite numbers."""
    model, args = network.build()
    with torch.no_grad():
        outputs = [out for out in pytree.tree_leaves(model(*args)) if isinstance(out, Tensor)]
    assert outputs
    assert all(bool(out.any()) for out in outputs), "an output is zero, and prune would refuse"
    assert all(out.dtype == torch.float64 and bool(out.isfinite().all()) for out in outputs)


def _with_others(family: str, data: st.DataObject) -> tuple[str, ...]:
    """The family alone, or now and then mixed with another."""
    other: str = data.draw(st.sampled_from((family, *FAMILIES)))
    return (family, other)


def _assert_equal(actual: nn.Module, expected: nn.Module, inputs: tuple[Any, ...]) -> None:
    with torch.no_grad():
        worst = differences(actual(*inputs), expected(*inputs))
    assert max(worst) <= TOLERANCE, f"pruned differs from zeroed: {worst}"
