"""Bundles: what they hold, that they measure themselves, and that nothing is half-written."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy
import onnx
import pytest
import torch
from torch import Tensor, nn
from typer.testing import CliRunner

import l1rr_fx
from l1rr_fx.cli.measuring import app
from l1rr_fx.demo.detector import TreeDetector, Widths
from l1rr_fx.latency import results
from l1rr_fx.latency.results import Results, read_results
from l1rr_fx.lowering.bundle import build_and_measure
from l1rr_fx.lowering.bundle import writing as bundle_format
from l1rr_fx.lowering.bundle.writing import SCRIPT, lower
from passes.errors import InputError, LoweringError

FILES = {
    "README.md", "build_and_measure.py", "expected.npz", "inputs.npz", "manifest.json", "model.onnx", "model_fp16.onnx",
    "config.pbtxt", "nvinfer.txt",
}  # fmt: skip


def detector() -> tuple[nn.Module, tuple[Tensor]]:
    torch.manual_seed(0)
    return TreeDetector(Widths(8, 8, 16, 16, 16, 16)).eval(), (torch.rand(1, 3, 64, 64),)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a small detector; tests that change it copy it first."""
    model, args = detector()
    return lower(model, args, out=tmp_path_factory.mktemp("bundles") / "small").path


@pytest.fixture
def copied(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "copy"))


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(folder / SCRIPT), "--iterations", "5", "--warmup", "0", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)


def measured(folder: Path, *arguments: str) -> Results:
    done = run(folder, *arguments)
    assert done.returncode == 0, done.stderr
    return read_results(folder / "results.json")


# What it holds


def test_a_bundle_holds_what_its_manifest_says(bundle: Path) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert {path.name for path in bundle.iterdir()} == FILES
    assert manifest["files"].keys() == FILES - {"manifest.json"}
    for name, facts in manifest["files"].items():
        content = (bundle / name).read_bytes()
        assert facts == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    assert manifest["label"] == "small"
    assert onnx.load(str(bundle / "model.onnx")).opset_import[0].version == manifest["opset"] == 13


def test_the_stored_tensors_are_torchs(bundle: Path) -> None:
    model, args = detector()
    with torch.no_grad():
        outputs = model(*args)
    inputs, expected = (numpy.load(bundle / f"{name}.npz") for name in ("inputs", "expected"))
    assert torch.equal(torch.from_numpy(inputs["image"]), args[0])
    assert expected.files == list(outputs)
    assert all(torch.from_numpy(expected[name]).equal(value) for name, value in outputs.items())


def test_the_readme_says_predicted_and_names_the_workspace(bundle: Path) -> None:
    text = (bundle / "README.md").read_text()
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert f"Predicted, not measured, FP16 at 1.30 GHz: {manifest['predicted']['fp16']['ms']:.2f} ms" in text
    assert "trtexec --onnx=model.onnx --saveEngine=engine_fp16.plan --fp16 --workspace=1024" in text


def test_the_same_network_gives_the_same_bytes(bundle: Path, tmp_path: Path) -> None:
    model, args = detector()
    again = lower(model, args, out=tmp_path / "small").path
    assert {name: (again / name).read_bytes() for name in FILES} == {n: (bundle / n).read_bytes() for n in FILES}


@pytest.mark.parametrize(
    ("target", "opset", "command"),
    [
        (
            "tensorrt-10",
            18,
            "trtexec --onnx=model.onnx --saveEngine=engine_fp16.plan --fp16 --memPoolSize=workspace:1024",
        ),
        (
            "tensorrt-11",
            18,
            "trtexec --onnx=model_fp16.onnx --saveEngine=engine_fp16.plan --memPoolSize=workspace:1024",
        ),
        ("onnxruntime", 18, None),
    ],
)
def test_other_targets_have_their_own_commands(tmp_path: Path, target: str, opset: int, command: str | None) -> None:
    found = lower(nn.Conv2d(3, 4, 3).eval(), (torch.rand(1, 3, 8, 8),), target=target, out=tmp_path / "b")
    manifest = json.loads((found.path / "manifest.json").read_text())
    assert found.emitted.opset == opset
    assert found.predictions == {} == manifest["predicted"]
    assert [line.startswith(command or "") for line in manifest["commands"]] == ([True, False] if command else [])


