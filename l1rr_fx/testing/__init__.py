"""Tests of channel consistency, for anyone's models, operators and pruners. Needs hypothesis: `l1rr-fx[testing]`."""

from __future__ import annotations

from l1rr_fx.testing.assertions import assert_prunes_exactly, assert_stays_prunable
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
from l1rr_fx.testing.random_networks import Network, networks
from l1rr_fx.testing.soundness import Call, assert_rule_is_sound
from l1rr_fx.testing.zeros import kill, randomised, zeroed

__all__ = [
    "FAMILIES",
    "Call",
    "Fault",
    "Network",
    "ResidualFamily",
    "Zeroing",
    "assert_prunes_exactly",
    "assert_rule_is_sound",
    "assert_stays_prunable",
    "channel_sets",
    "differences",
    "find_fault",
    "fresh",
    "has_constant_output",
    "input_shapes",
    "kill",
    "networks",
    "operator",
    "residual_families",
    "randomised",
    "zeroed",
    "zeroings",
]
