"""The version of l1rr-fx, in a file that imports nothing: the build reads it, and so may every layer."""

from __future__ import annotations

__version__ = "0.2.0"