def test_a_pruned_network_is_lowered_by_its_report(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    model[1].weight.data[:3] = model[1].bias.data[:3] = 0
    pruned = l1rr_fx.prune(model, (torch.rand(1, 3, 8, 8),))
    found = lower(pruned, (torch.rand(1, 3, 8, 8),), out=tmp_path / "b", half_model=False)
    assert not (found.path / "model_fp16.onnx").exists()
    kernels = json.loads((found.path / "manifest.json").read_text())["kernels"]
    assert [(kernel["name"], kernel["geometry"]["rows"]) for kernel in kernels] == [("0", 5), ("3", 4)]
    assert measured(found.path).runs[0].agrees


def test_an_fp16_file_that_cannot_hold_the_numbers_is_left_out_and_said(tmp_path: Path) -> None:
    model = nn.Conv2d(3, 4, 1, bias=False).eval()
    model.weight.data *= 1e-9
    found = lower(model, (torch.rand(1, 3, 8, 8),), out=tmp_path / "b")
    assert {path.name for path in found.path.iterdir()} == FILES - {"model_fp16.onnx"}
    for text in (str(found), (found.path / "README.md").read_text()):
        assert "model_fp16.onnx was left out: the ONNX file deviates by 1" in text


# The script


class Fused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.relu6(self.a(x))
        return (self.b(y).relu() + self.c(y)).relu()


def test_fused_convolutions_keep_their_names(tmp_path: Path) -> None:
    found = lower(Fused().eval(), (torch.rand(1, 3, 8, 8),), out=tmp_path / "b", half_model=False)
    layers = measured(found.path, "--engine", "onnxruntime").runs[0].layers
    assert sorted(layer.module for layer in layers if layer.is_contraction) == ["a", "b", "c"]


def test_the_script_runs_on_the_oldest_python_that_it_names() -> None:
    import vermin

    source = Path(build_and_measure.__file__).read_text()
    visitor = vermin.visit(source, vermin.Config())
    assert "Python 3.6 or newer" in source
    assert visitor.minimum_versions()[1] <= (3, 6)
    tree = ast.parse(source, feature_version=(3, 6))
    annotations = [n.annotation for n in ast.walk(tree) if isinstance(n, (ast.arg, ast.AnnAssign)) and n.annotation]
    annotations += [n.returns for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.returns]
    for each in (part for annotation in annotations for part in ast.walk(annotation)):  # vermin does not see these
        assert not isinstance(each, ast.BinOp), ast.unparse(each)
        assert not (isinstance(each, ast.Subscript) and ast.unparse(each.value) in ("list", "dict", "tuple", "set"))


def test_the_script_imports_nothing_but_numpy_and_the_standard_library() -> None:
    source = Path(build_and_measure.__file__).read_text()
    lines = {line.split()[1].partition(".")[0] for line in source.splitlines() if line.startswith(("import ", "from "))}
    assert lines - sys.stdlib_module_names == {"numpy"}


def test_script_and_package_mean_the_same_format() -> None:
    assert (build_and_measure.FORMAT, build_and_measure.VERSION) == (results.FORMAT, results.VERSION)
    assert (build_and_measure.BUNDLE, build_and_measure.BUNDLE_VERSION) == (bundle_format.FORMAT, bundle_format.VERSION)


def test_without_a_gpu_onnx_runtime_is_measured_and_says_so(copied: Path) -> None:
    found = measured(copied)
    (run_,) = found.runs
    assert found.engine.startswith("ONNX Runtime") and not found.on_tensorrt
    assert found.notes[-1] == "measured on the CPU with ONNX Runtime, not with TensorRT"
    assert run_.agrees and run_.deviation <= 1e-4 and run_.ms > 0
    convolutions = {layer.module for layer in run_.layers if layer.is_contraction}
    assert convolutions == {kernel.name for kernel in found.kernels if kernel.kind == "convolution"}
    if find_spec("tensorrt") is None and find_spec("tensorrt_rtx") is None:
        assert found.notes[0] == "TensorRT is not installed"


def test_nvidias_parser_and_builder_take_both_files(copied: Path) -> None:
    """TensorRT for RTX builds engines without a GPU; it is among the packages that the tests need."""
    measured(copied)
    built = json.loads((copied / "results.json").read_text())["built"]
    assert built["engine"]["name"] == "TensorRT for RTX"
    assert [(run["precision"], run["model"]) for run in built["runs"]] == [
        ("fp16", "model_fp16.onnx"),
        ("fp32", "model.onnx"),
    ]
    for each in built["runs"]:
        assert (copied / f"engine_{each['precision']}.plan").stat().st_size == each["bytes"] > 10_000


def test_what_the_script_calls_is_in_nvidias_module() -> None:
    """Running needs a GPU. That the names exist, and mean what they are taken for, can be checked without one."""
    import tensorrt_rtx as trt

    for owner, names in {
        trt.ICudaEngine: "num_io_tensors get_tensor_name get_tensor_mode get_tensor_dtype get_tensor_shape "
        "create_execution_context create_engine_inspector",
        trt.IExecutionContext: "set_tensor_address execute_async_v3 profiler",
        trt.IBuilderConfig: "set_memory_pool_limit profiling_verbosity",
        trt.EngineInspector: "get_engine_information",
        trt.Runtime: "deserialize_cuda_engine",
    }.items():
        assert [name for name in names.split() if not hasattr(owner, name)] == []
    assert trt.nptype(trt.DataType.HALF) == numpy.float16
    assert trt.TensorIOMode.INPUT != trt.TensorIOMode.OUTPUT
    assert hasattr(trt.LayerInformationFormat, "JSON") and hasattr(trt.ProfilingVerbosity, "DETAILED")
    assert callable(trt.IProfiler.report_layer_time)
    assert not build_and_measure.has_half_flag(trt)


def test_a_network_that_computes_something_else_is_told(copied: Path) -> None:
    """The manifest is forged too, or the hash would tell."""
    path = copied / "expected.npz"
    arrays = dict(numpy.load(path))
    arrays["sides_8"] = arrays["sides_8"] * 1.01
    numpy.savez(path, **arrays)
    manifest = json.loads((copied / "manifest.json").read_text())
    manifest["files"]["expected.npz"]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    (copied / "manifest.json").write_text(json.dumps(manifest))
    done = run(copied, "--engine", "onnxruntime")
    assert done.returncode == 1
    assert "DIFFERS" in done.stdout
    (run_,) = read_results(copied / "results.json").runs
    assert not run_.agrees and 0.005 < run_.deviation < 0.02


def test_a_damaged_bundle_is_refused(copied: Path) -> None:
    with (copied / "model.onnx").open("r+b") as file:
        file.seek(100)
        file.write(b"\0\0\0\0")
    done = run(copied)
    assert done.returncode == 2
    assert "model.onnx was damaged or changed" in done.stderr
    (copied / "inputs.npz").unlink()
    assert "inputs.npz is missing" in run(copied).stderr
    assert not (copied / "results.json").exists()


def test_tensorrt_is_not_replaced_where_it_was_asked_for(copied: Path) -> None:
    done = run(copied, "--engine", "tensorrt")
    assert done.returncode == 2
    assert "there is no GPU" in done.stderr or "CUDA runtime" in done.stderr or "not installed" in done.stderr
    assert not (copied / "results.json").exists()


class Scaled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.float() / 255


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64, torch.bool, torch.float64])
def test_inputs_are_given_as_the_file_wants_them(tmp_path: Path, dtype: torch.dtype) -> None:
    image = (torch.rand(1, 3, 4, 4) * 200).to(dtype)
    found = lower(Scaled().eval(), (image,), out=tmp_path / "b", half_model=False).path
    assert measured(found, "--engine", "onnxruntime").runs[0].agrees


