"""One forward pass recorded: how each submodule is called, and who reads its parameters."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from l1rr_fx.support.signatures import PLAIN, signature
from passes.errors import CaptureError
from passes.graph.isolation import attributes_kept, buffers_restored

# Reading these attributes of a parameter does not depend on its channels.
HARMLESS = frozenset(
    descriptor.__get__  # type: ignore[union-attr]  # the class has descriptors where its stub has values
    for descriptor in (Tensor.device, Tensor.dtype, Tensor.requires_grad, Tensor.is_cuda, Tensor.layout, Tensor.is_leaf)
)


@dataclass(eq=False)
class Calls:
    """The first call of a submodule, the signatures of all its calls, and whether other code reads its parameters."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    signatures: list[Any] = field(default_factory=list)
    read_from_outside: bool = False

    @property
    def varies(self) -> bool:
        """Whether the sizes of its inputs differ from call to call."""
        return any(signature != self.signatures[0] for signature in self.signatures)


def recorded_calls(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[nn.Module, Calls]:
    """How every submodule with parameters was called in one forward pass on the example."""
    recorder = _Recorder(model)
    args, kwargs = copy.deepcopy((args, dict(kwargs)))
    random = torch.random.get_rng_state()
    with attributes_kept(model), buffers_restored(model), torch.no_grad(), recorder.hooks(), recorder:
        model(*args, **kwargs)
    torch.random.set_rng_state(random)
    for module in recorder.open:
        if module in recorder.calls:
            recorder.calls[module].read_from_outside = True
    return recorder.calls


class _Recorder(TorchFunctionMode):
    """Sees every operator that reads a parameter or buffer, and the stack of modules that are being called."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.calls: dict[nn.Module, Calls] = {}
        self.open: set[nn.Module] = set()
        self.stack: list[nn.Module] = []
        self.holders: dict[int, list[nn.Module]] = {}
        self.modules = [m for m in model.modules() if m is not model and any(True for _ in m.parameters())]
        for module in self.modules:
            for tensor in chain(module.parameters(), module.buffers()):
                self.holders.setdefault(id(tensor), []).append(module)

    @contextmanager
    def hooks(self) -> Iterator[None]:
        handles = []
        for module in self.modules:
            handles.append(module.register_forward_pre_hook(self._enter, with_kwargs=True))
            handles.append(module.register_forward_hook(self._leave, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.stack.append(module)
        calls = self.calls.setdefault(module, Calls(args, kwargs))
        calls.signatures.append(signature(args, kwargs))

    def _leave(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self.stack.pop()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func not in HARMLESS:
            for value in chain(args, (kwargs or {}).values()):
                for tensor in value if isinstance(value, (list, tuple)) else (value,):
                    if isinstance(tensor, Tensor) and id(tensor) in self.holders:
                        self.open.update(m for m in self.holders[id(tensor)] if m not in self.stack)
        return func(*args, **(kwargs or {}))


def never_called(model: nn.Module, calls: Mapping[nn.Module, Calls]) -> list[str]:
    """The topmost submodules with parameters in which no module was called."""
    found: list[str] = []
    for name, module in model.named_modules():
        inside = any(name.startswith(f"{above}.") for above in found)
        if name and not inside and any(True for _ in module.parameters()):
            if not any(each in calls for each in module.modules()):
                found.append(name)
    return found


def refuse_calls(calls: Calls) -> None:
    """Raise CaptureError unless one graph could serve all these calls."""
    if calls.read_from_outside:
        raise CaptureError("its parameters are also read from outside its own calls")
    leaves, spec = pytree.tree_flatten((calls.args, calls.kwargs))
    if strangers := sorted({type(x).__name__ for x in leaves if not isinstance(x, (Tensor, *PLAIN))}):
        raise CaptureError(f"it is called with a {strangers[0]}")
    if not any(isinstance(leaf, Tensor) for leaf in leaves):
        raise CaptureError("it is called without a tensor")
    for other_spec, others in calls.signatures:
        if other_spec != spec or any(
            not isinstance(leaf, Tensor) and leaf != other for leaf, other in zip(leaves, others, strict=True)
        ):
            raise CaptureError("it is called in different ways")
