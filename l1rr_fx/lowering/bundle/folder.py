"""The folder of a bundle: where one may be written, and what in the folder of an older one is not its own."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from l1rr_fx.support.checks import parsed
from l1rr_fx.support.files import blamed, move_to, new_directory_beside, read_file, synced, tidy
from passes.errors import InputError, LoadError

log = logging.getLogger(__name__)

FORMAT, VERSION = "l1rr-fx bundle", 1
MANIFEST = "manifest.json"
LARGEST = 2**26
"""Bytes of a manifest that are read at most."""
MADE_THERE = re.compile(r"engine_\w+\.plan|timing\.cache|results\.json\.part")
"""What measuring leaves in the folder beside its results; it is made again."""
BEFORE = re.compile(r"before-(\d+)")
"""A folder in a bundle with what an older bundle in its place held, and was not its own."""


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Raise InputError unless a bundle may be written there."""
    with blamed(folder, "read"):
        tidy(folder)
        if below := next((each for each in folder.parents if each.exists() and not each.is_dir()), None):
            raise InputError(f"{folder} cannot be a folder: {below} is none")
        if not os.path.lexists(folder):
            return
        if folder.resolve() == Path.cwd():
            raise InputError(
                f"{folder} is the working directory, which cannot be replaced; expected the name of a new folder"
            )
        if not folder.is_dir() or folder.is_symlink():
            raise InputError(f"{folder} exists and is no directory")
        if not any(folder.iterdir()):
            return
    if not overwrite:
        raise InputError(f"{folder} exists and is not empty; overwrite=True (--overwrite) replaces a bundle")
    if _manifest(folder) is None:
        raise InputError(f"{folder} exists and is no bundle: it is not replaced")


def bundle_manifest(folder: Path) -> Mapping[str, Any]:
    """The manifest of a bundle. Raises LoadError where there is none that can be read."""
    try:
        document = parsed(read_file(folder / MANIFEST, LARGEST))
    except (OSError, LoadError) as error:
        raise LoadError(f"{MANIFEST} cannot be read ({error})") from error
    if document.get("format") != FORMAT:
        raise LoadError(f'"format" in {MANIFEST} is not "{FORMAT}"')
    return document


def others(folder: Path) -> tuple[str, ...]:
    """The names of what is in a folder and not of the bundle there, nor made again by measuring it."""
    if not folder.is_dir():
        return ()
    files = (_manifest(folder) or {}).get("files")
    own = {MANIFEST, *(files if isinstance(files, dict) else ())}
    return tuple(
        sorted(
            entry.name
            for entry in folder.iterdir()
            if entry.is_symlink() or not entry.is_file() or not (entry.name in own or MADE_THERE.fullmatch(entry.name))
        )
    )


def place_of_others(folder: Path) -> str:
    """The name of the folder in the new bundle that takes what is not of the old one: "" where there is nothing."""
    names = others(folder)
    numbers = [int(match[1]) for name in names if (match := BEFORE.fullmatch(name))]
    return f"before-{max(numbers, default=0) + 1}" if len(names) > len(numbers) else ""


@contextlib.contextmanager
def written(folder: Path, script: str, *, overwrite: bool) -> Iterator[Path]:
    """A new directory that becomes `folder` if all goes well. InputError where the disk refuses.

    What is in the folder and not of the bundle there is in the new one too (`place_of_others`).
    """
    with blamed(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with new_directory_beside(folder) as work:
            try:
                yield work
            except InputError as error:  # of a file in the directory, whose name means nothing to the user
                raise (error.__cause__ if isinstance(error.__cause__, OSError) else error) from None
            synced(work, executable=script)
            check_folder(folder, overwrite=overwrite)  # which may have been filled meanwhile
            place = place_of_others(folder)
            for name in others(folder):
                _linked_tree(folder / name, work / name if BEFORE.fullmatch(name) else work / place / name)
            move_to(work, folder)


def _manifest(folder: Path) -> Mapping[str, Any] | None:
    try:
        return bundle_manifest(folder)
    except LoadError:
        return None


def _linked_tree(source: Path, target: Path) -> None:
    """The same files under another name as well, so that at no moment they are without one."""
    target.parent.mkdir(exist_ok=True)
    if source.is_dir() and not source.is_symlink():
        shutil.copytree(source, target, symlinks=True, copy_function=_linked)
    else:
        _linked(str(source), str(target), follow_symlinks=False)


def _linked(source: str, target: str, *, follow_symlinks: bool = True) -> None:
    try:
        os.link(source, target, follow_symlinks=follow_symlinks)
    except OSError:  # a file system without links
        shutil.copy2(source, target, follow_symlinks=follow_symlinks)
