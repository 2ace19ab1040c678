"""Tests of channel consistency, for anyone's models, operators and pruners. Needs hypothesis: `l1rr-fx[testing]`.

In goes a model, a rule or a pruner, out comes an assertion that holds or an example that shows what is wrong.

    assertions         a model is pruned exactly, or to the limit; training leaves it prunable
    soundness          a rule is right about its operator, asked by perturbation
    claims, blame      what a rule claims of one call; which rule is wrong where networks differ
    random_networks    random networks with zeroed channels, as Hypothesis draws them
    draft, operators   a network while it is drawn, and the operators that are drawn
    channels, zeros    sets of channels, families of branches; random weights, zeroed channels
    least_macs         the limit that no rule has counted, from activations and gradients
    judging            new inputs, and how far apart two results are
    plugin             the pytest plugin
"""

from __future__ import annotations

from l1rr_fx.testing.assertions import assert_at_limit, assert_prunes_exactly, assert_stays_prunable
from l1rr_fx.testing.blame import Fault, find_fault
from l1rr_fx.testing.channels import (
    ResidualFamily,
    Zeroing,
    channel_sets,
    input_shapes,
    residual_families,
    zeroings,
)
from l1rr_fx.testing.draft import FAMILIES, operator
from l1rr_fx.testing.judging import differences, fresh, has_constant_output
from l1rr_fx.testing.least_macs import NumericalLimit, executed_macs, numerical_limit
from l1rr_fx.testing.random_networks import Network, networks
from l1rr_fx.testing.soundness import Call, assert_rule_is_sound
from l1rr_fx.testing.zeros import kill, randomised, zeroed

__all__ = [
    "FAMILIES",
    "Call",
    "Fault",
    "Network",
    "NumericalLimit",
    "ResidualFamily",
    "Zeroing",
    "assert_at_limit",
    "assert_prunes_exactly",
    "assert_rule_is_sound",
    "assert_stays_prunable",
    "channel_sets",
    "differences",
    "executed_macs",
    "find_fault",
    "fresh",
    "has_constant_output",
    "input_shapes",
    "kill",
    "networks",
    "numerical_limit",
    "operator",
    "residual_families",
    "randomised",
    "zeroed",
    "zeroings",
]
