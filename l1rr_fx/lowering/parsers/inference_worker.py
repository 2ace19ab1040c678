"""A process that infers the types of ONNX models, one after the other: a model that hangs or crashes it harms it alone.

    python inference_worker.py 'the sys.path of the parent, as JSON'

It reads a model (its length in 8 bytes, then its bytes) and writes what ONNX infers in the same way, or nothing (length
0) where ONNX refuses it, until its input ends. It imports nothing of this package, and no torch.
"""

from __future__ import annotations

import json
import sys
from typing import IO, Any

ROOM = 8 * 2**30
"""Bytes of memory that it may have at most, beside what the model needs."""


def main() -> None:
    sys.path[:] = json.loads(sys.argv[1])
    import onnx

    requests, answers = sys.stdin.buffer, sys.stdout.buffer
    while (model := read(requests)) is not None:
        _limit(len(model))
        write(answers, inferred(onnx, model))


def inferred(onnx: Any, model: bytes) -> bytes:
    """The model with what ONNX infers; nothing where it refuses to."""
    try:
        return bytes(onnx.shape_inference.infer_shapes(model, data_prop=True).SerializeToString())
    except Exception:  # whatever its C++ raises
        return b""


def read(stream: IO[bytes]) -> bytes | None:
    """The next message; None where the stream ends."""
    head = stream.read(8)
    length = int.from_bytes(head, "little")
    content = stream.read(length)
    return content if len(head) == 8 and len(content) == length else None


def write(stream: IO[bytes], message: bytes) -> None:
    stream.write(len(message).to_bytes(8, "little"))
    stream.write(message)
    stream.flush()


def _limit(size: int) -> None:
    """Let the process have no more memory than a model of so many bytes needs."""
    if sys.platform != "win32":
        import resource

        most = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (ROOM + 8 * size, most))


if __name__ == "__main__":
    main()
