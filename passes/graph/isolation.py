"""Run a model without side effects, copy it, and pause garbage collection while a graph is built.

A run restores buffers, attributes and the state of the random generator.
"""

from __future__ import annotations

import contextlib
import copy
import gc
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd
from torch.utils import _pytree as pytree

Module = TypeVar("Module", bound=nn.Module)


@torch.no_grad()
def run_aside(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The outputs of a module without dropout; what forward stores is undone, its arguments are not written into."""
    with _aside(module):
        return _called(module, args, kwargs)


@torch.no_grad()
def run_watched(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Any, tuple[str, ...]]:
    """The outputs of `run_aside`, and the names of the attributes in which forward remembers earlier inputs.

    These are the attributes that it stores, if its outputs for another input then differ from those of a first call.
    """
    with _aside(module) as stored:
        outputs = _called(module, args, kwargs)
        names = stored()
        if not names:
            return outputs, ()
        others = pytree.tree_map(_another, (args, dict(kwargs)))
        later = _called(module, *others)
    return outputs, () if _same(later, run_aside(module, *others)) else names


def _another(leaf: Any) -> Any:
    """Another input of the same shape."""
    return leaf.flip(-1) * 0.75 if isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.dim() else leaf


def _called(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """The outputs of a module for copies of its arguments; the random generator is restored."""
    args, kwargs = copy.deepcopy(args), copy.deepcopy(dict(kwargs))
    generator = torch.random.get_rng_state()
    try:
        return module(*args, **kwargs)
    finally:
        torch.random.set_rng_state(generator)


def _same(first: Any, second: Any) -> bool:
    """Whether two nested outputs hold close tensors of the same shapes."""
    one, other = pytree.tree_leaves(first), pytree.tree_leaves(second)
    return len(one) == len(other) and all(
        a.shape == b.shape and bool((a.isclose(b, equal_nan=True)).all())
        for a, b in zip(one, other, strict=True)
        if isinstance(a, Tensor) and isinstance(b, Tensor)
    )


@contextlib.contextmanager
def _aside(module: nn.Module) -> Iterator[Callable[[], tuple[str, ...]]]:
    """Turn dropout off and undo what forward stores; the value is a function that names the changed attributes."""
    dropouts = [each for each in module.modules() if isinstance(each, _DropoutNd) and each.training]
    for dropout in dropouts:
        dropout.training = False
    try:
        with buffers_restored(module), attributes_kept(module) as stored:
            yield stored
    finally:
        for dropout in dropouts:
            dropout.training = True


@contextlib.contextmanager
def buffers_restored(module: nn.Module) -> Iterator[None]:
    """Restore the buffers of a module afterwards."""
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


@contextlib.contextmanager
def attributes_kept(model: nn.Module) -> Iterator[Callable[[], tuple[str, ...]]]:
    """Undo what forward stores on its modules; the value is a function that names what was stored so far.

    Under capture forward stores fake tensors: detectors cache anchors.
    """
    with collection_paused():  # thousands of small copies would have the whole graph searched for garbage
        owners = dict(model.named_modules())
        saved = [(name, vars(each), dict(vars(each))) for name, each in owners.items()]
        # also the content of lists and dictionaries, such as the tables of parameters, buffers and children
        held = [
            (f"{name}.{key}" if name else key, each, _shallow_copy(each))
            for name, _, own in saved
            for key, each in own.items()
            if isinstance(each, (list, dict, set))
        ]

    def stored() -> tuple[str, ...]:
        found = [
            f"{name}.{key}" if name else key
            for name, attributes, before in saved
            for key, value in attributes.items()
            if key not in before or value is not before[key]
        ]
        found += [name for name, attributes, before in held if not _holds_the_same(attributes, before)]
        return tuple(dict.fromkeys(name.replace("_buffers", "a buffer") for name in found))

    try:
        yield stored
    finally:
        content: list[tuple[str, Any, Any]] = [*saved, *held]
        for _, attributes, before in content:
            attributes.clear()
            (attributes.extend if isinstance(attributes, list) else attributes.update)(before)


def _shallow_copy(value: Any) -> Any:
    """The content of a list, dictionary or set; most are empty, and `copy.copy` takes long for an ordered one."""
    if not value:
        return ()
    return value.copy() if type(value) in (list, dict, set, OrderedDict) else copy.copy(value)


def _holds_the_same(one: Any, other: Any) -> bool:
    """Whether two lists, dictionaries or sets hold the same objects; an empty one is `()`, too."""
    if not one or not other:
        return not one and not other
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(value is other[key] for key, value in one.items())
    if isinstance(one, set):
        return bool(one == other)
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))


def detached_copy(model: Module) -> Module:
    """A deep copy, also where a layer holds what a hook computed at its last call.

    Such a tensor has a history, and torch does not copy those. The copy holds its value.
    """
    held = [leaf for module in model.modules() for leaf in pytree.tree_leaves(vars(module)) if isinstance(leaf, Tensor)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch 2.13 warns of its own copying of graph modules
        return copy.deepcopy(model, {id(each): each.detach().clone() for each in held if not each.is_leaf})


def in_float64(value: Any) -> Any:
    """A copy of a module, or nested arguments, with every floating-point tensor in float64; the rest as it is."""
    if isinstance(value, nn.Module):
        return detached_copy(value).double()
    return pytree.tree_map(_in_float64, value)


def _in_float64(leaf: Any) -> Any:
    return leaf.detach().double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


@contextlib.contextmanager
def collection_paused() -> Iterator[None]:
    """Pause garbage collection.

    A graph is a hundred thousand objects that live to the end. While they are made, Python searches all of them again
    and again, and time grows faster than the network: the rewrite of 800 residual blocks took 1.7 times as long.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
