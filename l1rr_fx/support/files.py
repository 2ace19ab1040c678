"""Files that are written all or none: into a new directory beside their place, synced, then moved there."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def new_directory_beside(target: Path) -> Iterator[Path]:
    """A new empty directory on the file system of `target`; it is gone afterwards unless it was moved."""
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def synced(work: Path, *, executable: str | None = None) -> None:
    """Give a directory and its files the usual permissions, and flush them to the disk; `executable` names a script."""
    umask = os.umask(0)
    os.umask(umask)
    for path in work.iterdir():
        os.chmod(path, (0o777 if path.name == executable else 0o666) & ~umask)
        _sync(path)
    os.chmod(work, 0o777 & ~umask)
    _sync(work)


def move_to(work: Path, target: Path) -> None:
    """Rename `work` to `target`; what was there is kept until that succeeded, and put back if it did not."""
    if not target.exists() or not any(target.iterdir()):
        if target.exists():
            target.rmdir()
        work.rename(target)
    else:
        with new_directory_beside(target) as aside:
            old = aside / "old"
            target.rename(old)
            try:
                work.rename(target)
            except BaseException:  # Ctrl-C too
                old.rename(target)
                raise
    _sync(target.parent)


def size_and_hash(path: Path) -> dict[str, Any]:
    """The size and the SHA-256 of a file, as a manifest lists them."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _sync(path: Path) -> None:
    """Flush `path` to the disk: a file or, where the system can, a directory."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows does not open directories
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
