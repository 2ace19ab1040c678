"""A pruned network runs where this package is not: as `.pt2`, TorchScript and ONNX file, in Python and C++."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import namedtuple
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import l1rr_fx
from l1rr_fx import InputError
from l1rr_fx.lowering.onnx.nms import NAMES
from l1rr_fx.testing import kill, randomised
from tests.test_docs import blocks, example, run, text
from tests.test_size_guards import Pair, Pooled

ROUNDING = 1e-12
"""Relative, in float64: the same operators in the same order but for batch norms, which a loaded program runs alike."""

ALONE = """
import sys
sys.modules["l1rr_fx"] = sys.modules["passes"] = None  # as if they were not installed
{torch}
{run}
assert not [name for name, module in sys.modules.items() if module and name.split(".")[0] in ("l1rr_fx", "passes")]
"""


class Net(nn.Module):
    """A residual block with a head that reads the number of images."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out: Tensor = self.head((x + self.block(x)).mean((2, 3)).view(x.shape[0], -1))
        return out


class Wrapped(nn.Module):
    """The network with another way to take inputs or to give outputs."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.network, self.way = Net(), forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.way(self.network, *args, **kwargs)


class Branching(nn.Module):
    """No graph: it branches on values."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.network = nn.Conv2d(3, 3, 1), Net()

    def forward(self, x: Tensor) -> Tensor:
        if self.stem(x).sum() > 0:
            x = -x
        out: Tensor = self.network(x)
        return out


Point = namedtuple("Point", "x y")


def image(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def small(model: nn.Module, *args: Tensor, layer: str = "stem.0", **options: Any) -> tuple[l1rr_fx.Pruned, nn.Module]:
    """The model with three dead channels of a layer, in eval mode and float64, pruned and as it is."""
    model = randomised(model).eval()
    kill(model.get_submodule(layer), [0, 1, 2])
    return l1rr_fx.prune(model, args, **options), model


def alone(code: str, torch: str = "import torch") -> str:
    """What a new process prints, which cannot import l1rr_fx or passes."""
    command = [sys.executable, "-c", ALONE.format(run=code, torch=torch)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout


def test_files_run_where_this_package_is_not(tmp_path: Path) -> None:
    pruned, model = small(Net(), image(2, 3, 8, 8), dynamic_shapes=({0: Dim("batch")},))
    batches = [image(2, 3, 8, 8), image(5, 3, 8, 8)]
    pruned.export(tmp_path / "small.pt2")
    with torch.no_grad():
        torch.jit.trace(pruned.module, batches[0]).save(tmp_path / "small.ts")
        torch.save([(batch, model(batch)) for batch in batches], tmp_path / "cases.pt")
    # The view of the head does nothing and is gone, so that the network reads no size, which a trace would fix.
    printed = alone(f"""
for load in (lambda: torch.export.load({str(tmp_path / "small.pt2")!r}).module(),
             lambda: torch.jit.load({str(tmp_path / "small.ts")!r})):
    network = load()
    for batch, expected in torch.load({str(tmp_path / "cases.pt")!r}):
        try:
            deviation = (network(batch) - expected).abs().max() / expected.abs().max()
            print(len(batch), "right" if deviation < {ROUNDING} else "wrong")
        except RuntimeError as error:
            print(len(batch), error)
""")
    assert printed.splitlines() == ["2 right", "5 right", "2 right", "5 right"]


SIZES: dict[str, tuple[Any, ...]] = {
    "a batch": (Pooled, [(2, 3, 8, 8)], {0: Dim("batch")}, [(1, 3, 8, 8), (7, 3, 8, 8)], [(2, 3, 12, 8)]),
    "a bound": (Pooled, [(2, 3, 8, 8)], {2: Dim("h", max=12)}, [(2, 3, 12, 8)], [(2, 3, 14, 8), (2, 3, 8, 9)]),
    "what the code assumed": (Pooled, [(2, 3, 8, 8)], {2: Dim.AUTO}, [(2, 3, 12, 8)], [(2, 3, 14, 8), (1, 3, 8, 8)]),
    "sizes that agree": (Pair, [(1, 3, 8, 8)] * 2, {2: Dim.AUTO}, [(1, 3, 16, 8)], [(1, 3, 10, 8), (1, 3, 8, 9)]),
    "fixed": (Pooled, [(2, 3, 8, 8)], None, [(2, 3, 8, 8)], [(1, 3, 8, 8), (2, 3, 12, 8)]),
}
"""Model, sizes of the example, dynamic shapes of each input, sizes that are served, sizes that are refused."""


@pytest.mark.parametrize("of", ["pruned", "loaded"])
@pytest.mark.parametrize("case", SIZES)
def test_the_sizes_that_may_change_are_kept(case: str, of: str, tmp_path: Path) -> None:
    kind, sizes, free, served, refused = SIZES[case]
    shapes = None if free is None else (free,) * len(sizes)
    args = tuple(image(*size) for size in sizes)
    pruned, model = small(kind(), *args, layer="stem", dynamic_shapes=shapes)
    if of == "loaded":
        pruned.save(tmp_path / "saved")
        l1rr_fx.load(tmp_path / "saved").export(tmp_path / "small.pt2")
    else:
        pruned.export(tmp_path / "small.pt2")
    network = torch.export.load(tmp_path / "small.pt2").module()
    for size in served:
        inputs = (image(*size),) * len(sizes)
        torch.testing.assert_close(network(*inputs), model(*inputs), rtol=ROUNDING, atol=ROUNDING)
    for size in refused:
        with pytest.raises(AssertionError, match=r"Guard failed: .*size\(\)"):
            network(*(image(*size),) * len(sizes))


def test_inputs_of_which_all_sizes_are_free_have_no_guards(tmp_path: Path) -> None:
    model = randomised(nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 3))).eval()
    kill(model.get_submodule("1"), [0, 1, 2])
    args, free = (torch.arange(6).reshape(2, 3),), ({0: Dim("batch"), 1: Dim("length")},)
    pruned = l1rr_fx.prune(model, args, dynamic_shapes=free)
    pruned.export(tmp_path / "small.pt2")
    pruned.save(tmp_path / "saved")
    l1rr_fx.load(tmp_path / "saved").export(tmp_path / "loaded.pt2", args, dynamic_shapes=free)
    tokens = torch.arange(10).reshape(2, 5)
    for name in ("small", "loaded"):
        found = torch.export.load(tmp_path / f"{name}.pt2").module()(tokens)
        torch.testing.assert_close(found, model(tokens), rtol=ROUNDING, atol=ROUNDING)


