"""Hypothesis strategies: random detector-like networks with random channels zeroed, as code that runs when pasted.

A network is drawn operator by operator on a growing pool of values. Each step is evaluated at once on a small tensor,
so that shapes need no formulas, and is written down as one line of Python; the network *is* its source. It shrinks
to few operators, few channels and few zeroed ones.

To add an operator: one function with `@operator(families, ...)` that returns an expression.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, TypeVar

import hypothesis.strategies as st
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.op_cases import Built, widths

FAMILIES = ("residual", "split", "grouped", "gate", "attention", "norm", "tail", "inplace", "scales", "unknown")
MAX_ELEMENTS = 1024  # of one value of the pool, batch not counted
BATCH = 2
HEADER = """\
import torch, torch.nn.functional as F
from torch import nn
from tests.op_cases import kill, settle
"""

T = TypeVar("T")
DrawFn = Callable[[st.SearchStrategy[Any]], Any]


@dataclass(frozen=True)
class Network:
    """A random network: its source, and how many operators were drawn for it. `repr` is the source."""

    source: str
    operators: tuple[str, ...]

    def build(self) -> Built:
        """(the zeroed float64 model, its inputs)."""
        scope: dict[str, Any] = {}
        exec(self.source, scope)  # our own text, drawn below
        return scope["model"], scope["args"]

    def __repr__(self) -> str:
        return f"\n{self.source}"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """Hypothesis prints a dataclass by its fields; the source is what one wants."""
        printer.text(repr(self))


class Draft:
    """A network being drawn: its layers, its lines, and the value of every line on a small input."""

    def __init__(self, draw: DrawFn, size: int) -> None:
        self.draw = draw
        self.layers: dict[str, str] = {}
        self.heads: list[str] = []  # layers that end the network
        self.lines: list[str] = []
        self.model = SimpleNamespace()
        self.values: dict[str, Tensor] = {"x": torch.randn(BATCH, 3, size, size, dtype=torch.float64)}

    def pick(self, *options: T) -> T:
        """One of `options`; the first is the simplest."""
        picked: T = self.draw(st.sampled_from(options))
        return picked

    def width(self) -> int:
        """A number of channels."""
        return self.pick(4, 2, 3, 6, 8)

    def layer(self, source: str) -> str:
        """A new layer, parameter or buffer; returns what forward calls it."""
        name = f"l{len(self.layers)}"
        self.layers[name] = source
        made = eval(source, _names())
        if isinstance(made, nn.Module):
            made = made.double().eval()
        elif made.is_floating_point():
            made.data = made.data.double()
        setattr(self.model, name, made)
        return f"self.{name}"

    def value(self, expression: str) -> str:
        """A new line `v3 = expression`; returns the variable's name."""
        name = f"v{len(self.lines)}"
        with torch.no_grad():
            self.values[name] = eval(expression, _names(), {"self": self.model, **self.values})
        self.lines.append(f"{name} = {expression}")
        return name

    def write(self, statement: str) -> None:
        """A statement that changes a value in place."""
        with torch.no_grad():
            exec(statement, _names(), {"self": self.model, **self.values})
        self.lines.append(statement)

    def shape(self, name: str) -> tuple[int, ...]:
        return tuple(self.values[name].shape)

    def channels(self, name: str) -> int:
        return self.shape(name)[1 if self.values[name].ndim == 4 else -1]

    def others(self, fits: Callable[[Tensor], bool]) -> list[str]:
        """The variables that fit, the newest first."""
        return [name for name in reversed(self.values) if name != "x" and fits(self.values[name])]

    def partner(self, name: str) -> str:
        """A value of the same shape as `name`: another of the pool, or a layer's output made to fit."""
        shape = self.shape(name)
        candidates = [other for other in self.others(lambda v: tuple(v.shape) == shape) if other != name][:4]
        found = self.pick(*candidates, "", name)
        if found:
            return found
        if len(shape) != 4:
            return self.value(f"{self.layer(f'nn.Linear({shape[-1]}, {shape[-1]})')}({name})")
        near = self.others(lambda v: v.ndim == 4 and v.shape[2:] == shape[2:])
        source = self.pick(*near)
        return self.value(_conv_bn(self, source, shape[1], 1))

    def divisor(self, number: int) -> int:
        """A divisor of `number`, 1 only if there is no other."""
        return self.pick(*([d for d in range(2, number + 1) if number % d == 0] or [1]))


