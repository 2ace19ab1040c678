"""Padding with -inf before max pooling becomes the padding of the pooling itself, which keeps zeros."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Graph, Node

from passes.canonical.spellings import call

aten = torch.ops.aten

PADS = (aten.constant_pad_nd.default, aten.pad.default)


@dataclass(frozen=True)
class Window:
    """A pooling along one axis: sizes of the image and of the result, the kernel and its reach, stride, padding."""

    size: int
    result: int
    kernel: int
    reach: int
    stride: int
    before: int

    def fits(self, *, ceil: bool) -> bool:
        """Whether the pooling has the same windows if it pads `before` on both sides by itself."""
        if self.before > self.kernel // 2:  # torch refuses it
            return False
        span = self.size + 2 * self.before - self.reach
        count = (span + (self.stride - 1 if ceil else 0)) // self.stride + 1
        if ceil and (count - 1) * self.stride >= self.size + self.before:
            count -= 1  # a window must not begin in the padding behind the image
        return count == self.result


def _max_pool(graph: Graph, node: Node) -> None:
    """Let a max pooling of a padded image pad by itself, if it then has the same windows."""
    image, kernel, *rest = _arguments(node)
    pads = _pads(image)
    axes = AXES[node.target]
    if pads is None or len(pads) > 2 * axes:
        return
    source = _arguments(image)[0]
    sizes, results = source.meta["val"].shape[-axes:], node.meta["val"].shape[-axes:]
    if any(isinstance(n, torch.SymInt) for n in (*sizes, *results)):
        return
    stride, padding, dilation = (_spread(rest[i] if i < len(rest) else (), axes, d) for i, d in enumerate((None, 0, 1)))
    kernel = _spread(kernel, axes, None)
    before = [pads[2 * (axes - 1 - a)] if 2 * (axes - 1 - a) < len(pads) else 0 for a in range(axes)]
    windows = [
        Window(int(sizes[a]), int(results[a]), kernel[a], dilation[a] * (kernel[a] - 1) + 1, (stride or kernel)[a],
               before[a] + padding[a])
        for a in range(axes)
    ]  # fmt: skip
    for ceil in (False, True):
        if all(window.fits(ceil=ceil) for window in windows):
            own = [window.before for window in windows]
            node.replace_all_uses_with(call(graph, node.target, source, kernel, stride or kernel, own, dilation, ceil))
            return


def _pads(image: Node) -> Sequence[int] | None:
    """The widths of a padding with what no maximum takes; None for any other value."""
    if image.target not in PADS:
        return None
    _, pads, *rest = _arguments(image)
    if image.target is aten.pad.default and rest[:1] not in ([], ["constant"]):
        return None
    value, dtype = rest[-1] if rest else 0, image.meta["val"].dtype
    if not isinstance(value, (int, float)) or not dtype.is_floating_point or value > torch.finfo(dtype).min:
        return None
    return pads if all(isinstance(n, int) and n >= 0 for n in pads) else None


def _arguments(node: Node) -> tuple[Any, ...]:
    """The arguments given by position: all of them, in a captured graph."""
    return node.args


def _spread(value: Any, axes: int, default: int | None) -> list[int]:
    """One number for each axis; an empty list where there is none and no default."""
    given = list(value) if isinstance(value, (list, tuple)) else [value]
    if not given:
        return [] if default is None else [default] * axes
    return given * axes if len(given) == 1 else given


AXES: Mapping[Any, int] = {aten.max_pool1d.default: 1, aten.max_pool2d.default: 2, aten.max_pool3d.default: 3}
"""The number of spatial axes, by operator."""

WRITTEN: Mapping[Any, Callable[[Graph, Node], None]] = dict.fromkeys(AXES, _max_pool)
"""The rewrite of a call, by its operator."""