def test_an_example_can_be_given(tmp_path: Path) -> None:
    pruned, model = small(Pooled(), image(2, 3, 8, 8), layer="stem")
    pruned.export(tmp_path / "other.pt2", (image(3, 3, 4, 4),))
    pruned.save(tmp_path / "saved")
    free = ({2: Dim("h", max=12), 3: Dim("w")},)
    l1rr_fx.load(tmp_path / "saved").export(tmp_path / "free.pt2", (image(2, 3, 8, 8),), dynamic_shapes=free)
    for name, size in {"other": (3, 3, 4, 4), "free": (2, 3, 4, 12)}.items():
        x = image(*size)
        network = torch.export.load(tmp_path / f"{name}.pt2").module()
        torch.testing.assert_close(network(x), model(x), rtol=ROUNDING, atol=ROUNDING)
        with pytest.raises(AssertionError, match="Guard failed"):
            network(image(4, 3, 8, 8))


def test_keyword_arguments_and_nested_inputs_and_outputs(tmp_path: Path) -> None:
    def way(network: nn.Module, xs: list[Tensor], *, scale: dict[str, Tensor], flag: bool) -> dict[str, Any]:
        return {"scores": [network(x) * scale["of"] for x in xs], "flag": (xs[0] if flag else xs[1],)}

    model = randomised(Wrapped(way)).eval()
    kill(model.get_submodule("network.stem.0"), [0, 1, 2])
    args, kwargs = ([image(2, 3, 8, 8), image(1, 3, 4, 4)],), {"scale": {"of": image(1)}, "flag": True}
    pruned = l1rr_fx.prune(model, args, kwargs)
    pruned.export(tmp_path / "remembered.pt2")
    pruned.export(tmp_path / "given.pt2", args, kwargs)
    for name in ("remembered", "given"):
        found = torch.export.load(tmp_path / f"{name}.pt2").module()(*args, **kwargs)
        torch.testing.assert_close(found, model(*args, **kwargs), rtol=ROUNDING, atol=ROUNDING)


