"""`moved_as_numbers`: truth values are moved as integers, for readers whose builder may refuse to move BOOL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch

from l1rr_fx.lowering.onnx.writer import OnnxCall, Writer

MOVES = frozenset({
    "Reshape", "Transpose", "Slice", "Expand", "Squeeze", "Unsqueeze", "Flatten", "Split", "Tile", "Gather",
    "GatherElements", "GatherND",
})  # fmt: skip
"""Operators that give elements of their first input; Concat gives those of all."""
TRUTHS = frozenset({
    "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Xor", "Not", "IsNaN", "IsInf",
})  # fmt: skip
"""Operators that give truth values."""


def moved_as_numbers(writer: Writer, inputs: Mapping[str, torch.dtype]) -> list[OnnxCall]:
    """The calls of a writer, with each move of BOOL as one of INT32 between casts; moves in a row share them.

    A value keeps its name: casts that nothing reads are to be left out by the caller.
    """
    return list(_Moves(writer, inputs).calls())


class _Moves:
    def __init__(self, writer: Writer, inputs: Mapping[str, torch.dtype]) -> None:
        self.writer = writer
        self.truths = {name for name, dtype in inputs.items() if dtype == torch.bool}
        self.truths |= {name for name, (_, kind) in writer.constants.items() if kind == "BOOL"}
        self.numbers: dict[str, str] = {}

    def calls(self) -> Iterator[OnnxCall]:
        for call in list(self.writer.calls):
            data = call.inputs if call.kind == "Concat" else call.inputs[:1]
            if call.kind in (*MOVES, "Concat") and self.truths.issuperset(data):
                yield from self._moved(call, data)
                continue
            if call.kind in TRUTHS or call.attributes.get("to") == "BOOL":
                self.truths.update(call.outputs)
            yield call

    def _moved(self, call: OnnxCall, data: tuple[str, ...]) -> Iterator[OnnxCall]:
        for name in dict.fromkeys(data):
            if name not in self.numbers:
                yield from self._cast(call, name)
        given = (*(self.numbers[name] for name in data), *call.inputs[len(data) :])
        results = tuple(self.writer.free(f"{name}/number") for name in call.outputs)
        yield replace(call, inputs=given, outputs=results)
        for name, result in zip(call.outputs, results, strict=True):
            self.numbers[name] = result
            self.truths.add(name)
            yield OnnxCall(self.writer.free(f"{call.name}/Truth"), "Cast", (result,), (name,), BOOL, call.origin)

    def _cast(self, call: OnnxCall, name: str) -> Iterator[OnnxCall]:
        """The integers of a truth value: a constant's at once."""
        if name in self.writer.constants:
            self.numbers[name] = self.writer.constant(self.writer.constants[name][0].to(torch.int32))
            return
        self.numbers[name] = self.writer.free(f"{name}/number")
        yield OnnxCall(self.writer.free(f"{call.name}/Number"), "Cast", (name,), (self.numbers[name],), INT32, None)


BOOL, INT32 = {"to": "BOOL"}, {"to": "INT32"}
