"""What the ONNX parser of TensorRT 8.2 refuses or misreads in a model and in each of its nodes.

Sources: github.com/onnx/onnx-tensorrt, release/8.2-GA, commit 85e79f6; each remark names the file and the function. The
parser looks operators up by name and checks neither IR version nor domain, and of the opset only what some importers
ask for, so that a file that it accepts may become another network.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib import resources

from l1rr_fx.lowering.parsers.onnx_file import OnnxModel, OnnxNode
from l1rr_fx.lowering.parsers.remarks import Basis, Remark
from l1rr_fx.lowering.parsers.trt82_model import EVERY_NODE, MODEL_CHECKS
from l1rr_fx.lowering.parsers.trt82_nodes import CHECKS


@dataclass(frozen=True)
class Entry:
    """A row of the table of operators: the inputs in `typed` (all: None) may have one of these `types`."""

    supported: str
    types: tuple[str, ...]
    typed: tuple[int, ...] | None
    source: str
    basis: Basis
    alternative: str


@functools.cache
def table() -> Mapping[str, Entry]:
    """What is known of each operator, by name."""
    text = resources.files("l1rr_fx.lowering.parsers").joinpath("trt82_operators.csv").read_text(encoding="utf-8")
    rows = csv.DictReader(line for line in text.splitlines() if not line.startswith("#"))
    return {row["operator"]: _entry(row) for row in rows}


def _entry(row: Mapping[str, str]) -> Entry:
    return Entry(
        row["supported"],
        tuple(row["types"].split()),
        None if row["typed"] == "all" else tuple(int(i) for i in row["typed"].split()),
        row["source"],
        "certain" if row["basis"] == "certain" else "NvInfer.h",
        row["alternative"],
    )


def remarks_on_model(model: OnnxModel) -> Iterator[Remark]:
    """What is wrong with its versions, its inputs, its outputs and its constants."""
    for check in MODEL_CHECKS:
        yield from check(model)


def remarks_on_node(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
    """What is wrong with a node."""
    entry = table().get(node.kind)
    support = _support(entry)
    if support is not None:
        yield support
    if entry is None or entry.supported in ("no", "plugin"):
        return
    for check in (*EVERY_NODE, *CHECKS.get(node.kind, ())):
        yield from check(model, node)
    yield from _types(model, node, entry)


def _support(entry: Entry | None) -> Remark | None:
    """What there is to say of an operator without looking at the node."""
    if entry is None or entry.supported == "no":
        return Remark("there is no importer for it", _alternative(entry), source="ModelImporter.cpp: parseGraph")
    if entry.supported == "plugin":
        return Remark(
            "it is a plugin", "load libnvinfer_plugin before parsing (trtexec does)", "note", source=entry.source
        )
    if entry.supported == "experimental":
        cure = "use EfficientNMS_TRT, or compute it after the engine"
        return Remark("support is experimental", cure, "warning", source=entry.source)
    if entry.supported == "partly":
        problem = "what its importer asks of it is not judged here (the nodes of its graphs are)"
        cure = "unroll it, or choose by Where; or try the file on the device"
        return Remark(problem, cure, "warning", source=entry.source)
    return None


def _alternative(entry: Entry | None) -> str:
    if entry is None or not entry.alternative or entry.alternative == "none":
        return "compute it outside the engine, or replace it in the model"
    return f"write it as {entry.alternative}"


# Types

NAMES = {
    "FLOAT": "FP32",
    "DOUBLE": "FP32",
    "FLOAT16": "FP16",
    "INT8": "INT8",
    "INT32": "INT32",
    "INT64": "INT32",
    "BOOL": "BOOL",
}


def _types(model: OnnxModel, node: OnnxNode, entry: Entry) -> Iterator[Remark]:
    """An error where the parser refuses the type, a warning where only the builder may."""
    for i in range(len(node.inputs)) if entry.typed is None else entry.typed:
        kind = model.kind_of(node.input(i))
        name = NAMES.get(kind or "")
        if name is not None and name not in entry.types:
            remark = Remark(
                f"its input {i} is {kind}; expected {', '.join(entry.types)}",
                f"cast it to {'BOOL' if entry.types == ('BOOL',) else 'FLOAT'}",
                "error" if entry.basis == "certain" else "warning",
            )
            yield replace(remark, source=entry.source, basis=entry.basis)
