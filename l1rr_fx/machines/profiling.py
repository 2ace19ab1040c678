"""ONNX models under ONNX Runtime on this CPU: the times of kernels, from its profiler, and of whole networks.

The least time over many runs counts: others who use the machine only ever add. A short kernel runs undisturbed now and
then. A whole network may not; at one thread the time of the process counts, which leaves out what it waits for others.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROUNDS = 25
TRIED = 300
"""Runs of the small model that tells what profiling adds."""
LINKS = 200
MICROSECOND = 1e-6
"""The unit of the profiler. A kernel that it finds to take less counts as a quarter of one."""


@dataclass(frozen=True)
class Timed:
    """One node of a model as ONNX Runtime runs it: its operator, the shapes that it reads and writes, its seconds."""

    name: str
    operator: str
    read: tuple[tuple[int, ...], ...]
    written: tuple[tuple[int, ...], ...]
    seconds: float


@dataclass(frozen=True, eq=False)
class Model:
    """An ONNX model with numbers for its inputs."""

    content: bytes
    feeds: Mapping[str, Any]

    @classmethod
    def of_shapes(cls, content: bytes, shapes: Mapping[str, Sequence[int]]) -> Model:
        """A model whose inputs are random float32 numbers."""
        import numpy as np

        random = np.random.default_rng(0)
        return cls(content, {name: random.standard_normal(each).astype(np.float32) for name, each in shapes.items()})


def timed_kernels(
    models: Sequence[Model], threads: int, *, rounds: int = ROUNDS, overhead: float = 0.0
) -> list[list[Timed]]:
    """The kernels of each model; in a round each runs once. `overhead` is what profiling adds to each, in seconds."""
    with tempfile.TemporaryDirectory() as folder:
        sessions = [_session(each, threads, Path(folder) / str(index)) for index, each in enumerate(models)]
        for _ in range(rounds):
            for session, model in zip(sessions, models, strict=True):
                session.run(None, model.feeds)
        events = [json.loads(Path(session.end_profiling()).read_text(encoding="utf-8")) for session in sessions]
    return [[*_least(each, overhead)] for each in events]


def timed_runs(models: Sequence[Model], threads: int, *, rounds: int = ROUNDS) -> list[float]:
    """The seconds of one run of each model; in a round each runs once."""
    clock = time.process_time if threads == 1 else time.perf_counter
    sessions = [_session(each, threads, None) for each in models]
    taken: list[list[float]] = [[] for _ in models]
    for _ in range(rounds):
        for session, model, times in zip(sessions, models, taken, strict=True):
            started = clock()
            session.run(None, model.feeds)
            times.append(clock() - started)
    return [min(times) for times in taken]


def _session(model: Model, threads: int, profile: Path | None) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    if profile is not None:
        options.enable_profiling, options.profile_file_prefix = True, str(profile)
    return onnxruntime.InferenceSession(model.content, options, providers=["CPUExecutionProvider"])


def _least(events: Sequence[Mapping[str, Any]], overhead: float) -> Iterator[Timed]:
    """Of each node the event that took least."""
    least: dict[str, Mapping[str, Any]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name = event["name"].removesuffix("_kernel_time").removesuffix("_nchwc")
            if name not in least or event["dur"] < least[name]["dur"]:
                least[name] = event
    for name, event in least.items():
        given = event["args"]
        seconds = max(event["dur"] * MICROSECOND - overhead, MICROSECOND / 4)
        read, written = (_shapes(given[f"{side}_type_shape"]) for side in ("input", "output"))
        yield Timed(name, given["op_name"], read, written, seconds)


def _shapes(typed: Sequence[Mapping[str, Sequence[int]]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(shape) for each in typed for shape in each.values())


def profiler_overhead(threads: int) -> float:
    """The seconds that profiling adds to each kernel, from a chain of kernels that do next to nothing."""
    from onnx import TensorProto, helper

    nodes = [helper.make_node("Abs", [f"v{index}"], [f"v{index + 1}"], name=f"n{index}") for index in range(LINKS)]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [8]) for name in ("v0", f"v{LINKS}")]
    proto = helper.make_model(
        helper.make_graph(nodes, "chain", ends[:1], ends[1:]),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=8,
    )
    model = Model.of_shapes(proto.SerializeToString(), {"v0": (8,)})
    (kernels,) = timed_kernels([model], threads, rounds=TRIED)
    (plain,) = timed_runs([model], threads, rounds=TRIED)
    return max(0.0, (sum(each.seconds for each in kernels) - plain) / LINKS)
