"""Checks of a lint: what they read, where the parser decides it, and makers of those that many operators need."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

from l1rr_fx.lowering.parsers.onnx_file import OnnxModel, OnnxNode

Severity = Literal["error", "warning", "note"]
Basis = Literal["certain", "NvInfer.h", "reported"]
"""How sure a check is: read in the parser itself, in the header of the builder's interface, or in a user's report."""


@dataclass(frozen=True)
class Remark:
    """What is wrong, and what to do; `source` is where the parser decides it."""

    problem: str
    cure: str
    severity: Severity = "error"
    source: str = ""
    basis: Basis = "certain"


Reading = Callable[[OnnxModel, OnnxNode], Iterator[Remark]]


@dataclass(frozen=True)
class Check:
    """A rule that a node has to keep, with the file and the function of the parser that enforces it.

    Without a source it is the importer of the node's operator.
    """

    rule: str
    reading: Reading
    source: str = ""
    basis: Basis = "certain"

    def __call__(self, model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
        for remark in self.reading(model, node):
            yield replace(remark, source=self.source_for(node.kind), basis=self.basis)

    def source_for(self, kind: str) -> str:
        """Where the parser decides it for an operator."""
        return self.source or importer(kind)


@dataclass(frozen=True)
class ModelCheck:
    """A rule that a whole model has to keep, with its source."""

    rule: str
    reading: Callable[[OnnxModel], Iterator[Remark]]
    source: str
    basis: Basis = "certain"

    def __call__(self, model: OnnxModel) -> Iterator[Remark]:
        for remark in self.reading(model):
            yield replace(remark, source=self.source, basis=self.basis)


def importer(kind: str) -> str:
    """Where onnx-tensorrt reads an operator."""
    return f"builtin_op_importers.cpp: import{kind}"


def helper(function: str) -> str:
    """A function of onnx-tensorrt that several importers call."""
    return f"onnx2trt_utils.cpp: {function}"


# What is a constant to the parser


def constant(model: OnnxModel, name: str) -> bool:
    """Whether the parser knows the values: an initializer, a Constant, or a transposed one of those."""
    if name in model.constants:
        return True
    producer = model.producers.get(name)
    if producer is None:
        return False
    return producer.kind == "Constant" or (producer.kind == "Transpose" and constant(model, producer.input(0)))


# Makers of checks


def constant_input(i: int, what: str, *, basis: Basis = "certain", source: str = "") -> Check:
    """Input `i`, if there is one, has to be a constant."""

    def reading(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
        name = node.input(i)
        if name and not constant(model, name):
            yield Remark(f"the network computes its {what}", f"make the {what} an initializer")

    return Check(f"constant {what}", reading, source, basis)


def _either(values: tuple[str | int, ...]) -> str:
    *others, last = map(str, values)
    return f"{', '.join(others)} or {last}" if others else last


def ranks(*allowed: int, cure: str, i: int = 0, basis: Basis = "certain", source: str = "") -> Check:
    """Input `i` has one of these numbers of axes."""
    numbers = _either(allowed)

    def reading(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
        rank = model.rank_of(node.input(i))
        if rank is not None and rank not in allowed:
            yield Remark(f"its input {i} has {rank} axes; expected {numbers}", cure)

    return Check(f"input {i} has {numbers} axes", reading, source, basis)


def without_attributes(*names: str, cure: str) -> Check:
    """None of these attributes, which the parser does not read, is given a value that is not empty or 0."""

    def reading(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
        for name in names:
            if node.attributes.get(name) not in (None, 0, "", "none", "stretch", []):
                yield Remark(f"{name} is ignored, silently", cure)

    return Check(f"no {', '.join(names)} (ignored)", reading)


def values_in(attribute: str, allowed: tuple[str | int, ...], default: str | int, cure: str, source: str = "") -> Check:
    """An attribute has one of these values."""
    listed = _either(allowed)

    def reading(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
        value = node.attributes.get(attribute, default)
        if value not in allowed:
            yield Remark(f"{attribute} is {value!r}; expected {listed}", cure)

    return Check(f"{attribute} is {listed}", reading, source)


def ones(attribute: str, problem: str, cure: str, source: str = "") -> Check:
    """An attribute that is a list of numbers holds ones only."""

    def reading(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
        if any(n != 1 for n in node.attributes.get(attribute, ())):
            yield Remark(problem, cure)

    return Check(f"{attribute} are 1", reading, source)


def given_sizes(*indices: int) -> Check:
    """These inputs, which are sizes or positions, are no inputs of the network."""

    def reading(model: OnnxModel, node: OnnxNode) -> Iterator[Remark]:
        for name in (node.input(i) for i in indices):
            if name and name in model.inputs:
                yield Remark(
                    f"its sizes {name} are an input of the network: an engine of fixed sizes cannot be built",
                    f"make {name} an initializer",
                )

    return Check("sizes are no inputs of the network", reading, basis="NvInfer.h")
