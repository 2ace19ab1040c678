"""The rules: in goes a call site, out comes what the compiler knows of its operator.

One table says which operator belongs to which family. An operator that is not in it is unknown: nothing is zero after
it, and it reads everything. `register_rule` adds a rule for an operator of your own,
`l1rr_fx.testing.assert_rule_is_sound` checks one, and `l1rr_fx.lowering.register_form` gives the operator its ONNX
form.

    base           the interface of a rule, call sites, layout requests
    emitter        what a rule writes its call with
    memo           what a rule remembers of a call site
    pointwise      element by element: activations, arithmetic, sums, copies
    fills          tensors that hold one number
    affine         a scale or a shift for each channel: batch norm, instance norm, PReLU
    convolution    convolutions and linear layers: their layouts
    contraction    convolutions and linear layers: which channels live, and what they cost
    deform         deformable convolution
    products       products of activations: matmul, einsum, attention
    recurrent      recurrent layers: LSTM, GRU, RNN
    quantisation   fake quantisation
    mixing         everything along some axes: pooling, reductions, softmax, norms
    sampling       values read at computed places
    windows        overlapping windows
    movement       what operators have in common that only move elements
    reindex        movements along an axis: slices, flips, rolls, selections, padding, repetition
    reshape        the same elements under other axes: reshapes, permutations, pixel shuffles
    joins          concatenation and split
    weights        the weight of a contraction, and how it connects channels
    units          the units of a recurrent layer: which are zero, and which need which
    views          the operators that show the elements of an input again
    intervals      the range of an element-wise function
    bounds         the interval that an element-wise function lies in
    probe          an element-wise function at a few numbers
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch._library.custom_ops import CustomOpDef
from torch._ops import OpOverload, OpOverloadPacket
from torch.fx import Node

from passes.errors import InputError
from passes.rules import (
    affine,
    convolution,
    deform,
    fills,
    joins,
    mixing,
    pointwise,
    products,
    quantisation,
    recurrent,
    reindex,
    reshape,
    sampling,
    windows,
)
from passes.rules.base import Rule

UNKNOWN = Rule()

RULES: Mapping[str, Rule] = {
    **pointwise.RULES,
    **fills.RULES,
    **affine.RULES,
    **convolution.RULES,
    **products.RULES,
    **recurrent.RULES,
    **quantisation.RULES,
    **mixing.RULES,
    **reindex.RULES,
    **reshape.RULES,
    **joins.RULES,
    **sampling.RULES,
    **windows.RULES,
}
"""By operator name, without its overload ("conv2d", "cat")."""

OVERLOADS: Mapping[str, Rule] = {
    "max.other": pointwise.POINTWISE,
    "min.other": pointwise.POINTWISE,
    **dict.fromkeys((f"{name}.data" for name in recurrent.RULES), UNKNOWN),  # of packed sequences
    "view.dtype": UNKNOWN,  # the same bits in another type
    "where.default": UNKNOWN,  # of a condition alone: the places where it holds
    **dict.fromkeys(("max.default", "min.default", "median.default", "nanmedian.default"), mixing.TOTAL),
}
"""Where overloads of one name do different things."""

ELSEWHERE: Mapping[str, Rule] = deform.OPERATORS
"""Operators of other libraries than ATen, by qualified name."""


REGISTERED: dict[str, Rule] = {}
"""Rules that users registered, by qualified operator name ("mylib::gate")."""

RENAMED: Mapping[str, str] = {
    "settle": "legalise",
    "wants": "requests",
    "native": "gives",
    "trim": "narrowed",
    "filler": "stand_in",
}
"""Methods of a rule before 0.2 and what they are called now: a rule that defines them would not be asked."""

Operator = OpOverload | OpOverloadPacket | CustomOpDef


def register_rule(operator: Operator, rule: Rule) -> None:
    """Let `rule` describe an operator that the compiler does not know, in all its overloads.

    `operator` is the result of `torch.library.custom_op`, or an operator such as `torch.ops.mylib.gate`. `rule` is one
    of the families here (`passes.rules.pointwise.POINTWISE`, `Mixing(...)`, ...) or a `Rule` of your own. Raises
    InputError for an operator that already has a rule, or that writes to its arguments.
    """
    if not isinstance(rule, Rule):
        raise InputError(f"the rule is a {type(rule).__name__}; expected an instance of passes.rules.base.Rule")
    for old, new in RENAMED.items():
        if hasattr(rule, old):
            raise InputError(f"{type(rule).__name__} defines {old}; expected {new}, its name since version 0.2")
    overloads = overloads_of(operator)
    name = overloads[0]._schema.name
    if any(_known(overload) is not None for overload in overloads):
        raise InputError(f"{name} has a rule already; unregister_rule takes back one that was registered")
    if any(overload._schema.is_mutable for overload in overloads):
        raise InputError(f"{name} writes to its arguments: only an operator that returns its results can have a rule")
    REGISTERED[name] = rule


def unregister_rule(operator: Operator) -> None:
    """Forget a rule that was registered; InputError if there is none."""
    name = overloads_of(operator)[0]._schema.name
    if REGISTERED.pop(name, None) is None:
        raise InputError(f"no rule was registered for {name}")


def overloads_of(operator: Operator) -> list[OpOverload]:
    """All overloads of an operator."""
    if isinstance(operator, CustomOpDef):
        return [operator._opoverload]
    if isinstance(operator, OpOverloadPacket):
        return [getattr(operator, name) for name in operator.overloads()]
    if isinstance(operator, OpOverload):
        return overloads_of(operator.overloadpacket)
    raise InputError(f"the operator is a {type(operator).__name__}; expected one of torch.library or torch.ops")


def rule_for(node: Node) -> Rule:
    """The rule of a call. An operator that torch tags as pointwise needs no entry in the table."""
    if not isinstance(node.target, OpOverload):
        return UNKNOWN
    return _known(node.target) or UNKNOWN


def has_rule(target: OpOverload) -> bool:
    """Whether the compiler knows an operator."""
    return _known(target) not in (None, UNKNOWN)


def _known(target: OpOverload) -> Rule | None:
    registered = REGISTERED.get(target._schema.name) or ELSEWHERE.get(target._schema.name)
    if registered is not None or target.namespace != "aten":
        return registered
    name = target._schema.name.split("::")[1]
    rule = OVERLOADS.get(f"{name}.{target._overloadname or 'default'}") or RULES.get(name)
    if rule is not None:
        return rule
    random, writes = torch.Tag.nondeterministic_seeded in target.tags, target._schema.is_mutable
    return pointwise.POINTWISE if torch.Tag.pointwise in target.tags and not random and not writes else None
