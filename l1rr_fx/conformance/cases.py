"""What the suite is made of: named networks with inputs, one pattern each."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from l1rr_fx.testing.zeros import randomised

Args = tuple[Any, ...]
M = TypeVar("M", bound=type[nn.Module])

IMAGE = (2, 3, 8, 8)


@dataclass(frozen=True)
class Case:
    """A network that a pruner is tried on. `build` gives it in float64 with inputs, the same ones each time."""

    name: str
    theme: str
    about: str
    build: Callable[[], tuple[nn.Module, Args]]


PATTERNS: dict[str, Case] = {}
"""The patterns by name; importing `l1rr_fx.conformance.patterns` fills it."""


def pattern(
    *shapes: tuple[int, ...], training: bool = False, make: Callable[[], Args] | None = None
) -> Callable[[M], M]:
    """Register a module class, made without arguments, as a pattern.

    Its inputs are random of these shapes (default: one image batch), or what `make` returns. Name and explanation are
    those of the class and its docstring, the theme is its file. With `training` it is pruned in training mode.
    """

    def register(module: M) -> M:
        name = re.sub(r"(?<!^)(?=[A-Z])", "_", module.__name__).lower()
        about = (module.__doc__ or "").strip().splitlines()[0].rstrip(".")

        def build() -> tuple[nn.Module, Args]:
            torch.manual_seed(0)
            model = randomised(module())
            return model.train(training), make() if make is not None else randoms(*(shapes or (IMAGE,)))

        PATTERNS[name] = Case(name, module.__module__.rpartition(".")[2], about, build)
        return module

    return register


def randoms(*shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    """Random float64 inputs of these shapes."""
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
