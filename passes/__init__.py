"""The compiler: it removes zeroed channels from a network. It imports torch and networkx only.

In goes a model with zeroed channels and an example input, out comes a smaller graph module that computes the same:

    captured = capture(model, args)                  # a functional graph of ATen operators
    small = remove_zero_channels(captured).module    # the same network without its zeroed channels

or step by step:

    program = Program(normalise(captured), rule_for) # the call sites of the canonical graph
    facts = channel_facts(program)                   # liveness: what is zero, what is needed
    plan = plan_layouts(program, facts)              # the layout of every tensor of the small network
    rewritten = rewrite(plan)                        # the small network

The stages are folders, in the order in which a network passes through them: `frontend`, `canonical`, `analysis`,
`assignment`, `rewriting`, `audit`. All of them use `graph` and `rules`. `compile` is all stages in one call, `infra`
has them as passes of torch.fx, `accounts` is costs as data, `errors` the tree of errors.
"""

from __future__ import annotations

from passes.accounts import Accounts, Alternative, Cost, Family, Kept, Layer, Recombination
from passes.analysis.coupling import channel_groups
from passes.analysis.liveness import Facts, channel_facts
from passes.analysis.program import Program
from passes.assignment.assign import plan_layouts
from passes.assignment.channel_order import arrange
from passes.assignment.cost_model import ByteCount, Target
from passes.assignment.options import Options
from passes.assignment.plan import LayoutPlan
from passes.assignment.pq_tree import Order, consecutive_order
from passes.audit.comparison import relative_deviation
from passes.audit.verify import Difference, first_difference
from passes.canonical.normalise import normalise
from passes.compile import Removed, fastest_plan, remove_zero_channels
from passes.errors import (
    CaptureError,
    InputError,
    L1RRError,
    LoadError,
    RewriteError,
    VanishedError,
    VerifyError,
)
from passes.frontend.capture import capture
from passes.frontend.functionalise import functionalise
from passes.graph.layout import Layout
from passes.graph.modes import restore_modes
from passes.graph.selection import Selection
from passes.infra import FoldBatchNorm, FoldConstants, Functionalise, Normalise, RemoveZeroChannels, RestoreModes
from passes.rewriting.fold import fold_batch_norm, fold_constants
from passes.rewriting.rewriter import Rewritten, rewrite
from passes.rewriting.sketcher import Machine, Sketch, sketch
from passes.rules import rule_for
from passes.rules.base import Site

Plan = LayoutPlan
"""The name of `LayoutPlan` before 0.2."""

__all__ = [
    "Accounts",
    "Alternative",
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
    "LayoutPlan",
    "LoadError",
    "Machine",
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
    "Sketch",
    "Target",
    "VanishedError",
    "VerifyError",
    "arrange",
    "capture",
    "channel_facts",
    "channel_groups",
    "consecutive_order",
    "fastest_plan",
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
    "sketch",
]
