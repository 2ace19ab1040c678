"""Optional dependencies, imported where they are used."""

from __future__ import annotations

import importlib
import re
from importlib import metadata
from typing import Any

from passes.errors import InputError


def required(package: str, oldest: str = "", *, extra: str = "", note: str = "", module: str = "") -> Any:
    """The package, or its `module`, imported now; `extra` is the extra of l1rr-fx that installs it.

    InputError, saying what to install, if it is missing, does not import, or is older than `oldest` (empty: any will
    do).
    """
    wanted = f"{package} {oldest} or newer" if oldest else package
    source = f"l1rr-fx[{extra}]" if extra else f"{package}>={oldest}" if oldest else package
    cure = f"install it with: pip install '{source}'" + (f" ({note})" if note else "")
    if oldest and _numbers(_version(package, wanted, cure)) < _numbers(oldest):
        raise InputError(f"this needs {wanted}; {metadata.version(package)} is installed; {cure}")
    try:
        return importlib.import_module(module or package.replace("-", "_"))
    except (ImportError, OSError) as error:  # OSError: a shared library that it needs
        raise InputError(f"this needs {wanted}, which cannot be imported ({error}); {cure}") from error


def _version(package: str, wanted: str, cure: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError as error:
        raise InputError(f"this needs {wanted}, which is not installed; {cure}") from error


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])
