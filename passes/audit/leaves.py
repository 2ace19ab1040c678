"""Leaves: the outputs of a network taken apart, down to tensors, numbers and other values without parts.

Taken apart are what pytree knows (also named tuples and what a library registered), arrays of numpy, subclasses of
Python's containers, any object with fields (`__dict__` or `__slots__`: dataclasses, boxes, results), and any other
mapping, sequence or set. Properties are not called. An object that holds itself is taken apart once.
"""

from __future__ import annotations

import datetime
import functools
import numbers
import pathlib
import sys
import types
import uuid
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from enum import Enum
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

NUMBERS = (bool, int, float, complex)
"""Python's numbers; a Tensor holds the others."""

WORDS = (
    str, bytes, bytearray, type(None), type(...), Enum, pathlib.PurePath, uuid.UUID, range, slice, numbers.Number,
    datetime.date, datetime.time, datetime.timedelta, torch.dtype, torch.device, torch.layout, torch.memory_format,
)  # fmt: skip
"""What has no parts and is compared by `==`."""

CODE = (
    nn.Module, type, types.FunctionType, types.BuiltinFunctionType, types.MethodType, types.MethodWrapperType,
    types.ModuleType, functools.partial, torch.Generator,
)  # fmt: skip
"""What a network's results may refer to and is no result: it has no leaves."""

CONTAINERS = (list, tuple, dict, set, frozenset)
FOREIGN = (TypeError, ValueError, LookupError, AttributeError, RuntimeError, NotImplementedError)
"""What the methods of an unknown object raise where it does not do what they promise."""

MOST_PARTS = 1_000_000

Parts = list[tuple[str, Any]]


@dataclass(frozen=True, eq=False)
class Leaf:
    """A value without parts, and where it is: `path` is ".boxes[0]" for `outputs.boxes[0]`.

    `value` is a Tensor, a number, or one of `WORDS`; with `opaque` it is something that cannot be taken apart.
    """

    path: str
    value: Any
    opaque: bool = False

    @property
    def is_number(self) -> bool:
        """Whether the value holds numbers: a tensor, or a number of Python."""
        return not self.opaque and isinstance(self.value, (Tensor, *NUMBERS))


def leaves_of(outputs: Any) -> tuple[Leaf, ...]:
    """The leaves of any value, in the order in which pytree has those that it knows."""
    found: list[Leaf] = []
    alive: list[Any] = []  # or a part that was made on the way might get the identity of one that is gone
    entered: set[int] = set()
    inside: set[int] = set()
    stack: list[tuple[str, Any, bool]] = [("", outputs, False)]
    while stack:
        path, value, leaving = stack.pop()
        if leaving:
            inside.discard(id(value))
        elif len(alive) >= MOST_PARTS:
            found.append(Leaf(path, value, opaque=True))
        elif _is_word(value) or _is_plain_tensor(value):
            found.append(Leaf(path, value))
        elif id(value) not in inside and id(value) not in entered and not isinstance(value, CODE):
            alive.append(value)
            parts = _known_parts(value)
            (entered if parts is None else inside).add(id(value))  # what pytree knows may come twice, but not in itself
            parts = _parts(value) if parts is None else parts
            if parts is None:
                found.append(Leaf(path, value, opaque=True))
                continue
            stack.append((path, value, True))
            stack += [(path + key, part, False) for key, part in reversed(parts)]
    return tuple(found)


def _is_word(value: Any) -> bool:
    """Whether a value is a number of Python or one of `WORDS`; those of numpy are arrays."""
    return isinstance(value, (*NUMBERS, *WORDS)) and not hasattr(type(value), "__array__")


def _is_plain_tensor(value: Any) -> bool:
    if not isinstance(value, Tensor) or value.is_meta or value.is_nested:
        return False
    return value.layout is torch.strided and not value.is_quantized or value.is_sparse


def _known_parts(value: Any) -> Parts | None:
    """The children of a node that pytree knows; None for anything else."""
    if pytree.tree_is_leaf(value):
        return None
    asked = 0

    def below(_: Any) -> bool:
        nonlocal asked
        asked += 1
        return asked > 1  # not by identity: a list may hold itself

    children = pytree.tree_flatten(value, is_leaf=below)[0]
    keys = _names(value)
    return list(zip(keys, children, strict=True)) if len(keys) == len(children) else _numbered(children)