def _names() -> dict[str, Any]:
    return {"torch": torch, "nn": nn, "F": F}


# ----------------------------------------------------------------------------------------------------------------------
# The operators. Each takes the draft and the name of a value that fits, and returns an expression.

Fits = Callable[[Tensor], bool]
Write = Callable[[Draft, str], str]


@dataclass(frozen=True)
class Operator:
    """A way to extend a network: what it is called, when it is drawn, what it can read."""

    name: str
    families: tuple[str, ...]
    fits: Fits
    write: Write


OPERATORS: list[Operator] = []


def operator(*families: str, rank: int = 4, fits: Fits | None = None) -> Callable[[Write], Write]:
    """Register a function for these families; it reads values of that rank that also fit."""

    def register(write: Write) -> Write:
        def readable(value: Tensor) -> bool:
            return value.ndim == rank and (fits is None or fits(value))

        OPERATORS.append(Operator(write.__name__.strip("_"), families, readable, write))
        return write

    return register


def _channels_over(n: int, by: int = 1) -> Fits:
    return lambda v: v.shape[1] >= n and v.shape[1] % by == 0


def _small(factor: int) -> Fits:
    return lambda v: v[0].numel() * factor <= MAX_ELEMENTS


def _even(v: Tensor) -> bool:
    return v.shape[2] % 2 == 0 and v.shape[3] % 2 == 0


def _wide(v: Tensor) -> bool:
    return v.shape[2] * v.shape[3] > 1


def _conv_bn(d: Draft, x: str, out: int, k: int = 3, groups: int = 1) -> str:
    conv = d.layer(f"nn.Conv2d({d.channels(x)}, {out}, {k}, padding={k // 2}, groups={groups}, bias=False)")
    return f"{d.layer(f'nn.BatchNorm2d({out})')}({conv}({x}))"


def _activated(d: Draft, expression: str) -> str:
    act = d.pick("relu", "silu", "leaky_relu", "hardswish", "gelu", "mish", "sigmoid", "softplus", "tanh", "relu6")
    return f"F.{act}({expression})"


@operator(*FAMILIES)
def _conv_bn_act(d: Draft, x: str) -> str:
    return _activated(d, _conv_bn(d, x, d.width(), d.pick(3, 1)))


@operator("residual", "grouped", "norm", "scales")
def _conv(d: Draft, x: str) -> str:
    k = d.pick(1, 3)
    return (
        f"{d.layer(f'nn.Conv2d({d.channels(x)}, {d.width()}, {k}, padding={k // 2}, bias={d.pick(True, False)})')}({x})"
    )


@operator("residual", "norm", "inplace")
def _batch_norm(d: Draft, x: str) -> str:
    return f"{d.layer(f'nn.BatchNorm2d({d.channels(x)})')}({x})"


@operator("residual", "norm", "tail", "unknown")
def _point_wise(d: Draft, x: str) -> str:
    form = d.pick(
        "F.relu({})",
        "1 - {}",
        "{} * 2 + 1",
        "torch.cos({}.tanh())",
        "torch.exp(-{}.abs())",
        "{}.abs()",
        "{} / 3",
        "{}.clamp(-1, 0.5)",
        "torch.where({} > 0.1, {}, 0.0)",
        "F.dropout({}, 0.5, False)",
        "F.hardtanh({})",
    )
    return form.replace("{}", x)


@operator("residual")
def _prelu(d: Draft, x: str) -> str:
    return f"{d.layer(f'nn.PReLU({d.channels(x)})')}({x})"


@operator("residual", "inplace", "scales", "split", "grouped")
def _add(d: Draft, x: str) -> str:
    return f"{x} + {d.partner(x)}"


@operator("residual", "gate")
def _combine(d: Draft, x: str) -> str:
    form = d.pick(
        "{} - {y}",
        "torch.tanh({}) * {y}",
        "torch.maximum({}, {y})",
        "{} + 0.5 * {y} + {y}",
        "F.relu({} + {y})",
        "torch.where({y} > 0.1, {}, {y})",
        "{} / ({y} * {y} + 1)",
        "torch.stack([{}, {y}], 1).sum(1)",
    )
    return form.replace("{y}", d.partner(x)).replace("{}", x)


@operator("residual", fits=_channels_over(1))
def _residual_block(d: Draft, x: str) -> str:
    inner = d.value(f"F.relu({_conv_bn(d, x, d.width())})")
    return f"{_conv_bn(d, inner, d.channels(x))} + {x}"


