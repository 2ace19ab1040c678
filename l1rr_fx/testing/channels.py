"""What a property test of channels draws beside networks: sets of channels, zeroings, families of branches, shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
from torch import nn

from l1rr_fx.testing.zeros import CONTRACTIONS, NORMS, kill, widths
from passes.errors import InputError
from passes.graph.isolation import detached_copy

DrawFn = Callable[[st.SearchStrategy[Any]], Any]

DENSITIES = ("some", "many", "few")
WHOLE_ONE_IN = 20


@st.composite
def channel_sets(draw: DrawFn, n: int, *, density: str = "some") -> tuple[int, ...]:
    """Some of the channels 0 to n - 1, in order; shrinks to none. Now and then all of them.

    `density`: "some" is about half of them, "many" about three quarters, "few" about a quarter.
    """
    if density not in DENSITIES:
        raise InputError(f"the density is {density!r}; expected one of {', '.join(DENSITIES)}")
    whole = 2**n - 1
    bits = draw(st.integers(0, whole))
    if density == "many":
        bits |= draw(st.integers(0, whole))
    if density == "few":
        bits &= draw(st.integers(0, whole))
    if bits == whole and not draw(st.sampled_from([False] * (WHOLE_ONE_IN - 1) + [True])):
        bits = whole >> 1
    return tuple(i for i in range(n) if bits >> i & 1)


@dataclass(frozen=True)
class Zeroing:
    """Which output channels of which layers are zeroed. `repr` is the code that does it to `model`."""

    dead: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def apply(self, model: nn.Module) -> nn.Module:
        """A copy of `model` with these channels zeroed."""
        result = detached_copy(model)
        for name, rows in self.dead.items():
            kill(result.get_submodule(name), rows)
        return result

    def __repr__(self) -> str:
        lines = (f"\nkill(model.get_submodule({name!r}), {list(rows)})" for name, rows in self.dead.items())
        return "".join(lines) or "\n# nothing is zeroed"

    def _repr_pretty_(self, printer: object, cycle: bool) -> None:
        printer.text(repr(self))  # type: ignore[attr-defined]  # Hypothesis's own printer


@st.composite
def zeroings(draw: DrawFn, model: nn.Module) -> Zeroing:
    """Random output channels of the convolutions, linear layers and norms of `model`; shrinks to none.

    A layer keeps at least one channel: what a network of which nothing is left should do is another question.
    """
    dead: dict[str, tuple[int, ...]] = {}
    for name, module in model.named_modules():
        if isinstance(module, CONTRACTIONS):
            width = widths(module)[0]
        elif isinstance(module, NORMS) and module.weight is not None:
            width = module.weight.shape[0]
        else:
            continue
        rows = draw(channel_sets(width))
        if rows and len(rows) < width:
            dead[name] = rows
    return Zeroing(dead)


@dataclass(frozen=True)
class ResidualFamily:
    """Branches that meet in additions: the channels of `width` that live in each of them."""

    width: int
    branches: tuple[tuple[int, ...], ...]


@st.composite
def residual_families(draw: DrawFn, *, max_width: int = 8, max_branches: int = 4) -> ResidualFamily:
    """Branches of one family of sums, each live in channels of its own; at least two branches, none of them empty."""
    width = draw(st.integers(1, max_width))
    count = draw(st.integers(2, max_branches))
    return ResidualFamily(width, tuple(draw(channel_sets(width)) or (0,) for _ in range(count)))


@st.composite
def input_shapes(
    draw: DrawFn, *, channels: int = 3, max_batch: int = 3, max_size: int = 32, multiple: int = 1, axes: int = 2
) -> tuple[int, ...]:
    """Shapes (batch, channels, size, ...) of small inputs; sizes along the `axes` differ and are multiples of
    `multiple`."""
    if max_size < multiple:
        raise InputError(f"no multiple of {multiple} is at most {max_size}")
    sizes = [multiple * draw(st.integers(1, max_size // multiple)) for _ in range(axes)]
    return (draw(st.integers(1, max_batch)), channels, *sizes)