def _names(value: Any) -> list[str]:
    """The keys or fields of a node that pytree knows, as parts of a path; none if it has none."""
    if isinstance(value, Mapping):
        return [_key(key, i) for i, key in enumerate(value)]
    names = getattr(value, "_fields", ()) if isinstance(value, tuple) else getattr(value, "__dataclass_fields__", ())
    return [f".{name}" for name in names]


def _parts(value: Any) -> Parts | None:
    """The parts of a value that pytree does not know; None where it has none that can be read."""
    if isinstance(value, Tensor):
        return _tensors(value)
    if (array := _array(value)) is not None:
        return _elements_of_array(array)
    fields = _fields(value)
    if isinstance(value, CONTAINERS):
        return [*_content(value), *fields]
    if any(not isinstance(part, CODE) for _, part in fields):
        return fields
    if isinstance(value, (Mapping, Sequence, Set)) or (hasattr(value, "__len__") and hasattr(value, "__getitem__")):
        try:
            return _content(value)
        except FOREIGN:
            return None
    return fields or None


def _tensors(tensor: Tensor) -> Parts | None:
    """A nested tensor as its tensors, one of another layout or quantized as a plain one."""
    if tensor.is_meta:
        return None
    if tensor.is_nested:
        return _numbered(list(tensor.unbind()))
    if tensor.is_quantized:
        return [("", tensor.dequantize())]
    return [("", tensor.to_dense() if str(tensor.layout) == "torch._mkldnn" else tensor.to_sparse_coo())]


def _array(value: Any) -> Any:
    """The array of numpy that a value is or offers (an image, a column of a table); None if there is none."""
    numpy = sys.modules.get("numpy")
    if numpy is None or not hasattr(type(value), "__array__"):
        return None
    try:
        return numpy.asarray(value)
    except FOREIGN:
        return None


def _elements_of_array(array: Any) -> Parts:
    if array.dtype.names:
        return [(f"[{name!r}]", array[name]) for name in array.dtype.names]
    if array.dtype.kind in "biufc":
        try:
            return [("", torch.from_numpy(array.copy()))]
        except TypeError:  # long double
            return [("", torch.from_numpy(array.astype(complex if array.dtype.kind == "c" else float)))]
    elements = array.tolist()
    return _numbered(elements) if isinstance(elements, list) else [("", elements)]


def _fields(value: Any) -> Parts:
    """The fields of an object: its `__dict__` and what its classes list in `__slots__`."""
    fields = dict(getattr(value, "__dict__", {}))
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            name = f"_{kind.__name__.lstrip('_')}{slot}" if slot.startswith("__") and not slot.endswith("__") else slot
            if slot not in ("__dict__", "__weakref__") and hasattr(value, name):
                fields[name] = getattr(value, name)
    return [(f".{name}", part) for name, part in fields.items()]


def _content(value: Any) -> Parts:
    """What a container holds."""
    if isinstance(value, Mapping):
        return [(_key(key, i), part) for i, (key, part) in enumerate(value.items())]
    if isinstance(value, Set):  # a set has no order of its own
        elements = list(value)
        has_order = all(map(_is_word, elements))
        return _numbered(sorted(elements, key=repr) if has_order else elements)
    return _numbered(list(_in_order(value)))


def _in_order(value: Any) -> Iterator[Any]:
    """The elements of a sequence, also of one that has no `__iter__`."""
    if hasattr(value, "__iter__"):
        yield from value
    else:
        yield from (value[i] for i in range(len(value)))


def _key(key: Any, place: int) -> str:
    """A key as part of a path; that of an object, whose text may hold its address, is its place."""
    return f"[{key!r}]" if isinstance(key, (*NUMBERS, *WORDS)) else f"[key {place}]"


def _numbered(parts: Sequence[Any]) -> Parts:
    return [(f"[{i}]", part) for i, part in enumerate(parts)]
