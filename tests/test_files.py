"""Files: what is not ours stays, a disk that refuses is one error that names the path, and the killed leave nothing."""

from __future__ import annotations

import errno
import fcntl
import json
import logging
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch import Tensor, nn
from torch.fx import Graph, GraphModule
from typer.testing import CliRunner

from l1rr_fx import InputError, L1RRError, LoadError, load, lower
from l1rr_fx.archive.files import GRAPH, LIMITS, MANIFEST
from l1rr_fx.cli import app
from l1rr_fx.cli.application import reporting
from l1rr_fx.latency.results import read_results
from l1rr_fx.lowering import lint, to_onnx
from l1rr_fx.lowering.bundle.folder import others
from l1rr_fx.machines import cpu
from l1rr_fx.method.planning.curves import _Record
from l1rr_fx.pruning.pruned import Pruned
from l1rr_fx.pruning.report import Report
from l1rr_fx.support.arguments import path_of
from l1rr_fx.support.files import new_directory_beside, write_file
from l1rr_fx.support.json_text import MAX_DEPTH, MAX_VALUES, json_value
from passes.accounts import Accounts, Cost

aten = torch.ops.aten
REPORTED = Report(Accounts(Cost(9, 8, 7, 6), Cost(5, 4, 3, 2), Cost(4, 3, 2, 1)), "recombine")


def small() -> Pruned:
    root, graph = nn.Module(), Graph()
    root.register_buffer("scale", torch.rand(20_000))
    graph.output(graph.call_function(aten.mul.Tensor, (graph.placeholder("x"), graph.get_attr("scale"))))
    return Pruned(GraphModule(root, graph), REPORTED)


def linear() -> tuple[nn.Module, tuple[Tensor]]:
    return nn.Linear(200, 200).eval(), (torch.rand(1, 200),)


# --------------------------------------------------------------------------------------- what is not ours is kept


def saved(folder: Path) -> Path:
    small().save(folder)
    return folder


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda folder: (folder / "thesis.txt").write_text("years"), r"it holds 'thesis\.txt'"),
        (
            lambda folder: (folder / MANIFEST).write_text('{"format": "of others"}'),
            "its manifest.json has not the format",
        ),
        (lambda folder: (folder / MANIFEST).write_text("[]"), "its manifest.json cannot be read"),
        (lambda folder: (folder / MANIFEST).unlink(), "its manifest.json cannot be read"),
        (lambda folder: ((folder / GRAPH).unlink(), (folder / GRAPH).mkdir()), r"it holds 'graph\.json'"),
        (lambda folder: ((folder / GRAPH).unlink(), (folder / GRAPH).symlink_to("/etc")), r"it holds 'graph\.json'"),
    ],
)
def test_a_folder_with_anything_else_is_not_replaced(
    change: Callable[[Path], object], reason: str, tmp_path: Path
) -> None:
    """Also one that has the four names: the format in the manifest decides."""
    folder = saved(tmp_path / "saved")
    change(folder)
    before = sorted(folder.iterdir())
    with pytest.raises(InputError, match=f"so it is not replaced: {reason}"):
        small().save(folder, overwrite=True)
    assert sorted(folder.iterdir()) == before


def test_a_damaged_network_of_ours_is_replaced(tmp_path: Path) -> None:
    folder = saved(tmp_path / "saved")
    (folder / GRAPH).write_text("damaged")
    small().save(folder, overwrite=True)
    load(folder)


def test_what_comes_while_a_network_is_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from l1rr_fx.archive import network

    folder, write_all = saved(tmp_path / "saved"), network.write_all

    def slow(*args: Any) -> None:
        write_all(*args)
        (folder / "thesis.txt").write_text("years")

    monkeypatch.setattr(network, "write_all", slow)
    with pytest.raises(InputError, match=r"it holds 'thesis\.txt'"):
        small().save(folder, overwrite=True)
    assert (folder / "thesis.txt").read_text() == "years"


