"""Bad input to `prune` and to the command line: one clear error of ours, the model as it was, nothing half-written."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim
from typer.testing import CliRunner

import l1rr_fx
from l1rr_fx.cli import app

LONGEST = 1200
"""Characters of a message: the example inputs are described, never printed."""


def net() -> nn.Sequential:
    """Convolution 3 -> 8, batch norm, ReLU, convolution 8 -> 4."""
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()


def image(*shape: int) -> Tensor:
    return torch.linspace(-1, 1, math.prod(shape or (1, 3, 6, 6))).view(shape or (1, 3, 6, 6))


def zeroed(*names: str) -> nn.Module:
    """`net` with these parameters zero; all of them where none is named."""
    model = net()
    for name, parameter in model.named_parameters():
        if not names or name in names:
            parameter.data.zero_()
    return model


def spoilt(name: str, value: float) -> nn.Module:
    """`net` with one element of a parameter or buffer replaced."""
    model = net()
    model.state_dict()[name].view(-1)[1] = value
    return model


class Scaled(nn.Module):
    """A convolution times a factor that must be given by name."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor, *, scale: float) -> Tensor:
        out: Tensor = self.conv(x) * scale
        return out


class TwoHeads(nn.Module):
    """Two outputs, of which the second is zero whatever comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
        for parameter in self.b.parameters():
            parameter.data.zero_()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.stem(x).relu()
        return self.a(features), self.b(features)


class WithoutParameters(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu()


class WithoutForward(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)


class Branches(nn.Module):
    """Control flow on data around bare parameters: no submodule is left to capture."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = x * self.weight
        if y.sum() > 100:
            return y + 1
        return y


class Loops(Branches):
    def forward(self, x: Tensor) -> Tensor:
        while x.abs().max() > 0.1:
            x = x * self.weight * 0.5
        return x


class Numpy(Branches):
    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy((x * self.weight).detach().numpy())


class ReadsFromOutside(nn.Module):
    """A branch on data, and the one submodule's weight is used by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.conv2d(x, self.conv.weight)
        if y.sum() > 100:
            return y + 1
        return y


def linear() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()


def sparse(name: str, layout: Callable[[Tensor], Tensor]) -> nn.Module:
    """`linear` with a parameter that is not stored as a dense tensor."""
    model = linear()
    module, _, field = name.rpartition(".")
    setattr(model.get_submodule(module), field, nn.Parameter(layout(model.get_parameter(name).data)))
    return model


def by_rows(tensor: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the layout is in beta
        return tensor.to_sparse_csr()


class SparseGraph(nn.Module):
    """A graph convolution: its edges are a sparse buffer."""

    edges: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 6)
        self.register_buffer("edges", torch.eye(3).to_sparse())

    def forward(self, x: Tensor) -> Tensor:
        return torch.sparse.mm(self.edges, self.linear(x[0, :, 0]))


class CallsItself(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward(self.conv(x))


def quantized() -> nn.Module:
    """A network whose weights are no parameters any more."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(torch.ao.nn.quantized.dynamic.Linear(8, 8))


@dataclass(frozen=True)
class Bad:
    """One wrong call of `prune`: the error's class and what its message must name."""

    name: str
    error: type[Exception]
    says: tuple[str, ...]
    model: Callable[[], Any] = net
    args: Any = None
    kwargs: Any = None
    options: tuple[tuple[str, Any], ...] = ()


def _option(name: str, key: str, value: Any, *says: str, **more: Any) -> Bad:
    return Bad(name, l1rr_fx.InputError, (key, *says), options=((key, value),), **more)


def _model(name: str, make: Callable[[], Any], *says: str, **more: Any) -> Bad:
    return Bad(name, l1rr_fx.InputError, says, make, **more)


def _args(name: str, args: Any, *says: str, **more: Any) -> Bad:
    return Bad(name, l1rr_fx.InputError, says, args=args, **more)


def _vanished(name: str, make: Callable[[], nn.Module], *says: str) -> Bad:
    return Bad(name, l1rr_fx.VanishedError, (*says, "zero for every input"), make)


def _captured(name: str, make: Callable[[], nn.Module], *says: str) -> Bad:
    return Bad(name, l1rr_fx.CaptureError, (make.__name__, *says, "submodule", __file__), make)


