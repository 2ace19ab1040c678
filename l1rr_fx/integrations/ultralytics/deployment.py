"""YOLO networks pruned, and written as files that Ultralytics and devices run."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.utils import _pytree as pytree

from l1rr_fx.integrations.ultralytics.networks import Size, Source, channels_of, example_image, load, pixels, task_of
from l1rr_fx.lowering.bundle import writing as bundle
from l1rr_fx.lowering.onnx.emission import Emitted, to_onnx
from l1rr_fx.lowering.onnx.metadata import yolo_metadata
from l1rr_fx.pruning import compiler
from l1rr_fx.pruning.pruned import Pruned
from l1rr_fx.support.choices import FileTarget

OUTPUTS = {"segment": (0, 1)}
"""The outputs that Ultralytics reads from a file, by task; of all others the first."""


def prune(source: Source, *, imgsz: Size = 640, **options: Any) -> Pruned:
    """The small network, for one image of `imgsz` pixels (a number, or height and width); see `l1rr_fx.prune`."""
    model = load(source)
    return compiler.prune(model, (example_image(model, imgsz),), **options)


def export(
    pruned: Pruned | nn.Module,
    path: str | os.PathLike[str],
    source: Source,
    *,
    imgsz: Size = 640,
    target: FileTarget = "onnxruntime",
    **options: Any,
) -> Emitted:
    """Write an ONNX file that `YOLO(path)` predicts with and validates; see `to_onnx`, whose options these are.

    `source` is what was pruned: its names, task and strides go into the file.
    """
    model = load(source)
    module = pruned.module if isinstance(pruned, Pruned) else pruned
    given: dict[str, Any] = {"input_names": ("images",), "outputs": _outputs(model)}
    given["metadata"] = onnx_metadata(model, imgsz)
    return to_onnx(module, (example_image(model, imgsz),), path, target=target, **{**given, **options})


def lower(
    pruned: Pruned | nn.Module, source: Source, *, out: str | os.PathLike[str], imgsz: Size = 640, **options: Any
) -> bundle.Bundle:
    """The bundle for a device; see `l1rr_fx.lower`, whose options these are. `source` is what was pruned."""
    model = load(source)
    module = pruned.module if isinstance(pruned, Pruned) else pruned
    numbers, image = _outputs(model), example_image(model, imgsz)
    given = {"metadata": onnx_metadata(model, imgsz), "dense": _Outputs(model, numbers).eval(), **options}
    chosen = _Outputs(module, numbers).eval()
    network = replace(pruned, module=chosen) if isinstance(pruned, Pruned) else chosen
    return bundle.lower(network, (image,), out=out, **given)


class _Outputs(nn.Module):
    """A network that returns some of its results, by their numbers, and does not compute what no result needs."""

    def __init__(self, network: nn.Module, numbers: tuple[int, ...]) -> None:
        super().__init__()
        self.network, self.numbers = network, numbers

    def forward(self, image: Tensor) -> Any:
        results = pytree.tree_leaves(self.network(image))
        return tuple(results[n] for n in self.numbers)


def onnx_metadata(model: nn.Module, imgsz: Size) -> dict[str, object]:
    """What Ultralytics reads from a file beside the network."""
    shape = getattr(model.model[-1], "kpt_shape", None)  # type: ignore[index]  # a Sequential
    return yolo_metadata(
        model.names,  # type: ignore[arg-type]  # a dictionary
        stride=int(max(model.stride)),  # type: ignore[arg-type]  # a tensor of three
        image_size=pixels(imgsz),
        task=task_of(model),
        channels=channels_of(model),
        end2end=bool(getattr(model, "end2end", False)),
        keypoint_shape=None if shape is None else (int(shape[0]), int(shape[1])),
    )


def _outputs(model: nn.Module) -> tuple[int, ...]:
    return OUTPUTS.get(task_of(model), (0,))