def test_a_bundle_that_is_replaced_keeps_what_is_not_of_it(tmp_path: Path) -> None:
    """Results and files of others go into a folder of the new bundle; engines are built again."""
    folder = tmp_path / "bundle"
    lower(*linear(), out=folder, half_model=False)
    (folder / "results.json").write_text("measured for days")
    (folder / "pictures").mkdir()
    (folder / "pictures" / "a.png").write_bytes(b"picture")
    (folder / "link").symlink_to("pictures")
    for name in ("engine_fp16.plan", "timing.cache"):
        (folder / name).touch()
    assert others(folder) == ("link", "pictures", "results.json")
    again = lower(*linear(), out=folder, half_model=False, overwrite=True)
    assert f"what was in {folder} and is not of this bundle is now in {folder / 'before-1'}" in again.notes
    kept = folder / "before-1"
    assert sorted(path.name for path in kept.iterdir()) == ["link", "pictures", "results.json"]
    assert (kept / "results.json").read_text() == "measured for days"
    assert (kept / "link" / "a.png").read_bytes() == b"picture"
    assert not (folder / "engine_fp16.plan").exists()
    (folder / "results.json").write_text("again")
    assert not [note for note in lower(*linear(), out=folder, half_model=False, overwrite=True).notes if "-1" in note]
    assert (folder / "before-1" / "results.json").read_text() == "measured for days"
    assert (folder / "before-2" / "results.json").read_text() == "again"
    manifest = json.loads((folder / "manifest.json").read_text())
    assert not [name for name in manifest["files"] if name.startswith("before")]


# ----------------------------------------------------------------------------------------- a disk that refuses


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file can grow beyond 10 kB: the system refuses as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


WRITERS: dict[str, Callable[[Any], object]] = {
    "save": lambda path: small().save(path),
    "lower": lambda path: lower(*linear(), out=path, half_model=False),
    "to_onnx": lambda path: to_onnx(*linear(), path),
    "export": lambda path: Pruned(nn.Linear(200, 200).eval(), REPORTED).export(f"{path}.pt2", (torch.rand(1, 200),)),
    "a plan": lambda path: write_file(path, b"x" * 20_000),
    "curves": lambda path: _Record(path, 0, "it").begin(),
}
READERS: dict[str, Callable[[Any], object]] = {"load": load, "lint": lint, "results": read_results}
LONG = "n" * 300
PLACES: dict[str, Callable[[Path], Any]] = {
    "a name that is too long": lambda folder: folder / LONG,
    "below a file": lambda folder: folder / "file" / "x",
    "below a name that is too long": lambda folder: folder / LONG / "x",
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", [*WRITERS, *READERS])
def test_a_place_that_cannot_be_is_named(name: str, place: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    path = PLACES[place](tmp_path)
    with pytest.raises(L1RRError) as caught:
        (WRITERS | READERS)[name](path)
    assert isinstance(caught.value, LoadError if name in READERS else InputError)
    assert str(tmp_path) in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["save", "lower", "to_onnx", "export", "a plan"])
def test_a_full_disk_is_named_and_leaves_nothing(name: str, tmp_path: Path, small_disk: None) -> None:
    """In safetensors too, which is no Python."""
    with pytest.raises(InputError, match=rf"{tmp_path}/x.*: cannot be written: File too large"):
        WRITERS[name](tmp_path / "x")
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EIO])
@pytest.mark.parametrize("name", ["save", "lower", "to_onnx", "export", "a plan"])
def test_a_disk_that_is_read_only_or_broken_is_named(
    name: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: Any, **options: Any) -> str:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("l1rr_fx.support.files.tempfile.mkdtemp", refuse)
    with pytest.raises(InputError, match=rf"{tmp_path}/x.*: cannot be written: {os.strerror(number)}"):
        WRITERS[name](tmp_path / "x")


