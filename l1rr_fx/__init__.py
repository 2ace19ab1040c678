"""Make zeroed channels disappear: `l1rr_fx.prune` removes them physically, and the small network computes the same."""

from __future__ import annotations

from l1rr_fx.archive import load
from l1rr_fx.attention import FeatureAttention
from l1rr_fx.budget import Budget
from l1rr_fx.choose import choose
from l1rr_fx.compiler import prune
from l1rr_fx.decay import parameter_groups
from l1rr_fx.inspect import Inspection, inspect
from l1rr_fx.lowering import Latency, lint, lower, to_onnx, to_tensorrt
from l1rr_fx.optimizer import pruned_optimizer_state
from l1rr_fx.plan import Plan
from l1rr_fx.pruned import Pruned
from l1rr_fx.recalibrate import recalibrate_batch_norm
from l1rr_fx.report import Report
from l1rr_fx.sites import channel_sites
from l1rr_fx.sparsity import ReweightedL1
from passes.errors import (
    CaptureError,
    InputError,
    L1RRError,
    LoadError,
    RewriteError,
    VanishedError,
    VerifyError,
)

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "CaptureError",
    "FeatureAttention",
    "InputError",
    "Inspection",
    "L1RRError",
    "Latency",
    "LoadError",
    "Plan",
    "Pruned",
    "Report",
    "ReweightedL1",
    "RewriteError",
    "VanishedError",
    "VerifyError",
    "__version__",
    "channel_sites",
    "choose",
    "inspect",
    "lint",
    "load",
    "lower",
    "parameter_groups",
    "prune",
    "pruned_optimizer_state",
    "recalibrate_batch_norm",
    "to_onnx",
    "to_tensorrt",
]
