"""Saved networks come back whole; damaged and hostile ones are refused, naming the file, and nothing of them runs."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from l1rr_fx import load
from l1rr_fx.archive import files, network
from l1rr_fx.archive.files import GRAPH, LIMITS, MANIFEST, REPORT, TENSORS
from l1rr_fx.pruning.pruned import Pruned
from l1rr_fx.pruning.report import Report
from l1rr_fx.support import files as synced_files
from l1rr_fx.support import json_text
from passes.accounts import Accounts, Cost
from passes.errors import InputError, LoadError
from passes.frontend.capture import capture
from passes.graph.selection import Selection

aten = torch.ops.aten
REPORTED = Report(Accounts(Cost(9, 8, 7, 6), Cost(5, 4, 3, 2), Cost(4, 3, 2, 1)), "recombine", deviation=1e-16)


class Everything(nn.Module):
    """Nested inputs and outputs, tied weights, a list of modules, a non-persistent buffer, a bare parameter."""

    order: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.tied = self.conv
        self.norm = nn.BatchNorm2d(8)
        self.list = nn.ModuleList([nn.Conv2d(8, 8, 1, groups=2)])
        self.register_buffer("order", torch.arange(4).flip(0), persistent=False)
        self.register_buffer("scale", torch.rand(1, 8, 1, 1))
        self.bare = nn.Parameter(torch.tensor(0.5))
        self.frozen = nn.Parameter(torch.rand(8, 1, 1), requires_grad=False)

    def forward(self, x: dict[str, Tensor], y: list[Tensor], *, bias: Tensor) -> dict[str, Any]:
        h = F.silu(self.norm(self.conv(x["image"]))) + self.tied(x["image"]) * self.frozen
        a, b = self.list[0](h).chunk(2, 1)
        h = torch.cat([a.index_select(1, self.order), b], 1) * self.bare + self.scale + bias
        mask = torch.full((2,), -math.inf, dtype=h.dtype)
        h = F.interpolate(h, scale_factor=2.0).to(memory_format=torch.channels_last)
        return {"all": [h[:, 1:, ::2], h.double().sum()], "rest": (mask, None, y[0] + y[1]), "n": OrderedDict(k=a)}


def inputs() -> tuple[tuple[Any, ...], dict[str, Any]]:
    generator = torch.Generator().manual_seed(0)
    return (
        ({"image": torch.rand(2, 3, 8, 8, generator=generator)}, [torch.ones(1), torch.ones(1)]),
        {"bias": torch.rand(1, generator=generator)},
    )


@pytest.fixture(scope="module")
def everything() -> Pruned:
    args, kwargs = inputs()
    module = capture(Everything().eval(), args, kwargs)
    whole = {name: Selection.whole(parameter.shape) for name, parameter in module.named_parameters()}
    columns = Selection((16, 3, 3, 3), (torch.arange(0, 16, 2), None, None, None))
    ragged = Selection((8, 12, 1, 1), (None,) * 4, torch.randperm(96)[:32].view(8, 4, 1, 1))
    return Pruned(module, REPORTED, {**whole, "conv.weight": columns, "list.0.weight": ragged})


@pytest.fixture
def saved(everything: Pruned, tmp_path: Path) -> Path:
    everything.save(tmp_path / "saved")
    return tmp_path / "saved"


class Switching(nn.Module):
    """What a captured graph calls as modules: batch norm and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4, eps=1e-3, momentum=None))
        self.drop = nn.Dropout(0.25)


def switching() -> Pruned:
    graph = Graph()
    x = graph.placeholder("x")
    weight = graph.get_attr("stem.0.weight")
    h = graph.call_function(aten.conv2d.default, (x, weight))
    h = graph.call_module("stem.1", (h,))
    graph.output(graph.call_module("drop", (h,)))
    return Pruned(GraphModule(Switching(), graph), REPORTED)


# ----------------------------------------------------------------------------------------------------- round trips


def same(left: Any, right: Any) -> bool:
    flat_left, spec_left = torch.utils._pytree.tree_flatten(left)
    flat_right, spec_right = torch.utils._pytree.tree_flatten(right)
    return spec_left == spec_right and all(
        torch.equal(a, b) and a.dtype == b.dtype if isinstance(a, Tensor) else a == b
        for a, b in zip(flat_left, flat_right, strict=True)
    )


def test_a_network_comes_back_whole(everything: Pruned, saved: Path) -> None:
    loaded = load(saved)
    args, kwargs = inputs()
    assert same(loaded.module(*args, **kwargs), everything.module(*args, **kwargs))
    assert isinstance(loaded.module, GraphModule)
    assert isinstance(everything.module, GraphModule)
    assert loaded.module.code == everything.module.code
    assert loaded.report == everything.report