@pytest.mark.parametrize("path", [None, 3, b"x", "", "a\0b", "\ud800", ["x"]], ids=repr)
def test_what_is_no_path_is_refused(path: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for call in (lambda: small().save(path), lambda: load(path), lambda: lower(*linear(), out=path)):
        with pytest.raises(InputError, match=r"is (a \w+; expected a path of a folder|'.*', which)"):
            call()
    assert not [*tmp_path.iterdir()]


def test_what_is_a_path_is_one() -> None:
    assert path_of("out", "a") == path_of("out", Path("a")) == Path("a")


@pytest.mark.parametrize("device", ["banana", "cuda:99", "meta:3x", 3.5, "meta"])
def test_a_device_that_is_not_there(device: Any, tmp_path: Path) -> None:
    folder = saved(tmp_path / "saved")
    with pytest.raises(InputError, match="device is .*, which cannot be used"):
        load(folder, device=device)


def test_a_cache_that_cannot_be_written_harms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    model = cpu.MeasuredCpu(1, 8, 1.0, ((1.0, 1.0), (2.0, 2.0)), ((1.0, 1.0), (2.0, 2.0)), False, "cpu")
    with caplog.at_level(logging.WARNING):
        assert cpu.remembered("x", lambda: model, cpu.MeasuredCpu) == model
    assert "is not kept" in caplog.text


COMMANDS: dict[str, list[str]] = {
    "prune": ["prune", f"{LONG}.pt2", "-o", "small"],
    "inspect": ["inspect", "folder.pt2"],
    "onnx": ["onnx", LONG, "-o", "x.onnx"],
    "lower": ["lower", "no_module:f", "-o", LONG],
    "choose": ["choose", "no_module:f", "--budget", "macs=.5", "-o", LONG],
    "lint": ["lint", LONG],
    "compare": ["compare", LONG, LONG],
    "measure": ["measure", LONG, "--ssh", "nobody@nowhere.invalid"],
}


@pytest.mark.parametrize("name", COMMANDS)
def test_on_the_command_line_it_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder.pt2").mkdir()
    result = CliRunner().invoke(app, COMMANDS[name])
    assert result.exit_code == 2, result.output
    assert result.stderr.count("error: ") == 1
    assert "Traceback" not in result.stderr


def test_any_error_about_a_file_is_one_line_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One without a file is a fault of ours, which shows where it is."""
    with pytest.raises(typer.Exit), reporting(None):
        (tmp_path / "none").read_text()
    assert "".join(capsys.readouterr().err.split()).endswith("none:Nosuchfileordirectory")
    with pytest.raises(OSError, match="of ours"), reporting(None):
        raise OSError("of ours")


# ------------------------------------------------------------------------------------------------ killed processes

ALONE = """
import sys, types
for name in ("passes", "l1rr_fx"):  # their folders, without what they import
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [name]
"""
KILLED = f"""
{ALONE}
import os, signal
from pathlib import Path
from l1rr_fx.support import files

target, step = Path(sys.argv[1]), sys.argv[2]
rename = Path.rename

def killed(self, to):
    if step == "between" and "old" not in Path(to).name:
        os.kill(os.getpid(), signal.SIGKILL)
    rename(self, to)

Path.rename = killed
with files.new_directory_beside(target) as work:
    (work / "half").write_text("half")
    if step == "writing":
        os.kill(os.getpid(), signal.SIGTERM)
    files.move_to(work, target)
"""


def kill(target: Path, step: str) -> None:
    """A process that writes to the target, and is killed while it writes, or between its two moves."""
    root = str(Path(__file__).parent.parent)
    done = subprocess.run([sys.executable, "-c", KILLED, str(target), step], cwd=root, check=False)
    assert done.returncode in (-signal.SIGTERM, -signal.SIGKILL)


def test_the_next_save_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    kill(folder, "writing")
    assert len([*tmp_path.iterdir()]) == 1
    small().save(folder)
    assert [*tmp_path.iterdir()] == [folder]


def test_what_a_killed_save_had_moved_aside_comes_back(tmp_path: Path) -> None:
    """It was killed when the old network was out of its place, and the new one not there yet."""
    folder = saved(tmp_path / "saved")
    kill(folder, "between")
    assert not folder.exists()
    with pytest.raises(InputError, match="not empty"):
        small().save(folder)
    load(folder)
    assert [*tmp_path.iterdir()] == [folder]


def test_a_live_process_keeps_its_directory(tmp_path: Path) -> None:
    """Also a thread of this one; and directories of others with like names stay."""
    folder = tmp_path / "saved"
    foreign = [tmp_path / ".saved.abcdefgh", tmp_path / ".saved.99999999-abcdefgh.00000000.l1rr-fx"]
    for path in foreign:
        path.mkdir()
    with new_directory_beside(folder) as work:
        small().save(folder)
        assert work.is_dir()
    assert sorted(tmp_path.iterdir()) == sorted([*foreign, folder])


def test_a_directory_that_is_held_stays_although_its_maker_is_not_seen(tmp_path: Path) -> None:
    """As from another container, which has other numbers and the same disk."""
    folder = tmp_path / "saved"
    with new_directory_beside(folder) as work:
        name = work.name.replace(f".{os.getpid()}-", ".99999999-")
    held = tmp_path / name
    held.mkdir()
    handle = os.open(held, os.O_RDONLY)
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    small().save(folder)
    assert held.is_dir()
    os.close(handle)
    small().save(folder, overwrite=True)
    assert not held.exists()


def test_an_old_directory_goes_although_its_number_is_taken(tmp_path: Path) -> None:
    folder = tmp_path / "saved"
    with new_directory_beside(folder) as work:
        name = work.name
    left = tmp_path / name
    left.mkdir()  # as if another process had made it, which had our number
    small().save(folder)
    assert left.is_dir()
    before = time.time() - 2 * 86_400
    os.utime(left, (before, before))
    small().save(folder, overwrite=True)
    assert not left.exists()


def test_a_device_is_written_to_and_a_link_is_followed(tmp_path: Path) -> None:
    write_file(Path(os.devnull), b"nothing")
    assert not Path(os.devnull).is_file()
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to("real")
    write_file(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"
    with pytest.raises(InputError, match="is a folder"):
        write_file(tmp_path, b"")


# ------------------------------------------------------------------------------------------------------ JSON texts


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1), f"deeper than {MAX_DEPTH} levels"),
        (b'{"a":' * 990 + b"1" + b"}" * 990, "deeper than"),
        (b"[" * 100_000, "deeper than"),
        (b"[" + b"[]," * MAX_VALUES + b"[]]", f"more than {MAX_VALUES:,} values"),
        (b"[" + b'"",' * MAX_VALUES + b'""]', "more than"),
        (b"]" * 10 * MAX_VALUES, "more than"),
        (b'{"a": 1, "b": 2, "a": 3}', "the key 'a' comes twice"),
        (b'[{"a": {"b": 1, "b": 1}}]', "the key 'b' comes twice"),
        (b'{"a": 1, "\\u0061": 3}', "the key 'a' comes twice"),
        (b"1e999", "beyond the range"),
        (b"-1e999", "beyond the range"),
        (b"1" * 1001, "1,001 digits"),
        (b"[NaN]", "NaN is not JSON"),
        (b"\xff", "utf-8"),
        (b"", "Expecting value"),
    ],
    ids=lambda value: str(value[:12]),
)
def test_json_beyond_the_limits_is_refused(text: bytes, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        json_value(text)


@pytest.mark.parametrize(
    "text",
    [
        '{"a": [1, 2.5, true, null, "x"]}',
        '"' + "[" * 1000 + '"', '["\\\\\\"[[[", "\\\\"]', '{"a\\\\": "{\\"b\\": 1}"}',
        "[" * MAX_DEPTH + "]" * MAX_DEPTH, "1" * 1000, '"\\ud800"', ' [ ] ', '{"": {"": ""}}',
    ],
)  # fmt: skip
def test_json_within_the_limits_is_read(text: str) -> None:
    assert json_value(text) == json_value(text.encode()) == json.loads(text)


def test_a_hostile_text_takes_little_memory() -> None:
    """64 MiB of empty lists would be 1.5 GiB: nothing is built."""
    code = (
        f"{ALONE}import resource; from l1rr_fx.support.json_text import json_value\n"
        "text = b'[' + b'[],' * (2**26 // 3) + b'[]]'\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: json_value(text)\n"
        "except ValueError: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    root = str(Path(__file__).parent.parent)
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 300 * 1024  # kB


def test_every_limit_of_a_saved_file_is_below_the_memory_of_a_small_machine() -> None:
    assert sum(size for name, size in LIMITS.items() if name.endswith(".json")) < 2**28
