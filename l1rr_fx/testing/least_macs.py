"""The least MACs of a zeroed network, from activations and gradients alone: the limit that no rule has counted.

It shares no analysis with the compiler: what a rule does not know, or gets wrong, shows here.
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import allow_mutation_on_saved_tensors
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from l1rr_fx.testing.judging import differences, fresh
from passes.graph.isolation import detached_copy

aten = torch.ops.aten

ROUNDING = 1e-12
_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")
TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
CONTRACTION_ARGUMENTS: dict[Any, tuple[str, ...]] = {
    **dict.fromkeys((F.conv1d, F.conv2d, F.conv3d), _CONVOLUTION),
    **dict.fromkeys(TRANSPOSED, _TRANSPOSED),
    F.linear: ("input", "weight", "bias"),
}
_ATEN: dict[Any, tuple[str, ...]] = {
    **dict.fromkeys((aten.conv1d.default, aten.conv2d.default, aten.conv3d.default), _CONVOLUTION),
    **dict.fromkeys((aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding), _CONVOLUTION),
    **dict.fromkeys(
        (aten.conv_transpose1d.default, aten.conv_transpose2d.input, aten.conv_transpose3d.input), _TRANSPOSED
    ),
    aten.linear.default: CONTRACTION_ARGUMENTS[F.linear],
}
"""The same operators as a pruned graph calls them."""


@dataclass(frozen=True)
class _Case:
    """A zeroed network in float64 and eval mode, and an input for it."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


def executed_macs(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any] | None = None) -> int:
    """The MACs of the convolutions and linear layers that a model, or a pruned one, executes."""
    with torch.no_grad(), _Watch() as watch:
        copy.deepcopy(model)(*copy.deepcopy(args), **copy.deepcopy(dict(kwargs or {})))
    return sum(_contraction(*call).dense for call in watch.seen)


@dataclass(frozen=True)
class NumericalLimit:
    """MACs of the convolutions and linear layers on one input: of live channels only, and of all."""

    macs: int
    dense: int


@dataclass
class Contraction:
    """One call of a convolution or linear function: which channels live, and the MACs of a pair of channels."""

    inputs: Tensor
    outputs: Tensor
    inputs_zero: Tensor
    outputs_zero: Tensor
    inputs_constant: Tensor
    outputs_constant: Tensor
    groups: int
    each: int
    padded: bool

    @property
    def macs(self) -> int:
        into, out = (live.view(self.groups, -1).sum(1) for live in (self.inputs, self.outputs))
        return self.each * int((into * out).sum())

    def leave_out_constants(self, again: list[Contraction]) -> None:
        """Let channels with one value, the same in other runs, not be live; behind padding one of each group is."""
        for side in ("inputs", "outputs"):
            live, value = getattr(self, side), getattr(self, f"{side}_constant")
            constant = live.clone()
            for other in again:
                constant &= (value - getattr(other, f"{side}_constant")).abs() < ROUNDING * (1 + value.abs())
            live &= ~constant
            if side == "inputs" and self.padded:
                for group, alive in zip(constant.view(self.groups, -1), live.view(self.groups, -1), strict=True):
                    if group.any():
                        alive[int(group.nonzero()[0])] = True

    @property
    def dense(self) -> int:
        return self.each * self.inputs.numel() * self.outputs.numel() // self.groups


