"""Constant buffers: numbers that the code of a model reads out of its own buffers are known during a capture.

`int(self.steps.numpy()[0])` is a decision on values only in form: no input is in it. torch.export refuses it, or makes
an unknown number of it. Here the values of such buffers, and of what is computed from them alone, are followed beside
the capture, and given wherever the code asks for a number. Torch asks for numbers too, where a tensor stands in the
place of one: `x[:, : self.stop]`, `x.view(2, self.width, -1)`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

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


@dataclass(frozen=True)
class NumbersRead:
    """The buffers out of which numbers are read, and the functions of torch that read them out of their arguments."""

    buffers: tuple[str, ...] = ()
    functions: frozenset[Any] = frozenset()

    def __bool__(self) -> bool:
        return bool(self.buffers)


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
        return self.called(func, args, kwargs)

    def called(self, func: Any, args: Any, kwargs: Any) -> Any:
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
        self.readers: set[Any] = set()
        self.written: set[str] = set()
        self.memory: dict[str, int] = {}
        for name, module, leaf in self.places:
            buffer = module._buffers[leaf]
            assert buffer is not None
            self.follow(buffer, buffer, frozenset({name}))
            self.memory[name] = buffer.untyped_storage().data_ptr()

    def called(self, func: Any, args: Any, kwargs: Any) -> Any:
        with _NumbersTaken() as taken:
            result = func(*args, **kwargs)
        read = [found for tensor in taken.out_of if (found := self.known(tensor)) is not None]
        self.read.update(*(each.names for each in read))
        if read:
            self.readers.add(func)
        return result

    def of_buffers(self, func: Any, args: Any, kwargs: Any, names: frozenset[str]) -> Any:
        result = self.called(func, args, kwargs)
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


class _NumbersTaken(TorchDispatchMode):
    """The tensors out of which torch itself takes a number."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch's own
        self.out_of: list[Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            self.out_of.append(args[0])
        return func(*args, **(kwargs or {}))


class ConstantBuffers(_Follower):
    """In a capture: numbers that depend on these buffers alone are those of their values."""

    def __init__(self, model: nn.Module, read: NumbersRead) -> None:
        super().__init__(model)
        self.readers = read.functions
        self.places = [place for place in self.places if place[0] in read.buffers]
        self.values = {name: module._buffers[leaf].detach().clone() for name, module, leaf in self.places}

    def known(self, tensor: Tensor) -> _Followed | None:
        for name, module, leaf in self.places:  # a capture puts tensors of its own there, several times
            if module._buffers.get(leaf) is tensor:
                return _Followed(tensor, self.values[name], frozenset({name}))
        return super().known(tensor)

    def called(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func in self.readers:
            method = getattr(Tensor, getattr(func, "__name__", ""), None) is func
            own, others = (args[:1], args[1:]) if method else ((), args)  # the tensor itself is no number
            others, kwargs = _mapped(self.number, (others, kwargs))
            args = (*own, *others)
        return func(*args, **kwargs)

    def number(self, tensor: Tensor) -> Any:
        """Its number, if the tensor is known and has one; else the tensor."""
        found = self.known(tensor)
        if found is None or found.value.numel() != 1:
            return tensor
        with _disable_current_modes():
            return found.value.item()

    def of_buffers(self, func: Any, args: Any, kwargs: Any, names: frozenset[str]) -> Any:
        def value(tensor: Tensor) -> Tensor:
            found = self.known(tensor)
            assert found is not None
            return found.value

        def values() -> Any:
            known_args, known_kwargs = _mapped(value, (args, kwargs))
            with _disable_current_modes(), torch.no_grad():
                return func(*known_args, **known_kwargs)

        if getattr(func, "__name__", "") in NUMBERS:
            return values()
        results = self.called(func, args, kwargs)
        if _tensors(results):  # nothing else: capture itself asks for devices and shapes
            self.follow(results, values(), names)
        return results


def buffers_read(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> NumbersRead:
    """The buffers out of which the code of the model reads numbers, and which it does not write into."""
    reader = _Reader(model)
    if reader.places:
        run_aside(_Watched(model, reader), args, kwargs)
    return NumbersRead(tuple(sorted(reader.read - reader.written)), frozenset(reader.readers))


class _Watched(nn.Module):
    """A model whose forward is seen; what a run restores afterwards is not."""

    def __init__(self, model: nn.Module, reader: _Reader) -> None:
        super().__init__()
        self.model, self.reader = model, reader

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with self.reader:
            return self.model(*args, **kwargs)


def _tensors(values: Any) -> list[Tensor]:
    """The tensors of a value, those inside of slices too."""
    return list(_found(values))


def _found(values: Any) -> Iterator[Tensor]:
    for leaf in pytree.tree_leaves(values):
        if isinstance(leaf, slice):
            yield from _found((leaf.start, leaf.stop, leaf.step))
        elif isinstance(leaf, Tensor):
            yield leaf


def _mapped(f: Callable[[Tensor], Any], values: Any) -> Any:
    """The same value with `f` of each of its tensors, those inside of slices too."""

    def mapped(leaf: Any) -> Any:
        if isinstance(leaf, slice):
            return slice(*(mapped(each) for each in (leaf.start, leaf.stop, leaf.step)))
        return f(leaf) if isinstance(leaf, Tensor) else leaf

    return pytree.tree_map(mapped, values)


def _writes(func: Any, kwargs: Mapping[str, Any]) -> bool:
    """Whether a function writes into one of its arguments, by its name."""
    name = getattr(func, "__name__", "")
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or name in WRITERS or "out" in kwargs
