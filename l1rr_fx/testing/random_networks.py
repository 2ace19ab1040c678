"""Random detector-like networks with random channels zeroed, as code that runs when pasted.

A network is drawn operator by operator on a growing pool of values (`l1rr_fx.testing.draft`). The network *is* its
source. It shrinks to few operators, few channels and few zeroed ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import hypothesis.strategies as st
import torch
from hypothesis import assume
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from l1rr_fx.support.arguments import all_of_kind
from l1rr_fx.testing.channels import DrawFn
from l1rr_fx.testing.draft import BATCH, FAMILIES, MAX_ELEMENTS, Draft, conv_bn
from l1rr_fx.testing.operators import OPERATORS
from passes.errors import InputError

HEADER = """\
import torch, torch.nn.functional as F
from torch import nn
from l1rr_fx.testing import kill, randomised
"""

MEAN_NODES = 5

Built = tuple[nn.Module, tuple[Any, ...]]


@dataclass(frozen=True)
class Network:
    """A random network: its source, and the operators that were drawn for it. `repr` is the source."""

    source: str
    operators: tuple[str, ...]

    def build(self) -> Built:
        """(the zeroed model, its inputs)."""
        scope: dict[str, Any] = {}
        exec(self.source, scope)  # our own text, drawn below
        return scope["model"], scope["args"]

    def is_alive(self) -> bool:
        """Whether no output is zero. There is nothing to prune where one is, and `prune` refuses with VanishedError."""
        model, args = self.build()
        with torch.no_grad():
            outputs = pytree.tree_leaves(model(*args))
        return all(bool(out.any()) for out in outputs if isinstance(out, Tensor))

    def __repr__(self) -> str:
        return f"\n{self.source}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Hypothesis prints a dataclass by its fields; the source is what one wants."""
        printer.text(repr(self))


def networks(
    families: Sequence[str] = FAMILIES, *, max_nodes: int = 7, dtype: torch.dtype = torch.float64
) -> st.SearchStrategy[Network]:
    """Random networks of these families, channels zeroed at random: image -> stem -> operators -> heads.

    At most `max_nodes` operators are drawn between stem and heads; one may be several calls (a residual block). Every
    output is alive: it is not zero. InputError if there is no family of that name.
    """
    known = dict.fromkeys(family for each in OPERATORS for family in each.families)
    for family in all_of_kind("families", families, str):
        if family not in known:
            raise InputError(f"there is no family {family!r}; there are {', '.join(known)}")
    return _networks(families, max_nodes, dtype)


@st.composite
def _networks(draw: DrawFn, families: Sequence[str], max_nodes: int, dtype: torch.dtype) -> Network:
    size = draw(st.sampled_from((4, 8)))
    d = Draft(draw, size)
    d.value(_stem(d))
    available = [each for each in OPERATORS if set(each.families) & set(families)]
    chosen: list[str] = []
    while len(chosen) < max_nodes and not (chosen and draw(st.integers(0, MEAN_NODES)) == 0):
        readable = {each.name: d.others(each.fits) for each in available}
        each = d.pick(*(each for each in available if readable[each.name] for _ in range(each.weight)))
        chosen.append(each.name)
        newest = d.value(each.write(d, d.pick(*readable[each.name][:3])))
        if d.values[newest][0].numel() > MAX_ELEMENTS:
            break
    outputs = [_head(d, d.others(lambda v: True)[0])]
    if d.pick(False, True):
        other = d.pick(*d.others(lambda v: True))
        outputs.append(d.pick(other, _head(d, other)))
    returned = d.pick("{}", "[{}]", "{{'out': ({},)}}").format(", ".join(outputs))
    network = Network(_source(d, size, returned, dtype), tuple(chosen))
    assume(network.is_alive())
    return network


def _stem(d: Draft) -> str:
    """A convolution, most often with batch norm and ReLU."""
    if d.pick(True, False, False):
        return f"{d.layer(f'nn.Conv2d(3, {d.width()}, 1)')}(x)"
    return f"F.relu({conv_bn(d, 'x', d.width(), 1)})"


def _head(d: Draft, name: str) -> str:
    c = d.channels(name)
    layer = d.layer(f"nn.Conv2d({c}, 2, 1)" if d.values[name].ndim == 4 else f"nn.Linear({c}, 2)", head=True)
    return f"{layer}({name})"


def _source(d: Draft, size: int, returned: str, dtype: torch.dtype) -> str:
    """The network as a script that leaves `model`, zeroed, and `args`."""
    layers = "".join(f"        self.{name} = {source}\n" for name, source in d.layers.items())
    lines = "".join(f"        {line}\n" for line in d.lines)
    precision = "" if dtype == torch.float64 else f", dtype={dtype}"
    return (
        f"{HEADER}\n\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n{layers}\n"
        f"    def forward(self, x):\n{lines}        return {returned}\n\n\n"
        f"torch.manual_seed(0)\nmodel = randomised(Net(){precision})\n{''.join(d.kills)}"
        f"args = (torch.randn({BATCH}, 3, {size}, {size}, dtype={dtype}),)\n"
    )
