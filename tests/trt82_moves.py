"""The importers of TensorRT 8.2's parser for what moves or selects elements, and for constants.

Facts of onnx-tensorrt at its 8.2 release (85e79f6), builtin_op_importers.cpp and onnx2trt_utils.cpp, stated in words of
our own. A function or its messages name the importer. What NvInfer.h says of a layer is said to be so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tests.trt82_node import MAX_DIMS, Node, Value, moves_bool, positive

Importer = Callable[[Node], None]


def flatten(n: Node) -> None:
    value = n.tensor(0)
    n.axis("axis", 1, value.rank)
    if value.rank is None or value.rank > 2:
        n.layer("Shuffle")
    else:
        n.gives(value.shape)
        n.returns_input()


def transpose(n: Node) -> None:
    value = n.input(0)
    assert value is not None
    n.check(value.rank is None or value.rank <= MAX_DIMS, f"importTranspose: {value.rank} axes")
    order = list(n.get("perm", range(value.rank or 0)[::-1]))
    if value.read is not None:
        n.check(value.kind in ("FLOAT", "HALF"), f"transposeWeights: {value.kind} constant")
        n.check(len(order) <= 4, f"transposeWeights: constant of {len(order)} axes")
        read = value.read
        shape = None if value.shape is None else tuple(value.shape[i] for i in order)
        n.results[0] = Value(value.kind, shape, n.proto.output[0], lambda: np.transpose(read(), order))
    elif order == list(range(len(order))):
        n.returns_input()
    else:
        n.layer("Shuffle", order=order)
        moves_bool(n, value, "Shuffle")


def reshape(n: Node) -> None:
    value = n.tensor(0)
    n.check(n.opset < 14 or n.get("allowzero") is not None, "importReshape: attribute allowzero is not found")
    if n.opset >= 5:
        n.sizes(1)
    n.layer("Shuffle")
    moves_bool(n, value, "Shuffle")


def expand(n: Node) -> None:
    value = n.tensor(0)
    shape = n.input(1)
    n.check(shape is not None and shape.rank == 1, "importExpand: the shape is no vector, or has no values")
    n.sizes(1)
    n.layer("Slice")
    moves_bool(n, value, "Slice")


def tile(n: Node) -> None:
    value = n.tensor(0)
    n.sizes(1)
    n.layer("Slice", mode="WRAP")
    moves_bool(n, value, "Slice")


def squeeze(n: Node) -> None:
    value = n.tensor(0)
    axes = _axes(n)
    for axis in axes:
        n.converted(axis, value.rank)
    if not axes and value.shape is not None:
        n.gives(tuple(size for size in value.shape if size != 1))
    n.layer("Shuffle")
    moves_bool(n, value, "Shuffle")


def unsqueeze(n: Node) -> None:
    value = n.tensor(0)
    axes = _axes(n) or n.get("axes")
    n.check(bool(axes), "importUnsqueeze: no axes")
    n.check((value.rank or 0) + len(axes) <= MAX_DIMS, f"unsqueezeTensor: more than {MAX_DIMS} axes")
    n.layer("Shuffle")
    moves_bool(n, value, "Shuffle")


def _axes(n: Node) -> list[int]:
    if n.opset < 13:
        return [int(axis) for axis in n.get("axes", ())]
    return [int(axis) for axis in np.atleast_1d(n.weights(1, "axes"))] if len(n.inputs) == 2 else []


def slice_(n: Node) -> None:
    value = n.tensor(0)
    if n.opset >= 10:
        n.check(3 <= len(n.inputs) <= 5, f"importSlice: {len(n.inputs)} inputs")
        parts = [n.sizes(i) for i in range(1, len(n.inputs))]
        if len(n.inputs) > 3:
            n.weights(3, "importSlice: axes")
        axes = parts[2] if len(parts) > 2 else None
        n.check(axes is None or len(set(positive(axes, value.rank))) == len(axes), "importSlice: an axis twice")
        n.check(axes is None or parts[0] is None or len(parts[0]) == len(axes), "importSlice: starts and axes differ")
        n.check(
            axes is not None or parts[0] is None or value.rank in (None, len(parts[0])),
            "importSlice: without axes it needs a start for each axis",
        )
    n.layer("Slice")
    moves_bool(n, value, "Slice")


def split(n: Node) -> None:
    value = n.tensor(0)
    n.returned = len(n.proto.output)
    axis = n.axis("axis", 0, value.rank)
    sizes = n.get("split") if n.opset < 13 else n.sizes(1) if len(n.inputs) == 2 else None
    n.check(sizes is None or len(sizes) == n.returned, f"importSplit: {len(sizes or ())} sizes, {n.returned} outputs")
    if sizes is None and value.shape is not None and len(n.inputs) < 2:
        size = value.shape[axis]
        for i in range(n.returned if size is not None else 0):
            n.gives((*value.shape[:axis], (size or 0) // n.returned, *value.shape[axis + 1 :]), i)
    n.layer("Slice")
    moves_bool(n, value, "Slice")


def pad(n: Node) -> None:
    value = n.tensor(0)
    pads = [int(pad) for pad in n.get("pads", ())] if n.opset < 11 else n.sizes(1)
    mode = n.get("mode", "constant")
    amount, given = 0.0, n.input(2) if n.opset >= 11 else None
    if n.opset < 11:
        amount = float(n.get("value", 0.0))
    elif len(n.inputs) == 3 and given is not None and given.read is not None:
        amount = _pad_value(n, given.read())
    elif len(n.inputs) > 3:
        n.misread("importPad: with four inputs the constant value and the axes are not read")
    if pads is not None and not any(pads):
        n.check(bool(pads) or n.opset < 11, "importPad: pads without values are taken for a tensor")
        n.layer("Identity")
        return
    if pads is not None:
        n.check(min(pads) >= 0, f"convertOnnxPadding: negative pads {pads}")
        n.check(value.rank is None or len(pads) <= 2 * value.rank, f"convertOnnxPadding: {len(pads)} pads")
    n.check(mode in ("constant", "reflect", "edge"), f"importPad: mode {mode}")
    n.layer("Slice", mode=mode, value=amount)
    moves_bool(n, value, "Slice")


def _pad_value(n: Node, values: Any) -> float:
    """`importPad` reads the bytes of the constant as FLOAT, whatever its type is."""
    n.check(values.size == 1, f"importPad: constant_value has {values.size} elements")
    meant = float(values.reshape(()))
    if values.dtype in (np.float32, np.float64):
        return meant
    stored = values.astype(np.int32) if values.dtype in (np.int64, np.int32) else values
    read = float(np.frombuffer(stored.tobytes().ljust(4, b"\0"), np.float32)[0])
    taken = float(int(read)) if values.dtype != np.float16 and np.isfinite(read) else read
    if taken != meant:
        n.misread(f"importPad: the bytes of a {values.dtype} value are read as FLOAT: {meant:g} becomes {taken:g}")
    return taken


def gather(n: Node) -> None:
    n.check(n.tensor(0).kind != "BOOL", f"import{n.proto.op_type}: BOOL input")
    n.tensor(1)
    n.layer("Gather", mode=n.proto.op_type)


def scatter(n: Node) -> None:
    values = [n.tensor(i) for i in range(3)]
    if n.proto.op_type != "ScatterND":
        n.check(len({value.rank for value in values}) == 1, "addScatterLayer: the ranks differ")
    n.layer("Scatter", reduction=("none", n.get("reduction", "none")))


def blocks(n: Node) -> None:
    value = n.tensor(0)
    n.check(value.rank in (4, None), f"import{n.proto.op_type}: {value.rank} axes")
    n.check(value.kind != "BOOL", f"import{n.proto.op_type}: BOOL input")
    n.layer("Shuffle")


def shape(n: Node) -> None:
    value = n.tensor(0)
    n.gives((value.rank,) if value.rank is not None else None)
    n.layer("Shape")


def constant(n: Node) -> None:
    for name in ("sparse_value", "value_string", "value_strings"):
        n.check(n.get(name) is None, f"importConstant: {name}")
    n.check(n.opset >= 12 or n.get("value") is not None, "importConstant: before opset 12 it has the attribute value")
    for name in ("value_int", "value_ints"):
        if np.any(n.get(name, 0)):
            n.misread(f"importConstant: the numbers of {name} are stored as floats and read as integers")


def constant_of_shape(n: Node) -> None:
    n.tensor(0)
    n.sizes(0)
    n.layer("Slice")


def size(n: Node) -> None:
    n.layer("Shape")


TABLE: Mapping[str, Importer] = {
    "Flatten": flatten, "Transpose": transpose, "Reshape": reshape, "Expand": expand, "Tile": tile, "Squeeze": squeeze,
    "Unsqueeze": unsqueeze, "Slice": slice_, "Split": split, "Pad": pad, "Gather": gather, "GatherElements": gather,
    "GatherND": gather, "Scatter": scatter, "ScatterElements": scatter, "ScatterND": scatter, "DepthToSpace": blocks,
    "SpaceToDepth": blocks, "Shape": shape, "Size": size, "Constant": constant, "ConstantOfShape": constant_of_shape,
}  # fmt: skip
"""By the name of the operator."""