def test_fp16_is_not_measured_in_onnx_runtime(copied: Path) -> None:
    done = run(copied, "--engine", "onnxruntime", "--precision", "fp16")
    assert (done.returncode, done.stderr) == (
        2, "error: ONNX Runtime is measured in FP32 only, which was not asked for: add fp32 to --precision\n"
    )  # fmt: skip
    assert not (copied / "results.json").exists()


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--iterations", "0", "expected at least 1"),
        ("--iterations", "-1", "expected at least 1"),
        ("--iterations", "many", "invalid positive value"),
        ("--workspace", "-1", "expected at least 1"),
        ("--warmup", "inf", "a finite number of seconds"),
        ("--warmup", "-1", "a finite number of seconds"),
        ("--out", ".", "is a folder, or in none"),
        ("--out", "/nowhere/at/all.json", "is a folder, or in none"),
    ],
)
def test_wrong_options_are_refused_before_anything_is_measured(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, option: str, value: str, message: str
) -> None:
    monkeypatch.setattr(build_and_measure, "HERE", str(copied))
    monkeypatch.setattr(sys, "argv", [SCRIPT, "--engine", "onnxruntime", option, value])
    with pytest.raises(SystemExit, match="2"):
        build_and_measure.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: argument {option}: ") and message in line


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (None, "manifest.json cannot be read"),
        ("{", "manifest.json cannot be read"),
        ("[1]", 'its "format" is not "l1rr-fx bundle"'),
        ({"format": "other"}, 'its "format" is not "l1rr-fx bundle"'),
        ({"version": 99}, "the bundle has version 99, this script reads 1"),
        ({"files": ...}, "manifest.json lacks files"),
        ({"tolerance": {"fp32": 1e-3, "fp16": "much"}}, "lacks tolerance.fp16, tolerance.onnxruntime"),
        ({"nodes": ..., "label": 3, "nms": ...}, "lacks label, nodes, nms"),
        ({"nms": {"output": "output0"}}, "lacks nms.score, nms.overlap, nms.most, nms.tolerance.fp32"),
        ({"files": {"../evil": {"sha256": "0"}}}, "names '../evil', which is no file of a bundle"),
        ({"files": {"model.onnx": 3}}, "names 'model.onnx', which is no file of a bundle"),
    ],
)
def test_a_manifest_of_something_else_is_refused(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, changes: Any, message: str
) -> None:
    path = copied / "manifest.json"
    if isinstance(changes, dict):
        merged = {**json.loads(path.read_text()), **changes}
        path.write_text(json.dumps({key: value for key, value in merged.items() if value is not ...}))
    elif changes is None:
        path.unlink()
    else:
        path.write_text(changes)
    monkeypatch.setattr(build_and_measure, "HERE", str(copied))
    monkeypatch.setattr(sys, "argv", [SCRIPT, "--engine", "onnxruntime"])
    assert build_and_measure.main() == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and message in line


