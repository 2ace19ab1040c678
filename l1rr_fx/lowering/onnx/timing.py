"""Networks measured under ONNX Runtime on this CPU, beside what its model predicts."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from l1rr_fx.lowering.onnx.emission import to_onnx
from l1rr_fx.lowering.onnx.runtime import Trial
from l1rr_fx.machines.onnxruntime import OnnxRuntimeCpu, onnxruntime_cpu
from l1rr_fx.machines.profiling import Model, timed_runs
from l1rr_fx.support.choices import FileTarget

TARGET: FileTarget = "onnxruntime"


@dataclass(frozen=True)
class Measured:
    """The seconds of one forward pass of a network, the least of several, and those that were predicted."""

    seconds: float
    predicted: float

    @property
    def correction(self) -> float:
        """What a prediction for this network is multiplied by."""
        return self.seconds / self.predicted


def measured(
    modules: Sequence[nn.Module], args: tuple[Any, ...], machine: OnnxRuntimeCpu | None = None
) -> list[Measured]:
    """Networks that are called with `args`, measured in turns, so that a busy machine slows all alike.

    `machine` is the model of this CPU (None: that of `target="onnxruntime"`); its number of threads is used. Raises
    InputError without ONNX Runtime, and LoweringError for a network that has no ONNX form.
    """
    on = machine or onnxruntime_cpu()
    with tempfile.TemporaryDirectory() as folder:
        models = [onnx_model(each, args, Path(folder) / f"{index}.onnx") for index, each in enumerate(modules)]
    pairs = zip(timed_runs(models, on.threads), modules, strict=True)
    return [Measured(seconds, on.predict(module, args)) for seconds, module in pairs]


def onnx_model(module: nn.Module, args: tuple[Any, ...], path: Path) -> Model:
    """The network as an ONNX model, by way of a file at `path`, with `args` for its inputs."""
    to_onnx(module, args, path, target=TARGET, verify=False)
    content = path.read_bytes()
    values = Trial(args, {}, None).tensors()
    return Model(content, {name: each.detach().cpu().numpy() for name, each in zip(_inputs(content), values)})


def _inputs(content: bytes) -> list[str]:
    import onnx

    return [port.name for port in onnx.load_from_string(content).graph.input]
