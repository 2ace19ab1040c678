"""Files that are written all or none: into a new directory beside their place, synced, then moved there.

A process that is killed leaves that directory behind. Its name says which process made it, and the process holds a lock
on it; the next one that writes to the same place removes it when its maker is gone, and puts back what had been moved
out of the way.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import platform
import re
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from passes.errors import InputError

if sys.platform != "win32":  # nothing is locked there, and nothing that was left behind is removed
    import fcntl

log = logging.getLogger(__name__)

LONGEST_PREFIX = 80
"""Bytes of a name that the working directory's name begins with: names may have 255."""
OLD = "old"
"""In a working directory: what was at its place before."""
ABANDONED_S = 86_400.0
"""A directory that nobody holds is left behind after this time, even if another process has its maker's number now."""


@contextlib.contextmanager
def blamed(path: object, doing: str = "written") -> Iterator[None]:
    """Errors of the disk inside become an InputError: the path, what could not be done, and why."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{path}: cannot be {doing}: {error.strerror or error}") from error


@contextlib.contextmanager
def new_directory_beside(target: Path) -> Iterator[Path]:
    """A new empty directory on the file system of `target`; it is gone afterwards unless it was moved."""
    tidy(target)
    prefix, suffix = _affixes(target)
    work = Path(tempfile.mkdtemp(prefix=f"{prefix}{os.getpid()}-", suffix=suffix, dir=target.parent))
    lock = _lock(work)
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def tidy(target: Path) -> None:
    """Remove the directories that killed processes of this machine left beside `target`.

    Where one was killed between two moves, what was at `target` before is put back.
    """
    prefix, suffix = _affixes(target)
    pattern = re.compile(rf"{re.escape(prefix)}(\d+)-\w+{re.escape(suffix)}")
    try:
        found = [(entry, pattern.fullmatch(entry)) for entry in os.listdir(target.parent)]
    except OSError:  # it is not there, or cannot be read: writing says so
        return
    for name, match in found:
        if match is not None:
            _remove_if_left(target.parent / name, int(match[1]), target)


def _remove_if_left(work: Path, maker: int, target: Path) -> None:
    lock = _lock(work)
    if lock is None:  # held by a live process, or not ours to judge
        return
    try:
        if _is_alive(maker) and time.time() - work.stat().st_mtime < ABANDONED_S:
            return
        if (work / OLD).exists() and not os.path.lexists(target):
            (work / OLD).rename(target)
            log.warning("%s was put back: a process that replaced it was killed", target)
        shutil.rmtree(work, ignore_errors=True)
        log.info("%s was removed: process %d left it when it was killed", work, maker)
    except OSError as error:
        log.warning("%s, which a killed process left, stays: %s", work, error)
    finally:
        os.close(lock)


def _affixes(target: Path) -> tuple[str, str]:
    """What names of working directories begin and end with: the target's name, and a mark of ours and of this host."""
    name = os.fsencode(target.name)[:LONGEST_PREFIX].decode("utf-8", "ignore")
    return f".{name}.", f".{hashlib.sha256(platform.node().encode()).hexdigest()[:8]}.l1rr-fx"


def _lock(work: Path) -> int | None:
    """A handle of a real directory that nobody else holds a lock on, locked until it is closed; None if there is none.

    The system lets go of a lock when its process ends, however it ends.
    """
    if sys.platform == "win32":
        return None
    try:
        handle = os.open(work, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or a file system without locks
        os.close(handle)
        return None
    return handle


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # somebody else's
        return True
    return True


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
            old = aside / OLD
            target.rename(old)
            try:
                work.rename(target)
            except BaseException:  # Ctrl-C too
                old.rename(target)
                raise
    _sync(target.parent)


def write_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all; a device or a pipe is written to. InputError where the disk does not take it.

    Where `path` is a symbolic link, the file that it names is replaced.
    """
    with blamed(path):
        if path.exists() and not path.is_file() and not path.is_dir():
            path.write_bytes(content)
            return
        place = path.resolve() if path.is_symlink() else path
        if place.is_dir():
            raise IsADirectoryError(0, "it is a folder; expected the name of a file")
        with new_directory_beside(place) as work:
            (work / place.name).write_bytes(content)
            synced(work)
            os.replace(work / place.name, place)


def read_file(path: Path, limit: int) -> bytes:
    """The bytes of a plain file. Raises OSError, also for what is no plain file or has more than `limit` bytes."""
    with open(_opened(path), "rb") as file:
        facts = os.fstat(file.fileno())
        if not stat.S_ISREG(facts.st_mode):
            raise OSError(0, "it is no plain file")
        if facts.st_size > limit:
            raise OSError(0, f"it has {facts.st_size:,} bytes; at most {limit:,} are read")
        return file.read(facts.st_size)


def _opened(path: Path) -> int:
    """A handle to read from; a pipe that nobody writes to does not make it wait."""
    return os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))


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