def test_no_batch_stays_in_memory() -> None:
    pruned, _ = small(Net(), image(2, 3, 8, 8))
    assert pruned.example is not None
    (stored,) = pruned.example.args
    assert stored.is_meta and stored.shape == (2, 3, 8, 8) and stored.dtype == torch.float64


def test_a_network_that_changed_its_dtype_since(tmp_path: Path) -> None:
    def way(network: nn.Module, x: Tensor, index: Tensor) -> Tensor:
        out: Tensor = network(x)[index]
        return out

    pruned, model = small(Wrapped(way), image(2, 3, 8, 8), torch.tensor([1]), layer="network.stem.0")
    pruned.module.float()
    pruned.export(tmp_path / "small.pt2")
    x, index = image(2, 3, 8, 8), torch.tensor([0, 1])[1:]
    found = torch.export.load(tmp_path / "small.pt2").module()(x.float(), index)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), model(x, index), rtol=1e-4, atol=1e-4)  # FP32


def loaded(tmp_path: Path) -> l1rr_fx.Pruned:
    small(Net(), image(2, 3, 8, 8))[0].save(tmp_path / "saved")
    return replace(l1rr_fx.load(tmp_path / "saved"), example=None)  # as one of an older file


def in_training() -> l1rr_fx.Pruned:
    pruned, _ = small(Net(), image(2, 3, 8, 8))
    pruned.module.train()
    return pruned


def wrapped(way: Callable[..., Any]) -> l1rr_fx.Pruned:
    return small(Wrapped(way), image(2, 3, 8, 8), layer="network.stem.0")[0]


def net(_: Path) -> l1rr_fx.Pruned:
    return small(Net(), image(2, 3, 8, 8))[0]


REFUSED: dict[str, tuple[Callable[[Path], l1rr_fx.Pruned], dict[str, Any], str]] = {
    "pieces": (
        lambda _: small(Branching(), image(2, 3, 8, 8), layer="network.stem.0")[0],
        {},
        r"pruned in \d pieces.*one graph.*get_submodule\('network'\)",
    ),
    "training mode": (lambda _: in_training(), {}, r"training mode.*pruned\.module\.eval\(\)"),
    "no inputs known": (loaded, {}, r"what inputs it takes.*export\(path, \(image,\)\)"),
    "keyword arguments alone": (net, {"kwargs": {}}, "without args"),
    "args that do not fit": (net, {"args": (image(2, 4, 8, 8),)}, r"does not run on .*\(2, 4, 8, 8\)"),
    "args that are no tuple": (net, {"args": image(2, 3, 8, 8)}, "expected a tuple"),
    "free sizes that were fixed": (net, {"dynamic_shapes": ({0: Dim("n")},)}, "fixed sizes.*to l1rr_fx.prune"),
    "sizes that cannot be free": (
        loaded,
        {"args": (image(2, 3, 8, 8),), "dynamic_shapes": ({1: Dim("c")},)},
        r"dynamic_shapes does not fit .*constant \(3\)",
    ),
    "a namedtuple": (lambda _: wrapped(lambda f, x: Point(f(x), x)), {}, "outputs .* are in a .*amedtuple.*wraps"),
    "another name": (net, {"path": "small.onnx"}, r"ends in \.pt2"),
    "a file that exists": (net, {"path": "there.pt2"}, "overwrite=True replaces it"),
    "a directory": (net, {"path": "folder.pt2", "overwrite": True}, "is a directory"),
    "below a file": (net, {"path": "there.pt2/small.pt2"}, "cannot be written"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_exported_is_refused(case: str, tmp_path: Path) -> None:
    make, options, message = REFUSED[case]
    pruned = make(tmp_path)
    (tmp_path / "there.pt2").write_text("mine")
    (tmp_path / "folder.pt2").mkdir()
    before = sorted(tmp_path.rglob("*"))
    options = {**options, "path": tmp_path / options.get("path", "small.pt2")}
    with pytest.raises(InputError, match=f"(?s){message}"):
        pruned.export(**options)
    assert sorted(tmp_path.rglob("*")) == before
    assert (tmp_path / "there.pt2").read_text() == "mine"


def test_a_file_is_replaced_if_asked(tmp_path: Path) -> None:
    pruned, model = small(Net(), image(2, 3, 8, 8))
    (tmp_path / "small.pt2").write_text("old")
    pruned.export(tmp_path / "small.pt2", overwrite=True)
    x = image(2, 3, 8, 8)
    network = torch.export.load(tmp_path / "small.pt2").module()
    torch.testing.assert_close(network(x), model(x), rtol=ROUNDING, atol=ROUNDING)


# docs/deploy.md

PAGE = "docs/deploy.md"


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Tensor]:
    """The folder in which the page's first block wrote its files, and what the network gives for the page's input."""
    folder = tmp_path_factory.mktemp("page")
    module = ModuleType("example")
    run(example(), vars(module))
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "example", module)
        patch.chdir(folder)
        run(blocks("python", PAGE)[0], names, PAGE)
    with torch.no_grad():
        scores = names["pruned"].module(torch.linspace(0, 1, 2 * 3 * 64 * 64).reshape(2, 3, 64, 64))
    return folder, scores


