"""The file that `to_onnx` writes: version, bytes, names and metadata, and what happens where it cannot be written."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import l1rr_fx
from l1rr_fx.lowering import LoweringError, lower, to_onnx
from l1rr_fx.lowering.onnx import emission
from l1rr_fx.lowering.onnx.metadata import yolo_metadata
from l1rr_fx.lowering.onnx.runtime import run_onnx
from passes.errors import InputError, VerifyError
from tests.oracle import relative_error, zeroed_case
from tests.zoo import by_name

IMAGE = (torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)),)


class Residual(nn.Module):
    """Two branches that lose different channels, a batch norm each, and a head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.SiLU())
        self.block = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.head = nn.Conv2d(8, 4, 1)
        for norm, dead in ((self.stem[1], (1, 4, 6)), (self.block[1], (0, 4, 5))):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            norm.weight.data[list(dead)] = norm.bias.data[list(dead)] = 0

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out: Tensor = self.head(F.relu(x + self.block(x)))
        return out


class Function(nn.Module):
    """A function as a module; its parameter is there because networks have some."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, *args: Tensor) -> Any:
        return self.function(self.scale, *args)


def emitted(function: Callable[..., Any], path: Path, *args: Tensor, **options: Any) -> emission.Emitted:
    return to_onnx(Function(function).eval(), args or IMAGE, path, **options)


# What is in the file


def test_file_is_what_tensorrt_8_reads(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    done = to_onnx(Residual().eval(), IMAGE, path)
    model = onnx.load(path)
    assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", 13)]
    assert model.ir_version == 7
    assert {tensor.data_type for tensor in model.graph.initializer} <= {onnx.TensorProto.FLOAT, onnx.TensorProto.INT64}
    assert all(tensor.HasField("raw_data") for tensor in model.graph.initializer)
    sizes = [d.dim_value for port in (*model.graph.input, *model.graph.output) for d in port.type.tensor_type.shape.dim]
    assert sizes == [1, 3, 16, 16, 1, 4, 16, 16]
    assert done.operators == {"Add": 1, "Conv": 3, "Mul": 1, "Relu": 1, "Sigmoid": 1}  # batch norms are folded
    assert done.nodes == 7 and done.introduced == () and done.deviation is not None


def test_bytes_are_the_same_each_time(tmp_path: Path) -> None:
    for name in ("a", "b"):
        to_onnx(Residual().eval(), IMAGE, tmp_path / name, metadata={"names": {0: "tree"}})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_nodes_are_named_for_the_modules_of_the_model(tmp_path: Path) -> None:
    model = Residual().eval()
    to_onnx(model, IMAGE, tmp_path / "dense.onnx")
    to_onnx(l1rr_fx.prune(model, IMAGE).module, IMAGE, tmp_path / "small.onnx")
    dense, small = (
        [node.name for node in onnx.load(tmp_path / name).graph.node if node.op_type == "Conv"]
        for name in ("dense.onnx", "small.onnx")
    )
    assert dense == small == ["stem.0/Conv", "block.0/Conv", "head/Conv"]
    names = {tensor.name for tensor in onnx.load(tmp_path / "small.onnx").graph.initializer}
    assert {"stem.0.weight", "head.weight", "head.bias"} <= names


def test_gathers_that_pruning_left_are_named(tmp_path: Path) -> None:
    def shuffled(scale: Tensor, x: Tensor) -> Tensor:
        return x[:, torch.tensor([2, 0, 1])] * scale

    asked = emitted(shuffled, tmp_path / "asked.onnx")
    assert asked.operators["Gather"] == 1 and asked.introduced == ()
    model = Function(lambda scale, x: x * scale)
    graph = l1rr_fx.prune(model.eval(), IMAGE).module
    assert isinstance(graph, torch.fx.GraphModule)
    graph.register_buffer("_recombine_0", torch.tensor([2, 0, 1]))
    product = next(node for node in graph.graph.nodes if node.op == "call_function")
    with graph.graph.inserting_before(graph.graph.output_node()):
        index = graph.graph.get_attr("_recombine_0")
        moved = graph.graph.call_function(torch.ops.aten.index_select.default, (product, 1, index))
    graph.graph.output_node().args = ((moved,),)  # type: ignore[assignment]
    graph.graph.lint()
    graph.recompile()
    left = to_onnx(graph, IMAGE, tmp_path / "left.onnx", verify=False)
    assert left.introduced == ("index_select_default/Gather",)
    assert "1 of them introduced" in str(left)


@pytest.mark.parametrize(
    "move",
    [
        lambda x: x.swapaxes(2, 3),
        lambda x: x.transpose(2, 3),
        lambda x: x.movedim(1, 3),
        lambda x: torch.native_channel_shuffle(x.repeat(1, 2, 1, 1), 2),
        lambda x: F.channel_shuffle(x.repeat(1, 2, 1, 1), 2),
    ],
)
def test_transpositions_of_the_model_are_not_introduced(move: Any, tmp_path: Path) -> None:
    done = emitted(lambda s, x: move(x) * 2.0, tmp_path / "model.onnx")
    assert done.operators["Transpose"] == 1 and done.introduced == ()


def test_attention_introduces_the_transposition_of_its_keys(tmp_path: Path) -> None:
    x = torch.rand(1, 2, 6, 4)
    done = emitted(lambda s, q: F.scaled_dot_product_attention(q * s, q, q), tmp_path / "model.onnx", x)
    assert done.operators["Transpose"] == 1 and len(done.introduced) == 1


def test_sizes_are_those_of_the_arguments(tmp_path: Path) -> None:
    two = (torch.rand(2, 3, 16, 16),)
    pruned = l1rr_fx.prune(Residual().eval(), two, dynamic_shapes=({0: torch.export.Dim("batch")},))
    other = (torch.rand(3, 3, 16, 16),)
    to_onnx(pruned.module, other, tmp_path / "model.onnx")
    (found,) = run_onnx((tmp_path / "model.onnx").read_bytes(), other)
    assert found.shape == (3, 4, 16, 16)
    with pytest.raises(InputError, match=r"does not run on inputs of these shapes: x\.shape\[1\] is not 3"):
        to_onnx(pruned.module, (torch.rand(1, 5, 16, 16),), tmp_path / "other.onnx")


def test_float64_becomes_float32_and_half_stays_inside(tmp_path: Path) -> None:
    to_onnx(Residual().double().eval(), (IMAGE[0].double(),), tmp_path / "double.onnx")
    to_onnx(Residual().eval(), IMAGE, tmp_path / "half.onnx", target="tensorrt-11", precision="fp16")
    kinds = [
        {tensor.data_type for tensor in onnx.load(tmp_path / name).graph.initializer}
        for name in ("double.onnx", "half.onnx")
    ]
    assert kinds == [{onnx.TensorProto.FLOAT}, {onnx.TensorProto.FLOAT16}]
    half = onnx.load(tmp_path / "half.onnx").graph
    assert {port.type.tensor_type.elem_type for port in (*half.input, *half.output)} == {onnx.TensorProto.FLOAT}
    (found,) = run_onnx((tmp_path / "half.onnx").read_bytes(), IMAGE)
    assert relative_error(found, Residual().eval()(*IMAGE).detach()) < 5e-3  # ten bits of mantissa


def test_outputs_are_picked_and_named_and_dead_ends_left_out(tmp_path: Path) -> None:
    done = emitted(
        lambda s, x: {"a": x * s, "b": [torch.tanh(x), x], "c": 3},
        tmp_path / "model.onnx",
        outputs=(1, 2),
        input_names=("images",),
        output_names=("bent", "same"),
    )
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert [port.name for port in graph.input] == ["images"]
    assert [port.name for port in graph.output] == ["bent", "same"]
    assert done.operators == {"Identity": 1, "Tanh": 1}


def test_keyword_arguments_are_inputs(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)

        def forward(self, x: Tensor, *, factor: Tensor, bias: float) -> Tensor:
            out: Tensor = self.conv(x) * factor + bias
            return out

    kwargs = {"factor": torch.rand(1, 3, 1, 1), "bias": 0.5}
    assert to_onnx(Scaled().eval(), IMAGE, tmp_path / "m.onnx", kwargs=kwargs).deviation is not None
    assert [port.name for port in onnx.load(tmp_path / "m.onnx").graph.input] == ["x", "factor"]


def test_choices_that_rounding_changes_are_told_from_errors(tmp_path: Path, caplog: Any) -> None:
    def chosen(scale: Tensor, x: Tensor) -> Any:
        scores = torch.softmax(torch.cat([x, x * (1 + 1e-7)], 1).flatten(1) * scale, 1)  # ties but for rounding
        best, places = scores.topk(40, 1)
        return best, torch.cat([x, x + 1], 1).flatten(1).gather(1, places)

    done = emitted(chosen, tmp_path / "model.onnx")
    assert done.deviation is not None and done.deviation < 1e-4
    if "this is rounding" not in caplog.text:  # both happened to choose alike: then they agree at once
        (best, found) = run_onnx((tmp_path / "model.onnx").read_bytes(), IMAGE)
        assert relative_error(found, chosen(torch.ones(1), *IMAGE)[1]) < 1e-4


def test_choices_worse_than_torchs_own_are_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    topk = emission_forms()[torch.ops.aten.topk.default]
    wrong = {torch.ops.aten.topk.default: lambda w, out, x, k, dim, *_: topk(w, out, x, k, dim, largest=False)}
    monkeypatch.setattr("l1rr_fx.lowering.onnx.operators.FORMS", {**emission_forms(), **wrong})
    with pytest.raises(VerifyError, match="Nothing was written"):
        emitted(lambda s, x: (x.flatten(1) * s).topk(5, 1), tmp_path / "model.onnx")


def test_a_wrong_file_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forms = {**emission_forms(), torch.ops.aten.tanh.default: lambda w, out, x: w.op("Sigmoid", x)}
    monkeypatch.setattr("l1rr_fx.lowering.onnx.operators.FORMS", forms)
    with pytest.raises(VerifyError, match=r"deviates by .* Nothing was written"):
        emitted(lambda s, x: torch.tanh(x * s), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def emission_forms() -> dict[Any, Any]:
    from l1rr_fx.lowering.onnx.operators import FORMS

    return dict(FORMS)


# Ultralytics


def test_ultralytics_runs_the_pruned_file(tmp_path: Path) -> None:
    case = zeroed_case(by_name("yolo/yolov8n"), 0.5)
    model = case.model.float()
    picture = (torch.rand(160, 160, 3, generator=torch.Generator().manual_seed(1)) * 255).byte().numpy()
    image = torch.from_numpy(picture[..., ::-1].copy()).permute(2, 0, 1).unsqueeze(0).float() / 255
    pruned = l1rr_fx.prune(model, (image,))
    names = {**model.names, 0: "tree"}
    metadata = yolo_metadata(names, stride=int(max(model.stride)), image_size=(160, 160))
    path = tmp_path / "small.onnx"
    to_onnx(pruned.module, (image,), path, outputs=(0,), input_names=("images",), metadata=metadata)

    from ultralytics import YOLO
    from ultralytics.utils.nms import non_max_suppression

    yolo = YOLO(path, task="detect")
    result = yolo.predict(picture, imgsz=160, conf=0.01, iou=0.7, max_det=30, verbose=False)[0]
    assert result.names == names
    with torch.no_grad():
        wanted = non_max_suppression(model(image)[0], 0.01, 0.7, max_det=30)[0]
    wanted[:, :4] = wanted[:, :4].clamp(0, 160)
    assert len(wanted) == 30 and relative_error(result.boxes.data, wanted) < 1e-4


def test_metadata_of_an_unknown_task_is_refused() -> None:
    with pytest.raises(InputError, match="no task 'depth'"):
        yolo_metadata(["tree"], stride=32, image_size=(64, 64), task="depth")
    assert yolo_metadata(["tree"], stride=32, image_size=(64, 96))["names"] == {0: "tree"}


# What is refused


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "target": ({"target": "tx3"}, r"no target 'tx3'; there are jetson-tx2, onnxruntime"),
    "precision": ({"precision": "int8"}, r"no precision 'int8'; there are fp32, fp16"),
    "input names": ({"input_names": ("a", "b")}, r"input_names is \['a', 'b'\]; expected 1 different names"),
    "output names": ({"output_names": ()}, r"output_names is \[\]; expected 1 different names"),
    "outputs": ({"outputs": (4,)}, r"outputs is \[4\]; expected numbers from 0 to 0"),
    "no numbers": ({"outputs": 1}, r"outputs is 1; expected a sequence of numbers"),
    "no names": ({"input_names": [3]}, r"input_names is \[3\]; expected a sequence of names"),
    "one name": ({"output_names": "y"}, r"output_names is 'y'; expected a sequence of names"),
    "metadata": ({"metadata": "abc"}, r"metadata is a str; expected a mapping"),
    "kwargs": ({"kwargs": [1]}, r"kwargs is a list; expected a mapping"),
    "nms": ({"nms": 3}, r"nms is a int; expected Nms\("),
    "no target": ({"target": ["onnxruntime"]}, r"no target \['onnxruntime'\]"),
    "no precision": ({"precision": None}, r"no precision None"),
    "taken name": ({"output_names": ("x",)}, r"output name 'x' is taken"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED)
def test_wrong_options_are_refused(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        to_onnx(Residual().eval(), IMAGE, tmp_path / "model.onnx", **options)
    assert not list(tmp_path.iterdir())


def test_wrong_modules_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(InputError, match="in training mode"):
        to_onnx(Residual(), IMAGE, path)
    with pytest.raises(InputError, match=r"a Pruned has one: \.module"):
        to_onnx(l1rr_fx.prune(Residual().eval(), IMAGE), IMAGE, path)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="args is a Tensor"):
        to_onnx(Residual().eval(), IMAGE[0], path)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="has 1 inputs; 2 are given"):
        to_onnx(l1rr_fx.prune(Residual().eval(), IMAGE).module, (*IMAGE, *IMAGE), path)


def test_what_is_no_path_and_no_plain_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="path is a NoneType"):
        to_onnx(Residual().eval(), IMAGE, None)  # type: ignore[arg-type]
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="is no plain file"):
        to_onnx(Residual().eval(), IMAGE, tmp_path / "pipe", overwrite=True)


def test_an_exported_program_has_no_modes(tmp_path: Path) -> None:
    program = torch.export.export(Residual().eval(), IMAGE, strict=False)
    assert to_onnx(program.module(), IMAGE, tmp_path / "model.onnx").deviation is not None
    training = torch.export.export(Residual().train(), IMAGE, strict=False)
    with pytest.raises(InputError, match="normalises with the batch's statistics"):
        to_onnx(training.module(), IMAGE, tmp_path / "other.onnx")


def test_a_module_without_parameters_is_written(tmp_path: Path) -> None:
    assert to_onnx(nn.Sequential(nn.Sigmoid(), nn.MaxPool2d(2)).eval(), IMAGE, tmp_path / "model.onnx").nodes == 2


def test_keyword_arguments_are_put_in_the_graphs_order(tmp_path: Path) -> None:
    class Named(Residual):
        def forward(self, x: Tensor, wide: Tensor, thin: Tensor) -> Tensor:
            return super().forward(x) * thin + wide.mean(1, keepdim=True)

    named = {"wide": IMAGE[0], "thin": torch.rand(1, 1, 16, 16)}
    small = l1rr_fx.prune(Named().eval(), IMAGE, named).module
    turned = dict(reversed(named.items()))
    done = to_onnx(small, IMAGE, tmp_path / "model.onnx", kwargs=turned)
    sizes = {each.name: len(each.type.tensor_type.shape.dim) and each.type.tensor_type.shape.dim[1].dim_value
             for each in onnx.load(done.path).graph.input}  # fmt: skip
    assert sizes == {"x": 3, "wide": 3, "thin": 1}
    bundle = lower(small, IMAGE, turned, target="onnxruntime", out=tmp_path / "bundle", half_model=False)
    stored = np.load(bundle.path / "inputs.npz")
    assert {name: stored[name].shape[1] for name in stored} == sizes
    with pytest.raises(InputError, match=r"takes the keyword arguments \['wide', 'thin'\]; \['wide'\] are given"):
        to_onnx(small, IMAGE, tmp_path / "other.onnx", kwargs={"wide": IMAGE[0]})


def test_any_name_of_an_input_is_stored(tmp_path: Path) -> None:
    class Reader(Residual):
        def forward(self, file: Tensor) -> Tensor:
            return super().forward(file)

    bundle = lower(Reader().eval(), IMAGE, target="onnxruntime", out=tmp_path / "bundle", half_model=False)
    assert np.array_equal(np.load(bundle.path / "inputs.npz")["file"], IMAGE[0].numpy())


def test_a_folder_that_cannot_be_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be a folder: .*file is none"):
        lower(Residual().eval(), IMAGE, out=tmp_path / "file" / "bundle")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="is the working directory"):
        lower(Residual().eval(), IMAGE, out=".", overwrite=True)


def test_an_output_gets_a_name_that_is_free(tmp_path: Path) -> None:
    def plain(scale: Tensor, output0: Tensor) -> Tensor:
        return output0 * scale

    class Taken(Function):
        def forward(self, output0: Tensor) -> Any:
            return super().forward(output0)

    graph = onnx.load(to_onnx(Taken(plain).eval(), IMAGE, tmp_path / "model.onnx").path).graph
    assert [port.name for port in (*graph.input, *graph.output)] == ["output0", "output0_"]


def test_random_numbers_are_refused(tmp_path: Path) -> None:
    for draws in (lambda s, x: x * s + torch.randn(16), lambda s, x: torch.bernoulli(torch.sigmoid(x * s))):
        with pytest.raises(LoweringError, match=r"draws random numbers, which a file cannot\n  node "):
            emitted(draws, tmp_path / "model.onnx")


def test_a_graph_that_is_not_the_module_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VerifyError, match="graph that was captured deviates by .* from the module"):
        emitted(lambda s, x: x * s * (1 + torch.compiler.is_exporting()), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_fp16_keeps_what_guards_a_division(tmp_path: Path) -> None:
    def guarded(scale: Tensor, x: Tensor, mask: Tensor) -> Tensor:
        hidden = (x * scale).masked_fill(mask > 0, torch.finfo(torch.float32).min).softmax(-1)
        return F.normalize(x * scale) + F.rms_norm(x, (16,), eps=1e-8) + hidden

    done = emitted(guarded, tmp_path / "m.onnx", *IMAGE, torch.zeros(16, 16), precision="fp16", target="onnxruntime")
    (found,) = run_onnx(done.path.read_bytes(), (torch.zeros(1, 3, 16, 16), torch.ones(16, 16)))
    torch.testing.assert_close(found, torch.full((1, 3, 16, 16), 1 / 16), rtol=1e-2, atol=1e-3)


def test_an_operator_without_a_form_is_named_with_its_line(tmp_path: Path) -> None:
    with pytest.raises(LoweringError) as caught:
        emitted(lambda s, x: torch.atan2(x, x + s), tmp_path / "model.onnx")
    message = str(caught.value)
    assert "aten.atan2.default has no form on jetson-tx2" in message
    assert "test_onnx_file.py" in message and "Replace it in the model" in message


def test_a_size_that_depends_on_values_is_named(tmp_path: Path) -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    graph.output((graph.call_function(torch.ops.aten.nonzero.default, (x,)),))
    module = torch.fx.GraphModule(nn.Module(), graph).eval()
    with pytest.raises(LoweringError, match=r"depends on values.*\n.*aten.nonzero"):
        to_onnx(module, IMAGE, tmp_path / "model.onnx")


def test_what_the_target_misreads_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(
        LoweringError, match=r"would refuse or misread this network:\n  error: Conv .* the network computes its weight"
    ):
        emitted(lambda s, x, w: F.conv2d(x * s, w), tmp_path / "m.onnx", *IMAGE, torch.rand(4, 3, 1, 1))
    done = emitted(lambda s, x, w: F.conv2d(x * s, w), tmp_path / "m.onnx", *IMAGE, torch.rand(4, 3, 1, 1),
                   target="onnxruntime")  # fmt: skip
    assert done.path.exists()


def test_existing_files_and_missing_directories_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        to_onnx(Residual().eval(), IMAGE, path)
    assert path.read_text() == "mine"
    to_onnx(Residual().eval(), IMAGE, path, overwrite=True)
    onnx.checker.check_model(path)
    with pytest.raises(InputError, match="is a directory"):
        to_onnx(Residual().eval(), IMAGE, tmp_path)
    with pytest.raises(InputError, match="there is no directory"):
        to_onnx(Residual().eval(), IMAGE, tmp_path / "none" / "model.onnx")


def test_a_full_disk_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match="cannot be written: No space left"):
        to_onnx(Residual().eval(), IMAGE, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())
