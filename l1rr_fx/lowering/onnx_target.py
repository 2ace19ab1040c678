"""What a network is lowered for: the ONNX version that a target reads, and what it lacks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from passes.errors import InputError

NEWER: Mapping[str, int] = {
    "HardSwish": 14, "GridSample": 16, "LayerNormalization": 17, "Mish": 18,
    "BitwiseAnd": 18, "BitwiseOr": 18, "BitwiseXor": 18,
}  # fmt: skip
"""The opset since which ONNX has an operator; before, it takes several nodes."""

UNREAD_BY_TRT82: Mapping[str, str] = {
    "TopK, largest=0": "the attribute is ignored: it gives the largest (until 8.5)",
    "TopK of integers": "refused",
    "TopK, ArgMax, ArgMin along an axis before the last four": "excluded by NvInfer.h",
    "Celu": "it becomes a ReLU (until 8.4)",
    "Pad by a number that is not FLOAT": "the number is read as a FLOAT's bits, or as 0",
    "Pad of BOOL": "refused",
    "Clip, InstanceNormalization with constants of FLOAT16": "their bits are read as those of FLOAT",
    "ReduceLogSumExp, LogSoftmax": "computed without the maximum: infinite for large values",
    "Sign of integers": "refused",
    "Equal of BOOL": "refused",
    "ArgMax, ArgMin of integers": "refused",
    "Pow of integers": "refused",
    "moves of BOOL": "reported to fail in the builder (onnx-tensorrt issue 832)",
    "Cast of FLOAT to BOOL": "not among the conversions that NvInfer.h lists",
    "Einsum of any equation": "letters a to z alone, two operands, no diagonals, equal sizes",
    "Conv, ConvTranspose with a computed bias": "refused",
    "ConvTranspose along one or three axes, with output_padding": "a number is not set; ends have to be padded alike",
    "MatMul of a vector by a batch": "it squeezes the wrong axis, and fails",
}
"""Forms that TensorRT 8.2 refuses or misreads, and what it makes of them.

Read in onnx-tensorrt at 85e79f6; the networks that its parser makes of such files were recorded and executed.
"""


@dataclass(frozen=True)
class OnnxTarget:
    """An ONNX version, and what its reader lacks.

    `parser` names the table of operators that `lint` holds a model against (None: only ONNX's own rules).
    `unread` names the forms (a table such as `UNREAD_BY_TRT82`) that it refuses or misreads; others take their place.
    `most_axes` and `most_sorted` are the most axes of a tensor, and the most elements that TopK gives.
    """

    name: str
    opset: int
    ir_version: int
    parser: str | None = None
    unread: Mapping[str, str] = field(default_factory=dict)
    most_axes: int | None = None
    most_sorted: int | None = None

    def reads(self, form: str) -> bool:
        """Whether a form of `UNREAD_BY_TRT82` is read as ONNX means it."""
        assert form in UNREAD_BY_TRT82, form
        return form not in self.unread

    def has(self, operator: str) -> bool:
        """Whether an operator is a single node."""
        return self.opset >= NEWER[operator]


TARGETS: Mapping[str, OnnxTarget] = {
    target.name: target
    for target in (
        # TensorRT 8.2.1 of JetPack 4.6: built against ONNX 1.8, reads opset 13 and no later one rightly.
        OnnxTarget("jetson-tx2", 13, 7, parser="trt82", unread=UNREAD_BY_TRT82, most_axes=8, most_sorted=3840),
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
