"""`lower`: a network as a folder that builds its own engines on the target, checks them and measures them."""

from __future__ import annotations

import json
import logging
import os
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from l1rr_fx.latency.kernels import kernels
from l1rr_fx.latency.prediction import DEVICES, Prediction
from l1rr_fx.lowering.bundle.deploy_files import write_deploy_files
from l1rr_fx.lowering.bundle.examples import Image, emptiness, more_examples, with_image
from l1rr_fx.lowering.bundle.folder import FORMAT, MANIFEST, VERSION, check_folder, place_of_others, written
from l1rr_fx.lowering.bundle.half_precision import HalfPrecision, half_precision
from l1rr_fx.lowering.bundle.instructions import commands, readme
from l1rr_fx.lowering.bundle.predictions import dense_predictions, predictions
from l1rr_fx.lowering.onnx.emission import TOLERANCE, Emitted, check_module, in_order, to_onnx
from l1rr_fx.lowering.onnx.heads import check_head
from l1rr_fx.lowering.onnx.nms import Nms, check_detections, check_nms
from l1rr_fx.lowering.onnx.runtime import Trial
from l1rr_fx.lowering.onnx_target import target_named
from l1rr_fx.pruning.pruned import Pruned
from l1rr_fx.support.arguments import path_of
from l1rr_fx.support.choices import FileTarget
from l1rr_fx.support.files import size_and_hash
from l1rr_fx.support.packages import required
from passes.audit.verify import run_graph
from passes.errors import VerifyError
from passes.frontend.capture import capture
from passes.graph.isolation import run_aside

log = logging.getLogger(__name__)

MODEL, HALF_MODEL, SCRIPT = "model.onnx", "model_fp16.onnx", "build_and_measure.py"
BEFORE_NMS: Mapping[str, str] = {MODEL: "model_before_nms.onnx", HALF_MODEL: "model_fp16_before_nms.onnx"}
"""The same networks without the plugin, for those who do not know it."""
TYPED = "tensorrt-11"
"""The target whose files state their precision, which TensorRT 11 and TensorRT for RTX need."""
ENGINE_TOLERANCE: Mapping[str, float] = {"fp32": 1e-3, "fp16": TOLERANCE["fp16"], "onnxruntime": TOLERANCE["fp32"]}
"""The largest relative deviation from torch that is taken for rounding: TensorRT's FP32 kernels include Winograd's."""
DETECTION_TOLERANCE: Mapping[str, float] = {"fp32": 1e-2, "fp16": 5e-2}
"""With NMS in the file: what scores may be off by, and a quarter of what overlaps may. A box of 8 pixels at 640 has an
IoU of 0.78 with itself moved by half a pixel both ways, which is what FP16 rounds such coordinates by."""

Emit = Callable[..., Emitted]


@dataclass(frozen=True)
class Bundle:
    """A folder that was written, what its ONNX file holds, and the predicted latencies by precision.

    `predictions` are empty if the target has no latency model. `dense` are those of the network before pruning (empty:
    not known; of a `Pruned` a note says why). `pruned_for` is the machine that the network was pruned for ("": not
    known). `half` says whether FP16 holds the network's numbers (None: ONNX Runtime is not installed; print it for what
    to do). `notes` say what was left out, and what is to be known of the network.
    """

    path: Path
    target: str
    emitted: Emitted
    predictions: Mapping[str, Prediction]
    notes: tuple[str, ...] = ()
    half: HalfPrecision | None = None
    dense: Mapping[str, Prediction] = field(default_factory=dict)
    pruned_for: str = ""

    def __str__(self) -> str:
        half = "" if self.half is None or self.half.holds else "FP16 does not hold its numbers: print(bundle.half)"
        pruned_for = self.pruned_for and f" (pruned for {self.pruned_for})"
        times = ", ".join(f"{name.upper()} predicted {self._ms(name)}" for name in self.predictions)
        return f"{self.path}: {self.emitted.nodes} nodes for {self.target}{pruned_for}" + "".join(
            f"; {each}" for each in (times, half, *self.notes) if each
        )

    def _ms(self, precision: str) -> str:
        found = f"{self.predictions[precision].ms:.2f} ms"
        return f"{found} (dense {self.dense[precision].ms:.2f} ms)" if precision in self.dense else found


