"""What a network is lowered for: the ONNX version that a target reads, and what it lacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from passes.errors import InputError

NEWER: Mapping[str, int] = {
    "HardSwish": 14, "GridSample": 16, "LayerNormalization": 17, "Mish": 18,
    "BitwiseAnd": 18, "BitwiseOr": 18, "BitwiseXor": 18,
}  # fmt: skip
"""The opset since which ONNX has an operator; before, it takes several nodes."""


@dataclass(frozen=True)
class OnnxTarget:
    """An ONNX version, and what its reader lacks.

    `parser` names the table of operators that `lint` holds a model against (None: only ONNX's own rules).
    `planar`: convolutions and pools along a single axis are not read, so they are written for an image one pixel high.
    """

    name: str
    opset: int
    ir_version: int
    parser: str | None = None
    planar: bool = False

    def has(self, operator: str) -> bool:
        """Whether an operator is a single node."""
        return self.opset >= NEWER[operator]


TARGETS: Mapping[str, OnnxTarget] = {
    target.name: target
    for target in (
        # TensorRT 8.2.1 of JetPack 4.6: built against ONNX 1.8, reads opset 13 and no later one rightly.
        OnnxTarget("jetson-tx2", 13, 7, parser="trt82", planar=True),
        OnnxTarget("onnxruntime", 18, 8),
        OnnxTarget("tensorrt-10", 18, 8),
        OnnxTarget("tensorrt-11", 18, 8),
    )
}


def target_named(name: str) -> OnnxTarget:
    """The target of a name. Raises InputError, with the names of all targets, for any other name."""
    if not isinstance(name, str) or name not in TARGETS:
        raise InputError(f"there is no target {name!r}; there are {', '.join(TARGETS)}")
    return TARGETS[name]
