"""Measuring over ssh, and comparing what was measured.

The ssh server is a real one, asyncssh, on the loopback interface, with keys made for the test; the client is the
system's ssh. What runs behind it is a shell of this machine in a home directory of its own.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import asyncssh
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from l1rr_fx.cli.measuring import app
from l1rr_fx.latency.geometry import Geometry
from l1rr_fx.latency.kernels import Kernel
from l1rr_fx.latency.results import LayerTime, Results, Run, read_results
from l1rr_fx.lowering.bundle.comparison import compare
from l1rr_fx.lowering.bundle.remote import measure
from l1rr_fx.lowering.bundle.writing import lower
from passes.errors import InputError, LoweringError

# An sshd on the loopback interface


@dataclass(frozen=True)
class Machine:
    """Where the server listens, its home directory, and the options with which ssh reaches it."""

    host: str
    home: Path
    options: tuple[str, ...]


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    keys, home = tmp_path_factory.mktemp("keys"), tmp_path_factory.mktemp("home")
    own, server_key = (asyncssh.generate_private_key("ssh-ed25519") for _ in range(2))
    own.write_private_key(str(keys / "id"))
    (keys / "id").chmod(0o600)
    own.write_public_key(str(keys / "authorized"))
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def handle(process: Any) -> None:
        shell = await asyncio.create_subprocess_shell(
            process.command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd=home,
        )
        said, complained = await shell.communicate(await process.stdin.read())
        process.stdout.write(said)
        process.stderr.write(complained)
        process.exit(shell.returncode)

    async def listen() -> Any:
        return await asyncssh.listen(
            "127.0.0.1",
            0,
            server_host_keys=[server_key],
            authorized_client_keys=str(keys / "authorized"),
            process_factory=handle,
            encoding=None,
        )

    server = asyncio.run_coroutine_threadsafe(listen(), loop).result(30)
    port = server.get_port()
    public = server_key.export_public_key().decode().strip()
    (keys / "known").write_text(f"[127.0.0.1]:{port} {public}\n")
    options = (
        f"Port={port}",
        f"IdentityFile={keys / 'id'}",
        f"UserKnownHostsFile={keys / 'known'}",
        "StrictHostKeyChecking=yes",
        "IdentitiesOnly=yes",
        "BatchMode=yes",
        "ConnectTimeout=10",
    )
    try:
        yield Machine("tester@127.0.0.1", home, options)
    finally:
        server.close()
        asyncio.run_coroutine_threadsafe(server.wait_closed(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)
        loop.close()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.SiLU(), nn.Conv2d(8, 4, 1)).eval()
    out = tmp_path_factory.mktemp("bundles") / "a net's bundle"
    return lower(model, (torch.rand(1, 3, 16, 16),), out=out, half_model=False).path


RUN = ("--engine", "onnxruntime", "--iterations", "5", "--warmup", "0")


def test_a_bundle_is_copied_run_and_fetched(machine: Machine, bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.json"
    found = measure(bundle, machine.host, out=out, python=sys.executable, arguments=RUN, ssh_options=machine.options)
    (there,) = (machine.home / "l1rr-fx").iterdir()
    assert there.name.startswith("a-net-s-bundle-")
    assert (there / "model.onnx").read_bytes() == (bundle / "model.onnx").read_bytes()
    assert found == read_results(out) == read_results(there / "results.json")
    assert found.engine.startswith("ONNX Runtime") and found.runs[0].agrees and found.runs[0].ms > 0
    assert [*tmp_path.iterdir()] == [out]


def test_the_command_measures_and_compares(machine: Machine, bundle: Path, tmp_path: Path) -> None:
    options = [word for option in machine.options for word in ("--ssh-option", option)]
    paths = [str(tmp_path / name) for name in ("dense.json", "pruned.json")]
    for path in paths:
        arguments = ["measure", str(bundle), "--ssh", machine.host, "-o", path, "--python", sys.executable]
        arguments += ["--engine", "onnxruntime", "--iterations", "3", "--warmup", "0", *options]
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
        assert "ms measured" in done.output
        assert "note: measured on the CPU with ONNX Runtime, not with TensorRT" in done.output
    done = CliRunner().invoke(app, ["compare", *paths])
    assert done.exit_code == 0, done.output
    assert "the network, not profiled" in done.output and "times as fast as" in done.output


def test_a_measurement_that_fails_there_is_told_with_its_words(machine: Machine, bundle: Path, tmp_path: Path) -> None:
    arguments = ("--engine", "tensorrt")
    with pytest.raises(LoweringError, match=r"measuring on tester@127.0.0.1 ended with status 2.*error: "):
        measure(
            bundle,
            machine.host,
            out=tmp_path / "r.json",
            python=sys.executable,
            arguments=arguments,
            ssh_options=machine.options,
        )
    with pytest.raises(LoweringError, match="status 127.*no-such-python"):
        measure(bundle, machine.host, out=tmp_path / "r.json", python="no-such-python", ssh_options=machine.options)
    assert not [*tmp_path.iterdir()]


def test_a_machine_that_cannot_be_reached_is_told(machine: Machine, bundle: Path, tmp_path: Path) -> None:
    others = {
        "refused": ("Port=1", "BatchMode=yes", "ConnectTimeout=5"),
        "a key that it does not know": tuple(o for o in machine.options if not o.startswith("IdentityFile"))
        + ("IdentityFile=/nonexistent", "IdentityAgent=none"),
        "another machine in its place": tuple(o for o in machine.options if not o.startswith("UserKnownHostsFile"))
        + ("UserKnownHostsFile=/dev/null",),
    }
    for options in others.values():
        with pytest.raises(LoweringError, match="tester@127.0.0.1 cannot be reached by ssh"):
            measure(bundle, machine.host, out=tmp_path / "r.json", ssh_options=options)
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize("host", ["", "-oProxyCommand=true", "a b", "a\0b", "a\nb", None])
def test_a_host_is_no_option(bundle: Path, tmp_path: Path, host: str) -> None:
    with pytest.raises(InputError, match="expected user@host"):
        measure(bundle, host, out=tmp_path / "r.json")


def test_what_is_no_bundle_is_not_copied(bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no bundle: manifest.json cannot be read"):
        measure(tmp_path, "a@b", out=tmp_path / "r.json")
    (tmp_path / "manifest.json").write_text('{"format": "something"}')
    with pytest.raises(InputError, match='is no bundle: "format"'):
        measure(tmp_path, "a@b", out=tmp_path / "r.json")
    with pytest.raises(InputError, match="there is no directory"):
        measure(bundle, "a@b", out=tmp_path / "missing" / "r.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"files": 3}, "manifest.json does not name model.onnx"),
        ({"files": {}}, "manifest.json does not name model.onnx"),
        ({"../evil": {"sha256": "0" * 64}}, r"manifest.json names '\.\./evil', which is outside of it"),
        ({"/etc/passwd": {"sha256": "0" * 64}}, "names '/etc/passwd', which is outside of it"),
        ({"..": {"sha256": "0" * 64}}, r"names '\.\.', which is outside of it"),
        ({"model.onnx": {"sha256": "; touch owned"}}, "manifest.json has no hash of model.onnx"),
        ({"model.onnx": None}, "manifest.json has no hash of model.onnx"),
    ],
)
def test_nothing_outside_of_a_bundle_is_copied(
    bundle: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    files = changes["files"] if "files" in changes else {**manifest["files"], **changes}
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "files": files}))
    with pytest.raises(InputError, match=message):
        measure(tmp_path, "a@b", out=tmp_path / "r.json")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bundle": None}, "bundle is a NoneType; expected a path"),
        ({"out": None}, "out is a NoneType; expected a path"),
        ({"out": "/"}, "/: is a directory; expected the name of a file"),
        ({"arguments": "--iterations 3"}, "arguments is the text '--iterations 3'; expected a list of words"),
        ({"ssh_options": "Port=22"}, "ssh_options is the text 'Port=22'; expected a list of words"),
        ({"ssh_options": [22]}, "ssh_options hold 22; expected words"),
        ({"python": "a\0b"}, "python hold .*; expected words, without the zero character"),
        ({"bundle": "a\0b"}, "bundle is .*zero character"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_copied(
    bundle: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        measure(**{"bundle": bundle, "host": "a@b", "out": tmp_path / "r.json", **changes})


# Layers, as engines name them


@pytest.mark.parametrize(
    ("name", "kind", "sort", "node"),
    [
        ("Conv_29 + Add_30 + Relu_31", "CaskConvolution", "contraction", "Conv_29"),
        ("stem.0.0/Conv", "", "contraction", "stem.0.0/Conv"),
        ("a/Conv || b/Conv", "CaskConvolution", "contraction", "a/Conv || b/Conv"),
        ("PWN(PWN(silu/Sigmoid), silu/Mul)", "PointWiseV2", "other", "silu/Sigmoid"),
        ("Reformatting CopyNode for Input Tensor 0 to stem.0.0/Conv", "Reformat", "copy", None),
        ("Reformatting CopyNode for Input Tensor 0 to stem.0.0/Conv", "", "copy", None),
        ("Split_output_0 copy", "", "copy", None),
        ("index_select/Gather", "Gather", "copy", "index_select/Gather"),
        ("index_select/Gather_2", "", "copy", "index_select/Gather_2"),
        ("ReorderInput_token_3", "ReorderInput", "copy", None),
        ("pool/MaxPool", "CaskPooling", "other", "pool/MaxPool"),
    ],
)
def test_layers_are_sorted(name: str, kind: str, sort: str, node: str | None) -> None:
    layer = LayerTime(name, kind, 1.0)
    assert (layer.is_copy, layer.is_contraction) == (sort == "copy", sort == "contraction")
    assert node is None or layer.node == node


# Dense against pruned


def kernel(name: str, rows: int) -> Kernel:
    return Kernel(name, "convolution", 100, Geometry("convolution", rows, 64, 100))


def results(label: str, ms: float, rows: int, *layers: LayerTime, **changes: Any) -> Results:
    run = Run("fp16", ms, 1e-3, changes.pop("agrees", True), 1.3, layers)
    return replace(Results(label, "TensorRT 8.2.1.8", {}, (run,), (kernel("a", rows), kernel("b", 8)), ()), **changes)


DENSE = results("dense", 10.0, 64, LayerTime("a/Conv", "", 6.0), LayerTime("b/Conv", "", 3.0))


def test_a_network_that_was_helped() -> None:
    """b kept its multiplications, so that its time is no reason."""
    pruned = results("pruned", 5.0, 32, LayerTime("a/Conv", "", 2.5), LayerTime("b/Conv", "", 3.0))
    (found,) = compare([DENSE, pruned])
    assert found.speedups == (2.0,)
    assert found.reasons == ((),)
    assert [(row.name, row.ms) for row in found.rows] == [("a", (6.0, 2.5)), ("b", (3.0, 3.0))]
    assert "pruned is 2.00 times as fast as dense: pruning helped\n" in str(found) + "\n"


def test_copies_slow_layers_and_odd_widths_are_the_reasons() -> None:
    layers = (
        LayerTime("a/Conv", "", 6.1),
        LayerTime("b/Conv", "", 2.0),
        LayerTime("index_select/Gather", "", 1.5),
        LayerTime("Reformatting CopyNode for Input Tensor 0 to b/Conv", "", 0.5),
    )
    (found,) = compare([DENSE, results("pruned", 9.9, 31, *layers)])
    text = str(found)
    assert "pruned is 1.01 times as fast as dense: pruning did NOT help:" in text
    (reasons,) = found.reasons
    assert reasons[0].startswith("2 more copies, +2.000 ms: index_select/Gather")
    assert reasons[1] == ("1 layers have fewer multiplications and take as long: a (48% of the MACs, 102% of the time)")
    assert reasons[2].endswith("FP16 computes in pairs: a (31)")
    assert reasons[3] == "4 layers are launched, 2 before; each costs its launch"
    assert ("copies", (None, 2.0)) in [(row.name, row.ms) for row in found.rows]


HALF = results("pruned", 5.0, 32, *DENSE.runs[0].layers)
SLOW_CLOCK = replace(HALF, runs=(replace(HALF.runs[0], gpu_ghz=1.12),))


@pytest.mark.parametrize(
    ("dense", "other", "warning"),
    [
        (DENSE, replace(HALF, environment={"board": "quill"}), "compared: board (dense: unknown, pruned: quill)"),
        (replace(DENSE, environment={"nvpmodel": "MAXN"}), replace(HALF, environment={"nvpmodel": "MAXQ"}),
         "times of different machines or settings are compared: nvpmodel (dense: MAXN, pruned: MAXQ)"),
        (replace(DENSE, environment={"gpu": "RTX 4090, 550, 2520 MHz"}), replace(HALF, environment={"gpu": "T4, 550"}),
         "gpu (dense: RTX 4090, pruned: T4)"),
        (DENSE, SLOW_CLOCK, "the GPU's clock differed while they were measured: dense: 1.30 GHz, pruned: 1.12 GHz"),
        (HALF, DENSE, "dense does not look like pruned, pruned: a (layers: 1) are not there, smaller or of another"),
        (DENSE, replace(HALF, kernels=(kernel("c", 8),)), "pruned does not look like dense, pruned: c (layers: 1)"),
        (DENSE, replace(HALF, kernels=(Kernel("a", "convolution", 1, Geometry("convolution", 8, 8, 49)),)), ": a ("),
    ],
)  # fmt: skip
def test_what_else_times_differ_by_is_a_warning(dense: Results, other: Results, warning: str) -> None:
    (found,) = compare([dense, other])
    (told,) = found.warnings
    assert warning in told
    assert f"warning: {told}" in " ".join(str(found).split())


def timed(found: Results, least: float, ninetieth: float) -> Results:
    return replace(found, runs=(replace(found.runs[0], ms_least=least, ms_90th=ninetieth),))


def test_a_loaded_machine_is_warned_of_and_the_least_times_are_shown() -> None:
    """The dense network was measured beside other work; by the least times nothing was won."""
    (found,) = compare([timed(DENSE, 5.1, 26.0), timed(HALF, 5.0, 5.1)])
    assert found.least_speedups == (5.1 / 5.0,)
    (warning,) = found.warnings
    assert "the machine did other work while dense was measured (its times differ by 2.60 times)" in warning
    assert "pruned is 2.00 times as fast as dense (1.02 by the least times): pruning may have helped" in str(found)
    assert not compare([timed(DENSE, 9.8, 10.2), timed(HALF, 4.9, 5.1)])[0].warnings


def test_a_speed_up_beyond_the_work_that_was_saved_is_warned_of() -> None:
    """37.89 times as fast with 56 % of the multiplications: pruning does not do that."""
    fast = replace(HALF, runs=(replace(HALF.runs[0], ms=10.0 / 37.89),))
    (warning,) = compare([DENSE, fast])[0].warnings
    assert "pruned is 37.89 times as fast with 56% of the multiplications, which explain 1.80 times" in warning


def test_a_machine_in_one_mode_needs_no_warning() -> None:
    """The clock of the moment, which nvidia-smi tells too, may differ a little."""
    there = [{"board": "quill", "nvpmodel": "MAXN", "gpu": f"T4, 550, {clock} MHz"} for clock in (1590, 1575)]
    again = replace(HALF, environment=there[1], runs=(replace(HALF.runs[0], gpu_ghz=1.31),))
    (found,) = compare([replace(DENSE, environment=there[0]), again])
    assert found.warnings == () and "warning" not in str(found)


@pytest.mark.parametrize("given", [None, [Path("results.json")], DENSE, "results.json"])
def test_only_results_are_compared(given: Any) -> None:
    with pytest.raises(InputError, match=r"expected a list of Results: compare\(\[read_results\(path\)"):
        compare(given)


@pytest.mark.parametrize(
    ("others", "message"),
    [
        ([], "1 results are given; at least two are compared"),
        ([replace(DENSE, engine="ONNX Runtime 1.8")], "times of different engines"),
        ([replace(DENSE, runs=(replace(DENSE.runs[0], precision="fp32"),))], "no precision in common"),
        ([replace(DENSE, runs=(replace(DENSE.runs[0], nms=True),))], "NMS .*: dense without, dense with"),
        ([results("pruned", 1.0, 8, agrees=False)], "pruned, fp16: the outputs deviate by 0.001"),
    ],
)
def test_what_cannot_be_compared_is_refused(others: list[Results], message: str) -> None:
    with pytest.raises(InputError, match=message):
        compare([DENSE, *others])


def test_the_command_names_a_file_that_is_no_result(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text(json.dumps({"format": "l1rr-fx results", "version": 7}))
    done = CliRunner().invoke(app, ["compare", str(tmp_path / "r.json")])
    assert done.exit_code == 2
    assert "version 7" in done.output.replace("\n", "")
