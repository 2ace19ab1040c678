"""This machine under ONNX Runtime as a target: chains of convolutions and kernels, timed once and remembered.

ONNX Runtime keeps tensors between convolutions in blocks of channels: for a copy between two of them the tensor is
brought into plain order and back. So a copy is timed where it will stand, and not by itself. It also adds a residual
while it convolves, unless the result is copied first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.fx import Graph

from l1rr_fx.latency.cpu_kernels import cpu_kernels
from l1rr_fx.latency.cpu_model import CpuModel, Sample
from l1rr_fx.machines.calibration import block_size, calibrations, samples
from l1rr_fx.machines.cpu import CHANNELS, ODD, MeasuredCpu, measured_cpu, remembered, seconds_of
from l1rr_fx.machines.priced import Priced
from l1rr_fx.machines.profiling import profiler_overhead, timed_kernels
from l1rr_fx.support.packages import required
from passes.canonical.normalise import normalise
from passes.frontend.capture import capture
from passes.rewriting.sketcher import Sketch

if TYPE_CHECKING:
    import onnxruntime

AREA = 28
COPIED = ((32, 14), (64, 28), (64, 56), (128, 80), (64, 320))
LENGTH = 4
LEAST_S = 1e-6
CROWDED = 1.5
"""A chain keeps its tensors in the cache; in a network others have passed through it. Of 1, 1.5, 2 and 3 times the
chain's time, 1.5 and 2 gave the fastest ResNet-50 (half of the channels dead at random, one thread)."""
OPSET, IR = 13, 7


@dataclass(frozen=True)
class OnnxRuntimeCpu(Priced):
    """This CPU under ONNX Runtime as a target: `prices` of single decisions, and a `model` of whole networks."""

    model: CpuModel
    threads: int

    def predict(self, module: nn.Module, args: tuple[Any, ...]) -> float:
        """The predicted seconds of one forward pass of a network. Raises CaptureError as `capture` does."""
        return self._of_graph(normalise(capture(module, args)).graph)

    def predict_sketch(self, sketch: Sketch) -> float:
        """The predicted seconds of one forward pass of the network of a sketch: those of `predict`, sooner."""
        return self._of_graph(sketch.graph)

    def _of_graph(self, graph: Graph) -> float:
        return self.model.seconds(cpu_kernels(graph, self.model.block))


def onnxruntime_cpu() -> OnnxRuntimeCpu:
    """This machine at torch's present number of threads. Raises InputError without ONNX Runtime.

    The first time it is measured (15 s on one quiet core).
    """
    onnxruntime = required("onnxruntime", extra="onnx")
    name = f"onnxruntime-{onnxruntime.__version__}-{torch.get_num_threads()}"
    prices = remembered(name, measure, MeasuredCpu)
    return OnnxRuntimeCpu(prices, remembered(f"{name}-kernels", measured_model, CpuModel), prices.threads)


def measured_model() -> CpuModel:
    """The model of whole networks, from kernels that are timed one by one."""
    threads = torch.get_num_threads()
    block, overhead = block_size(threads), profiler_overhead(threads)
    found: list[Sample] = []
    for each in calibrations(block):
        (kernels,) = timed_kernels([each.model()], threads, overhead=overhead)
        found += samples(each, kernels)
    return CpuModel.fitted(block, overhead, found)


def measure() -> MeasuredCpu:
    """Time chains of convolutions, with and without a gather after each, in ONNX Runtime."""
    sizes = [float(n * n * 9 * AREA**2) for n in CHANNELS]
    seconds = seconds_of(*(_chain(n, AREA, kernel=3) for n in (*CHANNELS, ODD)))
    contractions = [(size, chain / LENGTH) for size, chain in zip(sizes, seconds, strict=False)]
    odd = seconds[-1] / seconds[CHANNELS.index(ODD + 1)]
    copies = [_copied(channels, area) for channels, area in COPIED]
    return measured_cpu("onnxruntime", contractions, copies, odd, fuses=True)


def _copied(channels: int, area: int) -> tuple[float, float]:
    """The bytes and the seconds of a copy of so many channels between two convolutions."""
    plain, copied = seconds_of(*(_chain(channels, area, copies=each) for each in (False, True)))
    return 8.0 * channels * area**2, max(LEAST_S, CROWDED * (copied - plain) / LENGTH)


def _chain(channels: int, area: int, *, kernel: int = 1, copies: bool = False) -> Callable[[], object]:
    """`LENGTH` convolutions, each followed by a gather of its channels if there are to be copies."""
    import numpy as np

    session = _session(channels, kernel, copies)
    x = np.random.default_rng(0).standard_normal((1, channels, area, area)).astype(np.float32)
    return lambda: session.run(None, {"x0": x})


def _session(channels: int, kernel: int, copies: bool) -> onnxruntime.InferenceSession:
    import numpy as np
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    random = np.random.default_rng(1)
    weight = random.standard_normal((channels, channels, kernel, kernel)).astype(np.float32) / channels
    constants = [numpy_helper.from_array(weight, "weight")]
    constants += [numpy_helper.from_array(np.arange(channels)[::-1].copy(), "order")] * copies
    nodes: list[Any] = []

    def call(operator: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, [f"v{len(nodes)}"], **attributes))
        return f"v{len(nodes) - 1}"

    value = "x0"
    for _ in range(LENGTH):
        value = call("Conv", value, "weight", pads=[kernel // 2] * 4)
        value = call("Gather", value, "order", axis=1) if copies else value
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, channels, None, None]) for n in ("x0", value)]
    graph = helper.make_graph(nodes, "chain", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
