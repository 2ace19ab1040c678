"""The judge: networks with dead channels, and what must hold of their pruned twins.

It shares no code with the compiler.

A fresh network hides errors: its signal fades to the biases and its ReLUs sit dead by luck. So a case is made in steps:

    prepare         float64; constants such as batch-norm affines, biases and layer scales become random
    zero_channels   random output channels die: their affine, or their filter's row and bias, becomes exactly zero
    calibrate       running statistics from a few batches; layers without a norm are scaled to unit variance
    is_alive        the output still depends on the input

`relative_error` then compares; `l1rr_fx.testing.numerical_limit` counts the least MACs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.flop_counter import FlopCounterMode

from l1rr_fx.conformance.outputs import first_met
from tests.zoo import Entry

CALIBRATION_BATCHES = 3
CALIBRATION_SIZE = 4
LEAST_ALIVE = 2
EXTRA_DEPTHWISE = 0.1
CONTRACTIONS = (_ConvNd, nn.Linear)
NORMS = (nn.LayerNorm, nn.GroupNorm)


@dataclass(frozen=True)
class Case:
    """A zeroed network in float64 and eval mode, and an input for it."""

    model: nn.Module
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __call__(self, args: Any = None) -> Any:
        """What the zeroed network computes for `args`, by default its own."""
        with torch.no_grad():
            return self.model(*(self.args if args is None else args), **self.kwargs)


def zeroed_case(entry: Entry, ratio: float, seed: int = 0) -> Case:
    """The network of `entry` with about `ratio` of the channels of each layer dead."""
    model, args, kwargs = entry.build()
    case = Case(model, args, kwargs)
    case = prepare(case, seed)
    zero_channels(case, ratio, seed)
    calibrate(case, seed)
    return case


def prepare(case: Case, seed: int) -> Case:
    """The same network in float64, with every parameter that is constant by initialisation made random."""
    generator = torch.Generator().manual_seed(seed)
    model = case.model.double().eval()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.numel() > 1 and bool((parameter == parameter.flatten()[0]).all()):
            parameter.data.copy_(_random_like(parameter, name.endswith("bias"), generator))
    return Case(model, tree_map(_double, case.args), tree_map(_double, case.kwargs))


def _random_like(parameter: Tensor, bias: bool, generator: torch.Generator) -> Tensor:
    if sum(size > 1 for size in parameter.shape) > 1:
        return torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / math.sqrt(parameter[0].numel())
    if bias:
        return 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return 0.5 + torch.rand(parameter.shape, generator=generator, dtype=torch.float64)


def _double(leaf: Any) -> Any:
    return leaf.double() if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf


def fresh_input(args: Any, seed: int, batch: int | None = None) -> Any:
    """Random inputs like `args`: uniform where those are not negative, else normal; `batch` replaces a batch of one."""
    generator = torch.Generator().manual_seed(seed)

    def draw(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            return leaf
        shape = (batch, *leaf.shape[1:]) if batch and leaf.ndim > 3 and leaf.shape[0] == 1 else leaf.shape
        random = torch.rand if bool((leaf >= 0).all()) else torch.randn
        return random(shape, generator=generator, dtype=leaf.dtype)

    return tree_map(draw, args)


# --- zeroing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Structure:
    """Names of layers.

    `normed`: contractions that a batch norm reads directly; `depthwise`: by batch norm, the depthwise layer it reads;
    `outputs`: contractions that make the network's outputs, with no other layer in between.
    """

    normed: frozenset[str]
    depthwise: dict[str, str]
    outputs: frozenset[str]


def zero_channels(case: Case, ratio: float, seed: int) -> None:
    """Zero about `ratio` of the output channels of each layer in place, chosen at random; two or more survive in each.

    A channel of a batch norm, layer norm or group norm dies with its scale and shift; one of a convolution or linear
    layer without batch norm with its row and bias. A depthwise layer dies where its input is dead, and in a tenth more.
    The layers that make the network's outputs and frozen weights stay.
    """
    structure = layer_structure(case)
    generator = torch.Generator().manual_seed(seed + 1)
    dead_inputs: dict[str, Tensor] = {}
    done: set[str] = set()

    def visit(module: nn.Module, inputs: tuple[Any, ...], name: str) -> None:
        if isinstance(module, _ConvNd) and _is_depthwise(module):
            dead_inputs[name] = _dead(inputs[0]).repeat_interleave(module.out_channels // module.in_channels)
        if name in done or name in structure.outputs or name in structure.normed or not _affine(module):
            return
        done.add(name)
        depthwise = structure.depthwise.get(name, name)
        _zero(module, _draw_dead(_width(module), ratio, dead_inputs.get(depthwise), generator))

    layers = {name: module for name, module in case.model.named_modules() if _is_layer(module)}
    _zero_attention(case.model, ratio, generator)
    called: set[str] = set()
    with _hooks(layers, before=visit), _hooks(layers, before=lambda *_, name: called.add(name)):
        with _norms_in_training(case.model):
            case(fresh_input(case.args, seed + 2, CALIBRATION_SIZE))
    for name, module in layers.items():  # weights that functional calls read, as in torchvision's Swin
        if name not in called and isinstance(module, CONTRACTIONS) and _affine(module):
            _zero(module, _draw_dead(_width(module), ratio, None, generator))


def _draw_dead(width: int, ratio: float, tied: Tensor | None, generator: torch.Generator) -> Tensor:
    order = torch.randperm(width, generator=generator)
    if tied is None:
        count = min(round(ratio * width), max(width - LEAST_ALIVE, 0))
        return torch.zeros(width, dtype=torch.bool).index_fill(0, order[:count], True)
    alive = order[~tied[order]]
    count = min(round(EXTRA_DEPTHWISE * len(alive)), max(len(alive) - LEAST_ALIVE, 0))
    return tied.index_fill(0, alive[:count], True)


def _zero(module: Any, dead: Tensor) -> None:
    weight, bias = module.weight.data, None if module.bias is None else module.bias.data
    if not isinstance(module, _ConvTransposeNd):
        weight[dead] = 0
    else:
        rows = dead.view(module.groups, -1)
        for group, part in enumerate(weight.chunk(module.groups)):
            part[:, rows[group]] = 0
    if bias is not None:
        bias[dead] = 0


def _zero_attention(model: nn.Module, ratio: float, generator: torch.Generator) -> None:
    """Queries, keys and values of nn.MultiheadAttention, whose weights belong to no layer."""
    for module in model.modules():
        if isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            parts = zip(module.in_proj_weight.data.chunk(3), module.in_proj_bias.data.chunk(3), strict=True)
            for weight, bias in parts:
                dead = _draw_dead(len(weight), ratio, None, generator)
                weight[dead], bias[dead] = 0, 0


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, (*CONTRACTIONS, _BatchNorm, *NORMS))


def _affine(module: Any) -> bool:
    return isinstance(module.weight, Tensor) and module.weight.requires_grad


def _is_depthwise(module: nn.Module) -> bool:
    return isinstance(module, _ConvNd) and module.groups == module.in_channels > 1


def _width(module: Any) -> int:
    if isinstance(module, _ConvNd):
        return module.out_channels
    return int(module.weight.shape[0])


def _dead(value: Tensor) -> Tensor:
    """Which channels (axis 1) are exactly zero everywhere, shape (C,)."""
    return (value == 0).transpose(0, 1).flatten(1).all(1)


def layer_structure(case: Case) -> Structure:
    """Which layers feed a batch norm, which are depthwise and which make the outputs, seen in one forward pass."""
    layers = {name: module for name, module in case.model.named_modules() if _is_layer(module)}
    kept: list[Tensor] = []
    producers: dict[int, str] = {}
    nodes: dict[Any, str] = {}
    normed: dict[str, str] = {}

    def before(module: nn.Module, inputs: tuple[Any, ...], name: str) -> None:
        if isinstance(module, _BatchNorm) and id(inputs[0]) in producers:
            normed[producers[id(inputs[0])]] = name

    def after(module: Any, inputs: tuple[Any, ...], output: Tensor, name: str) -> None:
        kept.append(output)
        if isinstance(module, CONTRACTIONS):
            producers[id(output)] = name
        if _affine(module):
            nodes[output.grad_fn] = name

    with _hooks(layers, before=before, after=after), torch.enable_grad():
        outputs = case.model(*case.args, **case.kwargs)
    depthwise = {norm: name for name, norm in normed.items() if _is_depthwise(layers[name])}
    made = frozenset(name for name in first_met(outputs, nodes) if isinstance(layers[name], CONTRACTIONS))
    return Structure(frozenset(normed), depthwise, made)


# --- calibration -----------------------------------------------------------------------------------------------------


def calibrate(case: Case, seed: int = 0) -> None:
    """Set running statistics from a few batches; scale layers that no batch norm follows to unit variance. In place."""
    structure = layer_structure(case)
    done: set[str] = set()

    def scale(module: Any, inputs: tuple[Any, ...], output: Tensor, name: str) -> Tensor:
        if name in done or not _affine(module):
            return output
        done.add(name)
        deviation = output.std()
        if not deviation > 0:
            return output
        module.weight.data /= deviation
        if module.bias is not None:
            module.bias.data /= deviation
        return output / deviation

    layers = {
        name: module
        for name, module in case.model.named_modules()
        if isinstance(module, CONTRACTIONS) and name not in structure.normed
    }
    with _hooks(layers, after=scale), _norms_in_training(case.model):
        for batch in range(CALIBRATION_BATCHES):
            case(fresh_input(case.args, seed + 10 + batch, CALIBRATION_SIZE))


@contextmanager
def _norms_in_training(model: nn.Module) -> Iterator[None]:
    """Batch norms, and nothing else, in training mode: running statistics become the mean over the batches seen."""
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
            norm.eval()


# --- judging ---------------------------------------------------------------------------------------------------------


def relative_error(actual: Any, expected: Any) -> float:
    """The largest |actual - expected| / max |expected| over the tensors of two structures; inf if they do not match."""
    ours, theirs = tree_leaves(actual), tree_leaves(expected)
    if len(ours) != len(theirs):
        return math.inf
    return max((_leaf_error(a, b) for a, b in zip(ours, theirs, strict=True)), default=0.0)


def _leaf_error(actual: Any, expected: Any) -> float:
    if not isinstance(expected, Tensor) or not isinstance(actual, Tensor):
        return 0.0 if type(actual) is type(expected) and actual == expected else math.inf
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return math.inf
    if not expected.is_floating_point() or expected.numel() == 0:
        return 0.0 if torch.equal(actual, expected) else math.inf
    if not bool(actual.isfinite().all() and expected.isfinite().all()):
        return 0.0 if torch.equal(actual, expected) else math.inf
    error, scale = float((actual - expected).abs().max()), float(expected.abs().max())
    return error / scale if scale > 0 else error


def is_alive(case: Case) -> bool:
    """Whether every output is finite and some output differs by 1e-6 relative between two random inputs."""
    first, second = (case(fresh_input(case.args, seed)) for seed in (100, 101))
    floats = [leaf for leaf in tree_leaves((first, second)) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return all(bool(leaf.isfinite().all()) for leaf in floats) and relative_error(first, second) > 1e-6


def counted_macs(model: Callable[..., Any], case: Case) -> int:
    """The MACs that `model` really executes on the input of `case`, counted by torch and not by a report."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(*case.args, **case.kwargs)
    return int(counter.get_total_flops()) // 2


@contextmanager
def _hooks(
    layers: dict[str, Any],
    *,
    before: Callable[..., Any] | None = None,
    after: Callable[..., Any] | None = None,
) -> Iterator[None]:
    handles = []
    for name, module in layers.items():
        if before is not None:
            handles.append(module.register_forward_pre_hook(partial(before, name=name)))
        if after is not None:
            handles.append(module.register_forward_hook(partial(after, name=name)))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
