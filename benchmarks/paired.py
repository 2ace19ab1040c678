"""`paired_timing`: two networks timed in turn at one thread, in ONNX Runtime or PyTorch."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import l1rr_fx
from l1rr_fx.demo.measure import has_onnx


@dataclass(frozen=True)
class Timing:
    """Median milliseconds for the test image, dense and pruned, of paired runs at one thread; `engine` ran both."""

    engine: str
    dense: float
    pruned: float


def paired_timing(dense: nn.Module, pruned: nn.Module, image: Tensor, *, rounds: int = 11) -> Timing:
    """Both models timed in turn at one thread: in ONNX Runtime where it is installed, else in PyTorch."""
    onnx = has_onnx()
    prepared = _onnx_call if onnx else _eager_call
    calls = (prepared(dense, image), prepared(pruned, image))
    seconds: tuple[list[float], list[float]] = ([], [])
    with _one_thread():
        for call in calls:
            call()
        for _ in range(rounds):
            for call, taken in zip(calls, seconds, strict=True):
                start = time.perf_counter()
                call()
                taken.append(time.perf_counter() - start)
    middle = [statistics.median(taken) * 1e3 for taken in seconds]
    return Timing("ONNX Runtime" if onnx else "PyTorch, eager", middle[0], middle[1])


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _eager_call(model: nn.Module, image: Tensor) -> Callable[[], object]:
    def call() -> object:
        with torch.no_grad():
            return model(image)

    return call


def _onnx_call(model: nn.Module, image: Tensor) -> Callable[[], object]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "model.onnx")
        l1rr_fx.to_onnx(model, (image,), path, target="onnxruntime", verify=False)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {session.get_inputs()[0].name: image.numpy()}
    return lambda: session.run(None, feed)
