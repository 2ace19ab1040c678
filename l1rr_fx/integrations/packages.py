"""Packages of others that an integration needs, and how new they must be."""

from __future__ import annotations

import importlib
import re
from importlib import metadata
from typing import Any

from passes.errors import InputError


def required(package: str, oldest: str, *, note: str = "", module: str | None = None) -> Any:
    """The package, imported now. InputError if it is missing, does not import or is older than `oldest`."""
    wanted = f"install it with: pip install '{package}>={oldest}'" + (f" ({note})" if note else "")
    try:
        version = metadata.version(package)
    except metadata.PackageNotFoundError as error:
        raise InputError(f"this needs {package} {oldest} or newer, which is not installed; {wanted}") from error
    if _numbers(version) < _numbers(oldest):
        raise InputError(f"this needs {package} {oldest} or newer; {version} is installed; {wanted}")
    try:
        return importlib.import_module(module or package.replace("-", "_"))
    except (ImportError, OSError) as error:  # OSError: a shared library that it needs
        raise InputError(f"{package} {version} is installed but cannot be imported: {error}") from error


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])
