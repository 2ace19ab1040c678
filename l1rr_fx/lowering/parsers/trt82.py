"""What the ONNX parser of TensorRT 8.2 refuses or misreads in a model and in each of its nodes.

Sources: github.com/onnx/onnx-tensorrt, release/8.2-GA, commit 85e79f6 (builtin_op_importers.cpp, docs/operators.md);
what is silent was read there. It looks operators up by name and checks neither opset, IR version nor domain, so that a
file that it accepts may become another network.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources

from l1rr_fx.lowering.parsers.onnx_file import STANDARD, Constant, OnnxModel, OnnxNode
from l1rr_fx.lowering.parsers.remarks import Remark
from l1rr_fx.lowering.parsers.trt82_nodes import CHECKS, READABLE

OPSET, IR_VERSION = 13, 7
INT32 = 2**31 - 1


@dataclass(frozen=True)
class Entry:
    """A row of the table of operators."""

    supported: str
    types: tuple[str, ...]
    alternative: str


@functools.cache
def table() -> Mapping[str, Entry]:
    """What is known of each operator, by name."""
    text = resources.files("l1rr_fx.lowering.parsers").joinpath("trt82_operators.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return {row["operator"]: Entry(row["supported"], tuple(row["types"].split()), row["alternative"]) for row in rows}


# The whole model


def remarks_on_model(model: OnnxModel) -> Iterator[Remark]:
    """What is wrong with its version, its inputs and its constants."""
    if model.opset > OPSET:
        yield Remark(
            f"it declares opset {model.opset}; the parser reads every node as of opset {OPSET} and says nothing",
            f"export it with opset {OPSET}",
            "warning",
        )
    if model.opset < 7:
        yield Remark(f"opset {model.opset} broadcasts in another way", "export it with opset 7 to 13")
    if model.ir_version > IR_VERSION:
        yield Remark(
            f"IR version {model.ir_version} is newer than that of ONNX 1.8, whose tools JetPack 4.6 has",
            f"write IR version {IR_VERSION}",
            "warning",
        )
    if model.functions:
        yield Remark(f"its functions ({', '.join(model.functions)}) are ignored", "inline them")
    if model.sparse:
        yield Remark(f"its sparse constants ({', '.join(model.sparse)}) are not read", "store them as plain ones")
    for name in model.inputs:
        yield from _port(model, name)
    for constant in model.constants.values():
        yield from _constant(model, constant)


def _port(model: OnnxModel, name: str) -> Iterator[Remark]:
    shape, kind = model.shape_of(name), model.kind_of(name)
    if shape is None or None in shape:
        yield Remark(f"the sizes of input {name} are not fixed", "export it for one size: a static engine is asked for")
    if kind not in READABLE:
        yield Remark(f"input {name} is {kind}, which cannot be read", "make it FLOAT and cast outside")


def _constant(model: OnnxModel, constant: Constant) -> Iterator[Remark]:
    where = f"constant {constant.name}"
    if constant.kind == "FLOAT16":
        if not constant.raw:
            yield Remark(f"{where} keeps FLOAT16 in int32_data, which is misread", "store it as FLOAT, in raw_data")
        else:
            yield Remark(
                f"{where} is FLOAT16, which is read natively only since 8.4",
                "store FLOAT and let the builder's FP16 flag choose",
                "warning",
            )
    elif constant.kind == "UINT8":
        yield Remark(f"{where} is UINT8 and becomes INT32", "store INT32", "warning")
    elif constant.kind not in READABLE:
        yield Remark(f"{where} is {constant.kind}, which cannot be read", "store FLOAT, INT32 or BOOL")
    elif constant.kind == "DOUBLE":
        yield Remark(f"{where} is DOUBLE and becomes FLOAT", "store FLOAT", "warning")
    elif constant.kind == "INT64" and not _only_bounds(model, constant.name):
        values = constant.values()
        if values.size and (values.max() > INT32 or values.min() < -INT32 - 1):
            yield Remark(f"{where} has values beyond 32 bits, which are clamped", "keep indices below 2**31")


def _only_bounds(model: OnnxModel, name: str) -> bool:
    """Whether a constant is nothing but the bounds of slices, for which clamped is as good as infinite."""
    return all(node.kind == "Slice" and name != node.input(0) for node in model.nodes if name in node.inputs)


# Every node


def remarks_on_node(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    """What is wrong with a node."""
    entry = table().get(node.kind)
    if entry is None or entry.supported == "no":
        yield Remark("there is no importer for it", _cure(entry))
        return
    if entry.supported == "plugin":
        yield Remark("it is a plugin", "load libnvinfer_plugin before parsing (trtexec does)", "note")
        return
    if node.domain not in STANDARD:
        yield Remark(f"the domain {node.domain!r} is ignored: the standard operator of that name is built", "rename it")
    if entry.supported == "experimental":
        yield Remark("support is experimental", "use EfficientNMS_TRT, or compute it after the engine", "warning")
    for check in CHECKS.get(node.kind, ()):
        yield from check(model, node)
    yield from _types(model, node, entry)


def _cure(entry: Entry | None) -> str:
    if entry is None or not entry.alternative or entry.alternative == "none":
        return "compute it outside the engine, or replace it in the model"
    return f"write it as {entry.alternative}"


NAMES = {"FLOAT": "FP32", "DOUBLE": "FP32", "FLOAT16": "FP16", "INT32": "INT32", "INT64": "INT32", "BOOL": "BOOL"}


def _types(model: OnnxModel, node: OnnxNode, entry: Entry) -> Iterator[Remark]:
    kind = model.kind_of(node.input(0))
    name = NAMES.get(kind or "")
    if name is not None and entry.types and name not in entry.types and node.input(0) not in model.constants:
        yield Remark(
            f"{kind} is not among the types that it takes ({', '.join(entry.types)})", "cast its input", "warning"
        )
