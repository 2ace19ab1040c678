"""The ONNX graph while it is written: calls in order, constants stored once, names never used twice."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from l1rr_fx.lowering.onnx_target import OnnxTarget
from passes.errors import LoweringError

Number = int | float | bool
SMALL = 4096
"""Constants of at most this many elements are compared by value, so that equal ones are stored once."""

TINIEST = 2.0**-24
"""The smallest positive number of FP16."""

INTEGERS = {torch.int64: "INT64", torch.int32: "INT32", torch.bool: "BOOL"}


@dataclass(frozen=True, eq=False)
class Symbol:
    """A tensor that is computed when the network runs: its name in the file, and a fake of its shape and dtype."""

    name: str
    like: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Its sizes."""
        return tuple(int(n) for n in self.like.shape)

    @property
    def rank(self) -> int:
        """The number of its axes."""
        return self.like.dim()


Operand = Symbol | Tensor | str
"""What a call may read: a value of the network, a constant, or a name that `Writer.op` returned."""


@dataclass(frozen=True, eq=False)
class OnnxCall:
    """One ONNX node, and the node of the torch graph that it comes from."""

    name: str
    kind: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: dict[str, Any]
    origin: Node | None


@dataclass(eq=False)
class Writer:
    """Collects the ONNX calls of a graph for a target.

    A form writes with `op` and `ops`, makes constants with `number`, `integers`, `constant` and `cast`, may use the
    shorthands `reduce`, `reshape`, `slice`, `split`, `clip` and `truth`, and reads `target.opset`.
    All else is for the interpreter. `float_type` is the ONNX type of every floating-point tensor: "FLOAT" or "FLOAT16".
    """

    target: OnnxTarget
    float_type: str = "FLOAT"
    calls: list[OnnxCall] = field(default_factory=list)
    constants: dict[str, tuple[Tensor, str]] = field(default_factory=dict)
    origin: Node | None = None
    hint: str = ""
    _taken: set[str] = field(default_factory=set)
    _known: dict[Any, str] = field(default_factory=dict)
    _alive: list[Tensor] = field(default_factory=list)

    def op(self, kind: str, *inputs: Operand, **attributes: Any) -> str:
        """Write an ONNX node with one result and return the result's name.

        `kind` is ONNX's operator; keyword arguments are its attributes (None: left out). An optional input that is
        missing is "". A Transpose that keeps the order is left out: a reader may name its input for it.
        """
        if kind == "Transpose" and list(attributes.get("perm", ())) == sorted(attributes.get("perm", (1, 0))):
            return self.name_of(inputs[0])
        return self.ops(kind, 1, *inputs, **attributes)[0]

    def ops(self, kind: str, count: int, *inputs: Operand, **attributes: Any) -> tuple[str, ...]:
        """Write an ONNX node with `count` results and return their names."""
        names = tuple(self.name_of(each) for each in inputs)
        while names and not names[-1]:
            names = names[:-1]
        outputs = tuple(self.free(self.base) for _ in range(count))
        given = {key: value for key, value in attributes.items() if value is not None}
        name = self.free(f"{self.hint or self.base}/{kind}")
        self.calls.append(OnnxCall(name, kind, names, outputs, given, self.origin))
        return outputs

    @property
    def base(self) -> str:
        """The name of the node that is being lowered."""
        return self.origin.name if self.origin is not None else "value"

    def is_taken(self, name: str) -> bool:
        """Whether a value has the name already."""
        return name in self._taken

    def free(self, wanted: str) -> str:
        """A name that no value has yet: `wanted`, or else `wanted_1`, `wanted_2`, ..."""
        name, number = wanted, 0
        while name in self._taken:
            number += 1
            name = f"{wanted}_{number}"
        self._taken.add(name)
        return name

    def name_of(self, operand: Operand) -> str:
        """The name under which the ONNX graph has an operand."""
        if isinstance(operand, str):
            return operand
        return operand.name if isinstance(operand, Symbol) else self.constant(operand)

    # Constants

    def check_axes(self, shape: Sequence[int]) -> None:
        """Raise LoweringError for a shape of more axes than the target has."""
        most = self.target.most_axes
        if most is not None and len(shape) > most:
            raise LoweringError(
                f"a tensor of {len(shape)} axes, sizes {[int(n) for n in shape]}; expected at most {most} on "
                f"{self.target.name}: merge some of them, or split the batch, before"
            )

    def called(self, tensor: Tensor, name: str) -> None:
        """Store a constant under its name in the model, if a call reads it unchanged."""
        self._known.setdefault(("name", id(tensor)), name)
        self._alive.append(tensor)

    def constant(self, tensor: Tensor, stored: str | None = None) -> str:
        """The name of a constant, stored once. `stored` overrides its ONNX type."""
        self.check_axes(tensor.shape)
        kind = stored or self.type_of(tensor.dtype)
        key: Any = ("id", id(tensor), kind)
        if key in self._known:
            return self._known[key]
        self._alive.append(tensor)
        if tensor.numel() <= SMALL:
            value = tensor.detach().cpu().to(torch.float64 if tensor.dtype.is_floating_point else torch.int64)
            same = ("value", kind, tuple(value.shape), value.contiguous().numpy().tobytes())
            if same in self._known:
                return self._known[same]
            key = same
        wanted = self._known.get(("name", id(tensor)))
        self._known[key] = self._known["id", id(tensor), kind] = name = self.free(wanted or "constant")
        self.constants[name] = (tensor, kind)
        return name

    def integers(self, values: Sequence[int]) -> str:
        """A constant vector of INT64."""
        return self.constant(torch.tensor([int(v) for v in values], dtype=torch.int64))

    def number(self, value: Number, dtype: torch.dtype = torch.float32) -> str:
        """A constant without axes.

        In FP16 a number that would round to zero or infinity becomes the smallest or the largest number of FP16.
        """
        if self.float_type == "FLOAT16" and dtype.is_floating_point and math.isfinite(value) and value:
            value = math.copysign(min(max(abs(value), TINIEST), torch.finfo(torch.float16).max), value)
        return self.constant(torch.tensor(value, dtype=dtype))

    # Types

    def type_of(self, dtype: torch.dtype) -> str:
        """The ONNX type that stores a torch dtype. All floating-point types are one, small integers are INT32."""
        if dtype.is_complex:
            raise LoweringError("complex numbers have no form: write them as pairs of real ones")
        return self.float_type if dtype.is_floating_point else INTEGERS.get(dtype, "INT32")

    def cast(self, operand: Any, dtype: torch.dtype) -> Operand:
        """An operand (or a number) in another dtype: constants at once, values with a Cast if ONNX types differ."""
        if isinstance(operand, Symbol) and operand.name in self.constants:
            operand = self.constants[operand.name][0]
        if isinstance(operand, Symbol):
            kind = self.type_of(dtype)
            if self.type_of(operand.like.dtype) == kind:
                return operand
            number = operand.like.dtype.is_floating_point
            return self.truth(operand) if number and dtype == torch.bool else self.op("Cast", operand, to=kind)
        if isinstance(operand, Tensor):
            return operand if operand.dtype == dtype else operand.to(dtype)
        return operand if isinstance(operand, str) else self.number(operand, dtype)

    def truth(self, x: Operand) -> str:
        """Whether floating-point numbers are other than 0."""
        if self.target.reads("Cast of FLOAT to BOOL"):
            return self.op("Cast", x, to="BOOL")
        return self.op("Not", self.op("Equal", x, self.number(0.0)))

    # Shorthands: calls whose spelling depends on the opset, or that many forms need

    def reduce(self, kind: str, x: Operand, axes: Sequence[int], *, keepdims: bool) -> str:
        """A reduction over `axes`: an attribute until opset 17, an input since (ReduceSum: since 13)."""
        if self.target.opset >= 18 or kind == "ReduceSum":
            return self.op(kind, x, self.integers(axes), keepdims=int(keepdims))
        return self.op(kind, x, axes=[int(a) for a in axes], keepdims=int(keepdims))

    def clip(self, x: Operand, low: float | None, high: float | None) -> Operand:
        """Floating-point numbers within bounds, which None leaves open."""
        bounds = {"Max": low, "Min": high}
        if self.float_type == "FLOAT" or self.target.reads("Clip, InstanceNormalization with constants of FLOAT16"):
            return self.op("Clip", x, *("" if bound is None else self.number(bound) for bound in bounds.values()))
        for kind, bound in bounds.items():
            x = x if bound is None else self.op(kind, x, self.number(bound))
        return x

    def reshape(self, x: Operand, shape: Sequence[int]) -> Operand:
        """The elements of `x`, in order, in another shape: a constant at once."""
        if isinstance(x, Tensor):
            return x.reshape(tuple(shape))
        if isinstance(x, Symbol) and x.shape == tuple(shape):
            return x
        self.check_axes(shape)
        return self.op("Reshape", x, self.integers(shape))

    def slice(self, x: Operand, axis: int, start: int, stop: int, step: int = 1) -> str:
        """The elements of `x` from `start` to `stop` (exclusive) along one axis."""
        return self.op("Slice", x, *(self.integers([n]) for n in (start, stop, axis, step)))

    def split(self, x: Operand, sizes: Sequence[int], axis: int) -> tuple[str, ...]:
        """`x` cut into parts of these sizes along an axis."""
        return self.ops("Split", len(sizes), x, self.integers(sizes), axis=axis)
