"""One table: which family an ATen operator belongs to. Whatever is not in it is treated as unknown, never guessed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch._ops import OpOverload
from torch.fx import Node

from passes.rules import convolution, joins, mixing, pointwise, products, reindex, reshape
from passes.rules.base import Rule

UNKNOWN = Rule()

RULES: Mapping[str, Rule] = {
    **pointwise.RULES,
    **convolution.RULES,
    **products.RULES,
    **mixing.RULES,
    **reindex.RULES,
    **reshape.RULES,
    **joins.RULES,
}
"""By operator name, without its overload ("conv2d", "cat")."""

OVERLOADS: Mapping[str, Rule] = {
    "max.other": pointwise.POINTWISE,
    "min.other": pointwise.POINTWISE,
    "max.default": mixing.Mixing(mixing.named(99), keeps_zero=False),
    "min.default": mixing.Mixing(mixing.named(99), keeps_zero=False),
}
"""Where overloads of one name do different things."""


def rule_for(node: Node) -> Rule:
    """The rule of a call; operators that torch itself tags as pointwise need no entry."""
    if not isinstance(node.target, OpOverload) or node.target.namespace != "aten":
        return UNKNOWN
    name = node.target._schema.name.split("::")[1]
    rule = OVERLOADS.get(f"{name}.{node.target._overloadname or 'default'}") or RULES.get(name)
    if rule is not None:
        return rule
    tags = node.target.tags
    random, writes = torch.Tag.nondeterministic_seeded in tags, node.target._schema.is_mutable
    if torch.Tag.pointwise in tags and not random and not writes:
        return pointwise.POINTWISE
    return UNKNOWN