def test_parameters_and_buffers_come_back(everything: Pruned, saved: Path) -> None:
    module, loaded = everything.module, load(saved).module
    assert same(loaded.state_dict(), module.state_dict())
    assert [name for name, _ in loaded.named_parameters()] == [name for name, _ in module.named_parameters()]
    assert "order" not in loaded.state_dict()
    assert same(dict(loaded.named_buffers()), dict(module.named_buffers()))
    flags = [{name: p.requires_grad for name, p in each.named_parameters()} for each in (module, loaded)]
    assert flags[0] == flags[1]
    assert not dict(loaded.named_parameters())["frozen"].requires_grad


def test_tied_parameters_stay_tied_and_are_stored_once(saved: Path) -> None:
    loaded = load(saved).module
    assert loaded.get_parameter("conv.weight") is loaded.get_parameter("tied.weight")
    assert "tied.weight" not in safetensors.torch.load_file(saved / TENSORS)


def test_views_of_one_memory_are_stored_apart(tmp_path: Path) -> None:
    module = switching().module
    memory = torch.arange(48.0)
    module.get_submodule("stem.0").weight = nn.Parameter(memory[:12].view(4, 3, 1, 1))
    module.get_submodule("stem.1").weight = nn.Parameter(memory[12:16])
    Pruned(module, REPORTED).save(tmp_path / "saved")
    assert same(load(tmp_path / "saved").module.state_dict(), module.state_dict())
    assert (tmp_path / "saved" / TENSORS).stat().st_size < 1000


def test_what_was_kept_comes_back(everything: Pruned, saved: Path) -> None:
    kept = load(saved).kept
    assert kept.keys() == everything.kept.keys()
    for name, selection in everything.kept.items():
        assert kept[name].shape == selection.shape
        assert kept[name].same(selection), name


@pytest.mark.parametrize("training", [False, True])
def test_modules_that_switch_come_back(tmp_path: Path, training: bool) -> None:
    pruned = switching()
    pruned.module.train(training)
    pruned.module.get_submodule("drop").train(not training)
    pruned.save(tmp_path / "saved")
    loaded = load(tmp_path / "saved").module
    assert repr(loaded.get_submodule("stem.1")) == repr(pruned.module.get_submodule("stem.1"))
    assert loaded.get_submodule("drop").p == 0.25
    modes = [
        [each.get_submodule(n).training for n in ("", "stem", "stem.1", "drop")] for each in (loaded, pruned.module)
    ]
    assert modes[0] == modes[1]
    x = torch.rand(2, 3, 4, 4)
    for each in (loaded, pruned.module):
        each.get_submodule("drop").eval()
    assert same(loaded(x), pruned.module(x))
    assert same(loaded.state_dict(), pruned.module.state_dict())


def test_a_loaded_network_saves_to_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    load(saved).save(tmp_path / "again")
    for name in LIMITS:
        assert (tmp_path / "again" / name).read_bytes() == (saved / name).read_bytes(), name


def test_a_loaded_network_trains(saved: Path) -> None:
    module = load(saved).module
    args, kwargs = inputs()
    module(*args, **kwargs)["all"][1].backward()
    assert all(p.grad is not None for p in module.parameters() if p.requires_grad)


ARGUMENTS = [
    None, True, 3, 2**80, 0.1, -0.0, math.inf, -math.inf, math.nan, "two\nlines'\"\\", 1 + 2j,
    torch.float16, torch.int64, torch.strided, torch.channels_last, torch.device("cpu"), [1, [2.5, None]],
    (1, (2,), ()),
]  # fmt: skip


@pytest.mark.parametrize("argument", ARGUMENTS, ids=repr)
def test_every_kind_of_argument_comes_back(argument: Any, tmp_path: Path) -> None:
    graph = Graph()
    graph.output((graph.placeholder("x"), argument))
    Pruned(GraphModule(nn.Module(), graph), REPORTED).save(tmp_path / "saved")
    _, back = load(tmp_path / "saved").module(torch.ones(1))
    assert repr(back) == repr(argument)  # NaN and -0.0 included


class Output(OrderedDict[str, Any]):
    """As the outputs of transformers: a mapping with a class of its own, which pytree knows."""


pytree.register_pytree_node(
    Output, lambda output: ([*output.values()], [*output]), lambda values, keys: Output(zip(keys, values, strict=True))
)
Point = namedtuple("Point", "x y")


