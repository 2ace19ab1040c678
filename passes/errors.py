"""Errors: every error that l1rr-fx raises on purpose, in one tree.

L1RRError
├── InputError        an argument has the wrong type, shape or value
├── CaptureError      the model cannot be turned into a graph
├── VanishedError     an output of the network would be zero for every input
├── RewriteError      the compiler contradicts itself: a bug, please report it
├── VerifyError       the pruned network differs from the zeroed one
├── LoweringError     a network cannot be lowered to the target, or the target does not run it
└── LoadError         a saved network is unreadable, damaged or not to be trusted
"""

from __future__ import annotations


class L1RRError(Exception):
    """Every error that l1rr-fx raises on purpose."""


class InputError(L1RRError, ValueError):
    """An argument has the wrong type, shape or value."""


class CaptureError(L1RRError):
    """The model cannot be turned into a graph."""


class VanishedError(L1RRError):
    """An output of the network would be zero for every input."""


class RewriteError(L1RRError):
    """The compiler contradicts itself. This is a bug: please report it with the model."""


class VerifyError(L1RRError):
    """The pruned network differs from the zeroed one."""


class LoweringError(L1RRError):
    """A network cannot be lowered to the target, or the target does not run it."""


class LoadError(L1RRError):
    """A saved network is unreadable, damaged or not to be trusted."""


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class where the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
