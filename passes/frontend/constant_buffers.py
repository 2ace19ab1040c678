"""Constant buffers: numbers that the code of a model reads out of its own buffers are known during a capture.

`int(self.steps.numpy()[0])` is a decision on values only in form: no input is in it. torch.export refuses it, or makes
an unknown number of it. Here the values of such buffers, and of what is computed from them alone, are followed beside
the capture, and given wherever the code asks for a number.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import _disable_current_modes

from passes.graph.isolation import run_aside

NUMBERS = frozenset(
    ("item", "numpy", "tolist", "__int__", "__float__", "__bool__", "__index__", "__complex__", "__array__")
    + ("__contains__", "equal", "allclose", "is_nonzero")
)
"""The names of functions that give the code a number."""

WRITERS = frozenset(
    ("__setitem__", "__iadd__", "__isub__", "__imul__", "__itruediv__", "__ifloordiv__", "__imod__", "__ipow__")
    + ("__iand__", "__ior__", "__ixor__", "__ilshift__", "__irshift__", "batch_norm", "instance_norm")
)
MOST_ELEMENTS = 65_536


@dataclass(frozen=True, eq=False)
class _Followed:
    """A tensor that depends on buffers alone, its value, and their names; the tensor is held so that its id stays."""

    tensor: Tensor
    value: Tensor
    names: frozenset[str]


class _Follower(TorchFunctionMode):
    """Sees all calls, and follows those whose tensors are all known."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.followed: dict[int, _Followed] = {}
        self.places = [
            (f"{path}.{name}" if path else name, module, name)
            for path, module in model.named_modules()
            for name, buffer in module._buffers.items()
            if buffer is not None and buffer.numel() <= MOST_ELEMENTS
        ]

    def known(self, tensor: Tensor) -> _Followed | None:
        found = self.followed.get(id(tensor))
        return found if found is not None and found.tensor is tensor else None

    def follow(self, results: Any, values: Any, names: frozenset[str]) -> None:
        for result, value in zip(_tensors(results), _tensors(values), strict=True):
            if value.numel() <= MOST_ELEMENTS:
                self.followed[id(result)] = _Followed(result, value, names)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = _tensors((args, kwargs))
        known = [found for tensor in tensors if (found := self.known(tensor)) is not None]
        names = frozenset().union(*(each.names for each in known))
        if known and len(known) == len(tensors):
            return self.of_buffers(func, args, kwargs, names)
        if known and _writes(func, kwargs):
            self.forget(names)
        return func(*args, **kwargs)

    def of_buffers(self, func: Any, args: Any, kwargs: Any, names: frozenset[str]) -> Any:
        raise NotImplementedError

    def forget(self, names: frozenset[str]) -> None:
        """Values that were written into are known no longer, nor is what shares their memory."""
        self.followed = {key: each for key, each in self.followed.items() if not each.names & names}


class _Reader(_Follower):
    """In a run of the model: the buffers out of which its code reads numbers, and which it does not write into."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__(model)
        self.read: set[str] = set()
        self.written: set[str] = set()
        self.memory: dict[str, int] = {}
        for name, module, leaf in self.places:
            buffer = module._buffers[leaf]
            assert buffer is not None
            self.follow(buffer, buffer, frozenset({name}))
            self.memory[name] = buffer.untyped_storage().data_ptr()

    def of_buffers(self, func: Any, args: Any, kwargs: Any, names: frozenset[str]) -> Any:
        result = func(*args, **kwargs)
        if getattr(func, "__name__", "") in NUMBERS:
            self.read |= names
        if _writes(func, kwargs):
            memories = {tensor.untyped_storage().data_ptr() for tensor in _tensors((args, kwargs))}
            self.written |= {name for name in names if self.memory[name] in memories}
        self.follow(result, result, names)
        return result

    def forget(self, names: frozenset[str]) -> None:
        super().forget(names)
        self.written |= names


class ConstantBuffers(_Follower):
    """In a capture: numbers that depend on these buffers alone are those of their values."""

    def __init__(self, model: nn.Module, names: Iterable[str]) -> None:
        super().__init__(model)
        wanted = set(names)
        self.places = [place for place in self.places if place[0] in wanted]
        self.values = {name: module._buffers[leaf].detach().clone() for name, module, leaf in self.places}

    def known(self, tensor: Tensor) -> _Followed | None:
        for name, module, leaf in self.places:  # a capture puts tensors of its own there, several times
            if module._buffers.get(leaf) is tensor:
                return _Followed(tensor, self.values[name], frozenset({name}))
        return super().known(tensor)

    def of_buffers(self, func: Any, args: Any, kwargs: Any, names: frozenset[str]) -> Any:
        def value(tensor: Tensor) -> Tensor:
            found = self.known(tensor)
            assert found is not None
            return found.value

        def values() -> Any:
            with _disable_current_modes(), torch.no_grad():
                return func(*pytree.tree_map_only(Tensor, value, args), **pytree.tree_map_only(Tensor, value, kwargs))

        if getattr(func, "__name__", "") in NUMBERS:
            return values()
        results = func(*args, **kwargs)
        if _tensors(results):  # nothing else: capture itself asks for devices and shapes
            self.follow(results, values(), names)
        return results


def buffers_read(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[str, ...]:
    """The buffers out of which the code of the model reads numbers, and which it does not write into."""
    reader = _Reader(model)
    if reader.places:
        run_aside(_Watched(model, reader), args, kwargs)
    return tuple(sorted(reader.read - reader.written))


class _Watched(nn.Module):
    """A model whose forward is seen; what a run restores afterwards is not."""

    def __init__(self, model: nn.Module, reader: _Reader) -> None:
        super().__init__()
        self.model, self.reader = model, reader

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with self.reader:
            return self.model(*args, **kwargs)


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]


def _writes(func: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether a function writes into one of its arguments, by its name."""
    name = getattr(func, "__name__", "")
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or name in WRITERS or "out" in kwargs
