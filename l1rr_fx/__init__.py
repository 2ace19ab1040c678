"""Make zeroed channels disappear: `l1rr_fx.prune` removes them physically, and the small network computes the same."""

from __future__ import annotations

from l1rr_fx.lowering import Latency, lint, lower, to_onnx, to_tensorrt
from l1rr_fx.method.attention.loss import FeatureAttention
from l1rr_fx.method.planning.budget import Budget
from l1rr_fx.method.planning.choose import choose
from l1rr_fx.method.planning.plan import Plan
from l1rr_fx.method.planning.scores import GroupSum, Taylor
from l1rr_fx.method.planning.threshold import threshold
from l1rr_fx.method.sites.channel_sites import channel_sites
from l1rr_fx.method.sites.inspection import Inspection, inspect
from l1rr_fx.method.training.decay import parameter_groups
from l1rr_fx.method.training.recalibrate import recalibrate_batch_norm
from l1rr_fx.method.training.sparsity import ReweightedL1
from l1rr_fx.pruning.compiler import prune
from l1rr_fx.pruning.optimizer import pruned_optimizer_state
from l1rr_fx.pruning.pruned import Pruned, load
from l1rr_fx.pruning.report import Report
from l1rr_fx.version import __version__
from passes.errors import (
    CaptureError,
    InputError,
    L1RRError,
    LoadError,
    RewriteError,
    VanishedError,
    VerifyError,
)

__all__ = [
    "Budget",
    "CaptureError",
    "FeatureAttention",
    "GroupSum",
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
    "Taylor",
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
    "threshold",
    "to_onnx",
    "to_tensorrt",
]
