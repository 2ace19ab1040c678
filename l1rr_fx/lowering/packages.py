"""Packages that are asked for only when they are needed."""

from __future__ import annotations

import importlib
from typing import Any

from passes.errors import InputError


def optional(package: str, extra: str) -> Any:
    """A package that only the lowering needs. Raises InputError, saying what to install."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise InputError(f"this needs the package {package}: pip install 'l1rr-fx[{extra}]'") from error
