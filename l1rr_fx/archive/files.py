"""The files of a saved network: written all or none, read within limits and checked against the manifest."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from l1rr_fx.support.checks import expect, fields, naming, parsed, short
from l1rr_fx.support.files import size_and_hash, synced
from passes.errors import InputError, LoadError

FORMAT = "l1rr-fx network"
VERSION = 1
MANIFEST, GRAPH, TENSORS, REPORT = "manifest.json", "graph.json", "tensors.safetensors", "report.json"
# The largest files that are read, in bytes, so that a hostile one cannot fill the memory.
LIMITS: Mapping[str, int] = {MANIFEST: 2**16, GRAPH: 2**26, TENSORS: 2**33, REPORT: 2**26}
PAYLOAD = (GRAPH, TENSORS, REPORT)


def write_all(work: Path, document: Mapping[str, Any], tensors: dict[str, Tensor], report: str) -> None:
    """Write the four files into `work` and flush them to the disk; `report` is a JSON text."""
    (work / GRAPH).write_text(json.dumps(document, indent=1, allow_nan=False), encoding="utf-8")
    (work / REPORT).write_text(report, encoding="utf-8")
    safetensors.torch.save_file(tensors, work / TENSORS)
    for name in PAYLOAD:
        if (size := (work / name).stat().st_size) > LIMITS[name]:
            raise InputError(f"{name} would be {size:,} bytes; at most {LIMITS[name]:,} can be loaded")
    files = {name: size_and_hash(work / name) for name in PAYLOAD}
    manifest = {"format": FORMAT, "version": VERSION, "torch": torch.__version__, "files": files}
    (work / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    synced(work)


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
        raise LoadError(f'"format" is {short(document.get("format"))}; expected "{FORMAT}"')
    if document.get("version") != VERSION:
        raise LoadError(f"has version {short(document.get('version'))}; this l1rr-fx reads version {VERSION}")
    fields(document, {"format", "version", "torch", "files"}, "the manifest")
    files = fields(document["files"], {*PAYLOAD}, '"files"')
    for name, facts in files.items():
        fields(facts, {"bytes", "sha256"}, f'"files", {name}')
        expect(facts["bytes"], int, f"the size of {name}")
        expect(facts["sha256"], str, f"the hash of {name}")
    return files
