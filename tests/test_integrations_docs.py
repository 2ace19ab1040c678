"""docs/integrations.md is what it says: every block of it runs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.fx import GraphModule

from l1rr_fx import load
from l1rr_fx.integrations import inductor
from passes.errors import InputError
from tests.installed import is_installed
from tests.torchvision_shim import import_torchvision
from tests.yolo_trees import SETTINGS, needs_trees, offline_ultralytics, write_trees

PAGE = (Path(__file__).resolve().parent.parent / "docs" / "integrations.md").read_text(encoding="utf-8")
COMPILER = shutil.which("g++") or shutil.which("clang++") or shutil.which("c++")
BACKENDS = {'"then": "inductor"': f'"then": "{"inductor" if COMPILER else "eager"}"'}
ALONE = ("inductor", "torch_tensorrt", "ultralytics", "lightning", "accelerate", "torchrun", "models")
"""Blocks with a name: each has a test of its own, after the first block."""
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="inductor compiles C++, and there is no compiler here")


def blocks(name: str) -> list[str]:
    """The blocks of a name, "" for those that have none."""
    found = re.findall(r"^```python *(\w*)\n(.*?)^```$", PAGE, flags=re.MULTILINE | re.DOTALL)
    return [code for each, code in found if each == name]


def needs(package: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        not is_installed(package), reason=f"{package} is missing: pip install --no-deps {package}, as the Makefile does"
    )


def run(code: str, names: dict[str, Any], **replaced: str) -> dict[str, Any]:
    for old, new in {**BACKENDS, **replaced}.items():
        code = code.replace(old, new)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries that talk to people
        exec(compile(code, "docs/integrations.md", "exec"), names)
    return names


@pytest.fixture
def names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What the first block defines; the working directory is an empty one."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    torch._dynamo.reset()
    yield run(blocks("")[0], {})
    torch._dynamo.reset()


def test_every_block_has_its_test() -> None:
    found = re.findall(r"^```python *(\w*)$", PAGE, flags=re.MULTILINE)
    assert set(found) == {"", *ALONE} and PAGE.count("```") == 2 * len(found)


def test_the_blocks_without_a_name_in_order(names: dict[str, Any]) -> None:
    for code in blocks("")[1:]:
        run(code, names)


@needs_compiler
def test_inductor(names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []

    def replace(module: GraphModule, other: GraphModule) -> None:
        replaced(module, other)
        left.append(sum(parameter.numel() for parameter in module.parameters()))

    replaced = inductor.replace_graph
    monkeypatch.setattr(inductor, "replace_graph", replace)
    run(blocks("inductor")[0], names)
    assert left == [16 * 27 + 2 * 16 + 16 * 16 * 9 + 2 * 16 + 4 * 16 + 4]


def test_torch_tensorrt_is_asked_for_by_version(names: dict[str, Any]) -> None:
    if is_installed("torch-tensorrt") and torch.cuda.is_available():
        run(blocks("torch_tensorrt")[0], names)
        return
    with pytest.raises(InputError, match=r"torch-tensorrt.*2\.11"):
        run(blocks("torch_tensorrt")[0], names)


@needs_trees
def test_ultralytics(names: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """YOLO11n end to end, by the stock trainer on one core."""
    package = offline_ultralytics(monkeypatch)
    write_trees(tmp_path, train=3)
    quiet = {**SETTINGS, "project": str(tmp_path / "runs")}
    del quiet["imgsz"]
    train, val = package.YOLO.train, package.YOLO.val
    monkeypatch.setattr(package.YOLO, "train", lambda yolo, **given: train(yolo, **{**quiet, **given}))
    judged = {name: quiet[name] for name in ("device", "plots", "workers", "verbose", "exist_ok", "project")}
    monkeypatch.setattr(package.YOLO, "val", lambda yolo, **given: val(yolo, **{**judged, "batch": 1, **given}))
    found = run(blocks("ultralytics")[0], names, **{"imgsz=640": "imgsz=64", "epochs=100": "epochs=3"})
    chosen, model = found["chosen"], found["yolo"].model
    assert chosen.zeroed > 1000
    for site in chosen.sites:
        assert not bool(model.get_parameter(site.weight)[list(site.zeroed)].any())
    accounts = found["small"].report.accounts
    assert accounts.after.macs < 0.21 * accounts.before.macs
    assert (tmp_path / "jetson-tx2" / "model.onnx").is_file()


@needs("lightning")
def test_lightning(names: dict[str, Any]) -> None:
    import_torchvision()
    found = run(blocks("lightning")[0], names)
    check_held(found, found["lit"].model)


@needs("accelerate")
def test_accelerate(names: dict[str, Any]) -> None:
    data = torch.utils.data.TensorDataset(torch.rand(8, 3, 16, 16), torch.randint(4, (8,)))
    names["loader"] = torch.utils.data.DataLoader(data, batch_size=4)
    before = names["network"]()
    found = run(blocks("accelerate")[0], names)
    assert not torch.equal(found["model"][1].weight, before[1].weight)


def check_held(found: dict[str, Any], model: Any) -> None:
    """Training has moved the network, the plan's zeros are there, and they are gone from the small one."""
    assert not torch.equal(model[0].weight, found["network"]()[0].weight)
    for site in found["plan"].sites:
        assert not bool(model.get_parameter(site.weight)[list(site.zeroed)].any())
    assert sum(p.numel() for p in found["small"].parameters()) < sum(p.numel() for p in model.parameters())


def test_torchrun(names: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(blocks("torchrun")[0])
    command = [sys.executable, "-W", "ignore", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    result = subprocess.run([*command, "train.py"], capture_output=True, text=True, timeout=1200)
    assert result.returncode == 0, result.stderr[-4000:]
    assert load(tmp_path / "small").module.get_parameter("0.weight").shape[0] < 16


def test_models_of_timm_and_torchvision(names: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    import_torchvision()
    run(blocks("models")[0], names)
    assert capsys.readouterr().out.count("MACs after / limit") == 2
