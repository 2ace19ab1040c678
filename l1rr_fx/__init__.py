"""Make zeroed channels disappear: `l1rr_fx.prune` removes them physically, and the small network computes the same."""

from __future__ import annotations

from l1rr_fx.archive import load
from l1rr_fx.compiler import prune
from l1rr_fx.inspect import Inspection, inspect
from l1rr_fx.optimizer import pruned_optimizer_state
from l1rr_fx.pruned import Pruned
from l1rr_fx.report import Report
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
    "CaptureError",
    "InputError",
    "Inspection",
    "L1RRError",
    "LoadError",
    "Pruned",
    "Report",
    "RewriteError",
    "VanishedError",
    "VerifyError",
    "__version__",
    "inspect",
    "load",
    "prune",
    "pruned_optimizer_state",
]