# fmt: off
BAD = (
    _model("model_none", lambda: None, "model is a NoneType", "Module"),
    _model("model_quantized", quantized, "is quantized", "prune the model first"),
    _model("model_class", lambda: nn.Conv2d, "model is a type", "Module"),
    _model("model_path", lambda: "net.pt2", "model is a str", "Module"),
    _model("model_function", lambda: (lambda x: x), "model is a function", "Module"),
    _model("model_exported", lambda: torch.export.export(net(), (image(),)), "ExportedProgram", "Module"),
    _model("model_scripted", lambda: torch.jit.trace(net(), (image(),)), "ScriptModule"),
    _model("model_uninitialised", lambda: nn.Sequential(nn.LazyConv2d(4, 1)), "0.weight", "uninitialized"),
    _model("model_without_values", lambda: net().to("meta"), "meta"),
    _model("model_empty", nn.Module, "Module has no parameters"),
    _model("model_empty_sequential", nn.Sequential, "Sequential has no parameters"),
    _model("model_without_parameters", WithoutParameters, "WithoutParameters has no parameters"),
    _model("model_without_forward", WithoutForward, "WithoutForward does not run", "forward"),
    _model("model_is_a_container", lambda: nn.ModuleDict({"a": nn.Conv2d(3, 4, 1)}), "ModuleDict does not run"),
    _model("weight_nan", lambda: spoilt("0.weight", math.nan), "0.weight holds 1 value", "216", "NaN"),
    _model("weight_infinite", lambda: spoilt("3.weight", math.inf), "3.weight holds 1 value", "32", "infinite"),
    _model("bias_infinite", lambda: spoilt("3.bias", -math.inf), "3.bias holds 1 value"),
    _model("statistics_nan", lambda: spoilt("1.running_var", math.nan), "1.running_var holds 1 value"),

    _args("args_tensor", image(), "args is a Tensor", "tuple"),
    _args("args_list", [image()], "args is a list", "tuple"),
    _args("args_dict", {"input": image()}, "args is a dict", "tuple"),
    _args("args_too_few", (), "Sequential does not run", "missing 1 required"),
    _args("args_too_many", (image(), image()), "Sequential does not run", "(1, 3, 6, 6), (1, 3, 6, 6)"),
    _args("args_wrong_channels", (image(1, 5, 6, 6),), "(1, 5, 6, 6)", "3 channels"),
    _args("args_wrong_rank", (image(6),), "(6,)", "3D", "4D"),
    _args("args_wrong_dtype", (image().double(),), "does not run", "double"),
    _args("args_integers", (image().long(),), "does not run", "long"),
    _args("args_string", ("image.png",), "does not run", "'image.png'"),
    _args("args_none_inside", (None,), "does not run", "None"),
    _args("args_array", (image().numpy(),), "does not run", "ndarray"),
    _args("args_without_values", (image().to("meta"),), "does not run", "meta"),
    Bad("kwargs_list", l1rr_fx.InputError, ("kwargs is a list", "mapping"), kwargs=[1]),
    Bad("kwargs_keys", l1rr_fx.InputError, ("does not run", "strings"), kwargs={1: 2}),
    Bad("kwargs_unknown", l1rr_fx.InputError, ("does not run", "bogus"), kwargs={"bogus": 2}),
    Bad("kwargs_missing", l1rr_fx.InputError, ("Scaled does not run", "scale"), Scaled),
    Bad("kwargs_wrong", l1rr_fx.InputError, ("Scaled does not run", "'two'"), Scaled, kwargs={"scale": "two"}),

    _option("mode_unknown", "mode", "magic", "'magic'", "exclude", "union", "recombine"),
    _option("mode_none", "mode", None, "None", "recombine"),
    _option("mode_list", "mode", ["union"], "recombine"),
    _option("multiple_zero", "channel_multiple", 0, "is 0", "at least 1"),
    _option("multiple_negative", "channel_multiple", -4, "is -4"),
    _option("multiple_fraction", "channel_multiple", 2.5, "is 2.5", "whole number"),
    _option("multiple_string", "channel_multiple", "8", "is '8'"),
    _option("target_unknown", "target", "tx3", "is 'tx3'", "jetson-tx2"),
    _option("target_no_model", "target", 8, "is 8"),
    _option("multiple_bool", "channel_multiple", True, "is True"),
    _option("shapes_number", "dynamic_shapes", 3),
    _option("shapes_string", "dynamic_shapes", "batch"),
    _option("shapes_unknown_name", "dynamic_shapes", {"nope": {0: Dim("b")}}, "nope", "input"),
    _option("shapes_too_many", "dynamic_shapes", ({0: Dim("b")}, {0: Dim("c")})),
    _option("shapes_axis", "dynamic_shapes", ({9: Dim("b")},)),
    _option("shapes_value", "dynamic_shapes", ({0: "batch"},)),
    _option("shapes_fixed_by_the_model", "dynamic_shapes", ({1: Dim("c")},)),
    _option("shapes_range", "dynamic_shapes", ({0: Dim("b", min=4, max=8)},)),

    _model("weight_sparse", lambda: sparse("0.weight", by_rows), "0.weight", "sparse_csr", "to_dense()"),
    _model("weight_in_coordinates", lambda: sparse("0.weight", Tensor.to_sparse), "0.weight", "sparse_coo"),
    _model("buffer_sparse", SparseGraph, "edges is stored as sparse_coo", "dense"),
    _model("calls_itself", CallsItself, "CallsItself does not run", "calls itself without end", __file__),
    _args("args_sparse", (by_rows(torch.eye(3)),), "example input", "sparse_csr", model=linear),

    _vanished("everything_zeroed", zeroed, "output 0", "(1, 4, 6, 6)"),
    _vanished("head_zeroed", lambda: zeroed("3.weight", "3.bias"), "output 0"),
    _vanished("channels_zeroed", lambda: zeroed("1.weight", "1.bias", "3.bias"), "output 0"),
    _vanished("second_output_zeroed", TwoHeads, "output 1"),

    _captured("branch_on_data", Branches, "if y.sum() > 100", "branch"),
    _captured("loop_on_data", Loops, "while x.abs().max() > 0.1", "loop"),
    _captured("numpy_in_forward", Numpy, "torch.from_numpy", "numpy"),
    _captured("weights_read_from_outside", ReadsFromOutside, "if y.sum() > 100"),
)
# fmt: on


