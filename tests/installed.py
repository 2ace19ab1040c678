"""Which optional packages are there."""

from __future__ import annotations

from importlib import metadata


def is_installed(package: str) -> bool:
    """Whether a distribution of this name is installed, whatever it imports."""
    try:
        metadata.version(package)
    except metadata.PackageNotFoundError:
        return False
    return True
