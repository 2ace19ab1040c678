"""The kernels that are timed in ONNX Runtime for its model of latency, in a few ONNX models.

Each kernel is a branch of its own, from an input of the model to an output (`profiling` times them).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from l1rr_fx.latency.cpu_kernels import Convolution, Work, pool_work
from l1rr_fx.latency.cpu_model import Sample
from l1rr_fx.machines.profiling import Model, Timed, timed_kernels

OPSET, IR = 18, 8
REORDERS = ("ReorderInput", "ReorderOutput")
SILU = "QuickGelu"

CONVOLUTIONS = (
    # input and output channels, kernel, size of the input, stride
    (16, 16, 3, 80, 1), (32, 32, 3, 80, 1), (64, 64, 3, 40, 1), (128, 128, 3, 20, 1), (256, 256, 3, 10, 1),
    (64, 128, 3, 40, 2), (128, 64, 3, 28, 1), (48, 96, 3, 28, 1), (512, 512, 3, 7, 1), (32, 16, 3, 112, 1),
    (64, 16, 3, 56, 1), (20, 36, 3, 56, 1), (16, 64, 3, 160, 2), (32, 64, 5, 28, 1), (96, 24, 3, 14, 1),
    (16, 96, 1, 56, 1), (96, 24, 1, 56, 1), (64, 256, 1, 56, 1), (256, 64, 1, 56, 1), (512, 128, 1, 28, 1),
    (1024, 256, 1, 14, 1), (256, 1024, 1, 14, 1), (2048, 512, 1, 7, 1), (128, 128, 1, 40, 1), (64, 64, 1, 80, 1),
    (32, 32, 1, 160, 1), (48, 48, 1, 28, 1), (192, 64, 1, 28, 1), (64, 16, 1, 1, 1), (960, 240, 1, 1, 1),
    (3, 16, 3, 160, 2), (3, 64, 7, 224, 2), (3, 32, 3, 224, 2), (8, 32, 3, 56, 1), (12, 24, 1, 28, 1),
    (8, 48, 1, 1, 1), (3, 16, 3, 64, 2), (8, 64, 1, 56, 1),
    (17, 17, 3, 80, 1), (33, 33, 3, 80, 1), (61, 61, 3, 40, 1), (123, 123, 3, 20, 1), (250, 250, 3, 10, 1),
    (61, 125, 3, 40, 2), (37, 70, 3, 28, 1), (19, 30, 3, 112, 1), (509, 300, 3, 7, 1), (61, 20, 3, 14, 1),
    (17, 97, 1, 56, 1), (61, 250, 1, 56, 1), (250, 61, 1, 56, 1), (505, 127, 1, 28, 1), (1021, 251, 1, 14, 1),
    (251, 1021, 1, 14, 1), (1021, 509, 1, 7, 1), (127, 127, 1, 40, 1), (61, 61, 1, 80, 1), (31, 31, 1, 160, 1),
    (37, 21, 1, 28, 1), (485, 121, 1, 1, 1), (61, 18, 1, 1, 1),
)  # fmt: skip
GROUPED = (
    # input and output channels, kernel, size of the input, stride, groups
    (16, 16, 3, 112, 1, 16), (64, 64, 3, 56, 2, 64), (96, 96, 3, 56, 1, 96), (144, 144, 5, 28, 1, 144),
    (240, 240, 3, 28, 1, 240), (480, 480, 5, 14, 1, 480), (960, 960, 5, 7, 1, 960), (672, 672, 3, 14, 2, 672),
    (116, 116, 3, 28, 1, 116), (32, 32, 3, 14, 1, 32),
    (62, 62, 3, 28, 1, 62), (118, 118, 3, 28, 1, 118), (30, 30, 3, 112, 1, 30), (242, 242, 5, 14, 1, 242),
    (66, 50, 3, 28, 1, 2), (120, 120, 3, 28, 1, 10), (128, 128, 3, 56, 1, 32), (90, 90, 3, 14, 2, 90),
    (64, 64, 3, 28, 1, 4), (256, 256, 3, 14, 1, 32), (330, 330, 5, 14, 1, 330), (674, 674, 5, 7, 1, 674),
    (98, 98, 3, 56, 2, 98),
)  # fmt: skip
TENSORS = ((16, 8), (60, 14), (64, 28), (250, 14), (64, 56), (31, 80), (128, 40), (30, 160))
"""Channels and sizes of the images that other operators read."""
PRODUCTS = ((1, 1280, 1000), (1, 512, 1000), (49, 768, 768), (196, 384, 1152), (197, 64, 197), (400, 32, 400))
"""Rows of the left operand, depth, and columns of the right."""


@dataclass(eq=False)
class Calibration:
    """An ONNX model under construction: `known` says what kernel computes the value of a name."""

    block: int
    inputs: dict[str, tuple[int, ...]] = field(default_factory=dict)
    nodes: list[Any] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)
    known: dict[str, tuple[str, Work]] = field(default_factory=dict)

    def given(self, *shape: int) -> str:
        name = "x" + "_".join(map(str, shape))
        self.inputs[name] = shape
        return name

    def constant(self, value: Any) -> str:
        from onnx import numpy_helper

        self.constants.append(numpy_helper.from_array(value, f"c{len(self.constants)}"))
        return f"c{len(self.constants) - 1}"

    def weight(self, *shape: int) -> str:
        import numpy as np

        return self.constant(np.random.default_rng(len(self.constants)).standard_normal(shape).astype(np.float32) / 9)

    def call(self, operator: str, *inputs: str, more: int = 0, **attributes: Any) -> str:
        from onnx import helper

        name = f"v{len(self.nodes)}_"
        names = [name, *(f"{name}{index}" for index in range(more))]
        self.nodes.append(helper.make_node(operator, inputs, names, name=name, **attributes))
        return name

    def fresh(self, *shape: int) -> str:
        """A value that was just computed, so that it is in the cache as values within a network are."""
        import numpy as np

        return self.call("Add", self.given(*shape), self.constant(np.array([1.0 + len(self.nodes)], dtype=np.float32)))

    def timed(self, kind: str, work: Work, value: str, *, whole: bool = False) -> None:
        """The kernel that computes a value is known. Its largest element is an output, so that memory is used again.

        With `whole` the value is an output: ONNX Runtime would leave out a movement of what is only reduced."""
        self.known[value] = (kind, work)
        self.outputs.append(value if whole else self.call("ReduceMax", value, keepdims=0))

    def model(self) -> Model:
        from onnx import TensorProto, helper

        ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n, shape in self.inputs.items()]
        last = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in self.outputs]
        graph = helper.make_graph(self.nodes, "kernels", ends, last, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR)
        return Model.of_shapes(model.SerializeToString(), self.inputs)


def calibrations(block: int) -> Iterator[Calibration]:
    """The models whose kernels are timed."""
    half = len(CONVOLUTIONS) // 2
    for cases in (CONVOLUTIONS[:half], CONVOLUTIONS[half:]):
        found = Calibration(block)
        for case in cases:
            _convolution(found, *case, 1)
        yield found
    found = Calibration(block)
    for grouped in GROUPED:
        _convolution(found, *grouped)
    yield found
    found = Calibration(block)
    for product in PRODUCTS:
        _product(found, *product)
    for channels, size in TENSORS:
        for add in (_pointwise, _rows, _copies, _pools):
            add(found, channels, size)
    yield found


def _convolution(to: Calibration, inputs: int, outputs: int, kernel: int, size: int, stride: int, groups: int) -> None:
    weight, bias = to.weight(outputs, inputs // groups, kernel, kernel), to.weight(outputs)
    case = Convolution(inputs, outputs, groups, kernel**2, (-(-size // stride)) ** 2, to.block)
    reordered = case.is_blocked and not case.reads_planes  # which brings the input into the cache
    x = (to.given if reordered else to.fresh)(1, inputs, size, size)
    pads, strides = [kernel // 2] * 4, [stride] * 2
    value = to.call("Conv", x, weight, bias, group=groups, pads=pads, strides=strides)
    to.timed(case.kind, case.work, value)


def _product(to: Calibration, rows: int, depth: int, columns: int) -> None:
    work = Work(rows * depth * columns, rows * columns, rows * depth, depth * columns)
    if rows == 1:
        to.timed("matrix", work, to.call("Gemm", to.fresh(1, depth), to.weight(columns, depth), transB=1))
        return
    to.timed("matrix", work, to.call("MatMul", to.fresh(1, rows, depth), to.weight(depth, columns)))
    heads = 4
    both = Work(heads * work.macs, heads * work.stored, heads * work.read, 0, heads)
    left, right = to.fresh(1, heads, rows, depth), to.fresh(1, heads, depth, columns)
    to.timed("matrix", both, to.call("MatMul", left, right))


def _pointwise(to: Calibration, channels: int, size: int) -> None:
    image, count = (1, channels, size, size), float(channels * size**2)
    one, both = Work(stored=count, read=count), Work(stored=count, read=2 * count)
    to.timed("add", both, to.call("Add", to.fresh(*image), to.fresh(*image)))
    to.timed("add", both, to.call("Mul", to.fresh(*image), to.fresh(*image)))
    to.timed("add", one, to.call("Abs", to.fresh(*image)))
    to.timed("function", one, to.call("Sigmoid", to.fresh(*image)))
    to.timed("function", one, to.call("Tanh", to.fresh(*image)))
    x = to.fresh(*image)
    to.outputs.append(to.call("ReduceMax", to.call("Mul", x, to.call("Sigmoid", x)), keepdims=0))


def _rows(to: Calibration, channels: int, size: int) -> None:
    image, count = (1, channels, size, size), float(channels * size**2)
    one, last = Work(stored=count, read=count), _numbers(to, -1)
    to.timed("rows", one, to.call("Softmax", to.fresh(*image), axis=-1))
    to.timed("softmax along columns", Work(stored=count), to.call("Softmax", to.fresh(*image), axis=1))
    norm = to.call("LayerNormalization", to.fresh(*image), to.weight(size), to.weight(size), axis=-1)
    to.timed("rows", one, norm)
    to.timed("rows", Work(stored=channels * size, read=count), to.call("ReduceMean", to.fresh(*image), last))


def _copies(to: Calibration, channels: int, size: int) -> None:
    import numpy as np

    image, count, half = (1, channels, size, size), float(channels * size**2), channels // 2
    first = to.call("Slice", to.fresh(*image), _numbers(to, 1), _numbers(to, half), _numbers(to, 1))
    to.timed("slice", Work(stored=count * (half - 1) / channels), first, whole=True)
    to.timed("concatenation", Work(stored=2 * count), to.call("Concat", to.given(*image), to.given(*image), axis=1))
    pads = _numbers(to, 0, 1, 0, 0, 0, 1, 0, 0)
    to.timed("pad", Work(stored=count * (1 + 2 / channels)), to.call("Pad", to.fresh(*image), pads))
    order = to.constant(np.arange(channels)[::-1].copy())
    to.timed("gather", Work(stored=count), to.call("Gather", to.fresh(*image), order, axis=1))
    turned = to.call("Transpose", to.fresh(*image), perm=[0, 2, 3, 1])
    to.timed("transpose", Work(stored=count), turned, whole=True)
    scales = to.constant(np.array([1, 1, 2, 2], dtype=np.float32))
    to.timed("resize", Work(stored=4 * count), to.call("Resize", to.fresh(*image), "", scales, mode="nearest"))


def _pools(to: Calibration, channels: int, size: int) -> None:
    image, count = (1, channels, size, size), float(channels * size**2)
    kind = "blocked pool" if to.block > 1 and channels % to.block == 0 else "pool"
    for window, stride in ((3, 2), (5, 1)):
        work = pool_work(channels * float(-(-size // stride)) ** 2, count, window**2)
        pads, strides = [window // 2] * 4, [stride] * 2
        value = to.call("MaxPool", to.fresh(*image), kernel_shape=[window] * 2, strides=strides, pads=pads)
        to.timed(kind, work, value)
    to.timed(kind, pool_work(channels, count, size**2), to.call("GlobalAveragePool", to.fresh(*image)))


def _numbers(to: Calibration, *numbers: int) -> str:
    import numpy as np

    return to.constant(np.array(numbers))


def block_size(threads: int) -> int:
    """The channels in a block of ONNX Runtime's on this CPU; 1 where it has no blocks."""
    probe = Calibration(1)
    _convolution(probe, 3, 1, 3, 8, 1, 1)
    (kernels,) = timed_kernels([probe.model()], threads, rounds=1)
    return next(each.written[0][1] for each in kernels if each.operator == "Conv")


def samples(found: Calibration, kernels: Iterable[Timed]) -> list[Sample]:
    """The timed kernels of a calibration: those that are known, and the reorders and fused functions among them."""
    pairs = ((found.known.get(each.name) or _by_operator(each), each.seconds) for each in kernels)
    return [Sample(*known, seconds) for known, seconds in pairs if known is not None]


def _by_operator(kernel: Timed) -> tuple[str, Work] | None:
    """The kernel of a node that ONNX Runtime made."""
    count = min(map(math.prod, (*kernel.read, *kernel.written)), default=0)
    if kernel.operator in REORDERS:
        return "reorder", Work(stored=count)
    return ("function", Work(stored=count, read=count)) if kernel.operator == SILU else None
