"""What ONNX infers of a model, within limits: functions are counted before they are expanded, and a process of its own
does it in limited time."""

from __future__ import annotations

import atexit
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from l1rr_fx.lowering.parsers import inference_worker
from passes.errors import LoadError

MOST_NODES = 500_000
"""Nodes of a model, with each call of a function as the nodes that it stands for."""
COUNTED = 10**12
"""A larger number of nodes is not spelt out."""
SECONDS = 60.0
"""For one model."""
STANDARD = ("", "ai.onnx")

Key = tuple[str, str]


def check_functions(proto: Any) -> None:
    """Raise LoadError for a function that calls itself, or functions that stand for more than `MOST_NODES` nodes."""
    bodies = {_key(function.domain, function.name): function.node for function in proto.functions}
    sizes: dict[Key, int] = {}
    for root in bodies:
        _measure(root, bodies, sizes)
    total = _size(proto.graph.node, bodies, sizes)
    if total > MOST_NODES:
        count = f"{total:,}" if total < COUNTED else f"over {COUNTED:,}"
        raise LoadError(f"its functions stand for {count} nodes; at most {MOST_NODES:,} are read")


def _measure(root: Key, bodies: Mapping[Key, Any], sizes: dict[Key, int]) -> None:
    """Enter the sizes of a function and of all that it calls, the innermost first."""
    path: list[Key] = [root]
    while path:
        function = path[-1]
        missing = [key for key in _calls(bodies[function], bodies) if key not in sizes]
        if again := [key for key in missing if key in path]:
            circle = [*path[path.index(again[0]) :], again[0]]
            raise LoadError(f"the function {again[0][1]} calls itself: {' -> '.join(name for _, name in circle)}")
        if missing:
            path.append(missing[0])
        else:
            sizes[path.pop()] = _size(bodies[function], bodies, sizes)


def _size(nodes: Any, bodies: Mapping[Key, Any], sizes: Mapping[Key, int]) -> int:
    return sum(1 + sizes.get(_key(node.domain, node.op_type), 0) for node in _all_nodes(nodes))


def _calls(nodes: Any, bodies: Mapping[Key, Any]) -> Iterator[Key]:
    return (key for node in _all_nodes(nodes) if (key := _key(node.domain, node.op_type)) in bodies)


def _all_nodes(nodes: Any) -> Iterator[Any]:
    """The nodes, and those of the graphs that they hold."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (*((attribute.g,) if attribute.HasField("g") else ()), *attribute.graphs):
                yield from _all_nodes(graph.node)


def _key(domain: str, name: str) -> Key:
    return ("" if domain in STANDARD else domain, name)


class Inference:
    """A process that infers types, started when it is first asked and used again; one that fails is replaced."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._lock = threading.Lock()
        atexit.register(self.stop)

    def __call__(self, model: bytes, *, seconds: float = SECONDS) -> tuple[bytes, str]:
        """The model with what ONNX infers (empty where it refuses to), and why there is nothing where it failed."""
        with self._lock:
            process = self._started()
            late = threading.Event()
            timer = threading.Timer(seconds, _end, (process, late))
            timer.daemon = True
            timer.start()
            try:
                answer = _exchanged(process, model)
            finally:
                timer.cancel()
            if answer is not None:
                return answer, ""
            self.stop()
            return b"", f"did not end within {seconds:.0f} s" if late.is_set() else "crashed"

    def stop(self) -> None:
        """End the process."""
        if self._process is not None and self._owner == os.getpid():
            self._process.kill()
            self._process.wait()
            for stream in (self._process.stdin, self._process.stdout):
                if stream is not None:
                    _close(stream)
        self._process = None

    def _started(self) -> subprocess.Popen[bytes]:
        if self._process is None or self._owner != os.getpid() or self._process.poll() is not None:
            self.stop()
            script = Path(inference_worker.__file__)
            command = [sys.executable, str(script), json.dumps(sys.path)]
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
            )
            self._owner = os.getpid()
        return self._process


def _end(process: subprocess.Popen[bytes], late: threading.Event) -> None:
    late.set()
    process.kill()


def _exchanged(process: subprocess.Popen[bytes], model: bytes) -> bytes | None:
    assert process.stdin is not None and process.stdout is not None
    try:
        inference_worker.write(process.stdin, model)
        return inference_worker.read(process.stdout)
    except OSError:  # it is gone
        return None


def _close(stream: IO[bytes]) -> None:
    try:
        stream.close()
    except OSError:  # what was left to write does not reach a process that is gone
        pass


infer = Inference()
"""The process that this one uses."""