def numerical_limit(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any] | None = None,
    *,
    samples: int = 3,
    strict: bool = False,
    constants: bool = True,
) -> NumericalLimit:
    """The least MACs of the convolutions and linear layers, from activations and gradients of random inputs alone.

    A channel lives where, for some sample, it is not zero and the gradient of a random projection of the outputs with
    respect to it is not zero. Products of activations (attention), `nn.MultiheadAttention` and recurrent layers are in
    neither count.

    A channel that has one value, the same in training, is not live: it can be added elsewhere. Where a layer pads, one
    such channel of each group is, because at the border it is missing.

    Without `constants` it is live.

    `strict`, for small networks, leaves less to luck: each sample has new weights, zero where the old ones are, so that
    no ReLU is always dead; and a channel without a gradient is needed all the same if noise on it changes an output (a
    comparison reads it).
    """
    case = _Case(detached_copy(model), args, kwargs or {})
    calls: list[Contraction] = []
    for sample in range(samples):
        drawn, args = _redrawn(case, sample) if strict else case, fresh(case.args, 200 + sample)
        observed = _observed(drawn, args, strict)
        if strict:
            _find_needed(drawn, args, observed)
        if constants and any(bool(call.inputs_constant.isfinite().any()) for call in observed):
            _leave_out_constants(drawn, tree_map_only(Tensor, _louder, fresh(case.args, 900 + sample)), observed)
        for known, new in zip(calls, observed, strict=False):
            known.inputs |= new.inputs
            known.outputs |= new.outputs
        calls = calls or observed
    return NumericalLimit(sum(call.macs for call in calls), sum(call.dense for call in calls))


def _leave_out_constants(case: _Case, args: Any, calls: list[Contraction]) -> None:
    """Leave out what has the same value on other inputs, in evaluation and in training."""
    training = _Case(copy.deepcopy(case.model).train(), case.args, case.kwargs)
    with suppress(ValueError):  # a batch norm refuses to train on one value a channel
        again = [_observed(each, args, True) for each in (case, training)]
        for call, *seen in zip(calls, *again, strict=False):
            call.leave_out_constants(seen)


