"""Random networks whose scales are zero and whose shifts are not: pruned, trained, folded, saved, and in every mode."""

from __future__ import annotations

import copy
import random
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import assume, given, settings
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

import l1rr_fx
from l1rr_fx.testing import FAMILIES, differences, fresh, networks
from l1rr_fx.testing.zeros import CONTRACTIONS, NORMS
from passes.rewriting.fold import fold_batch_norm, fold_constants
from tests.machines import MACHINES

TOLERANCE = 1e-9  # float64: what is left is the reassociation of sums, over a batch norm in training
MODES = ("recombine", "union", "exclude")


def without_scales(model: nn.Module, seed: int) -> nn.Module:
    """The model without half of its scales, and without some of the rows of its layers; shifts and biases stay."""
    dice = random.Random(seed)
    for module in model.modules():
        norm = isinstance(module, NORMS)
        if not (norm or (isinstance(module, CONTRACTIONS) and module.bias is not None and dice.random() < 0.4)):
            continue
        weight = module.weight
        if isinstance(weight, Tensor) and not isinstance(module, nn.modules.conv._ConvTransposeNd):
            weight.data[torch.tensor([dice.random() < 0.5 for _ in range(len(weight))])] = 0
    return model


@pytest.mark.property
@pytest.mark.parametrize("family", ["gate", pytest.param(None, marks=pytest.mark.fuzz)])
@settings(max_examples=4)
@given(data=st.data())
def test_scales_alone(family: str | None, tmp_path_factory: Any, data: st.DataObject) -> None:
    """The outputs of the pruned network, of its first step of training, folded, and loaded again."""
    model, args = data.draw(networks((family,) if family else FAMILIES)).build()
    without_scales(model, data.draw(st.integers(0, 10**6)))
    options = {
        "mode": data.draw(st.sampled_from(MODES)),
        "channel_multiple": data.draw(st.sampled_from((None, None, 4))),
        "target": data.draw(st.sampled_from(MACHINES)),
    }
    try:
        pruned = l1rr_fx.prune(model, args, verify=False, **options)
    except l1rr_fx.VanishedError:
        assume(False)
    inputs, folder = fresh(args, 3), Path(tmp_path_factory.mktemp("saved"))
    pruned.save(folder / "net")
    small = [pruned.module, l1rr_fx.load(folder / "net").module]
    if isinstance(pruned.module, GraphModule):
        small.append(fold_constants(fold_batch_norm(pruned.module)))
    with torch.no_grad():
        wanted = model(*inputs)
        for each in small:
            assert max(differences(each(*inputs), wanted), default=0.0) <= TOLERANCE
    big, own = copy.deepcopy(model).train(), copy.deepcopy(pruned.module).train()
    if not any(isinstance(module, nn.modules.dropout._DropoutNd) for module in big.modules()):
        assert max(differences(_first(own(*inputs)), _first(big(*inputs))), default=0.0) <= TOLERANCE


def _first(outputs: Any) -> list[Tensor]:
    """The outputs that are numbers."""
    return [x.detach() for x in pytree.tree_leaves(outputs) if isinstance(x, Tensor) and x.is_floating_point()]
