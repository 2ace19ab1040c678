"""Which constants an argument may be: of an ATen operator by its schema, of a module by its annotations."""

from __future__ import annotations

import math
import typing
from collections.abc import Mapping
from types import UnionType
from typing import Any

import torch
from torch import nn
from torch._ops import OpOverload
from torch.fx import Node

from l1rr_fx.support.checks import short
from passes.errors import LoadError

NUMBERS = (bool, int, float, complex)
CONSTANTS: Mapping[str, tuple[type, ...]] = {
    "TensorType": NUMBERS,  # torch makes tensors of them
    "NumberType": NUMBERS,
    "ComplexType": NUMBERS,
    "FloatType": (bool, int, float),
    "IntType": (bool, int, torch.dtype, torch.layout, torch.memory_format),
    "BoolType": (bool,),
    "StringType": (str,),
    "DeviceObjType": (torch.device, str),
    "GeneratorType": (),
}
"""By the kind of a type in a schema; what a node computes is of any type."""
INTEGERS = range(-(2**63), 2**63)


def check_arguments(target: OpOverload, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Raise LoadError unless the operator takes so many arguments, of these names and types."""
    arguments = target._schema.arguments
    positional = [each for each in arguments if not each.kwarg_only]
    given = dict(zip((each.name for each in positional), args, strict=False))
    if len(args) > len(positional) or {*kwargs} & {*given} or not {*kwargs} <= {each.name for each in arguments}:
        raise LoadError(f"the operator {target} does not take these arguments")
    given |= kwargs
    for each in arguments:
        if each.name not in given:
            if not each.has_default_value():
                raise LoadError(f"the operator {target} needs the argument {each.name!r}")
        elif not _fits(given[each.name], each.type):
            raise LoadError(f"the operator {target}: its {each.name} is {short(given[each.name])}, no {each.type}")


def _fits(value: Any, wanted: Any) -> bool:
    kind = wanted.kind()
    if isinstance(value, Node):
        return True
    if kind == "OptionalType":
        return value is None or _fits(value, wanted.getElementType())
    if kind == "ListType":  # one number stands for a list of equal ones
        items = value if isinstance(value, (list, tuple)) else (value,)
        return all(_fits(item, wanted.getElementType()) for item in items)
    return type(value) in CONSTANTS.get(kind, ()) and (type(value) is not int or value in INTEGERS)


def check_options(leaf: type[nn.Module], options: Mapping[str, Any]) -> None:
    """Raise LoadError unless each option of a module is of the type that its constructor names, and finite."""
    hints = typing.get_type_hints(leaf.__init__)
    for name, value in options.items():
        wanted = hints[name]
        is_union = typing.get_origin(wanted) in (typing.Union, UnionType)
        allowed = typing.get_args(wanted) if is_union else (wanted,)
        if not (type(value) in allowed or (type(value) is int and float in allowed)) or not _is_sound(value):
            kinds = " or ".join("None" if each is type(None) else each.__name__ for each in allowed)
            raise LoadError(f"the option {name} is {short(value)}; expected {kinds}, finite and not negative")


def _is_sound(value: Any) -> bool:
    return not isinstance(value, (int, float)) or (math.isfinite(value) and value >= 0)
