"""A bundle measured on another machine: copied, run and fetched through the system's ssh."""

from __future__ import annotations

import io
import logging
import os
import re
import shlex
import shutil
import subprocess
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath

from l1rr_fx.latency.results import Results, read_results
from l1rr_fx.lowering.bundle.folder import MANIFEST, bundle_manifest
from l1rr_fx.lowering.bundle.writing import MODEL, SCRIPT
from l1rr_fx.support.arguments import path_of
from l1rr_fx.support.files import blamed, new_directory_beside
from passes.errors import InputError, LoadError, LoweringError

log = logging.getLogger(__name__)

RESULTS = "results.json"
NO_CONNECTION = 255
"""The exit status of ssh where ssh itself failed."""


def measure(
    bundle: str | os.PathLike[str],
    host: str,
    *,
    out: str | os.PathLike[str],
    python: str = "python3",
    arguments: Sequence[str] = (),
    ssh_options: Sequence[str] = (),
) -> Results:
    """Copy a bundle to `host` (user@host, or ssh://user@host:port), run it there, and write its results to `out`.

    `python` is the interpreter there, `arguments` go to `build_and_measure.py`, `ssh_options` are ssh's own, such as
    "Port=2222". The copy stays in the home directory there, under l1rr-fx/, with the engines and TensorRT's timings.

    Raises InputError for a folder that is no bundle and a disk that refuses, LoweringError for a machine that cannot be
    reached or a measurement that failed, with its output there.
    """
    folder, target = path_of("bundle", bundle), path_of("out", out, "a file")
    for name, words in (("arguments", arguments), ("ssh_options", ssh_options), ("python", [python])):
        if isinstance(words, str):
            raise InputError(f"{name} is the text {words!r}; expected a list of words")
        if unfit := [word for word in words if not isinstance(word, str) or "\0" in word]:
            raise InputError(f"{name} hold {unfit[0]!r}; expected words, without the zero character")
    if target.is_dir():
        raise InputError(f"{target}: is a directory; expected the name of a file")
    if not target.parent.is_dir():
        raise InputError(f"{target}: there is no directory {target.parent}")
    files = _files(folder)
    place = f"l1rr-fx/{_name(folder, files)}"
    ssh = _Ssh(host, ssh_options)
    ssh("copying", f"mkdir -p {place} && tar -xf - -C {place}", _packed(folder, files))
    command = shlex.join((python, SCRIPT, "--out", RESULTS, *arguments))
    said = ssh("measuring", f"cd {place} && {command}")
    log.info("%s: %s", host, said.decode(errors="replace").strip())
    return _kept(ssh("fetching the results", f"cat {place}/{RESULTS}"), target)


class _Ssh:
    """Runs commands on one machine."""

    def __init__(self, host: str, options: Sequence[str]) -> None:
        if not isinstance(host, str) or not host or host.startswith("-") or not host.isprintable() or " " in host:
            raise InputError(f"the host is {host!r}; expected user@host")
        if shutil.which("ssh") is None:
            raise InputError("there is no command ssh on this machine: install OpenSSH's client")
        self.host = host
        self.command = ["ssh", *(word for option in options for word in ("-o", option)), "--", host]

    def __call__(self, doing: str, command: str, sent: bytes = b"") -> bytes:
        """What the command prints there. LoweringError with its last words if it fails."""
        done = subprocess.run([*self.command, command], input=sent, capture_output=True, check=False)
        if done.returncode == 0:
            return done.stdout
        words = " / ".join((done.stdout + done.stderr).decode(errors="replace").strip().splitlines()[-3:])
        if done.returncode == NO_CONNECTION:
            raise LoweringError(f"{self.host} cannot be reached by ssh: {words}")
        raise LoweringError(f"{doing} on {self.host} ended with status {done.returncode}: {words}")


def _files(folder: Path) -> Mapping[str, str]:
    """The names of the files of a bundle, with their hashes. InputError unless it is one."""
    try:
        manifest = bundle_manifest(folder)
    except LoadError as error:
        raise InputError(f"{folder} is no bundle: {error}") from error
    found = manifest.get("files")
    if not isinstance(found, dict) or MODEL not in found:
        raise InputError(f"{folder} is no bundle: {MANIFEST} does not name {MODEL}")
    for name, facts in found.items():
        if PurePath(name).name != name or name in ("", ".."):
            raise InputError(f"{folder} is no bundle: {MANIFEST} names {name!r}, which is outside of it")
        if not isinstance(facts, dict) or not re.fullmatch("[0-9a-f]{64}", str(facts.get("sha256"))):
            raise InputError(f"{folder} is no bundle: {MANIFEST} has no hash of {name}")
    return {name: facts["sha256"] for name, facts in found.items()}


def _name(folder: Path, files: Mapping[str, str]) -> str:
    """A name for the copy: that of the folder, and of what it holds."""
    plain = "".join(c if c.isascii() and c.isalnum() else "-" for c in folder.resolve().name)
    return f"{plain}-{files[MODEL][:12]}"


def _packed(folder: Path, files: Mapping[str, str]) -> bytes:
    """The files of the manifest, and the manifest, as a tar."""
    content = io.BytesIO()
    try:
        with tarfile.open(fileobj=content, mode="w") as archive:
            for name in (*files, MANIFEST):
                archive.add(folder / name, arcname=name, recursive=False)
    except OSError as error:
        raise InputError(f"{folder}: {error.filename or folder}: {error.strerror or error}") from error
    return content.getvalue()


def _kept(content: bytes, target: Path) -> Results:
    """The results, checked, then written to `target` whole or not at all."""
    with blamed(target), new_directory_beside(target) as work:
        fetched = work / RESULTS
        fetched.write_bytes(content)
        found = read_results(fetched)
        os.replace(fetched, target)
    return found