@operator("residual", "gate")
def _parameter_scale(d: Draft, x: str) -> str:
    c = d.channels(x)
    shape = d.pick(f"1, {c}, 1, 1", f"{c}, 1, 1", "1")
    return d.pick("{x} * {p}", "{x} + {p}").format(x=x, p=d.layer(f"nn.Parameter(torch.randn({shape}))"))


@operator("residual", "gate")
def _buffer_scale(d: Draft, x: str) -> str:
    return f"{x} * {d.layer(f'nn.Buffer(torch.arange({d.channels(x)}.) % 3)')}.view(1, -1, 1, 1)"


# ---- split


@operator("split", fits=_channels_over(2))
def _chunk_cat(d: Draft, x: str) -> str:
    return d.pick(
        "torch.cat({}.chunk(2, 1)[::-1], 1)",
        "torch.cat([*{}.split(2, 1), {}], 1)",
        "torch.cat([p.relu() for p in {}.chunk(3, 1)][1:], 1)",
    ).replace("{}", x)


@operator("split", "inplace", fits=_channels_over(2))
def _slice(d: Draft, x: str) -> str:
    c = d.channels(x)
    start = d.draw(st.integers(0, c - 1))
    return f"{x}[:, {start}:{d.draw(st.integers(start + 1, c))}]" if d.pick(True, False) else f"{x}[:, ::2]"


@operator("split", fits=_channels_over(2))
def _partial_conv(d: Draft, x: str) -> str:
    cut = d.draw(st.integers(1, d.channels(x) - 1))
    part = d.value(f"{x}[:, :{cut}]")
    return f"torch.cat([{_conv_bn(d, part, d.width())}, {x}[:, {cut}:]], 1)"


@operator("split", "residual", "inplace")
def _c2f(d: Draft, x: str) -> str:
    half = d.pick(2, 3, 4)
    both = d.value(_activated(d, _conv_bn(d, x, 2 * half, 1)))
    second = d.value(f"{both}.chunk(2, 1)[1]")
    third = d.value(f"F.relu({_conv_bn(d, second, half)}){d.pick('', f' + {second}')}")
    return f"torch.cat([*{both}.chunk(2, 1), {third}], 1)"


@operator("split", "scales", "grouped", "gate", fits=_small(2))
def _cat(d: Draft, x: str) -> str:
    near = d.others(lambda v: v.ndim == 4 and v.shape[2:] == d.values[x].shape[2:] and v.shape[1] <= 8)
    return f"torch.cat([{x}, {d.pick(*near, x)}], 1)"


@operator("split")
def _permuted(d: Draft, x: str) -> str:
    c = d.channels(x)
    order = d.draw(st.permutations(range(c)))
    by = d.layer(f"nn.Buffer(torch.tensor({order[: d.draw(st.integers(1, c))]}))")
    form = d.pick(
        "{x}.flip(1)", "torch.roll({x}, 1, 1)", "torch.index_select({x}, 1, {by})", "{x}[:, {by}]", "{x}.flip(1, 3)"
    )
    return form.format(x=x, by=by)


@operator("split", fits=_small(2))
def _padded(d: Draft, x: str) -> str:
    form = d.pick(
        "F.pad({}, (0, 0, 0, 0, 1, 2))",
        "F.pad({}, (0, 0, 0, 0, 1, 0), value=1.0)",
        "F.pad({}, (1, 1, 0, 0))",
        "torch.cat([{}, torch.zeros_like({}[:, :1])], 1)",
        "torch.cat([{}, {}.flip(1)], 1)",
        "{}.repeat(1, 2, 1, 1)",
        "{}.repeat_interleave(2, 1)",
    )
    return form.replace("{}", x)


@operator("split", "grouped", fits=_channels_over(2))
def _shuffle(d: Draft, x: str) -> str:
    n, c, h, w = d.shape(x)
    g = d.divisor(c)
    form = d.pick(
        f"{{x}}.view(-1, {g}, {c // g}, {h}, {w}).transpose(1, 2).reshape(-1, {c}, {h}, {w})",
        f"nn.functional.channel_shuffle({{x}}, {g})",
    )
    return form.replace("{x}", f"{x}.contiguous()" if "view" in form else x)


