"""The multiply-accumulates of operators that no rule knows, by torch's own formulas (`torch.utils.flop_counter`)."""

from __future__ import annotations

from typing import Any

import torch
from torch._ops import OpOverload
from torch.fx import Node
from torch.fx.node import map_arg
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from passes.graph.nodes import hint, is_tensor
from passes.rules import has_rule
from passes.rules.base import Site
from passes.rules.memo import Key

COUNTED = Key[int | None]()

INNER = frozenset(
    {"unsafe_split", "unsafe_split_with_sizes", "unsafe_chunk", "_unsafe_view", "_safe_softmax", "lift_fresh_copy"}
)
"""What torch's implementations call in place of operators that have rules."""


def formula_macs(site: Site) -> int | None:
    """The multiply-accumulates of a call that has no rule; None if torch has no formula for a part of it.

    The call is run on tensors without elements. The parts that it consists of are counted by torch's formulas; parts
    with a rule, point-wise operators and views multiply no matrices.
    """
    return site.memo.once(COUNTED, lambda: _counted(site))


def _counted(site: Site) -> int | None:
    target = site.node.target
    if not isinstance(target, OpOverload):
        return None
    args, kwargs = map_arg((site.node.args, site.node.kwargs), lambda node: _empty(site, node))
    try:
        with torch.no_grad(), _Counter() as counter:
            target(*args, **kwargs)
    except (RuntimeError, NotImplementedError, TypeError, ValueError, AssertionError):  # it does not run without values
        return None
    return None if counter.unknown else counter.flops // 2


def _empty(site: Site, node: Node) -> Any:
    if not is_tensor(node):
        return site.values.concrete(node)
    value = node.meta["val"]
    return torch.empty([hint(size) for size in value.shape], dtype=value.dtype, device="meta")


class _Counter(TorchDispatchMode):
    """Adds up the floating-point operations of all that is called; `unknown`: something has no formula."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's
        self.flops = 0
        self.unknown = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given: dict[str, Any] = kwargs or {}
        formula = flop_registry.get(func.overloadpacket)
        if formula is None:
            with self:
                parts = func.decompose(*args, **given)
            if parts is not NotImplemented:
                return parts
            self.unknown |= not _multiplies_nothing(func)
            return func(*args, **given)
        result = func(*args, **given)
        self.flops += int(formula(*args, **given, out_val=result))
        return result


def _multiplies_nothing(target: OpOverload) -> bool:
    """Whether an operator is known to have no sums of products: a rule, a point-wise operator, a view, a constant."""
    schema = target._schema
    if has_rule(target) or torch.Tag.pointwise in target.tags or schema.name.removeprefix("aten::") in INNER:
        return True
    if not any(isinstance(argument.type, torch.TensorType) for argument in schema.arguments):
        return True
    return any(result.alias_info is not None and not result.alias_info.is_write for result in schema.returns)
