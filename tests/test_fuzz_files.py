"""Files that were damaged or forged: `load`, `lint` and MODEL on the command line raise our errors and no others."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

import l1rr_fx
from l1rr_fx import L1RRError
from l1rr_fx.cli.subject import load_subject
from l1rr_fx.lowering import lint
from tests import mutations
from tests.test_archive import switching

FEW, MANY = 100, 2000


class Small(nn.Module):
    """What files have most of: convolutions, batch norm, views, a list of numbers, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        features = self.norm(self.conv(x)).relu()
        return {"classes": self.head(features.mean((2, 3))), "features": features.flatten(1)[:, ::2]}


ARGS = (torch.rand(1, 3, 8, 8),)


def saved(folder: Path) -> dict[str, bytes]:
    switching().save(folder / "saved")
    return {path.name: path.read_bytes() for path in (folder / "saved").iterdir()}


def load(folder: Path, files: dict[str, bytes]) -> object:
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return l1rr_fx.load(folder)


def exported(folder: Path) -> bytes:
    torch.export.save(torch.export.export(Small().eval(), ARGS), folder / "model.pt2")
    return (folder / "model.pt2").read_bytes()


def load_model(folder: Path, content: bytes) -> object:
    (folder / "model.pt2").write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, of what it reads
        return load_subject(str(folder / "model.pt2"))


def written(folder: Path) -> bytes:
    """A network with what parsers look at: weights, shapes that are computed, a branch, a function."""
    floats, ints, flag = TensorProto.FLOAT, TensorProto.INT64, TensorProto.BOOL
    node, tensor, port = helper.make_node, helper.make_tensor, helper.make_tensor_value_info
    constant = node("Constant", [], ["c"], value=tensor("c", floats, [1], [1.0]))
    branch = helper.make_graph([constant], "branch", [], [port("c", floats, [1])])
    opsets = [helper.make_opsetid("", 13), helper.make_opsetid("f", 1)]
    body = [node("Relu", ["a"], ["m"]), node("Neg", ["m"], ["b"])]
    nodes = [
        node("Conv", ["x", "w", "bias"], ["h"], "stem/Conv", pads=[1, 1, 1, 1], strides=[2, 2], auto_pad="NOTSET"),
        node("BatchNormalization", ["h", "bias", "bias", "bias", "bias"], ["n"], epsilon=1e-5),
        node("Clip", ["n", "", ""], ["r"]),
        node("Shape", ["r"], ["s"]),
        node("Gather", ["s", "axes"], ["one"], axis=0),
        node("Concat", ["one", "rest"], ["shape"], axis=0),
        node("Reshape", ["r", "shape"], ["flat"]),
        node("Gemm", ["flat", "v", "k"], ["y"], alpha=1.0, transB=1),
        node("If", ["flag"], ["chosen"], then_branch=branch, else_branch=branch),
        node("F", ["chosen"], ["called"], domain="f"),
    ]
    weights = [
        tensor("w", floats, [4, 3, 3, 3], [0.1] * 108),
        tensor("bias", floats, [4], [0.5] * 4),
        tensor("axes", ints, [1], [0]),
        tensor("rest", ints, [1], [-1]),
        tensor("v", floats, [2, 64], [0.1] * 128),
        tensor("k", floats, [2], [0.0] * 2),
        tensor("flag", flag, [], [True]),
    ]
    graph = helper.make_graph(nodes, "g", [port("x", floats, [1, 3, 8, 8])], [port("y", floats, [1, 2])], weights)
    function = helper.make_function("f", "F", ["a"], ["b"], body, opsets)
    return bytes(helper.make_model(graph, functions=[function], opset_imports=opsets).SerializeToString())


def lint_bytes(folder: Path, content: bytes) -> object:
    return lint(content)


FUZZED: dict[str, tuple[Callable[[Path], Any], Callable[..., Any], Callable[[Path, Any], object]]] = {
    "load": (saved, mutations.network, load),
    "lint": (written, mutations.model, lint_bytes),
    "pt2": (exported, mutations.archive, load_model),
}
"""What makes the good file, what changes it, and what reads it."""


def outcomes(name: str, numbers: range, folder: Path) -> dict[str, int]:
    """How many of the mutations with these numbers were read, and how many refused; any error but ours is raised."""
    make, mutate, read = FUZZED[name]
    good = make(folder)
    (folder / "changed").mkdir()
    read(folder / "changed", good)
    found = {"read": 0, "refused": 0}
    for number in numbers:
        changed = mutate(random.Random(number), good)
        try:
            read(folder / "changed", changed)
            found["read"] += 1
        except L1RRError as error:
            assert str(error).strip(), number
            found["refused"] += 1
        except BaseException as error:
            raise AssertionError(f"mutation {number} of {name}: {type(error).__name__}: {error}") from error
    return found


@pytest.mark.parametrize("name", FUZZED)
def test_damaged_files_raise_our_errors_alone(name: str, tmp_path: Path) -> None:
    found = outcomes(name, range(FEW // 4 if name == "pt2" else FEW), tmp_path)
    assert found["refused"], "mutations that change nothing"


@pytest.mark.fuzz
@pytest.mark.parametrize("name", FUZZED)
def test_many_damaged_files_raise_our_errors_alone(name: str, tmp_path: Path) -> None:
    found = outcomes(name, range(FEW, FEW + MANY), tmp_path)
    assert found["refused"] > MANY // 10