def _rows(rows: tuple[Bad, ...]) -> list[Any]:
    """The rows as parameters."""
    return [pytest.param(row, id=row.name) for row in rows]


@pytest.mark.parametrize("bad", _rows(BAD))
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore:Lazy modules:UserWarning")
def test_one_clear_error(bad: Bad) -> None:
    model = bad.model()
    args = (image(),) if bad.args is None else bad.args
    before = _state(model)
    with pytest.raises(l1rr_fx.L1RRError) as caught:
        l1rr_fx.prune(model, args, bad.kwargs, **dict(bad.options))
    message = str(caught.value)
    assert type(caught.value) is bad.error, message
    for part in bad.says:
        assert part in message
    assert len(message) < LONGEST, "a message, not a dump"
    assert _state(model) == before, "the model was changed"


class Places(nn.Module):
    """As many outputs as there are positive inputs, and no part of it is a module."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 3, 1, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return nn.functional.conv2d(x, self.weight), torch.where(x[0, 0] > 0)[0]


def test_a_size_that_the_values_tell() -> None:
    with pytest.raises(l1rr_fx.CaptureError, match=r"(?s)depends on the values.*prune the part before"):
        l1rr_fx.prune(Places().eval(), (image(),))


def test_names_are_unique() -> None:
    assert len({bad.name for bad in BAD}) == len(BAD)


def test_a_model_that_does_not_run_is_located_in_its_own_code() -> None:
    with pytest.raises(l1rr_fx.InputError) as caught:
        l1rr_fx.prune(net(), (image(1, 5, 6, 6),))
    assert "run_aside" not in str(caught.value)
    assert "passes" not in str(caught.value)


def test_example_inputs_are_not_changed() -> None:
    args = (image(1, 5, 6, 6),)
    with pytest.raises(l1rr_fx.InputError):
        l1rr_fx.prune(net(), args)
    assert torch.equal(args[0], image(1, 5, 6, 6))


@pytest.mark.parametrize("shape", [(0, 3, 6, 6), (1, 3, 1, 1)])
def test_unusual_but_legal_inputs(shape: tuple[int, ...]) -> None:
    """An empty batch and a single pixel are no errors."""
    pruned = l1rr_fx.prune(net(), (image(*shape),))
    assert pruned.module(image(*shape)).shape == (shape[0], 4, *shape[2:])


def test_a_constant_that_is_not_zero_is_kept() -> None:
    """Every channel is dead, but the head's bias is left: the output is that, not an error."""
    model = zeroed("1.weight", "1.bias")
    pruned = l1rr_fx.prune(model, (image(),))
    x = image(2, 3, 6, 6)[:1] * 3
    assert torch.equal(pruned.module(x), model(x))


