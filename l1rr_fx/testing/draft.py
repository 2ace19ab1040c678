"""A network being drawn: layers, lines of source, and the value of every line on a small input.

Each step is evaluated at once, so that shapes need no formulas, and is written down as one line of Python. To add an
operator: one function with `@operator(families, ...)` in `l1rr_fx.testing.operators` that returns an expression.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeVar

import hypothesis.strategies as st
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from l1rr_fx.testing.channels import DrawFn, channel_sets
from l1rr_fx.testing.zeros import widths

FAMILIES = ("residual", "split", "grouped", "gate", "attention", "norm", "tail", "inplace", "scales", "unknown")
MAX_ELEMENTS = 1024  # of one value of the pool, batch not counted
BATCH = 2

T = TypeVar("T")


class Draft:
    """A network being drawn: its layers, its lines, and the value of every line on a small input.

    What dies of a layer is drawn with it, so that an operator shrinks away with all that belongs to it. `density` says
    how much dies: "none", or one of `channel_sets`.
    """

    def __init__(self, draw: DrawFn, size: int) -> None:
        self.draw = draw
        self.density = self.pick("some", "none", "many", "few")
        self.layers: dict[str, str] = {}
        self.kills: list[str] = []
        self.lines: list[str] = []
        self.model = SimpleNamespace()
        self.values: dict[str, Tensor] = {"x": torch.randn(BATCH, 3, size, size, dtype=torch.float64)}

    def pick(self, *options: T) -> T:
        """One of `options`; the first is the simplest."""
        picked: T = self.draw(st.sampled_from(options))
        return picked

    def now_and_then(self, times: int) -> bool:
        """True once in so many times; shrinks to False."""
        return self.pick(*[False] * (times - 1), True)

    def width(self) -> int:
        """A number of channels."""
        return self.pick(4, 2, 3, 6, 8)

    def layer(self, source: str, *, head: bool = False) -> str:
        """A new layer, parameter or buffer; returns what forward calls it. Of a `head` little dies."""
        name = f"l{len(self.layers)}"
        self.layers[name] = source
        made = eval(source, _names())
        if isinstance(made, nn.Module):
            made = made.double().eval()
        elif made.is_floating_point():
            made.data = made.data.double()
        setattr(self.model, name, made)
        if self.density != "none" and not (head and not self.now_and_then(4)):
            self.kills.append(self._killing(name, made))
        return f"self.{name}"

    def _killing(self, name: str, made: Any) -> str:
        """The line that zeroes channels of a layer or parameter. Some lose them only by half, and stay alive."""
        if isinstance(made, nn.Parameter) and made.ndim > 1:
            axis = made.shape.index(max(made.shape))
            dead = self._chosen(max(made.shape))
            return f"model.{name}.data.index_fill_({axis}, torch.tensor({dead}), 0.0)\n" if dead else ""
        if not isinstance(made, nn.Module) or getattr(made, "weight", None) is None:
            return ""
        layer: Any = made
        outputs, inputs = widths(layer) if layer.weight.ndim > 1 else (len(layer.weight), 0)
        normed = isinstance(layer, _ConvNd) and layer.bias is None  # its batch norm is what dies, as a rule
        rows = self._chosen(outputs) if not normed or self.now_and_then(4) else []
        taken = self._chosen(inputs) if inputs and self.now_and_then(4) else []
        if not rows and not taken:
            return ""
        columns = f", columns={taken}" if taken else ""
        half = ", keep_bias=True" if rows and self.now_and_then(4) else ""
        return f"kill(model.{name}, {rows}{columns}{half})\n"

    def _chosen(self, n: int) -> list[int]:
        return list(self.draw(channel_sets(n, density=self.density)))

    def value(self, expression: str) -> str:
        """A new line `v3 = expression`; returns the variable's name."""
        name = f"v{len(self.lines)}"
        with torch.no_grad():
            self.values[name] = eval(expression, self._scope())
        self.lines.append(f"{name} = {expression}")
        return name

    def write(self, statement: str) -> None:
        """A statement that changes a value in place."""
        with torch.no_grad():
            exec(statement, self._scope())
        self.lines.append(statement)

    def _scope(self) -> dict[str, Any]:
        return {**_names(), "self": self.model, **self.values}

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.values[name].shape)

    def channels(self, name: str) -> int:
        return self.shape(name)[1 if self.values[name].ndim == 4 else -1]

    def others(self, fits: Callable[[Tensor], bool]) -> list[str]:
        """The variables that fit, the newest first."""
        return [name for name in reversed(self.values) if name != "x" and fits(self.values[name])]

    def partner(self, name: str) -> str:
        """A value of the same shape as `name`: another of the pool, or a layer's output made to fit."""
        shape = self.shape(name)
        candidates = [other for other in self.others(lambda v: tuple(v.shape) == shape) if other != name][:4]
        found = self.pick(*candidates, "", name)
        if found:
            return found
        if len(shape) != 4:
            return self.value(f"{self.layer(f'nn.Linear({shape[-1]}, {shape[-1]})')}({name})")
        near = self.others(lambda v: v.ndim == 4 and v.shape[2:] == shape[2:])
        source = self.pick(*near)
        return self.value(conv_bn(self, source, shape[1], 1))

    def divisor(self, number: int) -> int:
        """A divisor of `number`, 1 only if there is no other."""
        return self.pick(*([d for d in range(2, number + 1) if number % d == 0] or [1]))


def _names() -> dict[str, Any]:
    return {"torch": torch, "nn": nn, "F": F}


Fits = Callable[[Tensor], bool]
Write = Callable[[Draft, str], str]


@dataclass(frozen=True)
class Operator:
    """A way to extend a network: what it is called, when it is drawn, what it can read, and how often beside others."""

    name: str
    families: tuple[str, ...]
    fits: Fits
    write: Write
    weight: int = 1


OPERATORS: list[Operator] = []


def operator(*families: str, rank: int = 4, fits: Fits | None = None, weight: int = 1) -> Callable[[Write], Write]:
    """Register a function for these families; it reads values of that rank that also fit."""

    def register(write: Write) -> Write:
        def readable(value: Tensor) -> bool:
            return value.ndim == rank and (fits is None or fits(value))

        OPERATORS.append(Operator(write.__name__.strip("_"), families, readable, write, weight))
        return write

    return register


def channels_over(n: int, by: int = 1) -> Fits:
    return lambda v: v.shape[1] >= n and v.shape[1] % by == 0


def small(factor: int) -> Fits:
    return lambda v: v[0].numel() * factor <= MAX_ELEMENTS


def even(v: Tensor) -> bool:
    return v.shape[2] % 2 == 0 and v.shape[3] % 2 == 0


def wide(v: Tensor) -> bool:
    return v.shape[2] * v.shape[3] > 1


def conv_bn(d: Draft, x: str, out: int, k: int = 3, groups: int = 1) -> str:
    conv = d.layer(f"nn.Conv2d({d.channels(x)}, {out}, {k}, padding={k // 2}, groups={groups}, bias=False)")
    return f"{d.layer(f'nn.BatchNorm2d({out})')}({conv}({x}))"


def activated(d: Draft, expression: str) -> str:
    act = d.pick("relu", "silu", "leaky_relu", "hardswish", "gelu", "mish", "sigmoid", "softplus", "tanh", "relu6")
    return f"F.{act}({expression})"
