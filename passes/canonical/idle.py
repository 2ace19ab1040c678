"""Idle calls: calls whose arguments make the result their first input, element for element. They are left out.

The table `IDLE` has a condition for each operator. A call with a symbolic size is idle only where the condition holds
for every value of the size. Operators that merely copy (`clone`, `detach`, `dropout`) are no entries: rules know them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, Node
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.fx.node import map_arg

aten = torch.ops.aten

Condition = Callable[..., bool]
"""Of the result, the input and the further arguments of a call, with example values in the place of nodes."""


def leave_out_idle(graph: Graph) -> None:
    """Let the readers of an idle call read its input."""
    for node in list(graph.nodes):
        if (source := idle_source(node)) is not None:
            node.replace_all_uses_with(source)
            graph.erase_node(node)


def idle_source(node: Node) -> Node | None:
    """The input that a call returns unchanged; None where it may change something."""
    condition = IDLE.get(node.target) if node.op == "call_function" else None
    if condition is None:
        return None
    first: Any = node.args[0]
    if isinstance(first, (list, tuple)) and len(first) == 1:
        first = first[0]
    if not isinstance(first, Node) or not isinstance(value := node.meta.get("val"), Tensor):
        return None
    source = first.meta["val"]
    if value.dtype != source.dtype or value.device != source.device or value.dim() != source.dim():
        return None
    if not all(_equal(a, b) for a, b in zip(value.shape, source.shape, strict=True)):
        return None
    rest, named = map_arg((node.args[1:], dict(node.kwargs)), _known)
    return first if condition(value, source, *rest, **named) else None


def _known(node: Node) -> Any:
    """The example value of a tensor or of a size; a number that is read from a tensor equals nothing."""
    value = node.meta.get("val")
    return value if isinstance(value, (Tensor, torch.SymInt)) else math.nan


def _equal(first: Any, second: Any) -> bool:
    """Whether two numbers, sizes or expressions of sizes are the same for every input."""
    return not isinstance(first, Tensor) and not isinstance(second, Tensor) and statically_known_true(first == second)


def _all(values: Any, number: int) -> bool:
    """Whether all of some numbers are this one; a single number stands for all."""
    return all(_equal(each, number) for each in (values if isinstance(values, (list, tuple)) else (values,)))


def _always(*_: Any, **__: Any) -> bool:
    """For operators of which a result with the shape of the input is the input."""
    return True


def _pads(_: Tensor, __: Tensor, pads: Sequence[Any], *___: Any) -> bool:
    return _all(pads, 0)


def _repeats(_: Tensor, __: Tensor, repeats: Sequence[Any]) -> bool:
    return _all(repeats, 1)


def _rolls(_: Tensor, source: Tensor, shifts: Any, dims: Sequence[int] = ()) -> bool:
    shifts = shifts if isinstance(shifts, (list, tuple)) else [shifts]
    lengths = [source.shape[axis] for axis in dims] or [math.prod(source.shape)]
    return all(_equal(shift, 0) or _equal(shift % length, 0) for shift, length in zip(shifts, lengths, strict=True))


def _flips(_: Tensor, source: Tensor, dims: Sequence[int]) -> bool:
    return all(_equal(source.shape[axis], 1) for axis in dims)


def _turns(_: Tensor, __: Tensor, times: int = 1, dims: Sequence[int] = (0, 1)) -> bool:
    return times % 4 == 0


def _permutes(_: Tensor, source: Tensor, order: Sequence[int]) -> bool:
    return [axis % source.dim() for axis in order] == list(range(source.dim()))


def _swaps(_: Tensor, source: Tensor, one: int, other: int) -> bool:
    return source.dim() == 0 or one % source.dim() == other % source.dim()


def _moves(_: Tensor, source: Tensor, origin: Any, goal: Any) -> bool:
    ends = [each if isinstance(each, (list, tuple)) else [each] for each in (origin, goal)]
    return [axis % source.dim() for axis in ends[0]] == [axis % source.dim() for axis in ends[1]]


def _slices(_: Tensor, __: Tensor, *rest: Any, step: int = 1, **___: Any) -> bool:
    """A slice without steps that is as long as its input."""
    return (rest[3] if len(rest) > 3 else step) == 1


def _groups(_: Tensor, __: Tensor, factor: int) -> bool:
    return factor == 1


def _times(_: Tensor, __: Tensor, repeats: Any, *___: Any, **____: Any) -> bool:
    return _equal(repeats, 1)


def _lower(_: Tensor, source: Tensor, diagonal: int = 0) -> bool:
    return statically_known_true(source.shape[-1] - 1 <= diagonal)


def _upper(_: Tensor, source: Tensor, diagonal: int = 0) -> bool:
    return statically_known_true(1 - source.shape[-2] >= diagonal)


def _windows(_: Tensor, __: Tensor, kernel: Any, stride: Any = (), padding: Any = 0, *___: Any) -> bool:
    """A pooling whose windows are single elements, each of them once."""
    return _all(kernel, 1) and _all(stride or kernel, 1) and _all(padding, 0)


def _average(result: Tensor, source: Tensor, *window: Any) -> bool:
    divisor = window[5] if len(window) > 5 else None
    return divisor in (None, 1) and _windows(result, source, *window[:3])


def _nearest(result: Tensor, source: Tensor, sizes: Any, scales: Any = None) -> bool:
    return scales is None or _all(list(scales), 1)


def _resized(result: Tensor, source: Tensor, sizes: Any, corners: bool, scales: Any = None) -> bool:
    return _nearest(result, source, sizes, scales)


def _adds(_: Tensor, __: Tensor, other: Any, **named: Any) -> bool:
    return isinstance(other, (int, float)) and other == 0


def _multiplies(_: Tensor, __: Tensor, other: Any, **named: Any) -> bool:
    return isinstance(other, (int, float)) and other == 1 and not named


def _clamps(_: Tensor, __: Tensor, least: float | None = None, most: float | None = None) -> bool:
    return least in (None, -math.inf) and most in (None, math.inf)


PADDINGS = (
    aten.constant_pad_nd.default,
    aten.pad.default,
    *(getattr(aten, f"{kind}_pad{rank}d").default for kind in ("reflection", "replication") for rank in (1, 2, 3)),
)

SHAPES = (
    aten.view.default,
    aten.view_as.default,
    aten.reshape.default,
    aten.reshape_as.default,
    aten._unsafe_view.default,
    aten.flatten.using_ints,
    aten.unflatten.int,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
    aten.expand.default,
    aten.expand_as.default,
    aten.broadcast_to.default,
    aten.narrow.default,
    aten.cat.default,
    aten.adaptive_avg_pool1d.default,
    aten.adaptive_avg_pool2d.default,
    aten.adaptive_avg_pool3d.default,
    aten.atleast_1d.default,
    aten.atleast_2d.default,
    aten.atleast_3d.default,
)
"""Operators of which a result with the shape of the input is the input, whatever the arguments are."""

IDLE: Mapping[Any, Condition] = {
    **dict.fromkeys(SHAPES, _always),
    **dict.fromkeys(PADDINGS, _pads),
    **dict.fromkeys((aten.repeat.default, aten.tile.default), _repeats),
    aten.repeat_interleave.self_int: _times,
    aten.roll.default: _rolls,
    aten.flip.default: _flips,
    aten.rot90.default: _turns,
    aten.permute.default: _permutes,
    **dict.fromkeys((aten.transpose.int, aten.swapaxes.default, aten.swapdims.default), _swaps),
    **dict.fromkeys((aten.movedim.int, aten.movedim.intlist, aten.moveaxis.int, aten.moveaxis.intlist), _moves),
    aten.slice.Tensor: _slices,
    **dict.fromkeys((aten.pixel_shuffle.default, aten.pixel_unshuffle.default), _groups),
    **dict.fromkeys((aten.channel_shuffle.default, aten.native_channel_shuffle.default), _groups),
    aten.tril.default: _lower,
    aten.triu.default: _upper,
    **dict.fromkeys((aten.max_pool1d.default, aten.max_pool2d.default, aten.max_pool3d.default), _windows),
    **dict.fromkeys((aten.avg_pool1d.default, aten.avg_pool2d.default, aten.avg_pool3d.default), _average),
    **dict.fromkeys([getattr(aten, f"upsample_nearest{rank}d").vec for rank in (1, 2, 3)], _nearest),
    **dict.fromkeys([getattr(aten, f"_upsample_nearest_exact{rank}d").vec for rank in (1, 2, 3)], _nearest),
    **dict.fromkeys(
        [getattr(aten, f"upsample_{kind}").vec for kind in ("linear1d", "bilinear2d", "bicubic2d", "trilinear3d")],
        _resized,
    ),
    **dict.fromkeys((aten.add.Tensor, aten.sub.Tensor, aten.add.Scalar, aten.sub.Scalar), _adds),
    **dict.fromkeys(
        (aten.mul.Tensor, aten.div.Tensor, aten.mul.Scalar, aten.div.Scalar, aten.pow.Tensor_Scalar), _multiplies
    ),
    aten.clamp.default: _clamps,
}
"""By operator: when a call whose result has the shape, type and device of its input is that input."""
