"""`Dense`: the network before pruning, as far as its latency can be predicted from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import astuple, dataclass, replace
from typing import Any

from torch import Tensor
from torch.fx import GraphModule
from torch.utils import _pytree as pytree

from l1rr_fx.latency.kernels import Kernel, canonical_kernels
from passes.errors import InputError

MOST = 2**62
"""More elements than any kernel has."""


@dataclass(frozen=True)
class Dense:
    """The kernels that TensorRT would run for the network before pruning, on inputs of these shapes."""

    inputs: tuple[tuple[int, ...], ...]
    kernels: tuple[Kernel, ...]

    def __post_init__(self) -> None:
        for kernel in self.kernels:
            sizes = [size for size in (kernel.elements, *_sizes(kernel)) if not 0 <= size <= MOST]
            if sizes:
                raise InputError(f"the kernel {kernel.name!r} has the size {sizes[0]:.3g}; expected 0 to 2^62")


def dense_of(canonical: GraphModule, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Dense:
    """What is kept of a network in canonical form that was captured for these inputs. It reads no weights."""
    found = canonical_kernels(canonical.graph)
    return Dense(shapes(args, kwargs), tuple(replace(kernel, nodes=()) for kernel in found))


def shapes(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[tuple[int, ...], ...]:
    """The shapes of the tensors of a call, those of keyword arguments in the order of their names."""
    leaves = pytree.tree_leaves((args, dict(sorted(kwargs.items()))))
    return tuple(tuple(leaf.shape) for leaf in leaves if isinstance(leaf, Tensor))


def _sizes(kernel: Kernel) -> tuple[int, ...]:
    return () if kernel.geometry is None else astuple(kernel.geometry)[1:]