def test_a_disk_that_refuses_is_one_line(copied: Path) -> None:
    (copied / "model.onnx").unlink()
    (copied / "model.onnx").mkdir()
    done = run(copied, "--engine", "onnxruntime")
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)
    assert "Is a directory" in done.stderr


def test_equal_values_that_are_not_finite_do_not_deviate() -> None:
    """Masked logits are minus infinity; what is finite beside them is compared as ever."""
    inf, nan = numpy.inf, numpy.nan
    want = numpy.array([1.0, -inf, inf, nan, 2.0], numpy.float32)

    def off(*values: float) -> float:
        return build_and_measure.deviation({"y": numpy.array(values, numpy.float32)}, {"y": want})

    assert off(*want) == 0
    assert off(1.0, -inf, inf, nan, 2.1) == pytest.approx(0.05)
    for wrong in ((1.0, inf, inf, nan, 2.0), (1.0, -inf, inf, 0.0, 2.0), (nan, -inf, inf, nan, 2.0),
                  (1.0, 0.0, inf, nan, 2.0), (1.0, -inf, nan, nan, 2.0)):  # fmt: skip
        assert off(*wrong) == build_and_measure.WRONG
    assert build_and_measure.deviation({"y": want[:0]}, {"y": want[:0]}) == 0


# Nothing half-written


def linear() -> tuple[nn.Module, tuple[Tensor]]:
    return nn.Linear(200, 200).eval(), (torch.rand(1, 200),)


@pytest.mark.parametrize("target", ["jetson-nano", ""])
def test_a_wrong_target_is_named_before_anything_is_written(tmp_path: Path, target: str) -> None:
    with pytest.raises(InputError, match="there is no target .* there are jetson-tx2, onnxruntime"):
        lower(*linear(), target=target, out=tmp_path / "b")
    assert not [*tmp_path.iterdir()]


