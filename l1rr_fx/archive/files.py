"""The files of a saved network: written all or none, read within limits and checked against the manifest."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from l1rr_fx.pruning.report import Report
from l1rr_fx.support.checks import expect, fields, naming, parsed, short
from passes.errors import InputError, LoadError

FORMAT = "l1rr-fx network"
VERSION = 1
MANIFEST, GRAPH, TENSORS, REPORT = "manifest.json", "graph.json", "tensors.safetensors", "report.json"
# The largest files that are read, in bytes, so that a hostile one cannot fill the memory.
LIMITS: Mapping[str, int] = {MANIFEST: 2**16, GRAPH: 2**26, TENSORS: 2**33, REPORT: 2**26}
PAYLOAD = (GRAPH, TENSORS, REPORT)


@contextlib.contextmanager
def new_directory_beside(target: Path) -> Iterator[Path]:
    """A new empty directory on the file system of `target`; it is gone afterwards unless it was moved."""
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


def write_all(work: Path, document: Mapping[str, Any], tensors: dict[str, Tensor], report: Report) -> None:
    """Write the four files into `work` and have the disk hold them."""
    (work / GRAPH).write_text(json.dumps(document, indent=1, allow_nan=False), encoding="utf-8")
    (work / REPORT).write_text(report.to_json(), encoding="utf-8")
    safetensors.torch.save_file(tensors, work / TENSORS)
    for name in PAYLOAD:
        if (size := (work / name).stat().st_size) > LIMITS[name]:
            raise InputError(f"{name} would be {size:,} bytes; at most {LIMITS[name]:,} can be loaded")
    files = {name: size_and_hash(work / name) for name in PAYLOAD}
    manifest = {"format": FORMAT, "version": VERSION, "torch": torch.__version__, "files": files}
    (work / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    settle(work)


def settle(work: Path, *, executable: str | None = None) -> None:
    """Give a directory and its files the usual permissions, and have the disk hold them."""
    umask = os.umask(0)
    os.umask(umask)
    for path in work.iterdir():
        os.chmod(path, (0o777 if path.name == executable else 0o666) & ~umask)
        _sync(path)
    os.chmod(work, 0o777 & ~umask)
    _sync(work)


def size_and_hash(path: Path) -> dict[str, Any]:
    """What a manifest says of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _sync(path: Path) -> None:
    """Have the disk hold `path`, a file or (where the system can) a directory."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except PermissionError:  # Windows does not open directories
        return
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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


def read_all(path: Path) -> dict[str, bytes]:
    """The content of every file, checked against the limits before and against the manifest after it is read."""
    try:
        if not path.is_dir():
            raise LoadError(f"{path}: there is no such directory" if not path.exists() else f"{path}: not a directory")
        found = {entry.name for entry in path.iterdir()}
    except OSError as error:
        raise LoadError(f"{path}: cannot be read: {error.strerror or error}") from error
    if missing := sorted({*LIMITS} - found):
        raise LoadError(f"{path / missing[0]}: the file is missing")
    if unexpected := sorted(found - {*LIMITS}):
        raise LoadError(f"{path}: holds {unexpected[0]!r}, which is no part of a saved network")
    with naming(path / MANIFEST):
        files = _manifest(parsed(_content(path / MANIFEST, None)))
    content = {}
    for name in PAYLOAD:
        with naming(path / name):
            content[name] = _content(path / name, files[name]["bytes"])
            if hashlib.sha256(content[name]).hexdigest() != files[name]["sha256"]:
                raise LoadError("its SHA-256 is not that of the manifest: the file was damaged or changed")
    return content


def _content(path: Path, size: int | None) -> bytes:
    """The bytes of a plain file of `size` bytes; never more than its limit is read."""
    limit = LIMITS[path.name]
    try:
        if path.is_symlink():
            raise LoadError("is a symbolic link")
        flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        with open(os.open(path, flags), "rb") as file:
            facts = os.fstat(file.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise LoadError("is not a plain file")
            if facts.st_size > limit:
                raise LoadError(f"has {facts.st_size:,} bytes; the limit is {limit:,}")
            if size is not None and facts.st_size != size:
                raise LoadError(f"has {facts.st_size:,} bytes where the manifest says {size:,}")
            content = file.read(facts.st_size + 1)
    except OSError as error:
        raise LoadError(f"cannot be read: {error.strerror or error}") from error
    if len(content) != facts.st_size:
        raise LoadError("changed while it was read")
    return content


def _manifest(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The size and hash of each file; LoadError unless the manifest is of our format and names our files alone."""
    if document.get("format") != FORMAT:
        raise LoadError(f'"format" is {short(document.get("format"))}; "{FORMAT}" is wanted')
    if document.get("version") != VERSION:
        raise LoadError(f"has version {short(document.get('version'))}; this l1rr-fx reads version {VERSION}")
    fields(document, {"format", "version", "torch", "files"}, "the manifest")
    files = fields(document["files"], {*PAYLOAD}, '"files"')
    for name, facts in files.items():
        fields(facts, {"bytes", "sha256"}, f'"files", {name}')
        expect(facts["bytes"], int, f"the size of {name}")
        expect(facts["sha256"], str, f"the hash of {name}")
    return files