def _state(model: object) -> Any:
    """What must not change: every tensor bit for bit, the mode, and what hangs on each module."""
    if not isinstance(model, nn.Module) or isinstance(model, torch.jit.ScriptModule):
        return None
    return [
        (
            name,
            module.training,
            sorted(vars(module)),
            [(key, _content(value)) for key, value in (*module._parameters.items(), *module._buffers.items())],
            len(module._forward_hooks) + len(module._forward_pre_hooks),
        )
        for name, module in model.named_modules()
    ]


def _content(tensor: Tensor | None) -> Any:
    if tensor is None or tensor.is_meta or tensor.layout is not torch.strided or nn.parameter.is_lazy(tensor):
        return id(tensor)
    return (id(tensor), tensor.detach().numpy().tobytes(), tensor.requires_grad)


# --- the command line -----------------------------------------------------------------------------------------------

MODELS = """
from tests.test_bad_input import Branches, image, net, spoilt, zeroed
import torch
from torch import nn

def good(): return net(), (image(),)
def all_zero(): return zeroed(), (image(),)
def nan(): return spoilt("0.weight", float("nan")), (image(),)
def wrong_shape(): return net(), (image(1, 5, 6, 6),)
def too_many(): return net(), (image(), image())
def empty(): return nn.Sequential(), (image(),)
def branches(): return Branches(), (image(),)
def wants_argument(size): return net(), (image(),)
def raises(): raise ValueError("no weights here")
"""

COMMANDS = {
    "all_zero": "output 0",
    "nan": "0.weight holds 1 value",
    "wrong_shape": "(1, 5, 6, 6)",
    "too_many": "does not run",
    "empty": "Sequential has no parameters",
    "branches": "if y.sum() > 100",
    "wants_argument": "wants_argument",
    "raises": "no weights here",
}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with `bad_models.py`, whose import is forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.delitem(sys.modules, "bad_models", raising=False)
    (tmp_path / "bad_models.py").write_text(MODELS)
    return tmp_path


@pytest.mark.parametrize(
    ("command", "function"),
    [
        pytest.param(command, function, id=f"{command}-{function}")
        for command in ("prune", "inspect")
        for function in COMMANDS
        if (command, function) != ("inspect", "all_zero")  # which shows what could go, whatever the weights are
    ],
)
def test_on_the_command_line(here: Path, command: str, function: str) -> None:
    result = CliRunner().invoke(app, [command, f"bad_models:{function}", *(["-o", "small"] * (command == "prune"))])
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert COMMANDS[function] in result.stderr
    assert [path.name for path in here.iterdir()] == ["bad_models.py"]


def test_in_a_real_process(here: Path) -> None:
    """No traceback, and nothing that torch prints or logs by itself hides the error."""
    root = str(Path(l1rr_fx.__file__).parent.parent)  # installed or not
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root, "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "l1rr_fx", "prune", "bad_models:branches", "-o", "small"]
    result = subprocess.run(command, cwd=here, env=environment, capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (2, "")
    assert "Traceback" not in result.stderr
    assert result.stderr.count("error: ") == 1
    assert "if y.sum() > 100" in result.stderr
    assert not (here / "small").exists()


def test_a_failed_prune_keeps_what_was_saved_before(here: Path) -> None:
    good = CliRunner().invoke(app, ["prune", "bad_models:good", "-o", "small"])
    assert good.exit_code == 0, good.output
    before = {path.name: path.read_bytes() for path in (here / "small").iterdir()}
    bad = CliRunner().invoke(app, ["prune", "bad_models:nan", "-o", "small", "--overwrite"])
    assert bad.exit_code == 2
    assert {path.name: path.read_bytes() for path in (here / "small").iterdir()} == before