def test_the_blocks_of_the_page_run_elsewhere(written: tuple[Path, Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, scores = written
    monkeypatch.chdir(folder)
    _, with_torch, with_onnxruntime = blocks("python", PAGE)
    torch.save(scores, "scores.pt")
    compared = "assert (scores - torch.load('scores.pt')).abs().max() < 1e-5"  # FP32, scores below 1
    alone(f"{with_torch}\n{compared}")
    (folder / "scores.txt").write_text(repr(scores.tolist()))
    compared = "assert abs(scores - numpy.array(eval(open('scores.txt').read()))).max() < 1e-5"
    alone(f"sys.modules['torch'] = None\n{with_onnxruntime}\n{compared}", torch="")


@pytest.mark.fuzz
@pytest.mark.skipif(not (shutil.which("cmake") and shutil.which("c++")), reason="no cmake or no C++ compiler")
def test_the_program_in_cpp_compiles_and_runs(written: tuple[Path, Tensor]) -> None:
    folder, scores = written
    for language in ("cpp", "cmake"):
        (code,) = blocks(language, PAGE)
        name = code.splitlines()[0].split()[1].rstrip(":")
        (folder / name).write_text(code)
    assert {"deploy.cpp", "CMakeLists.txt"} <= {path.name for path in folder.iterdir()}
    (commands,) = blocks("sh", PAGE)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-ec", commands], cwd=folder, env={**os.environ, "PATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    rows = [[float(number) for number in line.split()] for line in done.stdout.splitlines()[-2:]]
    torch.testing.assert_close(torch.tensor(rows), scores, rtol=1e-4, atol=1e-5)  # printed with six digits


def test_the_page_shows_the_commands_and_files_of_a_bundle(written: tuple[Path, Tensor]) -> None:
    folder, _ = written
    page, readme = text(PAGE), (folder / "bundle" / "README.md").read_text()
    (command,) = (line for line in page.splitlines() if "trtexec --onnx" in line)
    assert f"    {command} " in readme
    for name in ("config.pbtxt", "nvinfer.txt", "build_and_measure.py"):
        assert f"`{name}`" in page and (folder / "bundle" / name).exists()
    settings = (folder / "bundle" / "nvinfer.txt").read_text()
    for shown in ("network-type=100", "output-tensor-meta=1"):
        assert f"`{shown}`" in page and shown in settings.splitlines()
    for name in ("model-color-format", "net-scale-factor", "output-blob-names", "batch-size"):
        assert f"`{name}`" in page and f"\n{name}=" in settings
    for name in NAMES:
        assert f"| `{name}`" in page
