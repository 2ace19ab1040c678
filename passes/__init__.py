"""The compiler: zeroed channels out of a torch.fx graph. Knows torch and networkx only.

    captured = capture(model, args)                  # a functional graph of ATen operators
    small = remove_zero_channels(captured).module    # the same network without its zeroed channels

or step by step, each of them usable alone:

    program = Program(normalise(captured), rule_for)
    facts = channel_facts(program)                   # what is zero, what is needed
    plan = plan_layouts(program, facts)              # what every tensor of the small network holds
    rewritten = rewrite(plan)                        # the small network

`passes.infra` has them as passes of torch.fx.
"""

from __future__ import annotations

from passes.accounts import Accounts, Cost, Family, Kept, Layer, Recombination
from passes.arrange import arrange
from passes.capture import capture
from passes.compile import Removed, remove_zero_channels
from passes.consecutive import Order, consecutive_order
from passes.emit import Rewritten, rewrite
from passes.errors import (
    CaptureError,
    InputError,
    L1RRError,
    LoadError,
    RewriteError,
    VanishedError,
    VerifyError,
)
from passes.facts import Facts, channel_facts
from passes.fold import FoldBatchNorm, FoldConstants, fold_batch_norm, fold_constants
from passes.functional import functionalise
from passes.groups import channel_groups
from passes.infra import Functionalise, Normalise, RemoveZeroChannels, RestoreModes
from passes.layout import Layout
from passes.modes import restore_modes
from passes.normalise import normalise
from passes.options import Options
from passes.plan import Plan, plan_layouts
from passes.program import Program, Site
from passes.rules import rule_for
from passes.selection import Selection
from passes.target import ByteCount, Target
from passes.verify import Difference, first_difference, relative_deviation

__all__ = [
    "Accounts",
    "ByteCount",
    "CaptureError",
    "Cost",
    "Difference",
    "Facts",
    "Family",
    "FoldBatchNorm",
    "FoldConstants",
    "Functionalise",
    "InputError",
    "Kept",
    "L1RRError",
    "Layer",
    "Layout",
    "LoadError",
    "Normalise",
    "Options",
    "Order",
    "Plan",
    "Program",
    "Recombination",
    "RemoveZeroChannels",
    "Removed",
    "RestoreModes",
    "RewriteError",
    "Rewritten",
    "Selection",
    "Site",
    "Target",
    "VanishedError",
    "VerifyError",
    "arrange",
    "capture",
    "channel_facts",
    "channel_groups",
    "consecutive_order",
    "first_difference",
    "fold_batch_norm",
    "fold_constants",
    "functionalise",
    "normalise",
    "plan_layouts",
    "relative_deviation",
    "remove_zero_channels",
    "restore_modes",
    "rewrite",
    "rule_for",
]
