"""What a saved network may name: the operators that it may call, and the names that may go into generated code."""

from __future__ import annotations

import functools
import inspect
import keyword
import math
import operator
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch._ops import OpOverload, OpOverloadPacket

from l1rr_fx.archive.constants import check_arguments
from l1rr_fx.support.checks import short
from passes.errors import InputError, LoadError

IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
TARGET = re.compile(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
RESERVED = {"self", "torch", "pytree", "fx_pytree", *keyword.kwlist}
FUNCTIONS: Mapping[str, Callable[..., Any]] = {
    **{
        f"operator::{name}": getattr(operator, name)
        for name in (
            *("getitem", "add", "sub", "mul", "truediv", "floordiv", "mod", "neg", "pow", "and_", "or_", "not_"),
            *("eq", "ne", "lt", "le", "gt", "ge"),
        )
    },
    **{
        f"torch::{name}": getattr(torch, name)
        for name in ("sym_int", "sym_float", "sym_max", "sym_min", "sym_not", "sym_ite", "sym_sum", "sym_sqrt")
        if hasattr(torch, name)
    },
    **{f"math::{name}": getattr(math, name) for name in ("ceil", "floor", "trunc")},
}
NAMES = {function: name for name, function in FUNCTIONS.items()}
RETURNS = {"Tensor", "List[Tensor]", "int", "float", "bool", "number", "List[int]"}
ARGUMENTS = re.compile(r"(Optional\[|List\[)*(Tensor|int|float|bool|number|complex|str|Device|Generator)\]*")
# Operators that pass the rule and still reach beyond their arguments: files, seeds.
REFUSED = {"from_file", "seed", "initial_seed"}
# Of the operators that start with an underscore, which may change or skip checks, these are known to be sound.
PRIVATE = {
    *("__and__", "__or__", "__xor__", "__lshift__", "__rshift__"),
    *("_softmax", "_log_softmax", "_to_copy", "_unsafe_view", "_reshape_alias", "_convolution", "_weight_norm"),
    *("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "_prelu_kernel", "_shape_as_tensor", "_safe_softmax"),
    *("_upsample_nearest_exact1d", "_upsample_nearest_exact2d", "_upsample_nearest_exact3d"),
    *("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "_native_batch_norm_legit_no_training"),
    *("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_attention_math"),
}
CHECKS = {"_assert_scalar"}  # they return nothing: they raise


def is_name(name: object) -> bool:
    """Whether it is an identifier that means nothing else in generated code."""
    return isinstance(name, str) and IDENTIFIER.fullmatch(name) is not None and name not in RESERVED


def is_target(target: object) -> bool:
    """Whether it is a dotted name of a module or a tensor."""
    return (
        isinstance(target, str)
        and TARGET.fullmatch(target) is not None
        and not any(map(keyword.iskeyword, target.split(".")))
    )


def operator_refusal(target: OpOverload) -> str | None:
    """Why an operator may not be in a saved network, or None if it may."""
    schema = target._schema
    name = schema.name.partition("::")[2]
    if target.namespace != "aten":
        return "it is not an ATen operator"
    if schema.is_mutable:
        return "it writes to its arguments"
    if name in CHECKS:
        return None
    if name in REFUSED or (name.startswith("_") and name not in PRIVATE):
        return "it is not on the list of operators that compute and do nothing else"
    if not schema.returns or any(str(each.type) not in RETURNS for each in schema.returns):
        return "it does not return tensors or numbers"
    if any(not ARGUMENTS.fullmatch(str(each.type)) for each in schema.arguments):
        return "it does not take tensors and numbers alone"
    return None


def operator_name(target: Any) -> str:
    """The name of an operator in a saved network; InputError if it may not be in one."""
    if isinstance(target, OpOverload):
        if reason := operator_refusal(target):
            raise InputError(f"the operator {target} cannot be saved: {reason}")
        return f"{target._schema.name}.{target._schema.overload_name or 'default'}"
    if target not in NAMES:
        raise InputError(f"a call of {getattr(target, '__name__', target)} cannot be saved: it is not an ATen operator")
    return NAMES[target]


def operator_named(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Callable[..., Any]:
    """The operator of a name; LoadError if it may not be called, or not with these arguments.

    The value of a node among them may still be of another type than its place asks for.
    """
    if name in FUNCTIONS:
        try:
            inspect.signature(FUNCTIONS[name]).bind(*args, **kwargs)
        except TypeError as error:
            raise LoadError(f"{name}: {error}") from error
        return FUNCTIONS[name]
    target = _aten_operator(name)
    check_arguments(target, args, kwargs)
    return target


@functools.cache
def _aten_operator(name: str) -> OpOverload:
    namespace, _, rest = name.partition("::")
    packet_name, _, overload = rest.partition(".")
    if namespace != "aten" or not (IDENTIFIER.fullmatch(packet_name) and IDENTIFIER.fullmatch(overload)):
        raise LoadError(f"the operator {short(name)} is not an ATen operator")
    packet = getattr(torch.ops.aten, packet_name, None)
    if not isinstance(packet, OpOverloadPacket) or overload not in packet.overloads():
        raise LoadError(f"this torch ({torch.__version__}) has no operator {short(name)}")
    target = getattr(packet, overload)
    assert isinstance(target, OpOverload)
    if reason := operator_refusal(target):
        raise LoadError(f"the operator {name} is refused: {reason}")
    return target