class Gives(nn.Module):
    def __init__(self, output: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.output = output

    def forward(self, x: Tensor) -> Any:
        return self.output(x * self.weight)


@pytest.mark.parametrize(
    ("output", "plain", "note"),
    [
        (lambda x: Point(x, (x, x)), lambda x: (x, (x, x)), "the outputs hold a Point, which becomes a plain tuple"),
        (lambda x: {"b": x, "a": Point(x, x)}, lambda x: {"b": x, "a": (x, x)}, "a Point"),
        (lambda x: Output(b=x, a=[x, x]), lambda x: {"b": x, "a": [x, x]}, "a Output, which becomes a plain dict"),
        (lambda x: defaultdict(list, {3: x}), lambda x: {3: x}, "a defaultdict"),
        (lambda x: torch.max(x, 0), lambda x: (x.max(), x.argmax()), "a max, which becomes a plain tuple"),
    ],
)  # fmt: skip
def test_outputs_with_a_class_become_plain_ones_and_that_is_noted(
    output: Callable[[Tensor], Any], plain: Callable[[Tensor], Any], note: str, tmp_path: Path
) -> None:
    x = torch.rand(3)
    Pruned(capture(Gives(output), (x,)), REPORTED).save(tmp_path / "saved")
    assert same(load(tmp_path / "saved").module(x), plain(x))
    (noted,) = json.loads((tmp_path / "saved" / MANIFEST).read_text())["notes"]
    assert note in noted


def test_nothing_is_kept_of_a_layer_that_is_gone(tmp_path: Path) -> None:
    """Pruning took the whole layer: its parameters are no more, and what was kept of them is nothing."""
    pruned = switching()
    gone = Selection((4, 2), (torch.arange(0), None))
    Pruned(pruned.module, REPORTED, {"gone.weight": gone}).save(tmp_path / "saved")
    assert "gone.weight" not in load(tmp_path / "saved").kept


def test_a_manifest_without_notes_is_that_of_before(saved: Path) -> None:
    assert "notes" not in json.loads((saved / MANIFEST).read_text())


# ----------------------------------------------------------------------------------------------- what is not saved


def graph_of(target: Any, *args: Any) -> Pruned:
    graph = Graph()
    graph.output(graph.call_function(target, (graph.placeholder("x"), *args)))
    return Pruned(GraphModule(nn.Module(), graph), REPORTED)


class OwnTensor(Tensor):
    pass


def with_module(leaf: nn.Module) -> Pruned:
    root, graph = nn.Module(), Graph()
    root.leaf = leaf
    graph.output(graph.call_module("leaf", (graph.placeholder("x"),)))
    return Pruned(GraphModule(root, graph), REPORTED)


def with_buffer(buffer: Tensor) -> Pruned:
    root, graph = nn.Module(), Graph()
    root.register_buffer("b", buffer)
    graph.output(graph.get_attr("b"))
    return Pruned(GraphModule(root, graph), REPORTED)


def with_spec() -> Pruned:
    """A network whose buffer has the name that torch.fx gives the structure of inputs."""
    pruned = with_buffer(torch.ones(1))
    graph = pruned.module.graph
    graph.output_node().args[0].target = "_in_spec"  # type: ignore[union-attr]  # the node of the buffer
    root = nn.Module()
    root.register_buffer("_in_spec", torch.ones(1))
    return Pruned(GraphModule(root, graph), REPORTED)


UNSAVABLE: dict[str, tuple[Callable[[], Pruned], str]] = {
    "pieces": (lambda: Pruned(nn.Linear(2, 2), REPORTED), "Linear .* state_dict"),
    "a Python function": (lambda: graph_of(math.dist), "dist cannot be saved"),
    "an operator that writes": (lambda: graph_of(aten.relu_.default), r"relu_.*writes"),
    "a private operator": (lambda: graph_of(aten._print.default), "_print"),
    "another namespace": (lambda: graph_of(torch.ops.prims.add.default, 1), "not an ATen operator"),
    "a tensor argument": (lambda: graph_of(aten.add.Tensor, torch.ones(1)), "Tensor, cannot be saved"),
    "a deque": (
        lambda: Pruned(capture(Gives(lambda x: deque([x])), (torch.ones(1),)), REPORTED),
        "hold a deque; .*around",
    ),
    "a buffer with a name of torch.fx": (lambda: with_spec(), "_in_spec.*taken"),
    "a module": (lambda: with_module(nn.Linear(1, 1)), "module leaf: a Linear"),
    "a module of a like name": (lambda: with_module(type("Dropout", (nn.Dropout,), {})()), "module leaf: a Dropout"),
    "a sparse tensor": (lambda: with_buffer(torch.eye(2).to_sparse()), "b: only dense tensors"),
    "a tensor without content": (lambda: with_buffer(torch.ones(2, device="meta")), "b: only dense tensors"),
    "a tensor's subclass": (lambda: with_buffer(torch.ones(2).as_subclass(OwnTensor)), "class OwnTensor"),
    "no network": (lambda: Pruned(nn.Linear, REPORTED), "expected a Module"),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("case", UNSAVABLE)
def test_what_the_format_cannot_hold_is_refused_when_saved(case: str, tmp_path: Path) -> None:
    make, message = UNSAVABLE[case]
    with pytest.raises(InputError, match=message):
        make().save(tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------------- atomic saving


def test_a_directory_with_something_in_it_is_left_alone(everything: Pruned, saved: Path) -> None:
    before = (saved / MANIFEST).read_bytes()
    with pytest.raises(InputError, match="not empty"):
        switching().save(saved)
    assert (saved / MANIFEST).read_bytes() == before


def test_overwriting_replaces_a_saved_network(saved: Path) -> None:
    switching().save(saved, overwrite=True)
    assert "stem.0.weight" in load(saved).module.state_dict()
    assert [*saved.parent.iterdir()] == [saved]


def test_overwriting_replaces_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match=r"thesis\.txt"):
        switching().save(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.txt").exists()


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for target in (tmp_path / "file", tmp_path / "file" / "within"):
        with pytest.raises(InputError, match="file"):
            switching().save(target)


def test_empty_and_missing_directories_are_filled(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "empty", tmp_path / "a" / "b"):
        switching().save(target)
        load(target)


@pytest.mark.parametrize("step", ["write_all", "move_to", "_sync"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_failure_leaves_nothing_half_written(
    step: str, overwrite: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "saved"
    if overwrite:
        switching().save(target)
    before = sorted(path.name for path in tmp_path.rglob("*"))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(synced_files if step == "_sync" else network, step, full)
    with pytest.raises(InputError, match=r"saved: cannot be written: No space left"):
        switching().save(target, overwrite=overwrite)
    assert sorted(path.name for path in tmp_path.rglob("*")) == before
    if overwrite:
        load(target)


@pytest.mark.parametrize(
    ("failure", "told"), [(OSError(5, "Input/output error"), InputError), (KeyboardInterrupt(),) * 2]
)
def test_the_old_network_returns_if_the_new_one_cannot_be_moved(
    failure: BaseException, told: Any, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename, calls = Path.rename, []

    def second_fails(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == 2:
            raise failure
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", second_fails)
    with pytest.raises(told if isinstance(told, type) else type(told)):
        switching().save(saved, overwrite=True)
    assert "bare" in load(saved).module.state_dict()
    assert [*saved.parent.iterdir()] == [saved]


def test_what_is_too_large_to_load_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LIMITS", {**LIMITS, TENSORS: 64})
    with pytest.raises(InputError, match=rf"{TENSORS} would be"):
        switching().save(tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("limit", ["MAX_VALUES", "MAX_DEPTH"])
def test_what_holds_too_much_to_load_is_not_saved(
    limit: str, everything: Pruned, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_text, limit, 3)
    with pytest.raises(InputError, match=rf"{GRAPH} could not be loaded: its? .* (3 values|3 levels)"):
        everything.save(tmp_path / "saved")
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------------------------------- damaged files

FILES = (MANIFEST, GRAPH, TENSORS, REPORT)


def refused(path: Path, message: str) -> None:
    with pytest.raises(LoadError, match=message) as caught:
        load(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_missing(saved: Path, name: str) -> None:
    (saved / name).unlink()
    refused(saved, f"{name}: the file is missing")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("part", ["nothing", "half", "all but a byte"])
def test_truncated(saved: Path, name: str, part: str) -> None:
    content = (saved / name).read_bytes()
    (saved / name).write_bytes(content[: {"nothing": 0, "half": len(content) // 2, "all but a byte": -1}[part]])
    refused(saved, name)


@pytest.mark.parametrize("name", FILES[1:])
def test_one_bit_flipped(saved: Path, name: str) -> None:
    content = bytearray((saved / name).read_bytes())
    content[len(content) // 2] ^= 1
    (saved / name).write_bytes(content)
    refused(saved, f"{name}: its SHA-256")


@pytest.mark.parametrize("name", FILES)
def test_longer(saved: Path, name: str) -> None:
    with (saved / name).open("ab") as file:
        file.write(b"x")
    refused(saved, name)


@pytest.mark.parametrize("name", FILES)
def test_beyond_the_limit_is_refused_before_it_is_read(saved: Path, name: str) -> None:
    os.truncate(saved / name, LIMITS[name] + 1)  # sparse: takes no room on the disk
    refused(saved, rf"{name}: has [\d,]+ bytes; the limit")


@pytest.mark.parametrize("name", FILES)
def test_symbolic_links(saved: Path, name: str, tmp_path: Path) -> None:
    (saved / name).rename(tmp_path / "elsewhere")
    (saved / name).symlink_to(tmp_path / "elsewhere")
    refused(saved, f"{name}: is a symbolic link")


@pytest.mark.parametrize("name", FILES)
def test_a_directory_or_a_pipe_in_place_of_a_file(saved: Path, name: str) -> None:
    (saved / name).unlink()
    (saved / name).mkdir()
    refused(saved, name)
    (saved / name).rmdir()
    os.mkfifo(saved / name)
    refused(saved, f"{name}: is not a plain file")


@pytest.mark.parametrize("name", [GRAPH, TENSORS])
def test_swapped_between_two_saved_networks(saved: Path, tmp_path: Path, name: str) -> None:
    switching().save(tmp_path / "other")
    shutil.copy(tmp_path / "other" / name, saved / name)
    refused(saved, name)


def test_a_file_too_many(saved: Path) -> None:
    (saved / "model.pkl").touch()
    refused(saved, r"model\.pkl")


def test_no_directory(tmp_path: Path) -> None:
    refused(tmp_path / "none", "no such directory")
    (tmp_path / "file").touch()
    refused(tmp_path / "file", "not a directory")


# --------------------------------------------------------------------------------------------------- hostile files


def rewrite(saved: Path, change: Callable[[dict[str, Any]], object], name: str = GRAPH) -> None:
    """Change a JSON file, and the manifest with it: what a forger would do."""
    document = json.loads((saved / name).read_text())
    change(document)
    replace(saved, name, json.dumps(document).encode())


def replace(saved: Path, name: str, content: bytes) -> None:
    (saved / name).write_bytes(content)
    if name != MANIFEST:
        manifest = json.loads((saved / MANIFEST).read_text())
        manifest["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        (saved / MANIFEST).write_text(json.dumps(manifest))


def node(document: dict[str, Any], op: str, nth: int = 0) -> dict[str, Any]:
    return [each for each in document["nodes"] if each["op"] == op][nth]


CODE = (
    "x = __import__('os').system('touch hacked')",
    "x); __import__('os').system('touch hacked'); (x",
    'x"), __import__("os").system("touch hacked"), getattr(self, "x',
    "x\n    import os; os.system('touch hacked')\n    y",
    "x: __import__('os').system('touch hacked')",
    "x=__import__('os').system('touch hacked')",
    "*x",
    "x\n",
    "ｘ",
    "lambda",
    "",
    None,
    ["x"],
)
PLACES: dict[str, Callable[[dict[str, Any], Any], object]] = {
    "node": lambda d, code: node(d, "call_function").update(name=code),
    "input": lambda d, code: node(d, "placeholder").update(target=code),
    "attribute": lambda d, code: node(d, "get_attr").update(target=code),
    "function": lambda d, code: node(d, "call_function").update(target=code),
    "module call": lambda d, code: node(d, "call_function").update(op="call_module", target=code),
    "output": lambda d, code: node(d, "output").update(target=code),
    "argument": lambda d, code: d["codegen"]["arguments"].__setitem__(0, code),
    "input kwarg": lambda d, code: d["codegen"]["inputs"]["tuple"][1]["dict"][0].__setitem__(0, code),
    "named argument": lambda d, code: node(d, "call_function").update(kwargs={str(code): 1}),
    "parameter": lambda d, code: d["parameters"].update({str(code) + "!": d["parameters"]["bare"]}),
    "buffer": lambda d, code: d["buffers"].update({str(code) + "!": d["buffers"]["scale"]}),
    "module": lambda d, code: d["modules"].update({str(code) + "!": {}}),
}


@pytest.mark.parametrize("code", CODE, ids=repr)
@pytest.mark.parametrize("place", PLACES)
def test_names_cannot_carry_code(
    saved: Path, place: str, code: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    rewrite(saved, lambda document: PLACES[place](document, code))
    refused(saved, GRAPH)
    assert not (tmp_path / "hacked").exists()


def test_strings_are_data(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A string among the arguments goes into the code too, as a literal."""
    monkeypatch.chdir(tmp_path)
    code = "'); __import__('os').system('touch hacked'); ('\n\u2028\x00\ud800"
    graph = Graph()
    graph.output((graph.placeholder("x"), code))
    Pruned(GraphModule(nn.Module(), graph), REPORTED).save(tmp_path / "string")
    assert load(tmp_path / "string").module(1)[1] == code
    assert not (tmp_path / "hacked").exists()


@pytest.mark.parametrize(
    "target",
    [
        "aten::from_file.default", "aten::relu_.default", "aten::add.out", "aten::_print.default",
        "aten::set_.source_Storage", "aten::seed.default", "aten::warn.default", "aten::save.default",
        "aten::__class__.default", "aten::conv2d.__class__", "aten::conv2d", "aten::conv2d.nonsense",
        "aten::nonsense.default", "prims::add.default", "builtins::eval", "os::system", "operator::attrgetter",
        "operator::methodcaller", "operator::setitem", "operator::__call__", "torch::load", "math::dist",
        "aten::add.str", "aten::format.default", "aten::grad.default", "debugprims::load_tensor.default",
        "inductor::accumulate_grad_",
    ],
)  # fmt: skip
def test_operators_that_do_more_than_compute(saved: Path, target: str) -> None:
    rewrite(saved, lambda document: node(document, "call_function").update(target=target, args=[], kwargs={}))
    refused(saved, rf"{GRAPH}: node .*{target.split('::')[1].split('.')[0]}")


def call(document: dict[str, Any], operator: str) -> dict[str, Any]:
    """The first call of an operator."""
    return next(each for each in document["nodes"] if each["target"].startswith(f"aten::{operator}."))


def deepen(document: dict[str, Any], levels: int) -> None:
    """Modules in modules: Python walks through them by recursion."""
    for level in range(1, levels):
        document["modules"][".".join(["deep"] * level)] = document["modules"][""]


HOSTILE: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "a field too many": (lambda d: d.update(hook="x"), "'hook'"),
    "a field too few": (lambda d: d.pop("nodes"), "'nodes'"),
    "nodes are no list": (lambda d: d.update(nodes={}), '"nodes"'),
    "an unknown kind of node": (lambda d: node(d, "call_function").update(op="call_method"), "call_method"),
    "a node read too early": (lambda d: node(d, "call_function").update(args=[{"node": "output"}]), "no earlier"),
    "an argument too few": (lambda d: node(d, "call_function").update(target="operator::add", args=[1]), "missing"),
    "a name twice": (lambda d: node(d, "call_function").update(name=node(d, "placeholder")["name"]), "taken"),
    "a name of torch's": (lambda d: node(d, "call_function").update(name="fx_pytree"), "identifier"),
    "a builtin's name": (lambda d: node(d, "call_function").update(name="print"), "taken"),
    "no output": (lambda d: d["nodes"].pop(), "one output"),
    "two outputs": (lambda d: d["nodes"].insert(-1, {**d["nodes"][-1], "name": "o"}), "one output"),
    "too many arguments": (lambda d: node(d, "call_function").update(args=[1] * 99), "these arguments"),
    "an unknown argument": (lambda d: node(d, "call_function").update(kwargs={"surprise": 1}), "these arguments"),
    "arguments for an attribute": (lambda d: node(d, "get_attr").update(args=[1]), "other arguments"),
    "a default for an input": (lambda d: node(d, "placeholder").update(args=["x"]), "other arguments"),
    "an unknown dtype": (lambda d: node(d, "call_function").update(args=[{"dtype": "Tensor"}]), "dtype"),
    "an unknown word": (lambda d: node(d, "call_function").update(args=[{"float": "1e999"}]), "not a number"),
    "an unknown argument kind": (lambda d: node(d, "call_function").update(args=[{"code": "x"}]), "not an argument"),
    "an infinite complex": (lambda d: node(d, "call_function").update(args=[{"complex": [1.0, "inf"]}]), "not an arg"),
    "deep nesting": (lambda d: node(d, "call_function").update(args=[json.loads("[" * 99 + "]" * 99)]), "nested"),
    "a reserved argument": (lambda d: d["codegen"]["arguments"].__setitem__(0, "self"), "identifiers"),
    "an argument twice": (lambda d: d["codegen"]["arguments"].__setitem__(0, "y"), "different"),
    "an argument too many": (lambda d: d["codegen"]["arguments"].append("z"), "4 names for 3"),
    "inputs that do not fit": (lambda d: d["codegen"]["inputs"]["tuple"][0]["tuple"].pop(), "3 names for 2"),
    "inputs of a class": (lambda d: d["codegen"].update(inputs={"os.system": ["*"]}), "os.system"),
    "inputs that are no call": (lambda d: d["codegen"].update(inputs="*"), "positional and named"),
    "outputs that do not fit": (lambda d: d["codegen"].update(outputs="*"), "not 1 values"),
    "deep outputs": (lambda d: d["codegen"].update(outputs=json.loads('{"list": [' * 99 + "]}" * 99)), "nesting"),
    "the attribute forward": (lambda d: d["buffers"].update(forward=d["buffers"]["scale"]), "'forward' is taken"),
    "the attribute __class__": (lambda d: d["buffers"].update(__class__=d["buffers"]["scale"]), "'__class__' is taken"),
    "a module called _modules": (lambda d: d["modules"].update({"_modules": d["modules"][""]}), "'_modules' is taken"),
    "a tensor in no module": (lambda d: d["buffers"].update({"x.y": d["buffers"]["scale"]}), "no module 'x'"),
    "a module twice": (lambda d: d["modules"].update({"conv.weight": d["modules"][""]}), "'weight' is taken"),
    "a tensor that is not stored": (lambda d: d["buffers"]["scale"].update(tensor="../../x"), "not stored"),
    "a tensor that nobody reads": (lambda d: d["buffers"].pop("scale"), "scale"),
    "a gradient of integers": (
        lambda d: d["parameters"].update(i={"tensor": "order", "requires_grad": True}), "has no gradient",
    ),
    "requires_grad is text": (lambda d: d["parameters"]["bare"].update(requires_grad="yes"), "requires_grad"),
    "training is text": (lambda d: d["modules"][""].update(training="no"), "training"),
    "a kept of no parameter": (lambda d: d["kept"].update(x=d["kept"]["bare"]), "no such parameter"),
    "a kept of another shape": (lambda d: d["kept"]["conv.weight"].update(axes=[None] * 4), "the shape that is there"),
    "a kept beyond its axis": (lambda d: d["kept"]["conv.weight"].update(shape=[4, 3, 3, 3]), "indices below 4"),
    "a kept with negative sizes": (lambda d: d["kept"]["conv.weight"].update(shape=[-16, 3, 3, 3]), "fit together"),
    "a kept of endless sizes": (lambda d: d["kept"]["conv.weight"].update(shape=[2**60, 3, 3, 3]), "fit together"),
    "a buffer with a name of torch.fx": (lambda d: d["buffers"].update(_in_spec=d["buffers"]["scale"]), "taken"),
    "an output with a name of torch.fx": (lambda d: d["buffers"].update(_out_spec=d["buffers"]["scale"]), "taken"),
    "modules without end": (lambda d: deepen(d, 60), "modules deep"),
    "a stride of text": (lambda d: call(d, "conv2d").update(args=[*call(d, "conv2d")["args"][:3], "abc"]), "no List"),
    "a stride of floats": (lambda d: call(d, "conv2d").update(args=[*call(d, "conv2d")["args"][:3], [1.5]]), "no List"),
    "a stride without end": (lambda d: call(d, "conv2d").update(args=[*call(d, "conv2d")["args"][:3], 2**70]), "no L"),
    "an input of text": (lambda d: call(d, "conv2d").update(args=["abc", *call(d, "conv2d")["args"][1:]]), "no Tensor"),
    "an argument twice given": (lambda d: call(d, "conv2d").update(kwargs={"input": None}), "these arguments"),
    "an argument that is missing": (lambda d: call(d, "conv2d").update(args=[], kwargs={}), "needs the argument"),
    "a kept that is no index": (
        lambda d: d["kept"]["conv.weight"].update(axes=["scale", None, None, None]), "indices below",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_graphs(saved: Path, case: str) -> None:
    change, message = HOSTILE[case]
    rewrite(saved, change)
    refused(saved, rf"{GRAPH}: .*{message}")


LEAF = "stem.1"


def add(document: dict[str, Any], kind: str, name: str, source: str) -> None:
    """Give the facts of `source` to another name too."""
    document[kind][name] = document[kind][source]


HOSTILE_MODULES: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "an unknown class": (lambda d: d["modules"][LEAF].update({"class": "Linear"}), "Linear"),
    "an option too many": (lambda d: d["modules"][LEAF]["options"].update(device="x"), "'device'"),
    "an option too few": (lambda d: d["modules"][LEAF]["options"].pop("num_features"), "options"),
    "an option of a wrong type": (lambda d: d["modules"][LEAF]["options"].update(num_features="x"), "expected int"),
    "a node as an option": (lambda d: d["modules"][LEAF]["options"].update(eps={"node": "x"}), "no earlier node"),
    "a text as eps": (lambda d: d["modules"][LEAF]["options"].update(eps="abc"), "eps is 'abc'; expected float"),
    "no eps": (lambda d: d["modules"][LEAF]["options"].update(eps=None), "eps is None; expected float"),
    "a negative eps": (lambda d: d["modules"][LEAF]["options"].update(eps=-1.0), "eps is -1.0"),
    "an endless eps": (lambda d: d["modules"][LEAF]["options"].update(eps={"float": "inf"}), "eps is inf"),
    "a true eps": (lambda d: d["modules"][LEAF]["options"].update(eps=True), "eps is True"),
    "a list as momentum": (lambda d: d["modules"][LEAF]["options"].update(momentum=[0.1]), "expected float or None"),
    "a number as affine": (lambda d: d["modules"][LEAF]["options"].update(affine=1), "affine is 1; expected bool"),
    "channels of a float": (lambda d: d["modules"][LEAF]["options"].update(num_features=4.0), "expected int"),
    "a text as inplace": (lambda d: d["modules"]["drop"]["options"].update(inplace="no"), "expected bool"),
    "a probability of 5": (lambda d: d["modules"]["drop"]["options"].update(p=5), "options"),
    "a huge module": (lambda d: d["modules"][LEAF]["options"].update(num_features=2**50), "expected"),
    "a module beyond all sizes": (lambda d: d["modules"][LEAF]["options"].update(num_features=2**70), "options"),
    "a tensor of another shape": (lambda d: add(d, "parameters", f"{LEAF}.weight", "stem.0.weight"), "expected"),
    "a tensor missing": (lambda d: d["buffers"].pop(f"{LEAF}.running_mean"), "running_mean"),
    "a tensor too many": (lambda d: add(d, "buffers", f"{LEAF}.x", f"{LEAF}.running_mean"), "no such buffer"),
    "a tensor within": (lambda d: add(d, "buffers", f"{LEAF}.x.y", f"{LEAF}.running_mean"), "no module"),
    "a module within": (lambda d: add(d, "modules", f"{LEAF}.x", "drop"), "within"),
    "a call of a container": (lambda d: node(d, "call_module").update(target="stem"), "no module"),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE_MODULES)
def test_hostile_modules(tmp_path: Path, case: str) -> None:
    switching().save(tmp_path / "saved")
    change, message = HOSTILE_MODULES[case]
    rewrite(tmp_path / "saved", change)
    refused(tmp_path / "saved", rf"{GRAPH}: .*{message}")


HOSTILE_MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "another format": (lambda d: d.update(format="zip"), "zip"),
    "a later version": (lambda d: d.update(version=2), "version 2"),
    "a path that escapes": (lambda d: d["files"].update({"../../etc/passwd": d["files"][GRAPH]}), "etc/passwd"),
    "a file too few": (lambda d: d["files"].pop(GRAPH), GRAPH),
    "a size of text": (lambda d: d["files"][GRAPH].update(bytes="1"), "size"),
    "a size without bound": (lambda d: d["files"][TENSORS].update(bytes=2**62), "where the manifest says"),
    "a hash of a number": (lambda d: d["files"][GRAPH].update(sha256=1), "hash"),
    "notes of another name": (lambda d: d.update(note=["x"]), "'note'"),
    "files are no object": (lambda d: d.update(files=[]), "files"),
}


@pytest.mark.parametrize("case", HOSTILE_MANIFESTS)
def test_hostile_manifests(saved: Path, case: str) -> None:
    change, message = HOSTILE_MANIFESTS[case]
    rewrite(saved, change, MANIFEST)
    refused(saved, message)


@pytest.mark.parametrize("name", [MANIFEST, GRAPH, REPORT])
@pytest.mark.parametrize(
    "content", [b"", b"\xff\xfe", b"[]", b"null", b"NaN", b'{"a": Infinity}', b"[" * 50_000, b"1" * 5_000]
)
def test_what_is_no_json_object(saved: Path, name: str, content: bytes) -> None:
    replace(saved, name, content)
    refused(saved, name)


def header(**entries: object) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


def twice(text: bytes) -> bytes:
    """One name for two tensors: which of them is loaded depends on the reader."""
    entry = b'{"dtype": "F32", "shape": [1], "data_offsets": [%d, %d]}'
    content = text % (entry % (0, 4), entry % (4, 8))
    return len(content).to_bytes(8, "little") + content + b"00000000"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 64,
        (2**60).to_bytes(8, "little") + b"{}",
        header(bare={"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}) + b"0000",
        header(bare={"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}),
        header(bare={"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}) + b"0000",
        header(bare={"dtype": "O", "shape": [1], "data_offsets": [0, 4]}) + b"0000",
        b"\x80\x04\x95pickle",
        header(bare={"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}),
        header(bare={"dtype": "F32", "shape": [0, 2**62, 2**62], "data_offsets": [0, 0]}),
        header(bare={"dtype": "F32", "shape": [1] * 65, "data_offsets": [0, 4]}) + b"0000",
        header(bare={"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}) + b"0000",
        header(bare={"dtype": "F32", "shape": [1.0], "data_offsets": [0, 4]}) + b"0000",
        header(bare={"dtype": "F32", "shape": [True], "data_offsets": [0, 4]}) + b"0000",
        header(bare={"dtype": "F32", "shape": None, "data_offsets": [0, 4]}) + b"0000",
        header(bare={"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}) + b"0000",
        header(bare={"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 4]}) + b"0000",
        header(bare={"dtype": "F32", "shape": [1], "data_offsets": 4}) + b"0000",
        header(bare={"dtype": "F32", "shape": [1], "data_offsets": [0, 4], "more": 1}) + b"0000",
        header(bare=[]) + b"0000",
        header(bare={"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}) + b"00000000",
        header(bare={"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}) + b"0000",
        header(bare={"dtype": "BOOL", "shape": [1], "data_offsets": [0, 1]}) + b"\x02",
        header(
            bare={"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            frozen={"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        )
        + b"0000",
        header(
            bare={"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
            frozen={"dtype": "F32", "shape": [1], "data_offsets": [8, 12]},
        )
        + bytes(12),
        header(__metadata__={"a": 1}),
        header(__metadata__=3),
        twice(b'{"bare": %b, "bare": %b}'),
    ],
)
def test_what_is_no_safetensors_file(saved: Path, content: bytes) -> None:
    replace(saved, TENSORS, content)
    refused(saved, TENSORS)


def test_tensors_of_another_network(saved: Path) -> None:
    tensors = safetensors.torch.load_file(saved / TENSORS)
    replace(saved, TENSORS, safetensors.torch.save({**tensors, "conv.weight": torch.ones(9, 3, 3, 3)}))
    refused(saved, "the shape that is there")
    replace(saved, TENSORS, safetensors.torch.save({**tensors, "stowaway": torch.ones(1)}))
    refused(saved, "stowaway")


def test_a_report_of_another_kind(saved: Path) -> None:
    rewrite(saved, lambda document: document["accounts"].pop("after"), REPORT)
    refused(saved, rf"{REPORT}: report\.accounts: .*after")
