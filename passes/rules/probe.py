"""What an element-wise function is at a few numbers, found by calling it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from passes.graph.nodes import is_tensor
from passes.rules.base import Site
from passes.rules.memo import Key

OTHERS = (-1.0, 0.5, 1.0)
"""What the other inputs may be while the stand-in of one is looked for: signs, and a number between 0 and 1."""

STAND_INS = Key[tuple[float | None, ...]]()


def value_at(site: Site, values: Mapping[Node, Tensor]) -> Tensor | None:
    """f of numbers, or of small tensors of them; inputs without a value are 0. None where it cannot be called."""

    def stand_in(node: Node) -> Any:
        if is_tensor(node):
            return values.get(node, torch.zeros(())).to(node.meta["val"].dtype)
        return site.values.concrete(node)

    if not all(isinstance(n.meta.get("val"), (Tensor, int, torch.SymInt)) for n in site.node.all_input_nodes):
        return None
    args, kwargs = map_arg(site.node.args, stand_in), map_arg(site.node.kwargs, stand_in)
    try:
        result = site.node.target(*args, **kwargs)  # type: ignore[operator]
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
        return None
    return result if isinstance(result, Tensor) else None


def stand_ins(site: Site) -> tuple[float | None, ...]:
    """For each input the first of 0, 1 and 1/2 at which f is finite, whatever of `OTHERS` the others are; 0 where f
    cannot be called."""
    return site.memo.once(STAND_INS, lambda: tuple(_stand_in(site, node) for node in site.inputs))


def _stand_in(site: Site, node: Node) -> float | None:
    others = [other for other in site.inputs if other is not node]
    grid = torch.meshgrid(*[torch.tensor(OTHERS)] * len(others), indexing="ij") if others else ()
    around = dict(zip(others, grid, strict=True))
    for number in (0.0, 1.0, 0.5):
        result = value_at(site, {**around, node: torch.tensor(number)})
        if result is None or bool(result.isfinite().all()):
            return number
    return None
