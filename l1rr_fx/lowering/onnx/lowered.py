"""A network as ONNX calls: its ports, its calls in order, and the constants that they read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from l1rr_fx.lowering.onnx.truths import moved_as_numbers
from l1rr_fx.lowering.onnx.writer import OnnxCall, Symbol, Writer
from passes.errors import InputError


@dataclass(frozen=True, eq=False)
class Port:
    """An input or output of the network: its name, and a fake of its shape and dtype."""

    name: str
    like: Tensor


@dataclass(frozen=True, eq=False)
class Lowered:
    """A network as ONNX calls. Constants are those that some call reads, with the ONNX type to store them in."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]
    calls: tuple[OnnxCall, ...]
    constants: Mapping[str, tuple[Tensor, str]]


def finished(
    writer: Writer,
    inputs: Sequence[Port],
    results: Sequence[Any],
    output_names: Sequence[str] | None,
    fields: Sequence[str | None],
) -> Lowered:
    """What a writer collected: outputs are named, and calls that no output depends on are left out.

    Outputs are named by `output_names`, or else by their fields; those without are output0, output1 ...
    """
    writer.origin, writer.hint = None, ""
    given = checked_names(output_names, len(results), "output_names")
    inner = {output for call in writer.calls for output in call.outputs}
    own: list[str] = []
    for value in results:
        own.append(_own_name(writer, value, inner - set(own)))
    inner |= set(own)
    names = given or _default_names(writer, inner, fields)
    for wanted in names:
        if writer.is_taken(wanted) and wanted not in inner:
            raise InputError(f"the output name {wanted!r} is taken by another value: choose output_names")
    renamed = dict(zip(own, names, strict=True))
    # An inner value that has the name of an output gives way.
    renamed = {name: writer.free(name) for name in names if name in inner - renamed.keys()} | renamed
    ports = [
        Port(name, value.like if isinstance(value, Symbol) else value)
        for name, value in zip(names, results, strict=True)
    ]
    written: Sequence[OnnxCall] = writer.calls
    if not writer.target.reads("moves of BOOL"):
        written = moved_as_numbers(writer, {port.name: port.like.dtype for port in inputs})
    calls = _live([_renamed(call, renamed) for call in written], {port.name for port in ports})
    read = {name for call in calls for name in call.inputs}
    constants = {name: held for name, held in writer.constants.items() if name in read}
    return Lowered(tuple(inputs), tuple(ports), tuple(calls), constants)


def _default_names(writer: Writer, inner: set[str], fields: Sequence[str | None]) -> list[str]:
    """The names of fields, or output0, output1 ...; distinct, and none that an input or a constant has."""
    names: list[str] = []
    for i, field in enumerate(fields):
        name = field or f"output{i}"
        while name in names or (writer.is_taken(name) and name not in inner):
            name += "_"
        names.append(name)
    return names


def _own_name(writer: Writer, value: Symbol | Tensor, free: set[str]) -> str:
    """The name of an output's value, in FLOAT where floating point is FLOAT16 inside.

    It is one of `free`: an input, a constant, and what is an output already are copied.
    """
    dtype = value.like.dtype if isinstance(value, Symbol) else value.dtype
    name = writer.name_of(value)
    if writer.type_of(dtype) == "FLOAT16":
        return writer.op("Cast", value, to="FLOAT")
    return name if name in free else writer.op("Identity", value)


def chosen_places(results: Sequence[Any], wanted: Sequence[int] | None) -> list[int]:
    """The numbers of the tensors among the outputs, or those that are given."""
    if wanted is None:
        found = [i for i, each in enumerate(results) if isinstance(each, (Symbol, Tensor))]
        if not found:
            raise InputError("the network gives no tensor")
        return found
    if not isinstance(wanted, Sequence) or not all(type(i) is int for i in wanted):
        raise InputError(f"outputs is {wanted!r}; expected a sequence of numbers, such as (0,)")
    if not wanted or any(not 0 <= i < len(results) for i in wanted):
        raise InputError(f"outputs is {list(wanted)}; expected numbers from 0 to {len(results) - 1}")
    for i in wanted:
        if not isinstance(results[i], (Symbol, Tensor)):
            raise InputError(f"output {i} is a {type(results[i]).__name__}, not a tensor")
    return list(wanted)


def checked_names(given: Sequence[str] | None, count: int, argument: str) -> list[str] | None:
    """The names that are given for `count` values; None if none are. InputError unless they are distinct names."""
    if given is None:
        return None
    if isinstance(given, str) or not isinstance(given, Sequence) or not all(isinstance(name, str) for name in given):
        raise InputError(f"{argument} is {given!r}; expected a sequence of names")
    if len(given) != count or len(set(given)) != count:
        raise InputError(f"{argument} is {list(given)}; expected {count} different names")
    return list(given)


def _renamed(call: OnnxCall, names: Mapping[str, str]) -> OnnxCall:
    if not any(name in names for name in (*call.inputs, *call.outputs)):
        return call
    inputs, outputs = (tuple(names.get(n, n) for n in side) for side in (call.inputs, call.outputs))
    return OnnxCall(call.name, call.kind, inputs, outputs, call.attributes, call.origin)


def _live(calls: Sequence[OnnxCall], wanted: set[str]) -> list[OnnxCall]:
    """The calls that some output depends on, in order."""
    found: list[OnnxCall] = []
    read = set(wanted)
    for call in reversed(calls):
        if read & set(call.outputs):
            read |= set(call.inputs)
            found.append(call)
    return found[::-1]