def lower(
    pruned: Pruned | nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    target: FileTarget = "jetson-tx2",
    out: str | os.PathLike[str],
    label: str = "",
    metadata: Mapping[str, object] | None = None,
    half_model: bool = True,
    nms: Nms | None = None,
    image: Image | None = None,
    examples: Sequence[tuple[Any, ...] | Image] = (),
    dense: nn.Module | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Write the bundle of a network, pruned or not, to the new folder `out`: all of it or, on any failure, nothing.

    It holds the ONNX file, the inputs `args` with the outputs of torch for them, a script that needs nothing but Python
    3.6, numpy and TensorRT, a manifest with hashes, a README with the commands, and files for Triton and DeepStream.
    `label` is what comparisons call the network (default: the folder's name). `half_model` adds a file in FP16, which
    TensorRT 11 needs, unless its outputs are not those of the network: then a note says so. `metadata` goes into the
    ONNX files. `nms` ends them with TensorRT's plugin, and adds them as they are before it. `image`, the path of a
    picture or its pixels, takes the place of the first input (see `examples.with_image`): without an image that shows
    objects, FP16 and NMS are hardly checked, and notes say so. `examples` are further inputs, each a tuple as `args` or
    an image, on all of which FP16 has to hold the network's numbers. `dense` is the network before pruning, whose
    predicted latency is shown beside; a `Pruned` remembers it for the inputs that it was pruned for.

    Raises InputError for wrong arguments, a folder that is not empty or a disk that refuses, LoweringError for what the
    target cannot express, and the errors of `to_onnx`. With `overwrite` a bundle is replaced; what is not of it, such
    as results.json, stays in the folder `before-1` of the new one, and a note says so.
    """
    folder = path_of("out", out)
    target_named(target)
    check_nms(nms, target)
    check_folder(folder, overwrite=overwrite)
    module = pruned.module if isinstance(pruned, Pruned) else pruned
    args = with_image(args, image)
    check_module(module, args)
    inputs = [args, *more_examples(args, examples)]
    check_head(nms, module, metadata)
    kwargs = in_order(module, kwargs)
    graph = capture(module, args, kwargs)
    work_list = kernels(graph)
    predicted = predictions(target, work_list)
    before, why_not = dense_predictions(dense, pruned, target, args, kwargs)
    remarks = (why_not, *emptiness(Trial(args, kwargs, None).tensors()), *_about(pruned, target))
    about = tuple(_noted(note) for note in remarks if note)
    emit = partial(to_onnx, module, args, kwargs=kwargs, metadata=metadata)
    with written(folder, SCRIPT, overwrite=overwrite) as work:
        emitted = _write_model(emit, work / MODEL, nms, target=target)
        notes = about + (_write_half_model(emit, work / HALF_MODEL, nms) if half_model else ())
        onnx_model = required("onnx", extra="onnx").load(str(work / (MODEL if nms is None else BEFORE_NMS[MODEL])))
        file = onnx_model.graph
        expected = _write_tensors(work, file, _outputs(module, graph, args, kwargs), args, kwargs)
        suppression, nothing = _suppression(nms, file, expected)
        modules = {key.rpartition(".")[0] for key in graph.state_dict()} - {""}
        results = [expected, *(_named(file.output, _outputs(module, graph, each, kwargs)) for each in inputs[1:])]
        runs = [(Trial(each, kwargs, None).tensors(), found) for each, found in zip(inputs, results, strict=True)]
        half = half_precision(onnx_model, runs, modules)
        advice = tuple(_noted(line) for line in (half.advice if half else ()))
        notes += nothing
        shutil.copyfile(Path(__file__).with_name(SCRIPT), work / SCRIPT)
        write_deploy_files(work, target, half=half is None or half.holds)
        facts = {
            "label": label or folder.name,
            "target": target,
            "opset": emitted.opset,
            "tolerance": dict(ENGINE_TOLERANCE),
            "nms": suppression,
            "commands": list(commands(target, (work / HALF_MODEL).exists())),
            "notes": [*notes, *advice],
            "half": None if half is None else half.facts(),
            "predicted": {name: {"ms": p.ms, "gpu_ghz": p.clock} for name, p in predicted.items()},
            "dense": {name: {"ms": p.ms} for name, p in before.items()},
            "kernels": [asdict(kernel) for kernel in work_list],
            "nodes": _makers(file),
        }
        (work / "README.md").write_text(readme(facts), encoding="utf-8")
        _write_manifest(work, facts)
        if place := place_of_others(folder):
            notes += (_noted(f"what was in {folder} and is not of this bundle is now in {folder / place}"),)
    pruned_for = pruned.report.target if isinstance(pruned, Pruned) else ""
    return Bundle(folder, target, replace(emitted, path=folder / MODEL), predicted, notes, half, before, pruned_for)


def _about(pruned: Pruned | nn.Module, target: str) -> Iterator[str]:
    """A note if a network was pruned for another machine than it is lowered for."""
    chosen = pruned.report.target if isinstance(pruned, Pruned) else target
    if chosen == target or chosen.startswith(f"{target}-") or (chosen == "none" and target not in DEVICES):
        return
    if target not in DEVICES:
        yield f"the network was pruned for {chosen}, and is lowered for {target}, which has no cost model: measure it"
        return
    yield (
        f"the network was pruned for {chosen}, and is lowered for {target}: prune(..., target={target!r}) chooses "
        "between copies and multiplications by what they cost there"
    )


def _write_model(emit: Emit, path: Path, nms: Nms | None, **options: Any) -> Emitted:
    """The network's file, and with `nms` another one without it; that was checked before the plugin was added."""
    emitted = emit(path, nms=nms, **options)
    if nms is not None:
        emit(path.with_name(BEFORE_NMS[path.name]), verify=False, **options)
    return emitted


def _write_half_model(emit: Emit, path: Path, nms: Nms | None) -> tuple[str, ...]:
    """The FP16 file; or, where FP16 cannot hold the network's numbers, a note and no file."""
    try:
        _write_model(emit, path, nms, target=TYPED, precision="fp16")
    except VerifyError as error:
        return (_noted(f"{path.name} was left out: {error}"),)
    return ()


def _write_tensors(
    work: Path, graph: Any, outputs: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Mapping[str, Any]:
    """The inputs and the outputs of torch, under the names that the ONNX file gives them; the outputs are returned."""
    numpy = required("numpy", extra="onnx")
    inputs = _named(graph.input, (args, dict(kwargs)))
    expected = _named(graph.output, outputs)
    for name, arrays in (("inputs.npz", inputs), ("expected.npz", expected)):
        with zipfile.ZipFile(work / name, "w") as file:  # numpy.savez takes no array that is called "file"
            for key, array in arrays.items():
                with file.open(zipfile.ZipInfo(f"{key}.npy"), "w") as entry:
                    numpy.lib.format.write_array(entry, array, allow_pickle=False)
    return expected


def _outputs(module: nn.Module, graph: GraphModule, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """What torch gives: of a network in half precision what it would give without its rounding, as the file does."""
    tensors = [*module.state_dict().values(), *pytree.tree_leaves((args, dict(kwargs)))]
    if any(isinstance(each, Tensor) and each.dtype in (torch.float16, torch.bfloat16) for each in tensors):
        return run_graph(graph, args, kwargs, doubled=True)
    return run_aside(module, args, kwargs)


def _suppression(
    nms: Nms | None, graph: Any, expected: Mapping[str, Any]
) -> tuple[dict[str, Any] | None, tuple[str, ...]]:
    """The manifest's entry for NMS, and a note if no output is left for it. `graph` is the one before NMS."""
    if nms is None:
        return None, ()
    name = graph.output[nms.output].name
    check_detections(expected[name], name)
    facts = {**asdict(nms), "output": name, "tolerance": dict(DETECTION_TOLERANCE)}
    best = expected[name][:, 4:].max()
    if best >= nms.score:
        return facts, ()
    note = (
        f"no score reaches {nms.score} for these inputs (the best is {best:.3g}), so that measuring can only check "
        "that NMS finds nothing: lower the network with an image that shows objects"
    )
    return facts, (_noted(note),)


def _named(ports: Any, values: Any) -> dict[str, Any]:
    tensors = [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]
    return {port.name: _array(tensor) for port, tensor in zip(ports, tensors, strict=True)}


def _noted(note: str) -> str:
    log.warning(note)
    return note


def _makers(graph: Any) -> dict[str, dict[str, Any]]:
    """For each value of an ONNX graph the node that makes it."""
    return {
        value: {"name": node.name, "kind": node.op_type, "inputs": list(node.input)}
        for node in graph.node
        for value in node.output
    }


def _write_manifest(work: Path, facts: Mapping[str, Any]) -> None:
    """The facts, and the size and the hash of every file that is there."""
    files = {entry.name: size_and_hash(entry) for entry in sorted(work.iterdir())}
    manifest = {"format": FORMAT, "version": VERSION, **facts, "files": files}
    (work / MANIFEST).write_text(json.dumps(manifest, indent=1, allow_nan=False), encoding="utf-8")


def _array(tensor: Tensor) -> Any:
    value = tensor.detach().cpu()
    return (value.float() if value.is_floating_point() else value).contiguous().numpy()