def _find_needed(case: _Case, args: Any, calls: list[Contraction]) -> None:
    """Add the channels that are not zero, have no gradient, and change an output all the same."""
    plain = _nudged(case, args, [])
    suspects: list[Channel] = []
    for index, call in enumerate(calls):
        for side in ("inputs", "outputs"):
            silent = ~getattr(call, f"{side}_zero") & ~getattr(call, side)
            suspects += [(index, side, channel) for channel in silent.nonzero().flatten().tolist()]
    waiting = [suspects] if suspects else []  # first all at once: as a rule they are not needed
    while waiting:
        some = waiting.pop()
        if _same(plain, _nudged(case, args, some)):
            continue
        if len(some) == 1:
            index, side, channel = some[0]
            getattr(calls[index], side)[channel] = True
        else:
            waiting += [some[: len(some) // 2], some[len(some) // 2 :]]


def _same(first: Any, second: Any) -> bool:
    return max(differences(second, first), default=0.0) < ROUNDING


Channel = tuple[int, str, int]
"""A channel of the input or the output of a call: the number of the call, the side, the channel."""


def _nudged(case: _Case, args: Any, nudged: Sequence[Channel]) -> Any:
    """What the network computes with noise on some channels."""
    with torch.no_grad(), _Watch(nudged):
        return copy.deepcopy(case.model)(*args, **case.kwargs)


def _redrawn(case: _Case, seed: int) -> _Case:
    """A copy with other random weights of about the same size, zero where the old ones are."""
    generator = torch.Generator().manual_seed(300 + seed)
    model = copy.deepcopy(case.model)
    for parameter in model.parameters():
        if parameter.requires_grad:
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.data.copy_(torch.where(parameter == 0, 0.0, noise * parameter.abs().max()))
    return _Case(model, case.args, case.kwargs)


class _Watch(TorchFunctionMode):
    """Gives every contraction an input of its own and keeps its output, so that both have gradients afterwards; or
    nudges one of them."""

    def __init__(self, nudged: Sequence[Channel] = ()) -> None:
        super().__init__()
        self.nudged: dict[tuple[int, str], list[int]] = defaultdict(list)
        for index, side, channel in nudged:
            self.nudged[index, side].append(channel)
        self.seen: list[tuple[Any, dict[str, Any], Tensor]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        names = CONTRACTION_ARGUMENTS.get(func) or _ATEN.get(func)
        if names is None:
            return func(*args, **(kwargs or {}))
        given = dict(zip(names, args, strict=False)) | (kwargs or {})
        given["input"] = self._own(given["input"].clone(), "inputs", given)
        output: Tensor = self._own(func(**given), "outputs", given)
        self.seen.append((func, given, output))
        return output.clone()

    def _own(self, value: Tensor, side: str, given: dict[str, Any]) -> Tensor:
        if torch.is_grad_enabled():
            value = value if value.requires_grad else value.requires_grad_()
            value.retain_grad()
        if some := self.nudged.get((len(self.seen), side)):
            channels = value.movedim(_axis(given), 0)
            channels[some] += 3 * torch.randn(channels[some].shape, dtype=value.dtype)
        return value


def _observed(case: _Case, args: Any, lenient: bool) -> list[Contraction]:
    """The contractions of one forward pass, in order; `lenient`: without gradients where an operator has none."""
    with (
        torch.enable_grad(),
        allow_mutation_on_saved_tensors(),
        patch.object(Tensor, "detach", _attached),
        _Watch() as watch,
    ):
        outputs = case.model(*args, **case.kwargs)
        generator = torch.Generator().manual_seed(0)
        leaves = [leaf for leaf in tree_leaves(outputs) if isinstance(leaf, Tensor) and leaf.grad_fn is not None]
        weights = [torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype) for leaf in leaves]
        with suppress(RuntimeError) if lenient else nullcontext():
            torch.autograd.backward(leaves, weights)
    case.model.zero_grad()
    return [_contraction(*call) for call in watch.seen]


def _contraction(func: Any, given: dict[str, Any], out: Tensor) -> Contraction:
    into, axis = given["input"], _axis(given)
    transposed = func in TRANSPOSED or _ATEN.get(func) is _TRANSPOSED
    where = into if transposed else out
    each = where.numel() // where.shape[axis] * math.prod(given["weight"].shape[2:])
    sides = [
        (_live(value, axis), (value == 0).movedim(axis, 0).flatten(1).all(1), _constant(value.detach(), axis))
        for value in (into, out)
    ]
    pads = given.get("padding", 0)
    padded = transposed or (pads == "same" if isinstance(pads, str) else bool(torch.tensor(pads).any()))
    (live, zero, constant), (out_live, out_zero, out_constant) = sides
    groups = given.get("groups", 1)
    return Contraction(live, out_live, zero, out_zero, constant, out_constant, groups, each, padded)


def _louder(value: Tensor) -> Tensor:
    """Larger numbers, so that no rounding or saturation makes a channel constant by luck."""
    return 5 * value if value.is_floating_point() else value


def _constant(value: Tensor, axis: int) -> Tensor:
    """The value of each channel that has one and is not zero; nan for others, and where there is but one element."""
    lines = value.movedim(axis, 0).flatten(1)
    first = lines[:, :1]
    same = ((lines - first).abs() < ROUNDING * (1 + first.abs())).all(1) & (first[:, 0] != 0) & (lines.shape[1] > 1)
    return torch.where(same, first[:, 0].double(), torch.nan)


def _axis(given: dict[str, Any]) -> int:
    """The axis of the channels of a contraction's input and output."""
    rank, of_weight = given["input"].ndim, given["weight"].ndim
    if of_weight == 2:
        return -1
    return 1 if rank == of_weight else 0  # one image without a batch axis


def _attached(value: Tensor) -> Tensor:
    """Stands in for Tensor.detach: what only a detached branch reads is needed all the same."""
    return value


def _live(value: Tensor, axis: int) -> Tensor:
    grad = torch.zeros_like(value) if value.grad is None else value.grad
    both = [(part.movedim(axis, 0) != 0).flatten(1).any(1) for part in (value.data, grad)]
    return both[0] & both[1]
