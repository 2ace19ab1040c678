"""The files of a saved network: written all or none, read within limits and checked against the manifest."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from l1rr_fx.archive.tensors import read_tensors, write_tensors
from l1rr_fx.support.checks import expect, fields, naming, parsed, short
from l1rr_fx.support.files import read_file, size_and_hash, synced
from l1rr_fx.support.json_text import check_size
from passes.errors import InputError, LoadError

FORMAT = "l1rr-fx network"
VERSION = 1
MANIFEST, GRAPH, TENSORS, REPORT = "manifest.json", "graph.json", "tensors.safetensors", "report.json"
# The largest files that are read, in bytes, so that a hostile one cannot fill the memory.
LIMITS: Mapping[str, int] = {MANIFEST: 2**16, GRAPH: 2**26, TENSORS: 2**33, REPORT: 2**26}
PAYLOAD = (GRAPH, TENSORS, REPORT)


def write_all(
    work: Path, document: Mapping[str, Any], tensors: dict[str, Tensor], report: str, notes: Sequence[str] = ()
) -> None:
    """Write the four files into `work` and flush them to the disk.

    `report` is a JSON text; `notes`, what differs in the saved network, go into the manifest.
    """
    (work / GRAPH).write_text(json.dumps(document, indent=1, allow_nan=False), encoding="utf-8")
    (work / REPORT).write_text(report, encoding="utf-8")
    write_tensors(tensors, work / TENSORS)
    for name in PAYLOAD:
        if (size := (work / name).stat().st_size) > LIMITS[name]:
            raise InputError(f"{name} would be {size:,} bytes; at most {LIMITS[name]:,} can be loaded")
    for name in (GRAPH, REPORT):
        try:
            check_size((work / name).read_bytes())
        except ValueError as error:
            raise InputError(f"{name} could not be loaded: {error}") from error
    files = {name: size_and_hash(work / name) for name in PAYLOAD}
    manifest = {"format": FORMAT, "version": VERSION, "torch": torch.__version__, "files": files}
    if notes:
        manifest["notes"] = list(notes)
    (work / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    synced(work)


@dataclass(frozen=True)
class Content:
    """What the files hold: texts of JSON documents, and tensors by their names there."""

    graph: bytes
    tensors: dict[str, Tensor]
    report: bytes


def read_all(path: Path) -> Content:
    """The content of every file, checked against the limits before and against the manifest as it is read."""
    with unreadable(path):
        if not path.is_dir():
            raise LoadError(f"{path}: there is no such directory" if not path.exists() else f"{path}: not a directory")
        found = {entry.name for entry in path.iterdir()}
    if missing := sorted({*LIMITS} - found):
        raise LoadError(f"{path / missing[0]}: the file is missing")
    if unexpected := sorted(found - {*LIMITS}):
        raise LoadError(f"{path}: holds {unexpected[0]!r}, which is no part of a saved network")
    with naming(path / MANIFEST), _opened(path / MANIFEST) as source:
        files = _manifest(parsed(source.rest()))
    content: dict[str, Any] = {}
    for name in PAYLOAD:
        with naming(path / name), _opened(path / name) as source:
            if source.size != files[name]["bytes"]:
                raise LoadError(f"has {source.size:,} bytes where the manifest says {files[name]['bytes']:,}")
            content[name] = _checked(source, name, files[name]["sha256"])
    return Content(content[GRAPH], content[TENSORS], content[REPORT])


def is_replaceable(path: Path) -> str:
    """Why the folder may not be replaced by a saved network: "" if all that it holds is one."""
    for entry in sorted(path.iterdir()):
        if entry.name not in LIMITS or entry.is_symlink() or not entry.is_file():
            return f"it holds {entry.name!r}"
    try:
        document = parsed(read_file(path / MANIFEST, LIMITS[MANIFEST]))
    except (OSError, LoadError):
        return f"its {MANIFEST} cannot be read"
    return "" if document.get("format") == FORMAT else f'its {MANIFEST} has not the format "{FORMAT}"'


@contextlib.contextmanager
def unreadable(path: Path) -> Iterator[None]:
    """Errors of the disk inside are about a folder that cannot be read."""
    try:
        yield
    except OSError as error:
        raise LoadError(f"{path}: cannot be read: {error.strerror or error}") from error


class _Source:
    """A file that is read from its beginning to its end, with the hash of what was read."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file = file
        self.size = size
        self.digest = hashlib.sha256()

    def readinto(self, memory: Any) -> int:
        """Fill the memory, as far as the file reaches; the number of bytes."""
        count = self.file.readinto(memory)  # type: ignore[attr-defined]  # what open() gives has it
        self.digest.update(memoryview(memory)[:count])
        return int(count)

    def rest(self) -> bytes:
        """The bytes that are left of its size."""
        content = self.file.read(self.size + 1)
        if len(content) != self.size:
            raise LoadError("changed while it was read")
        self.digest.update(content)
        return content

    def hash(self) -> str:
        """The SHA-256 of the whole file."""
        while block := self.file.read(2**20):
            self.digest.update(block)
        return self.digest.hexdigest()


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[_Source]:
    """A plain file, of at most as many bytes as its name allows."""
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
            yield _Source(file, facts.st_size)
    except OSError as error:
        raise LoadError(f"cannot be read: {error.strerror or error}") from error


def _checked(source: _Source, name: str, sha256: str) -> Any:
    """The content of a file: bytes, or tensors. What is wrong with a damaged file is that it is damaged."""
    try:
        content = read_tensors(source, source.size) if name == TENSORS else source.rest()
    except LoadError:
        _check_hash(source, sha256)
        raise
    _check_hash(source, sha256)
    return content


def _check_hash(source: _Source, sha256: str) -> None:
    if source.hash() != sha256:
        raise LoadError("its SHA-256 is not that of the manifest: the file was damaged or changed")


def _manifest(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """The size and hash of each file; LoadError unless the manifest is of our format and names our files alone."""
    if document.get("format") != FORMAT:
        raise LoadError(f'"format" is {short(document.get("format"))}; expected "{FORMAT}"')
    if document.get("version") != VERSION:
        raise LoadError(f"has version {short(document.get('version'))}; this l1rr-fx reads version {VERSION}")
    fields(document, {"format", "version", "torch", "files"} | ({"notes"} & {*document}), "the manifest")
    files = fields(document["files"], {*PAYLOAD}, '"files"')
    for name, facts in files.items():
        fields(facts, {"bytes", "sha256"}, f'"files", {name}')
        expect(facts["bytes"], int, f"the size of {name}")
        expect(facts["sha256"], str, f"the hash of {name}")
    return files