def test_a_folder_is_replaced_only_if_it_is_a_bundle_and_only_if_asked(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("")
    shutil.copytree(bundle, tmp_path / "bundle")
    for name, overwrite, message in (
        ("other", False, "not empty"),
        ("other", True, "no bundle: it is not replaced"),
        ("file", True, "no directory"),
        ("bundle", False, "overwrite=True"),
    ):
        with pytest.raises(InputError, match=message):
            lower(*linear(), out=tmp_path / name, overwrite=overwrite)
    assert (tmp_path / "other" / "thesis.txt").read_text() == "years of work"
    lower(*linear(), out=tmp_path / "bundle", overwrite=True, half_model=False)
    assert {path.name for path in (tmp_path / "bundle").iterdir()} == FILES - {"model_fp16.onnx", "nvinfer.txt"}


@pytest.fixture
def small_disk() -> Iterator[None]:
    """No file can grow beyond 50 kB: the system refuses as a full disk does."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk_leaves_nothing(tmp_path: Path, small_disk: None) -> None:
    with pytest.raises(InputError, match="cannot be written: File too large"):
        lower(*linear(), out=tmp_path / "b")
    assert not [*tmp_path.iterdir()]


def test_a_missing_package_is_named_and_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(InputError, match=r"this needs onnx, which cannot be imported .* pip install 'l1rr-fx\[onnx\]'"):
        lower(*linear(), out=tmp_path / "b")
    assert not [*tmp_path.iterdir()]


class Unsayable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.svdvals(x @ self.weight)


def test_an_operator_that_the_target_lacks_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(LoweringError, match="svd"):
        lower(Unsayable().eval(), (torch.rand(4, 4),), out=tmp_path / "b")
    assert not [*tmp_path.iterdir()]


def test_a_folder_inside_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be a folder: .* is none"):
        lower(*linear(), out=tmp_path / "file" / "b", half_model=False)


def test_a_network_in_half_precision_is_held_to_what_it_rounds(tmp_path: Path) -> None:
    model, args = detector()
    image = args[0].to(torch.bfloat16)
    lower(model.to(torch.bfloat16), (image,), target="onnxruntime", out=tmp_path / "bundle", half_model=False)
    done = run(tmp_path / "bundle", "--iterations", "1")
    assert done.returncode == 0, done.stdout + done.stderr


# The command


MODELS = """
import torch
from torch import nn

def net():
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()).eval(), (torch.ones(1, 3, 4, 4),)
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "bundle_models", raising=False)
    (tmp_path / "bundle_models.py").write_text(MODELS)
    return tmp_path


def call(*arguments: str) -> Any:
    return CliRunner().invoke(app, [*arguments])


def test_the_command_lowers_a_model_and_a_saved_network(here: Path) -> None:
    done = call("lower", "bundle_models:net", "-o", "one")
    assert done.exit_code == 0, done.output
    assert "FP16, 1.30 GHz: predicted" in done.output
    model, args = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()).eval(), (torch.ones(1, 3, 4, 4),)
    l1rr_fx.prune(model, args).save(here / "saved")
    done = call("lower", "saved", "-o", "two", "--shape", "1x3x4x4", "--label", "pruned")
    assert done.exit_code == 0, done.output
    assert json.loads((here / "two" / "manifest.json").read_text())["label"] == "pruned"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("bundle_models:net", "--target", "toaster"), "'toaster' is not one of 'jetson-tx2'"),
        ((".",), "the file is missing"),
        (("nothing.pt2",), "there is no such file"),
    ],
)
def test_the_command_says_what_is_wrong(here: Path, arguments: tuple[str, ...], message: str) -> None:
    done = call("lower", *arguments, "-o", "bundle")
    assert done.exit_code == 2
    assert message in done.output and done.output.count("\n") == 1
    assert not (here / "bundle").exists()


def test_files_have_the_usual_permissions(bundle: Path) -> None:
    """The script can be started, and the rest read, by whoever the umask lets."""
    umask = os.umask(0)
    os.umask(umask)
    modes = {path.name: path.stat().st_mode & 0o777 for path in bundle.iterdir()}
    assert modes.pop(SCRIPT) == 0o777 & ~umask
    assert {*modes.values()} == {0o666 & ~umask}
    assert bundle.stat().st_mode & 0o777 == 0o777 & ~umask