@operator("split", fits=lambda v: v.shape[1] % 4 == 0 and v.shape[3] <= 8)
def _pixel_shuffle(d: Draft, x: str) -> str:
    n, c, h, w = d.shape(x)
    return d.pick(
        "F.pixel_shuffle({x}, 2)",
        "{x}.reshape(-1, 2, 2, {q}, {h}, {w}).permute(0, 3, 4, 1, 5, 2).reshape(-1, {q}, {h2}, {w2})",
    ).format(x=x, q=c // 4, h=h, w=w, h2=2 * h, w2=2 * w)


@operator("split", fits=lambda v: _even(v) and v.shape[1] <= 4)
def _space_to_depth(d: Draft, x: str) -> str:
    return d.pick(
        "F.pixel_unshuffle({}, 2)",
        "torch.cat([{}[..., ::2, ::2], {}[..., 1::2, ::2], {}[..., ::2, 1::2], {}[..., 1::2, 1::2]], 1)",
    ).replace("{}", x)


@operator("split", fits=lambda v: 2 <= v.shape[1] <= 4)
def _unbind_stack(d: Draft, x: str) -> str:
    return f"torch.stack([p * (i + 1) for i, p in enumerate({x}.unbind(1))][::-1], 1)"


@operator("split", "gate", fits=_channels_over(2, by=2))
def _gated_halves(d: Draft, x: str) -> str:
    return d.pick("F.glu({x}, 1)", "torch.mul(*{x}.tanh().chunk(2, 1))").format(x=x)


@operator("split", fits=lambda v: v.shape[2] % 2 == 0)
def _windows(d: Draft, x: str) -> str:
    n, c, h, w = d.shape(x)
    mix = d.layer(f"nn.Linear({c}, {c})")
    return (
        f"F.relu({mix}(torch.roll({x}.permute(0, 2, 3, 1), 1, 1).reshape(-1, {h // 2}, 2, {w}, {c}).transpose(2, 3)"
        f".reshape(-1, {2 * w}, {c}))).reshape(-1, {h // 2}, {w}, 2, {c}).transpose(2, 3)"
        f".reshape(-1, {h}, {w}, {c}).permute(0, 3, 1, 2)"
    )


# ---- grouped


@operator("grouped", "split", fits=_channels_over(2))
def _grouped_conv(d: Draft, x: str) -> str:
    g = d.divisor(d.channels(x))
    return _activated(d, _conv_bn(d, x, g * d.pick(1, 2, 3), d.pick(1, 3), g))


@operator("grouped", "gate")
def _depthwise(d: Draft, x: str) -> str:
    c = d.channels(x)
    return d.pick(
        _activated(d, _conv_bn(d, x, c * d.pick(1, 2), 3, c)),
        f"{d.layer(f'nn.Conv2d({c}, {c}, 3, padding=1, groups={c})')}({x})",
    )


@operator("grouped", fits=lambda v: v.shape[3] <= 4)
def _transposed_conv(d: Draft, x: str) -> str:
    c = d.channels(x)
    g = d.pick(1, d.divisor(c), c)
    up = d.layer(f"nn.ConvTranspose2d({c}, {g * d.pick(1, 2)}, 2, 2, groups={g}, bias={d.pick(True, False)})")
    return d.pick(f"{up}({x})", f"F.relu({up}({x}))")


@operator("grouped")
def _constant_conv(d: Draft, x: str) -> str:
    c = d.channels(x)
    return f"F.conv2d({x}, {d.layer(f'nn.Buffer(torch.ones({c}, 1, 3, 3) / 9)')}, padding=1, groups={c})"


@operator("grouped", "gate")
def _weight_in_forward(d: Draft, x: str) -> str:
    weight = d.layer(f"nn.Parameter(torch.randn({d.width()}, {d.channels(x)}, 1, 1))")
    return f"F.conv2d({x}, {d.pick('{w}', '{w} * 2', '{w}.tanh()').format(w=weight)})"


# ---- gate


@operator("gate", "residual")
def _squeeze_excite(d: Draft, x: str) -> str:
    c, r = d.channels(x), d.pick(2, 4)
    kind = d.pick("nn.Conv2d({}, {}, 1)", "nn.Linear({}, {})")
    down, up = d.layer(kind.format(c, r)), d.layer(kind.format(r, c))
    if "Conv" in kind:
        return f"{x} * {up}(F.relu({down}(F.adaptive_avg_pool2d({x}, 1)))).{d.pick('sigmoid()', 'tanh()')}"
    return f"{x} * {up}(F.relu({down}({x}.mean((2, 3))))).sigmoid().view(-1, {c}, 1, 1)"


@operator("gate")
def _spatial_mask(d: Draft, x: str) -> str:
    mask = d.layer(f"nn.Conv2d({d.channels(x)}, 1, 1)")
    return d.pick(
        f"{x} * {mask}({x}).sigmoid()",
        f"{x} * {x}.mean(1, keepdim=True).sigmoid()",
        f"{x} * {x}.mean(3, keepdim=True) + {x}.mean((2, 3), keepdim=True)",
    )


# ---- attention


@operator("attention")
def _tokens(d: Draft, x: str) -> str:
    return d.pick("{}.flatten(2).transpose(1, 2)", "{}.flatten(2).permute(0, 2, 1).contiguous()").format(x)


@operator("attention", "tail", rank=3)
def _token_linear(d: Draft, x: str) -> str:
    return _activated(d, f"{d.layer(f'nn.Linear({d.channels(x)}, {d.width()})')}({x})")


@operator("attention", rank=3)
def _layer_norm(d: Draft, x: str) -> str:
    return f"{d.layer(f'nn.LayerNorm({d.channels(x)})')}({x})"


@operator("attention", "tail", rank=3)
def _token_mlp(d: Draft, x: str) -> str:
    c = d.channels(x)
    return f"{x} + {d.layer(f'nn.Linear(8, {c})')}(F.gelu({d.layer(f'nn.Linear({c}, 8)')}({x})))"


@operator("attention", rank=3)
def _token_mixing(d: Draft, x: str) -> str:
    length = d.shape(x)[1]
    return f"F.relu({d.layer(f'nn.Linear({length}, {length})')}({x}.transpose(1, 2))).transpose(1, 2)"


@operator("attention", rank=3)
def _heads(d: Draft, x: str) -> str:
    _, length, c = d.shape(x)
    heads, width = d.pick(2, 1), d.pick(2, 4)
    qkv = d.value(f"{d.layer(f'nn.Linear({c}, {3 * heads * width})')}({x})")
    split = d.value(f"{qkv}.reshape(-1, {length}, 3, {heads}, {width}).permute(2, 0, 3, 1, 4)")
    q, k, v = (
        f"{split}{part}" for part in d.pick(("[0]", "[1]", "[2]"), (".unbind(0)[0]", ".unbind(0)[1]", ".unbind(0)[2]"))
    )
    out = d.pick(
        "({q} @ {k}.transpose(-2, -1) * 0.5).softmax(-1) @ {v}",
        "F.scaled_dot_product_attention({q}, {k}, {v})",
        "F.scaled_dot_product_attention({q}, {k}, {v}, scale=0.3)",
    ).format(q=q, k=k, v=v)
    project = d.layer(f"nn.Linear({heads * width}, {c})")
    return f"{project}(({out}).transpose(1, 2).reshape(-1, {length}, {heads * width}))"


@operator("attention", rank=3)
def _one_head(d: Draft, x: str) -> str:
    c = d.channels(x)
    q, k, v = (d.value(f"{d.layer(f'nn.Linear({c}, {c})')}({x})") for _ in range(3))
    return d.pick(
        f"({q} @ {k}.transpose(1, 2)).softmax(-1) @ {v}",
        f"torch.einsum('bij,bjc->bic', torch.einsum('bic,bjc->bij', {q}, {k}).softmax(-1), {v})",
        f"torch.bmm({q}.relu(), torch.bmm({k}.relu().transpose(1, 2), {v})) / 8",
    )


@operator("attention", fits=lambda v: v.shape[2] * v.shape[3] <= 64)
def _conv_attention(d: Draft, x: str) -> str:
    """Keys half as wide as values, two heads, positions by a depthwise convolution on the values."""
    n, c, h, w = d.shape(x)
    key, value = d.pick((1, 2), (2, 4))
    heads, each = d.pick(2, 1), 2 * key + value
    qkv = d.value(f"{_conv_bn(d, x, heads * each, 1)}.view(-1, {heads}, {each}, {h * w})")
    q, k, v = (f"{qkv}.split([{key}, {key}, {value}], 2)[{i}]" for i in range(3))
    weights = d.value(f"({q}.transpose(-2, -1) @ {k} * 0.7).softmax(-1)")
    out = d.value(f"({v} @ {weights}.transpose(-2, -1)).reshape(-1, {heads * value}, {h}, {w})")
    positions = d.layer(f"nn.Conv2d({heads * value}, {heads * value}, 3, padding=1, groups={heads * value})")
    both = d.value(f"{out} + {positions}({v}.reshape(-1, {heads * value}, {h}, {w}))")
    return f"{x} + {_conv_bn(d, both, c, 1)}"


@operator("attention", "tail", rank=3)
def _token_add(d: Draft, x: str) -> str:
    return f"{x} + {d.partner(x)}"


@operator("attention", rank=3, fits=lambda v: v.shape[1] in (4, 16, 64))
def _tokens_to_map(d: Draft, x: str) -> str:
    side = math.isqrt(d.shape(x)[1])
    return f"{x}.transpose(1, 2).reshape(-1, {d.channels(x)}, {side}, {side})"


# ---- norm and reductions


@operator("norm", fits=_wide)
def _group_norm(d: Draft, x: str) -> str:
    c = d.channels(x)
    return f"{d.layer(f'nn.GroupNorm({d.pick(1, d.divisor(c))}, {c})')}({x})"


@operator("norm", fits=_wide)
def _instance_norm(d: Draft, x: str) -> str:
    return f"{d.layer(f'nn.InstanceNorm2d({d.channels(x)}, affine={d.pick(True, False)})')}({x})"


@operator("norm")
def _layer_norm_of_channels(d: Draft, x: str) -> str:
    return f"{d.layer(f'nn.LayerNorm({d.channels(x)})')}({x}.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)"


@operator("norm", "gate")
def _over_channels(d: Draft, x: str) -> str:
    form = d.pick(
        "{}.softmax(1)",
        "F.normalize({}, dim=1)",
        "{} - {}.mean(1, keepdim=True)",
        "{} + {}.amax(1, True)",
        "{} * {}.sum(1, keepdim=True).tanh()",
        "{}.log_softmax(1)",
        "{} / ({}.var(1, keepdim=True, correction=0) + 1)",
        "{}.logsumexp(1, True) + {}",
        "{}.max(1, keepdim=True)[0] - {}",
    )
    return form.replace("{}", x)


@operator("norm", "gate")
def _over_space(d: Draft, x: str) -> str:
    form = d.pick(
        "{} - {}.mean((2, 3), keepdim=True)",
        "{}.flatten(2).softmax(2).reshape({}.shape)",
        "{} + {}.amax((2, 3), True)",
        "{} * {}.sum(3, keepdim=True).tanh()",
        "{} + {}.max(2, keepdim=True)[0]",
    )
    return form.replace("{}", x)


# ---- tail: vectors and sequences


@operator("tail", "norm")
def _pool_to_vector(d: Draft, x: str) -> str:
    return d.pick(
        "{}.mean((2, 3))", "F.adaptive_avg_pool2d({}, 1).flatten(1)", "{}.amax((2, 3))", "{}.flatten(1)"
    ).format(x)


@operator("tail", rank=2)
def _linear(d: Draft, x: str) -> str:
    return f"{d.layer(f'nn.Linear({d.channels(x)}, {d.width()}, bias={d.pick(True, False)})')}({x})"


@operator("tail", rank=2)
def _linear_bn(d: Draft, x: str) -> str:
    c = d.width()
    return f"F.relu({d.layer(f'nn.BatchNorm1d({c})')}({d.layer(f'nn.Linear({d.channels(x)}, {c})')}({x})))"


@operator("tail", rank=2)
def _vector_combine(d: Draft, x: str) -> str:
    return d.pick(
        "{x} + {y}",
        "torch.cat([{x}, {y}], 1)",
        "{x} * {y}.sigmoid()",
        "torch.stack([{x}, {y}], 1).flatten(1)",
    ).format(x=x, y=d.partner(x))


@operator("tail", rank=2, fits=lambda v: v.shape[1] <= 16)
def _vector_to_map(d: Draft, x: str) -> str:
    c = d.width()
    return f"F.relu({d.layer(f'nn.Linear({d.channels(x)}, {4 * c})')}({x})).view(-1, {c}, 2, 2)"


@operator("tail")
def _conv1d_of_rows(d: Draft, x: str) -> str:
    c = d.channels(x)
    return f"F.relu({d.layer(f'nn.Conv1d({c}, {d.width()}, 1)')}({x}.flatten(2))).transpose(1, 2)"


# ---- in place


def _owns_memory(v: Tensor) -> bool:
    return v._base is None


@operator("inplace", fits=_owns_memory)
def _write_whole(d: Draft, x: str) -> str:
    form = d.pick(
        "{}.relu_()",
        "{}.add_(1)",
        "{}.mul_(0.5)",
        "{}.add_({y})",
        "{}.mul_({y}.sigmoid())",
        "{}.clamp_(min=0.1)",
        "F.relu({}, inplace=True)",
    )
    kept = d.value(d.pick("{} * 2", "{}.flatten(2).mean(2).view(*{}.shape[:2], 1, 1)", "{}[:, :1]").replace("{}", x))
    d.write(form.replace("{y}", d.partner(x) if "{y}" in form else "").replace("{}", x))
    return f"{x} + {kept}"


@operator("inplace", fits=lambda v: _owns_memory(v) and v.shape[1] >= 2)
def _write_part(d: Draft, x: str) -> str:
    cut = d.draw(st.integers(1, d.channels(x) - 1))
    form = d.pick(
        "{}[:, :{c}] += 1",
        "{}[:, :{c}] = 0",
        "{}[:, {c}:] *= 2",
        "{}[:, {c}:].relu_()",
        "{}[:, {c}] = {}[:, 0]",
        "{}[..., 0].add_(0.5)",
        "{}.transpose(1, 2)[:, 0] += 1",
        "{}.view({}.shape[0], -1)[:, {c}:].tanh_()",
    )
    y = d.value(f"{x}.clone(memory_format=torch.contiguous_format)") if "view" in form else x
    d.write(form.replace("{c}", str(cut)).replace("{}", y))
    return f"{y} * 1.5"


# ---- scales


@operator("scales", fits=lambda v: _even(v) and v.shape[2] >= 4)
def _down(d: Draft, x: str) -> str:
    stride = d.layer(f"nn.Conv2d({d.channels(x)}, {d.width()}, 3, 2, 1)")
    return d.pick(f"F.max_pool2d({x}, 2)", f"F.avg_pool2d({x}, 2)", f"F.relu({stride}({x}))", f"{x}[..., ::2, ::2]")


@operator("scales", fits=lambda v: v.shape[2] <= 4)
def _up(d: Draft, x: str) -> str:
    return d.pick(
        "F.interpolate({}, scale_factor=2)",
        "F.interpolate({}, scale_factor=2, mode='bilinear')",
        "{}.repeat_interleave(2, 2).repeat_interleave(2, 3)",
    ).format(x)


@operator("scales", fits=_wide)
def _pool_same(d: Draft, x: str) -> str:
    return d.pick(
        "F.max_pool2d({}, 3, 1, 1)", "F.avg_pool2d({}, 3, 1, 1)", "torch.cat([{}, F.max_pool2d({}, 3, 1, 1)], 1)"
    ).replace("{}", x)


@operator("scales", "residual")
def _pyramid_add(d: Draft, x: str) -> str:
    other = d.pick(*d.others(lambda v: v.ndim == 4))
    side = d.value(_conv_bn(d, other, d.channels(x), 1))
    return f"{x} + F.interpolate({side}, size={x}.shape[2:])"


@operator("scales", "residual")
def _again(d: Draft, x: str) -> str:
    """A layer that the network has already used, on another value."""
    made = vars(d.model).items()
    same = [f"self.{n}" for n, layer in made if isinstance(layer, nn.Conv2d) and layer.in_channels == d.channels(x)]
    new = d.layer(f"nn.Conv2d({d.channels(x)}, {d.channels(x)}, 3, padding=1)") if not same else ""
    return f"{d.pick(*same, *filter(None, [new]))}({x})" if same or not new else f"{new}({new}({x}))"


@operator("scales", fits=lambda v: v.shape[2] <= 4)
def _cat_space(d: Draft, x: str) -> str:
    return f"torch.cat([{x}, {d.partner(x)}], {d.pick(2, 3)})"


# ---- unknown: no rule is expected to know these


@operator("unknown")
def _unknown(d: Draft, x: str) -> str:
    form = d.pick(
        "torch.cumsum({}, 1)",
        "{}.sort(1)[0]",
        "torch.fft.rfft2({}).abs()",
        "torch.tril({})",
        "{}.median(1, True)[0] + {}",
        "torch.fft.fft({}, dim=1).real",
        "F.local_response_norm({}, 2)",
        "{}.topk(1, 1)[0] * {}",
        "torch.logcumsumexp({}, 2)",
        "torch.special.i0e({})",
        "torch.diff({}, dim=1, prepend={}[:, :1])",
        "torch.cumprod({}.tanh(), 1)",
    )
    return form.replace("{}", x)


# ----------------------------------------------------------------------------------------------------------------------


@st.composite
def networks(draw: DrawFn, families: Sequence[str] = FAMILIES, max_operators: int = 7) -> Network:
    """Random networks of these families, channels zeroed at random: image -> stem -> operators -> heads."""
    size = draw(st.sampled_from((4, 8)))
    d = Draft(draw, size)
    d.value(f"F.relu({_conv_bn(d, 'x', d.width(), 1)})")
    available = [each for each in OPERATORS if set(each.families) & set(families)]
    chosen: list[str] = []
    for _ in range(draw(st.integers(1, max_operators))):
        readable = {each.name: d.others(each.fits) for each in available}
        each = d.pick(*(each for each in available if readable[each.name]))
        chosen.append(each.name)
        newest = d.value(each.write(d, d.pick(*readable[each.name][:3])))
        if d.values[newest][0].numel() > MAX_ELEMENTS:
            break
    outputs = [_head(d, d.others(lambda v: True)[0])]
    if d.pick(False, True):
        other = d.pick(*d.others(lambda v: True))
        outputs.append(d.pick(other, _head(d, other)))
    returned = d.pick("{}", "[{}]", "{{'out': ({},)}}").format(", ".join(outputs))
    return Network(_source(d, size, returned), tuple(chosen))


def _head(d: Draft, name: str) -> str:
    c = d.channels(name)
    layer = d.layer(f"nn.Conv2d({c}, 2, 1)" if d.values[name].ndim == 4 else f"nn.Linear({c}, 2)")
    d.heads.append(layer.removeprefix("self."))
    return f"{layer}({name})"


def _source(d: Draft, size: int, returned: str) -> str:
    """The network as a script that leaves `model`, zeroed, and `args`."""
    layers = "".join(f"        self.{name} = {source}\n" for name, source in d.layers.items())
    lines = "".join(f"        {line}\n" for line in d.lines)
    return (
        f"{HEADER}\n\nclass Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n{layers}\n"
        f"    def forward(self, x):\n{lines}        return {returned}\n\n\n"
        f"torch.manual_seed(0)\nmodel = settle(Net())\n{_zeroing(d)}"
        f"args = (torch.randn({BATCH}, 3, {size}, {size}, dtype=torch.float64),)\n"
    )


def _zeroing(d: Draft) -> str:
    """One line a layer that loses channels. Some lose them only by half, and stay alive."""
    density = d.pick("some", "none", "many", "few")
    if density == "none":
        return ""
    lines = []
    for name in d.layers:
        if name in d.heads and d.pick(*[True] * 3, False):
            continue
        made = getattr(d.model, name)
        if isinstance(made, nn.Module) and getattr(made, "weight", None) is not None:
            lines.append(_killing(d, name, made, density))
        elif isinstance(made, nn.Parameter) and made.ndim > 1 and (dead := _chosen(d, max(made.shape), density)):
            lines.append(
                f"model.{name}.data.index_fill_({made.shape.index(max(made.shape))}, torch.tensor({dead}), 0.0)\n"
            )
    return "".join(lines)


def _killing(d: Draft, name: str, layer: Any, density: str) -> str:
    outputs, inputs = widths(layer) if layer.weight.ndim > 1 else (len(layer.weight), 0)
    rarely = isinstance(layer, nn.modules.conv._ConvNd) and layer.bias is None  # its batch norm is what dies, as a rule
    rows = _chosen(d, outputs, density) if not rarely or d.pick(False, False, False, True) else []
    taken = _chosen(d, inputs, density) if inputs and d.pick(False, False, True) else []
    if not rows and not taken:
        return ""
    more = (f", columns={taken}" if taken else "") + (", keep_bias=True" if rows and d.pick(*[False] * 9, True) else "")
    return f"kill(model.{name}, {rows}{more})\n"


def _chosen(d: Draft, n: int, density: str) -> list[int]:
    """Which of `n` channels die: bits of an integer, so that it shrinks to none. Rarely all of them."""
    whole = 2**n - 1
    bits = d.draw(st.integers(0, whole))
    if density == "many":
        bits |= d.draw(st.integers(0, whole))
    if density == "few":
        bits &= d.draw(st.integers(0, whole))
    if bits == whole and not d.pick(*[False] * 19, True):
        bits = whole >> 1
    return [i for i in range(n) if bits >> i & 1]
