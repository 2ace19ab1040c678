"""Checks of a lint: functions from a node to what is wrong with it, and makers of those that many operators need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from l1rr_fx.lowering.parsers.onnx_file import OnnxModel, OnnxNode


@dataclass(frozen=True)
class Remark:
    """What is wrong, and what to do."""

    problem: str
    cure: str
    severity: Literal["error", "warning", "note"] = "error"


Check = Callable[[OnnxModel, OnnxNode], Iterator[Remark]]


def constant_input(i: int, what: str, *, severity: Literal["error", "warning"] = "error") -> Check:
    """Input `i`, if there is one, has to be an initializer (or a Constant with a tensor)."""

    def check(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
        name = node.input(i)
        if name and name not in model.constants:
            yield Remark(f"its {what} is computed by the network", f"make the {what} an initializer", severity)

    return check


def ranks(*allowed: int, cure: str, i: int = 0) -> Check:
    """Input `i` has one of these numbers of axes."""

    def check(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
        shape = model.shape_of(node.input(i))
        if shape is not None and len(shape) not in allowed:
            yield Remark(f"its input has {len(shape)} axes; {' or '.join(map(str, allowed))} are read", cure)

    return check


def without_attributes(*names: str, problem: str, cure: str) -> Check:
    """None of these attributes is given a value that is not empty or 0."""

    def check(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
        for name in names:
            if node.attributes.get(name) not in (None, 0, "", "none", "stretch", []):
                yield Remark(problem.format(name=name), cure)

    return check


def at_most_inputs(count: int, problem: str, cure: str) -> Check:
    """No more than `count` inputs are given."""

    def check(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
        if any(node.inputs[count:]):
            yield Remark(problem, cure)

    return check


def values_in(attribute: str, allowed: tuple[str, ...], default: str, cure: str) -> Check:
    """An attribute that is a word is one of these."""

    def check(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
        word = node.attributes.get(attribute, default)
        if word not in allowed:
            yield Remark(f"{attribute} is {word!r}; {', '.join(allowed)} are read", cure)

    return check


def ones(attribute: str, problem: str, cure: str) -> Check:
    """An attribute that is a list of numbers holds ones only."""

    def check(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
        if any(n != 1 for n in node.attributes.get(attribute, ())):
            yield Remark(problem, cure)

    return check


def not_of(i: int, kinds: tuple[str, ...], cure: str) -> Check:
    """Input `i` is of none of these types."""

    def check(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
        kind = model.kind_of(node.input(i))
        if kind in kinds:
            yield Remark(f"its input {i} is {kind}, which this operator does not take there", cure)

    return check
