"""`lint`: what the parser of a target refuses in an ONNX model, or silently reads as another network."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from l1rr_fx.lowering.onnx_target import target_named
from l1rr_fx.lowering.parsers import trt82
from l1rr_fx.lowering.parsers.onnx_file import OnnxModel, read_model
from l1rr_fx.lowering.parsers.remarks import Basis, Remark, Severity
from l1rr_fx.support.checks import naming
from l1rr_fx.support.choices import FileTarget
from passes.errors import InputError

PARSERS = {"trt82": trt82}
"""Per parser: a module with `remarks_on_model(model)` and `remarks_on_node(model, node)`."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a model for a target.

    An "error" is refused or misread; a "warning" may be, or costs precision; a "note" costs time. `node` is "" where
    the whole model is meant. `source` is the file and the function of the parser that decides it (onnx-tensorrt at
    85e79f6), and `basis` how sure that is: "certain" (read in the parser), "NvInfer.h" (what the builder documents) or
    "reported" (by a user).
    """

    node: str
    operator: str
    problem: str
    cure: str
    severity: Severity
    source: str = ""
    basis: Basis = "certain"

    def __str__(self) -> str:
        where = f"{self.operator} {self.node}" if self.node else "model"
        return f"{self.severity}: {where}: {self.problem}; {self.cure}"


def lint(model: Any, target: FileTarget = "jetson-tx2") -> tuple[Finding, ...]:
    """The findings about an ONNX model: its path, its bytes or an `onnx.ModelProto`. Errors first.

    Raises LoadError for what is no ONNX file, and InputError for another `model` or a target without a table here.
    """
    name = target_named(target).parser
    if name is None:
        raise InputError(f"there is no table of what {target} refuses: let it parse the file itself")
    order = {"error": 0, "warning": 1, "note": 2}
    with naming(model if isinstance(model, (str, os.PathLike)) else "the model"):
        return tuple(sorted(_findings(read_model(model), PARSERS[name]), key=lambda finding: order[finding.severity]))


def _findings(model: OnnxModel, parser: Any) -> Iterator[Finding]:
    if model.failure:
        problem = f"ONNX's own inference {model.failure}; its values are read with the types that the file states"
        yield Finding("", "", problem, "try onnx.checker.check_model(path, full_check=True) on it", "warning")
    for remark in parser.remarks_on_model(model):
        yield _finding("", "", remark)
    for node in model.nodes:
        for fault in node.faults:
            yield Finding(node.name, node.kind, fault, "export it again: ONNX itself does not allow it", "error")
        for remark in parser.remarks_on_node(model, node):
            yield _finding(node.name, node.kind, remark)


def _finding(node: str, operator: str, remark: Remark) -> Finding:
    return Finding(node, operator, remark.problem, remark.cure, remark.severity, remark.source, remark.basis)
