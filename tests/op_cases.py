"""One row a use of an operator or of a graph pattern: the table that the operator rules are held to.

A row builds a small float64 network in which the pattern sits between layers that can lose channels, so that pruning
has to go through it. `CASES` is the whole table.

To add an operator: one entry in its family in `passes.rules`, one row here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from l1rr_fx.testing import kill, randomised
from l1rr_fx.testing.zeros import widths

Args = tuple[Any, ...]
Built = tuple[nn.Module, Args]


@dataclass(frozen=True)
class Case:
    """A use of an operator. `ops` are ATen names (without overload) that its captured graph must hold.

    `at_limit`: the pruned MACs must reach the limit within 1 %. False where a legal set has to grow (rectangular
    groups and heads, shared weights) or where the weight is computed in the forward pass.
    `dynamic`: the batch axis, axis 0 of every input, may be left open at capture.
    """

    name: str
    family: str
    build: Callable[[], Built]
    ops: tuple[str, ...] = ()
    at_limit: bool = True
    dynamic: bool = True


# ----------------------------------------------------------------------------------------------------------------------
# Builders.


class Net(nn.Module):
    """Named layers and a function of them: `Net(lambda m, x: m.head(m.stem(x)), stem=..., head=...)`."""

    def __init__(self, function: Callable[..., Any], **parts: nn.Module | Tensor) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            if isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
                self.register_buffer(name, part)
            else:
                setattr(self, name, part)

    def forward(self, *args: Any) -> Any:
        return self.function(self, *args)


def net(function: Callable[..., Any], args: Args, **parts: nn.Module | Tensor) -> Built:
    """(a randomised `Net`, its inputs)."""
    return randomised(Net(function, **parts)), args


def image(channels: int = 3, size: int = 8, batch: int = 2) -> Args:
    """One random image batch (batch, channels, size, size), as the tuple of inputs."""
    return randoms((batch, channels, size, size))


def randoms(*shapes: tuple[int, ...]) -> Args:
    """Random float64 inputs of these shapes."""
    generator = torch.Generator().manual_seed(1)
    return tuple(torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)


def conv(i: int, o: int, k: int = 3, s: int = 1, g: int = 1, *, bias: bool = True, **options: Any) -> nn.Conv2d:
    """A convolution that keeps the image's size at stride 1."""
    return nn.Conv2d(i, o, k, s, k // 2, groups=g, bias=bias, **options)


def cba(i: int, o: int, k: int = 3, s: int = 1, g: int = 1, act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Convolution, batch norm, activation."""
    return nn.Sequential(conv(i, o, k, s, g, bias=False), nn.BatchNorm2d(o), act())


def cbn(i: int, o: int, k: int = 3, s: int = 1, g: int = 1) -> nn.Sequential:
    """Convolution and batch norm."""
    return nn.Sequential(conv(i, o, k, s, g, bias=False), nn.BatchNorm2d(o))


def head(i: int, o: int = 3) -> nn.Conv2d:
    """The 1x1 convolution that ends most rows."""
    return nn.Conv2d(i, o, 1)


def dead(module: nn.Module) -> nn.Module:
    """The layer with every output channel zeroed; frozen, so that `randomised` leaves it so."""
    kill(module, range(widths(module)[0]))
    return module.requires_grad_(False)


def between(function: Callable[[Any, Tensor], Tensor], i: int = 8, o: int = 8, size: int = 8, **parts: Any) -> Built:
    """`head(function(stem(x)))`: a stem with `i` channels, the pattern, a head that reads `o`."""
    return net(lambda m, x: m.head(function(m, m.stem(x))), image(size=size), stem=cba(3, i), head=head(o), **parts)


def tail(function: Callable[[Any, Tensor], Tensor], i: int, **parts: Any) -> Built:
    """A stem with 8 channels, the pattern, batch norm over `i` and a linear layer on what it flattens to (N, i)."""
    ends: dict[str, Any] = {"stem": cba(3, 8), "norm": nn.BatchNorm1d(i), "out": nn.Linear(i, 3)}
    return net(lambda m, x: m.out(m.norm(function(m, m.stem(x)))), image(), **ends, **parts)


def tokens(function: Callable[[Any, Tensor], Tensor], i: int = 8, o: int = 8, length: int = 6, **parts: Any) -> Built:
    """Sequences (2, length, 5) -> linear -> the pattern on (2, length, i) -> linear from o."""
    ends: dict[str, Any] = {"embed": nn.Sequential(nn.Linear(5, i), nn.ReLU()), "out": nn.Linear(o, 3)}
    return net(lambda m, x: m.out(function(m, m.embed(x))), randoms((2, length, 5)), **ends, **parts)


def summed(functions: Sequence[Callable[[Tensor], Tensor]], prepare: Callable[[Tensor], Tensor] | None = None) -> Built:
    """Each function on a convolution of its own, concatenated before a head: many operators in one row."""

    def forward(m: Any, x: Tensor) -> Tensor:
        features = [stem(x) for stem in m.stems]
        features = [prepare(f) for f in features] if prepare else features
        return m.head(torch.cat([f(y) for f, y in zip(functions, features, strict=True)], 1))

    return net(
        forward, image(size=4), stems=nn.ModuleList(cbn(3, 4, 1) for _ in functions), head=head(4 * len(functions))
    )


# ----------------------------------------------------------------------------------------------------------------------
# Convolutions and linear layers.


def _weight_standardised(m: Any, x: Tensor) -> Tensor:
    weight = m.conv.weight
    weight = (weight - weight.mean((1, 2, 3), keepdim=True)) / (weight.var((1, 2, 3), keepdim=True) + 1e-5).sqrt()
    return F.conv2d(x, weight, m.conv.bias, padding=1)


def _frozen(layer: nn.Module, weight: Tensor) -> nn.Module:
    layer.weight = nn.Parameter(weight.to(torch.float64), requires_grad=False)
    return layer


def _fixed(values: Sequence[float]) -> nn.Parameter:
    """A parameter that `randomised` leaves as it is."""
    return nn.Parameter(torch.tensor(values, dtype=torch.float64), requires_grad=False)


def _without_rows(layer: nn.Linear, rows: Sequence[int]) -> nn.Linear:
    """The layer with these outputs zeroed; frozen, so that `randomised` leaves it so."""
    randomised(layer)
    kill(layer, rows)
    return layer.requires_grad_(False)


def _tied(first: nn.Module, second: nn.Module) -> nn.Module:
    second.weight = first.weight
    return second


def _tied_convolutions() -> Built:
    first = conv(8, 8)
    return between(
        lambda m, x: m.b(F.relu(m.norm(m.a(x)))), a=first, b=_tied(first, conv(8, 8)), norm=nn.BatchNorm2d(8)
    )


def _tied_embedding() -> Built:
    embed = nn.Embedding(11, 8)
    tokens_in = (torch.arange(10).reshape(2, 5),)
    return net(
        lambda m, x: m.out(F.relu(m.mix(m.embed(x)))),
        tokens_in,
        embed=embed,
        mix=nn.Linear(8, 8),
        out=_tied(embed, nn.Linear(8, 11)),
    )


def _lora(m: Any, x: Tensor) -> Tensor:
    return F.linear(x, m.base.weight + m.up @ m.down, m.base.bias)


def _dynamic_filters(m: Any, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    filters = m.filters(x.mean((2, 3))).reshape(n * c, 1, 3, 3)
    return F.conv2d(x.reshape(1, n * c, h, w), filters, padding=1, groups=n * c).reshape(n, c, h, w)


# fmt: off
CONTRACTIONS = (
    Case("conv", "contraction", lambda: between(lambda m, x: F.relu(m.conv(x)), conv=conv(8, 8)), ("conv2d",)),
    Case("conv_strided_dilated", "contraction", lambda: between(
        lambda m, x: F.relu(m.b(m.a(x))), a=conv(8, 6, s=2), b=nn.Conv2d(6, 8, 3, padding=2, dilation=2))),
    Case("conv_padding_same", "contraction", lambda: between(
        lambda m, x: m.conv(x), conv=nn.Conv2d(8, 8, 4, padding="same")), ("conv2d",)),
    Case("conv_padding_reflect", "contraction", lambda: between(
        lambda m, x: m.conv(x), conv=conv(8, 8, padding_mode="reflect")), ("pad",)),
    Case("conv_padding_circular", "contraction", lambda: between(
        lambda m, x: m.conv(x), conv=conv(8, 8, padding_mode="circular")), ("pad",)),
    Case("conv1d", "contraction", lambda: net(
        lambda m, x: m.b(F.relu(m.n(m.a(x)))), randoms((2, 3, 12)),
        a=nn.Conv1d(3, 8, 3), n=nn.BatchNorm1d(8), b=nn.Conv1d(8, 4, 1)), ("conv1d",)),
    Case("conv3d", "contraction", lambda: net(
        lambda m, x: m.b(F.relu(m.n(m.a(x)))), randoms((2, 3, 4, 4, 4)),
        a=nn.Conv3d(3, 8, 3), n=nn.BatchNorm3d(8), b=nn.Conv3d(8, 4, 1)), ("conv3d",)),
    Case("conv_unbatched", "contraction", lambda: net(
        lambda m, x: m.b(F.relu(m.a(x))), randoms((3, 8, 8)), a=conv(3, 8), b=conv(8, 3)), ("conv2d",), dynamic=False),
    Case("conv_transposed", "contraction", lambda: between(
        lambda m, x: F.relu(m.n(m.up(x))), up=nn.ConvTranspose2d(8, 8, 2, 2), n=nn.BatchNorm2d(8)),
        ("conv_transpose2d",)),
    Case("conv_transposed_1d_3d", "contraction", lambda: net(
        lambda m, x: m.c(m.b(F.relu(m.a(x)).unflatten(2, (3, 3, -1)))), randoms((2, 3, 9)),
        a=nn.ConvTranspose1d(3, 8, 2, 2), b=nn.ConvTranspose3d(8, 6, 2, output_padding=0), c=nn.Conv3d(6, 2, 1)),
        ("conv_transpose1d", "conv_transpose3d")),
    Case("conv_depthwise", "contraction", lambda: between(
        lambda m, x: m.dw(x), dw=cba(8, 8, g=8)), ("conv2d",)),
    Case("conv_depthwise_multiplier", "contraction", lambda: between(
        lambda m, x: m.dw(x), o=16, dw=cba(8, 16, g=8)), ("conv2d",), at_limit=False),
    Case("conv_grouped", "contraction", lambda: between(
        lambda m, x: m.g(x), o=12, g=cba(8, 12, g=4)), ("conv2d",), at_limit=False),
    Case("conv_grouped_chain", "contraction", lambda: between(
        lambda m, x: m.b(m.a(x)), a=cba(8, 8, g=2), b=cba(8, 8, g=4)), ("conv2d",), at_limit=False),
    Case("conv_grouped_bias", "contraction", lambda: between(
        lambda m, x: F.relu(m.a(x)), a=conv(8, 8, g=2)), ("conv2d",), at_limit=False),
    Case("conv_transposed_grouped", "contraction", lambda: between(
        lambda m, x: F.relu(m.n(m.up(x))), o=12, up=nn.ConvTranspose2d(8, 12, 2, 2, groups=2), n=nn.BatchNorm2d(12)),
        ("conv_transpose2d",), at_limit=False),
    Case("conv_grouped_wide", "contraction", lambda: between(  # each group reads other channels of its own
        lambda m, x: m.g(x), i=16, g=cba(16, 8, g=2)), ("conv2d",), at_limit=False),
    Case("conv_transposed_grouped_wide", "contraction", lambda: between(
        lambda m, x: F.relu(m.n(m.up(x))), o=16, up=nn.ConvTranspose2d(8, 16, 2, 2, groups=2), n=nn.BatchNorm2d(16)),
        ("conv_transpose2d",), at_limit=False),
    Case("conv_transposed_grouped_no_input", "contraction", lambda: between(
        lambda m, x: m.up(m.dead(x)), o=4, dead=dead(conv(8, 4, bias=False)),
        up=nn.ConvTranspose2d(4, 4, 2, 2, groups=2)), ("conv_transpose2d",), at_limit=False),
    Case("conv_transposed_depthwise", "contraction", lambda: between(
        lambda m, x: m.up(x), up=nn.ConvTranspose2d(8, 8, 4, 2, 1, groups=8)), ("conv_transpose2d",),
        at_limit=False),  # an output whose input is dead lives by its bias, and its group is as wide as the others
    Case("conv_constant_weight", "contraction", lambda: between(  # an anti-aliasing blur
        lambda m, x: F.conv2d(x, m.blur, stride=2, padding=1, groups=8),
        blur=torch.tensor([1.0, 2.0, 1.0]).outer(torch.tensor([1.0, 2.0, 1.0])).expand(8, 1, 3, 3) / 16), ("conv2d",)),
    Case("conv_constant_weight_dense", "contraction", lambda: between(
        lambda m, x: F.conv2d(x, m.mix), mix=(torch.arange(64.0).reshape(8, 8, 1, 1) % 3)), ("conv2d",)),
    Case("conv_weight_standardised", "contraction", lambda: between(
        lambda m, x: F.relu(_weight_standardised(m, x)), conv=conv(8, 8)), ("conv2d", "var"), at_limit=False),
    Case("conv_weight_norm", "contraction", lambda: between(
        lambda m, x: F.relu(m.conv(x)), conv=parametrizations.weight_norm(conv(8, 8))), ("conv2d",), at_limit=False),
    Case("conv_spectral_norm", "contraction", lambda: between(
        lambda m, x: F.relu(m.conv(x)), conv=parametrizations.spectral_norm(conv(8, 8))), ("conv2d",), at_limit=False),
    Case("conv_weight_scaled", "contraction", lambda: between(
        lambda m, x: F.relu(F.conv2d(x, m.weight * m.scale)), weight=nn.Parameter(torch.randn(8, 8, 1, 1)),
        scale=nn.Parameter(torch.randn(8, 1, 1, 1))), ("conv2d",), at_limit=False),
    Case("conv_dynamic_filters", "contraction", lambda: between(
        _dynamic_filters, filters=nn.Linear(8, 72)), ("conv2d",), at_limit=False, dynamic=False),
    Case("conv_tied", "contraction", _tied_convolutions, ("conv2d",), at_limit=False),
    Case("linear_flatten", "contraction", lambda: net(
        lambda m, x: m.b(F.relu(m.a(m.stem(x).flatten(1)))), image(size=4), stem=cba(3, 8),
        a=nn.Linear(128, 12), b=nn.Linear(12, 4)), ("linear", "flatten")),
    Case("linear_flatten_pooled", "contraction", lambda: tail(
        lambda m, x: F.relu(m.a(torch.flatten(F.adaptive_avg_pool2d(x, (2, 2)), 1))), 6, a=nn.Linear(32, 6)),
        ("adaptive_avg_pool2d", "linear")),
    Case("linear_wide_and_deep", "contraction", lambda: net(
        lambda m, wide, deep: m.out(torch.cat([wide, F.relu(m.b(F.relu(m.a(deep))))], -1)), randoms((2, 4), (2, 6)),
        a=nn.Linear(6, 10), b=nn.Linear(10, 8), out=nn.Linear(12, 1)), ("linear", "cat")),
    Case("linear_view_transposed_conv", "contraction", lambda: net(
        lambda m, x: m.out(F.relu(m.up(F.relu(m.a(x)).view(-1, 4, 3, 3))).flatten(1)), randoms((2, 6)),
        a=nn.Linear(6, 36), up=nn.ConvTranspose2d(4, 6, 2, 2), out=nn.Linear(216, 3)), ("view", "conv_transpose2d"),
        at_limit=False),
    Case("linear_on_tokens", "contraction", lambda: tokens(
        lambda m, x: m.b(F.gelu(m.a(x))), a=nn.Linear(8, 16), b=nn.Linear(16, 8)), ("linear", "gelu")),
    Case("linear_to_one_of_masked_tokens", "contraction", lambda: net(
        lambda m, x: m.out(m.one(m.a(x) * m.mask).squeeze(2)), randoms((2, 6, 5)), a=nn.Linear(5, 8),
        mask=torch.tensor([1.0, 0, 1, 0, 1, 1]).view(1, 6, 1), one=nn.Linear(8, 1), out=nn.Linear(6, 3)), ("linear",)),
    Case("linear_lora", "contraction", lambda: tokens(
        lambda m, x: F.relu(_lora(m, x)), base=nn.Linear(8, 8), up=nn.Parameter(torch.randn(8, 2)),
        down=nn.Parameter(torch.randn(2, 8))), ("matmul",), at_limit=False),
    Case("linear_bilinear", "contraction", lambda: tokens(
        lambda m, x: m.mix(x, x.flip(1)), mix=nn.Bilinear(8, 8, 8)), ("bilinear",), at_limit=False),
    Case("matmul_parameter", "contraction", lambda: tokens(
        lambda m, x: F.relu(x @ m.w), w=nn.Parameter(torch.randn(8, 8))), ("matmul",)),
    Case("mm_addmm", "contraction", lambda: net(
        lambda m, x: torch.addmm(m.c, F.relu(torch.mm(F.relu(m.a(x)), m.w)), m.v), randoms((2, 5)), a=nn.Linear(5, 8),
        w=nn.Parameter(torch.randn(8, 8)), c=nn.Parameter(torch.randn(3)), v=nn.Parameter(torch.randn(8, 3))),
        ("mm", "addmm")),
    Case("bmm_baddbmm", "contraction", lambda: tokens(
        lambda m, x: torch.baddbmm(m.k(x), torch.bmm(m.q(x), m.k(x).transpose(1, 2)), m.v(x)),
        q=nn.Linear(8, 8), k=nn.Linear(8, 8), v=nn.Linear(8, 8)), ("bmm", "baddbmm")),
    Case("einsum_tokens", "contraction", lambda: tokens(
        lambda m, x: torch.einsum("bnc,cd->bnd", x, m.w), w=nn.Parameter(torch.randn(8, 8))), ("einsum",)),
    Case("einsum_map", "contraction", lambda: between(
        lambda m, x: torch.einsum("bchw,dc->bdhw", x, m.w), w=nn.Parameter(torch.randn(8, 8))), ("einsum",)),
    Case("einsum_bilinear_pair", "contraction", lambda: between(
        lambda m, x: torch.einsum("bchw,bcvw->bchv", m.a(x), m.b(x)), a=cba(8, 8), b=cba(8, 8)), ("einsum",)),
    Case("embedding", "contraction", lambda: net(
        lambda m, x: m.b(F.relu(m.a(m.embed(x)))), (torch.arange(10).reshape(2, 5),), embed=nn.Embedding(11, 8),
        a=nn.Linear(8, 8), b=nn.Linear(8, 3)), ("embedding",)),
    Case("embedding_tied", "contraction", _tied_embedding, ("embedding", "linear"), at_limit=False),
    Case("embedding_of_positions", "contraction", lambda: net(
        lambda m, x: m.b(F.relu(m.a(m.embed(x) + m.places(torch.arange(5))))), (torch.arange(10).reshape(2, 5),),
        embed=nn.Embedding(11, 8, padding_idx=0), places=nn.Embedding(5, 8), a=nn.Linear(8, 8), b=nn.Linear(8, 3)),
        ("embedding",)),
    Case("embedding_of_a_computed_table", "contraction", lambda: net(
        lambda m, x: m.b(F.relu(m.a(F.embedding(x, m.make(m.table))))), (torch.arange(10).reshape(2, 5),),
        table=nn.Parameter(torch.randn(11, 6)), make=nn.Linear(6, 8), a=nn.Linear(8, 8), b=nn.Linear(8, 3)),
        ("embedding",), at_limit=False),
)
# fmt: on

# ----------------------------------------------------------------------------------------------------------------------
# Movement: elements change place, none changes value.


def _c2f(m: Any, x: Tensor) -> Tensor:
    parts = list(m.cv1(x).chunk(2, 1))
    parts.extend(block(parts[-1]) for block in m.blocks)
    return m.cv2(torch.cat(parts, 1))


def _c2f_split(m: Any, x: Tensor) -> Tensor:
    a, b = m.cv1(x).split((4, 4), 1)
    c = b + m.blocks[0](b)
    return m.cv2(torch.cat((a, b, c, c + m.blocks[1](c)), 1))


def _shuffle(x: Tensor, groups: int) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


def _shufflenet_v2(m: Any, x: Tensor) -> Tensor:
    left, right = x.chunk(2, dim=1)
    return _shuffle(torch.cat((left, m.right(right)), dim=1), 2)


def _focus(x: Tensor) -> Tensor:
    return torch.cat((x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]), 1)


def _reorg(x: Tensor, s: int = 2) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, c, h // s, s, w // s, s).permute(0, 3, 5, 1, 2, 4).reshape(n, c * s * s, h // s, w // s)


def _depth_to_space(x: Tensor, s: int = 2) -> Tensor:
    n, c, h, w = x.shape
    return x.reshape(n, s, s, c // (s * s), h, w).permute(0, 3, 4, 1, 5, 2).reshape(n, c // (s * s), h * s, w * s)


def _windows(m: Any, x: Tensor, s: int = 4) -> Tensor:
    """Shifted windows as in Swin: roll, partition, mix inside each window, put back, roll back. (N, C, H, W)."""
    n, c, h, w = x.shape
    x = torch.roll(x.permute(0, 2, 3, 1), (-2, -2), (1, 2))
    x = x.view(n, h // s, s, w // s, s, c).permute(0, 1, 3, 2, 4, 5).reshape(-1, s * s, c)
    x = F.gelu(m.mix(x)).view(n, h // s, w // s, s, s, c).permute(0, 1, 3, 2, 4, 5).reshape(n, h, w, c)
    return torch.roll(x, (2, 2), (1, 2)).permute(0, 3, 1, 2)


def _patch_merge(m: Any, x: Tensor) -> Tensor:
    x = x.permute(0, 2, 3, 1)
    x = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], -1)
    return m.reduce(x).permute(0, 3, 1, 2)


def _sampled_directly(m: Any, x: Tensor) -> Tensor:
    return torch.ops.aten.grid_sampler_2d(m.a(x), torch.stack((x[:, 0], x[:, 1]), -1).tanh(), 0, 0, True)


def _sampled_volume(m: Any, x: Tensor) -> Tensor:
    places = torch.stack((x[:, 0], x[:, 1], x[:, 2]), -1).tanh().unsqueeze(1)
    return torch.ops.aten.grid_sampler_3d(m.a(x).unsqueeze(2), places, 0, 1, False).squeeze(2)


def _reassembled(m: Any, x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    weights = m.kernels(x).softmax(1).view(n, 1, 9, h, w)
    return (F.unfold(x, 3, padding=1).view(n, c, 9, h, w) * weights).sum(2)


def _involution(m: Any, x: Tensor) -> Tensor:
    n, _, h, w = x.shape
    weights = m.kernels(x).view(n, 2, 1, 9, h, w)
    return (F.unfold(m.a(x), 3, padding=1).view(n, 2, 4, 9, h, w) * weights).sum(3).view(n, 8, h, w)


def _unfold_fold(m: Any, x: Tensor) -> Tensor:
    columns = F.unfold(x, 2, stride=2)
    return F.fold(F.relu(m.mix(columns.transpose(1, 2))).transpose(1, 2), (8, 8), 2, stride=2)


def _fused_by_weights(m: Any, x: Tensor) -> Tensor:
    weights = F.relu(m.weights)
    weights = weights / (weights.sum() + 1e-4)
    return weights[0] * m.a(x) + weights[1] * m.b(x) + weights[2] * m.c(x)


def _partial(m: Any, x: Tensor) -> Tensor:
    return torch.cat((m.part(x[:, :3]), x[:, 3:]), 1)


def _padded_directly(m: Any, x: Tensor) -> Tensor:
    """Operators that torch.export leaves only where the model names them; so below."""
    aten = torch.ops.aten
    maps = aten.replication_pad2d(aten.reflection_pad2d(x, [1, 1, 2, 0]), [0, 1, 1, 1])
    lines = aten.replication_pad1d(aten.reflection_pad1d(x.flatten(2), [0, 9]), [3, 0])
    return aten.constant_pad_nd(maps, [0, 0, 1, 0], 0.0).mean((2, 3)) + lines.mean(2)


def _moved_directly(m: Any, x: Tensor) -> Tensor:
    y = torch.native_channel_shuffle(m.a(x), 2)
    matrix = torch.ops.aten._unsafe_view(y.swapaxes(0, 1).contiguous(), [8, -1])  # (channels, everything else)
    y = matrix.t().T.view_as(matrix).reshape(8, -1, 8, 8).mT.swapaxes(0, 1)
    return torch.concat((x, y), 1)


# fmt: off
MOVEMENT = (
    Case("chunk_c2f", "movement", lambda: between(
        _c2f, cv1=cba(8, 8, 1), blocks=nn.ModuleList([cba(4, 4), cba(4, 4)]), cv2=cba(16, 8, 1)), ("chunk", "cat")),
    Case("split_c2f", "movement", lambda: between(
        _c2f_split, cv1=cba(8, 8, 1), blocks=nn.ModuleList([cba(4, 4), cba(4, 4)]), cv2=cba(16, 8, 1)), ("cat",)),
    Case("chunk_uneven", "movement", lambda: between(
        lambda m, x: torch.cat([m.b(x.chunk(3, 1)[1]), x.chunk(3, 1)[2]], 1), o=5, b=cba(3, 3)), ("chunk",)),
    Case("split_equal", "movement", lambda: between(
        lambda m, x: sum(m.b(p) for p in x.split(4, 1)), o=4, b=cba(4, 4)), ("split",), at_limit=False),
    Case("tensor_split", "movement", lambda: between(
        lambda m, x: torch.cat([m.a(x.tensor_split([3, 5], 1)[0]), x.tensor_split([3, 5], 1)[2]], 1), o=7,
        a=cba(3, 4))),
    Case("unbind_stack", "movement", lambda: between(
        lambda m, x: torch.stack([p * (i + 1) for i, p in enumerate(x.unbind(1))], 1)), ("unbind", "stack")),
    Case("stack_mean_of_branches", "movement", lambda: between(
        lambda m, x: torch.stack([m.a(x), m.b(x)], 1).mean(1), a=cba(8, 8), b=cba(8, 8)), ("stack", "mean")),
    Case("select", "movement", lambda: between(
        lambda m, x: x[:, :1] * x.select(1, 3).unsqueeze(1) + x), ("select", "unsqueeze")),
    Case("shuffle_view", "movement", lambda: between(
        lambda m, x: m.b(_shuffle(m.a(x), 2)), a=cba(8, 8), b=cba(8, 8)), ("view", "transpose"), at_limit=False),
    Case("shuffle_view_grouped", "movement", lambda: between(
        lambda m, x: m.b(_shuffle(m.a(x), 4)), a=cba(8, 8, g=4), b=cba(8, 8, g=4)), ("view", "transpose"),
        at_limit=False),
    Case("shuffle_module", "movement", lambda: between(
        lambda m, x: m.b(m.shuffle(x)), shuffle=nn.ChannelShuffle(2), b=cba(8, 8)), at_limit=False),
    Case("shufflenet_v2", "movement", lambda: between(
        lambda m, x: _shufflenet_v2(m, _shufflenet_v2(m, x)),
        right=nn.Sequential(cba(4, 4, 1), cbn(4, 4, g=4), cba(4, 4, 1))), ("chunk", "transpose"), at_limit=False),
    Case("pixel_shuffle", "movement", lambda: between(
        lambda m, x: m.b(F.pixel_shuffle(m.a(x), 2)), a=cba(8, 16), b=cba(4, 8)), ("pixel_shuffle",), at_limit=False),
    Case("pixel_unshuffle", "movement", lambda: between(
        lambda m, x: F.pixel_unshuffle(x, 2), o=32), ("pixel_unshuffle",)),
    Case("focus_image", "movement", lambda: net(
        lambda m, x: m.head(m.stem(_focus(x))), image(), stem=cba(12, 8), head=head(8)), ("slice", "cat")),
    Case("focus_features", "movement", lambda: between(lambda m, x: _focus(x), o=32), ("slice", "cat")),
    Case("space_to_depth", "movement", lambda: between(lambda m, x: _reorg(x), o=32), ("permute", "reshape")),
    Case("depth_to_space", "movement", lambda: between(
        lambda m, x: _depth_to_space(m.a(x)), o=4, a=cba(8, 16)), ("permute", "reshape"), at_limit=False),
    Case("flip_channels", "movement", lambda: between(lambda m, x: m.b(x.flip(1)), b=cba(8, 8)), ("flip",)),
    Case("flip_everything", "movement", lambda: between(lambda m, x: x.flip((1, 2, 3)) + x), ("flip",)),
    Case("roll_channels", "movement", lambda: between(lambda m, x: torch.roll(x, 3, 1) + x), ("roll",)),
    Case("roll_flat", "movement", lambda: tail(lambda m, x: torch.roll(x, 5).mean((2, 3)), 8),
        ("roll",), at_limit=False,
         dynamic=False),
    Case("index_select_buffer", "movement", lambda: between(
        lambda m, x: m.b(torch.index_select(x, 1, m.order)), b=cba(6, 8), order=torch.tensor([5, 0, 3, 3, 7, 1])),
        ("index_select",)),
    Case("index_buffer", "movement", lambda: between(
        lambda m, x: x[:, m.order] + x, order=torch.tensor([5, 0, 3, 2, 7, 1, 4, 6])), ("index",)),
    Case("index_constant_list", "movement", lambda: between(lambda m, x: x[:, [2, 0, 1, 6]], o=4), ("index",)),
    Case("gather_channels", "movement", lambda: between(
        lambda m, x: torch.gather(x, 1, m.order.view(1, -1, 1, 1).expand(x.shape[0], -1, 8, 8)),
        order=torch.tensor([5, 0, 3, 2, 7, 1, 4, 6])), ("gather",)),
    Case("partial_convolution", "movement", lambda: between(_partial, part=cba(3, 3)), ("slice", "cat")),
    Case("slice_stepped", "movement", lambda: between(
        lambda m, x: m.a(x[:, ::2]) + m.b(x[:, 1::2]), a=cba(4, 8), b=cba(4, 8)), ("slice",)),
    Case("narrow", "movement", lambda: between(lambda m, x: m.a(x.narrow(1, 2, 5)), a=cba(5, 8))),
    Case("pad_shortcut", "movement", lambda: between(  # ResNet option A
        lambda m, x: F.relu(m.a(x) + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))), o=12, a=cbn(8, 12, s=2)), ("pad",)),
    Case("pad_channels_with_one", "movement", lambda: between(
        lambda m, x: F.pad(x, (0, 0, 0, 0, 1, 3), value=1.0), o=12), ("pad",)),
    Case("pad_zeros_cat", "movement", lambda: between(
        lambda m, x: m.a(torch.cat((x, torch.zeros_like(x[:, :4])), 1)), a=cba(12, 8)), ("zeros_like", "cat")),
    Case("made_new", "pointwise", lambda: between(
        lambda m, x: x
        + x.new_full((1, 8, 1, 1), 0.5) * x.new_ones(1)
        + x.new_zeros((8, 1, 1))
        + x.new_empty((8, 1, 1)).fill_(0.25)), ("new_full", "new_ones", "new_zeros", "new_empty")),
    Case("made_branch", "pointwise", lambda: between(  # what is made from nothing has no channels to couple
        lambda m, x: m.norm(torch.full((x.shape[0], 8, 8, 8), 0.5, dtype=x.dtype)) + x,
        norm=nn.BatchNorm2d(8)), ("add",)),
    Case("pad_spatial_modes", "movement", lambda: between(
        lambda m, x: F.pad(F.pad(F.pad(x, (1, 0, 2, 0)), (1, 1, 1, 1), mode="replicate"), (1, 1, 0, 0), "reflect")),
        ("pad",)),
    Case("pad_circular_volume", "movement", lambda: net(
        lambda m, x: m.b(F.pad(m.a(x), (1, 0, 2, 1, 0, 2), "circular")),
        randoms((2, 3, 4, 4, 4)), a=nn.Conv3d(3, 6, 1), b=nn.Conv3d(6, 2, 1)), ("pad",)),
    Case("pad_volume", "movement", lambda: net(
        lambda m, x: m.b(F.pad(F.pad(m.a(x), (1, 1) * 3, "reflect"), (1, 0) * 3, "replicate")),
        randoms((2, 3, 4, 4, 4)), a=nn.Conv3d(3, 6, 1), b=nn.Conv3d(6, 2, 1)), ("pad",)),
    Case("pad_direct", "movement", lambda: tail(_padded_directly, 8), ("reflection_pad2d", "constant_pad_nd")),
    Case("pad_of_tokens", "movement", lambda: tokens(  # one side alone, along the channels
        lambda m, x: torch.ops.aten.replication_pad1d(torch.ops.aten.reflection_pad1d(m.a(x), [0, 3]), [2, 0]), o=13,
        a=nn.Linear(8, 8)), ("reflection_pad1d", "replication_pad1d")),
    Case("movement_synonyms", "movement", lambda: between(_moved_directly, o=16, a=cba(8, 8)), ("concat", "swapaxes"),
         dynamic=False),
    Case("pad_crop", "movement", lambda: between(lambda m, x: F.pad(x, (-1, -1, -2, 0))), ("pad",)),
    Case("cat_dense_block", "movement", lambda: between(
        lambda m, x: torch.cat((x, m.a(x), m.b(torch.cat((x, m.a(x)), 1))), 1), o=16, a=cba(8, 4), b=cba(12, 4)),
        ("cat",)),
    Case("cat_with_itself", "movement", lambda: between(lambda m, x: torch.cat((x, x), 1), o=16), ("cat",)),
    Case("cat_with_input", "movement", lambda: net(
        lambda m, x: m.head(m.b(torch.cat((x, m.a(x)), 1))), image(), a=cba(3, 8), b=cba(11, 8), head=head(8)),
        ("cat",)),
    Case("cat_spatial", "movement", lambda: between(
        lambda m, x: m.c(torch.cat((m.a(x), m.b(x)), 2)), a=cba(8, 8), b=cba(8, 8), c=cba(8, 8)), ("cat",)),
    Case("cat_batch", "movement", lambda: between(
        lambda m, x: torch.cat((m.a(x), m.b(x)), 0), a=cba(8, 8), b=cba(8, 8)), ("cat",)),
    Case("cat_split_cascade", "movement", lambda: net(
        lambda m, x: [layer(p) for layer, p in zip(m.outs, torch.split(torch.cat([s(x) for s in m.stems], 1), 6, 1),
                                                   strict=True)],
        image(), stems=nn.ModuleList(cba(3, c) for c in (5, 6, 7)), outs=nn.ModuleList(head(6, 2) for _ in range(3))),
        ("cat",)),
    Case("expand_repeat", "movement", lambda: between(
        lambda m, x: x.mean((2, 3), keepdim=True).expand(-1, -1, 8, 8) + x.repeat(1, 2, 1, 1)[:, 4:12]),
        ("expand", "repeat")),
    Case("repeat_interleave", "movement", lambda: between(
        lambda m, x: m.a(x.repeat_interleave(2, 1)), a=cba(16, 8))),
    Case("tile", "movement", lambda: between(lambda m, x: torch.tile(x, (1, 2, 1, 1)), o=16)),
    Case("squeeze_movedim", "movement", lambda: tail(
        lambda m, x: F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1).unsqueeze(1).movedim(1, -1).squeeze(-1), 8),
        ("squeeze",)),
    Case("channels_last_and_back", "movement", lambda: between(
        lambda m, x: F.gelu(m.a(x.permute(0, 2, 3, 1))).permute(0, 3, 1, 2).contiguous(), a=nn.Linear(8, 8)),
        ("permute", "contiguous")),
    Case("swap_axes_of_tokens", "movement", lambda: between(
        lambda m, x: m.a(x.flatten(2).transpose(1, 2)).transpose(1, 2).unflatten(2, (8, 8)), a=nn.Linear(8, 8)),
        ("transpose", "flatten", "unflatten")),
    Case("windows_of_swin", "movement", lambda: between(_windows, mix=nn.Linear(8, 8)), ("roll", "permute")),
    Case("patch_merging", "movement", lambda: between(_patch_merge, reduce=nn.Linear(32, 8)), ("slice", "cat")),
    Case("grid_sample", "sampling", lambda: between(
        lambda m, x: F.grid_sample(m.a(x), F.affine_grid(m.theta.expand(x.shape[0], 2, 3), list(x.shape), False),
                                   align_corners=False), a=cba(8, 8), theta=torch.tensor([[[0.8, 0.1, 0], [-0.1, 0.9,
                                   0]]])), ("grid_sampler",)),
    Case("grid_sample_directly", "sampling", lambda: between(_sampled_directly, a=cba(8, 8)), ("grid_sampler_2d",)),
    Case("grid_sample_of_volume", "sampling", lambda: between(_sampled_volume, a=cba(8, 8)), ("grid_sampler_3d",)),
    Case("deformed", "sampling", lambda: between(lambda m, x: F.grid_sample(  # places that the network computes
        m.a(x), m.offsets(x).tanh().permute(0, 2, 3, 1), mode="bilinear", padding_mode="border", align_corners=True),
        a=cba(8, 8), offsets=nn.Conv2d(8, 2, 3, padding=1)), ("grid_sampler",)),
    Case("queries_gathered", "sampling", lambda: tokens(  # RT-DETR's selection of queries
        lambda m, x: torch.gather(m.a(x), 1, m.score(x).topk(3, 1).indices.repeat(1, 1, 8)),
        a=nn.Linear(8, 8), score=nn.Linear(8, 1)), ("gather", "topk")),
    Case("queries_indexed", "sampling", lambda: tokens(
        lambda m, x: m.a(x)[torch.arange(x.shape[0]).unsqueeze(-1), m.score(x).squeeze(-1).topk(3, 1).indices],
        a=nn.Linear(8, 8), score=nn.Linear(8, 1)), ("index", "topk")),
    Case("tokens_selected", "sampling", lambda: tokens(
        lambda m, x: m.a(x).index_select(1, m.score(x).mean(0).squeeze(-1).topk(3).indices),
        a=nn.Linear(8, 8), score=nn.Linear(8, 1)), ("index_select", "topk")),
    Case("einsum_to_scalar", "product", lambda: between(
        lambda m, x: m.a(x) * torch.einsum("bchw,bchw->", m.b(x), m.b(x)), a=cba(8, 8), b=cba(8, 8)), ("einsum",)),
    Case("matmul_of_vectors", "product", lambda: tokens(
        lambda m, x: m.a(x) * (m.b(x) @ m.v).unsqueeze(-1) * (m.v @ m.b(x).mean((0, 1))),
        a=nn.Linear(8, 8), b=nn.Linear(8, 8), v=nn.Parameter(torch.ones(8))), ("matmul",)),
    Case("linear_of_vector", "contraction", lambda: tokens(  # mmdet's integral of a distribution
        lambda m, x: m.a(x) * F.linear(m.b(x).softmax(-1), m.steps).unsqueeze(-1),
        a=nn.Linear(8, 8), b=nn.Linear(8, 6), steps=torch.linspace(0, 1, 6)), ("linear",)),
    Case("unfold_fold", "movement", lambda: between(_unfold_fold, mix=nn.Linear(32, 32)), ("im2col", "col2im")),
    Case("carafe", "windows", lambda: between(  # each position's neighbours, weighted by what is computed
        _reassembled, kernels=nn.Conv2d(8, 9, 1)), ("im2col", "softmax")),
    Case("involution", "windows", lambda: between(
        _involution, a=cba(8, 8), kernels=nn.Conv2d(8, 18, 1)), ("im2col",)),
    Case("unfold_tensor", "movement", lambda: between(
        lambda m, x: x.unfold(2, 3, 2).unfold(3, 3, 2).amax((-2, -1))), ("unfold", "amax")),
    # YOLOv5's head: (N, anchors * (5 + classes), H, W) -> (N, anchors, H, W, 5 + classes)
    Case("heads_5d", "movement", lambda: net(
        lambda m, x: m.head(m.stem(x)).view(-1, 3, 4, 8, 8).permute(0, 1, 3, 4, 2).contiguous().sigmoid(), image(),
        stem=cba(3, 8), head=head(8, 12)), ("view", "sigmoid")),
    Case("flatten_of_scales", "movement", lambda: net(
        lambda m, x: torch.cat([m.out(f).flatten(2) for f in (m.a(x), m.b(m.a(x)))], 2).transpose(1, 2), image(),
        a=cba(3, 8), b=cba(8, 8, s=2), out=head(8, 5)), ("flatten", "cat"), at_limit=False),
)
# fmt: on

# ----------------------------------------------------------------------------------------------------------------------
# Point-wise operators.

_ZERO_AT_ZERO: tuple[Callable[[Tensor], Tensor], ...] = (
    torch.relu,
    torch.tanh,
    torch.sin,
    torch.abs,
    torch.neg,
    torch.square,
    torch.erf,
    torch.sinh,
    torch.atan,
    torch.asinh,
    torch.expm1,
    torch.sign,
    torch.floor,
    torch.ceil,
    torch.round,
    torch.trunc,
    torch.tan,
    torch.frac,
    torch.nan_to_num,
)
_NOT_ZERO_AT_ZERO: tuple[Callable[[Tensor], Tensor], ...] = (
    torch.sigmoid,
    torch.exp,
    torch.cos,
    torch.cosh,
    torch.erfc,
    torch.exp2,
    F.softplus,
    F.logsigmoid,
    F.hardsigmoid,
)
_OF_POSITIVE: tuple[Callable[[Tensor], Tensor], ...] = (
    torch.sqrt,
    torch.rsqrt,
    torch.log,
    torch.log2,
    torch.log10,
    torch.log1p,
    torch.reciprocal,
    lambda x: x**-0.5,
)
_ACTIVATIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    F.silu,
    F.mish,
    F.gelu,
    lambda x: F.gelu(x, approximate="tanh"),
    F.hardswish,
    F.hardtanh,
    F.relu6,
    F.elu,
    F.selu,
    F.celu,
    F.leaky_relu,
    F.softsign,
    F.softshrink,
    F.hardshrink,
    F.tanhshrink,
    lambda x: F.threshold(x, 0.1, 0.2),
    lambda x: F.rrelu(x),
    lambda x: F.elu(x, 0.5),
)
_WITH_SCALARS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: x + 1,
    lambda x: x - 1,
    lambda x: 1 - x,
    lambda x: x * 2,
    lambda x: x / 3,
    lambda x: 1 / (x * x + 1),
    lambda x: x**2,
    lambda x: x**3,
    lambda x: 2**x,
    lambda x: x % 2,
    lambda x: x // 0.5,
    lambda x: x.clamp(-1, 1),
    lambda x: x.clamp(0.1, 1),
    lambda x: x.clamp_min(0),
    lambda x: x.clamp_max(0),
    lambda x: -x,
    lambda x: x * 0,
)


def _clones(m: Any, x: Tensor) -> Tensor:
    y = m.a(x).clone().detach().contiguous()
    return m.b(y.to(torch.float32).to(torch.float64).type_as(x)) + y


def _binary(m: Any, x: Tensor) -> Tensor:
    a, b = m.a(x), m.b(x)
    pieces = [
        a + b,
        a - b,
        a * b,
        torch.maximum(a, b),
        torch.minimum(a, b),
        torch.atan2(a, b + 3),
        a / (b * b + 1),
        torch.add(a, b, alpha=2),
        torch.sub(a, b, alpha=3),
        torch.rsub(a, b),
        torch.hypot(a, b + 1),
        torch.fmod(a, b + 3),
    ]
    return torch.cat(pieces, 1)


def _synonyms(m: Any, x: Tensor) -> Tensor:
    """Operators that torch.export leaves only where the model names them."""
    a, b = m.a(x), m.b(x)
    aten = torch.ops.aten
    some = (a > 1).any(1, keepdim=True) | (b > 3).all(1, keepdim=True)
    pieces = [
        torch.multiply(a, b),
        torch.divide(a, b * b + 1),
        torch.true_divide(a, 3),
        torch.subtract(a, b),
        a * torch.ones_like(b) + torch.full_like(b, 2) + torch.empty_like(a).fill_(1),
        aten.copy(a, b),
        aten._softmax(a, 2, False),
        aten._to_copy(a, dtype=torch.float64) + some + aten.norm(b, 2, [1], True),
    ]
    return torch.cat(pieces, 1)


def _compared(m: Any, x: Tensor) -> Tensor:
    a, b = m.a(x), m.b(x)
    signs = a > 0, b > 0
    both = torch.logical_and(*signs)
    kinds = (a > b, a >= 0, a < 0.1, a <= b, a == 0, a != b, signs[0] & signs[1], both, signs[0] | signs[1], ~signs[0])
    return torch.cat([kind.to(a.dtype) for kind in kinds], 1)


# fmt: off
POINTWISE = (
    Case("unary_zero_at_zero", "pointwise", lambda: summed(_ZERO_AT_ZERO), ("sin", "erf", "floor")),
    Case("unary_not_zero_at_zero", "pointwise", lambda: summed(_NOT_ZERO_AT_ZERO), ("cos", "exp", "softplus")),
    Case("unary_of_positive", "pointwise", lambda: summed(_OF_POSITIVE, lambda x: x * x + 0.5), ("sqrt", "log")),
    Case("activations", "pointwise", lambda: summed(_ACTIVATIONS), ("silu", "mish", "hardswish", "elu")),
    Case("with_scalars", "pointwise", lambda: summed(_WITH_SCALARS), ("clamp", "rsub", "pow")),
    Case("binary", "pointwise", lambda: between(_binary, o=96, a=cbn(8, 8), b=cbn(8, 8)), ("maximum", "atan2", "div")),
    Case("synonyms", "pointwise", lambda: between(_synonyms, o=64, a=cbn(8, 8), b=cbn(8, 8)), ("multiply", "divide")),
    Case("comparisons", "pointwise", lambda: between(_compared, o=80, a=cbn(8, 8), b=cbn(8, 8)), ("gt", "eq", "ne")),
    Case("where_scalar", "pointwise", lambda: between(lambda m, x: torch.where(x > 0.2, x, 0.0)), ("where",)),
    Case("where_branches", "pointwise", lambda: between(
        lambda m, x: torch.where(m.a(x) > 0, m.b(x), m.c(x)), a=cbn(8, 8), b=cbn(8, 8), c=cbn(8, 8)), ("where",)),
    Case("where_buffer_mask", "pointwise", lambda: between(
        lambda m, x: torch.where(m.mask, x, torch.zeros_like(x)),
        mask=(torch.arange(8) % 3 > 0).view(1, 8, 1, 1)), ("where",)),
    Case("masked_fill", "pointwise", lambda: between(
        lambda m, x: x.masked_fill(m.mask, 0.0) + x.masked_fill(x > 1, 2.0),
        mask=(torch.arange(8) % 3 > 0).view(1, 8, 1, 1)), ("masked_fill",)),
    Case("lerp_addcmul", "pointwise", lambda: between(
        lambda m, x: torch.addcdiv(torch.addcmul(torch.lerp(m.a(x), m.b(x), 0.3), m.a(x), x), x, m.b(x).square() + 1),
        a=cba(8, 8), b=cba(8, 8)), ("lerp", "addcmul", "addcdiv")),
    Case("sigmoid_then_conv", "pointwise", lambda: between(
        lambda m, x: m.b(torch.sigmoid(m.a(x))), a=cbn(8, 8), b=conv(8, 8)), ("sigmoid",)),
    Case("prelu", "pointwise", lambda: between(
        lambda m, x: m.one(m.each(x)), each=nn.PReLU(8), one=nn.PReLU()), ("prelu",)),
    Case("casts_and_clones", "pointwise", lambda: between(_clones, a=cba(8, 8), b=cba(8, 8)), ("clone", "to")),
    Case("dropout_eval", "pointwise", lambda: between(
        lambda m, x: F.dropout(m.alpha(m.two(m.one(x))), 0.5, m.training), one=nn.Dropout(), two=nn.Dropout2d(),
        alpha=nn.AlphaDropout())),
    Case("parameter_shapes", "pointwise", lambda: between(
        lambda m, x: (x * m.a + m.b) * m.c - m.d, a=nn.Parameter(torch.randn(1, 8, 1, 1)),
        b=nn.Parameter(torch.randn(8, 1, 1)), c=nn.Parameter(torch.randn(())), d=nn.Parameter(torch.randn(1, 8, 8, 8))),
        ("mul", "add", "sub")),
    Case("parameter_chosen_in_forward", "pointwise", lambda: between(
        lambda m, x: x * m.table[1].view(1, -1, 1, 1) + m.table[2].view(-1, 1, 1), table=nn.Parameter(torch.randn(3,
        8))),
        ("mul",)),
    Case("buffer_shapes", "pointwise", lambda: between(
        lambda m, x: (x - m.mean.view(1, -1, 1, 1)) / m.std[None, :, None, None], mean=torch.randn(8),
        std=torch.rand(8) + 1), ("sub", "div")),
    Case("batch_norm_shifted", "channel affine", lambda: between(  # by what the network computes
        lambda m, x: F.batch_norm(x, m.mean, m.mean.exp(), m.scale, m.mean + m.b(x).mean((0, 2, 3))),
        b=cba(8, 8), mean=0.1 * torch.arange(8.0), scale=nn.Parameter(torch.ones(8))), ("batch_norm",)),
    Case("batch_norm_masked", "channel affine", lambda: between(  # as by masks of torch.nn.utils.prune
        lambda m, x: F.batch_norm(m.c(x), m.mean, m.spread, m.scale * m.mask, m.mean * m.mask), c=conv(8, 8),
        spread=0.5 + torch.arange(8.0), mean=0.1 * torch.arange(8.0), scale=nn.Parameter(torch.ones(8)),
        mask=(torch.arange(8) % 3 > 0).double()), ("batch_norm",)),
    Case("instance_norm_masked", "channel affine", lambda: between(
        lambda m, x: F.instance_norm(m.c(x), None, None, m.scale * m.mask, m.scale * m.mask), c=conv(8, 8),
        scale=nn.Parameter(torch.ones(8)), mask=(torch.arange(8) % 3 > 0).double()), ("instance_norm",)),
    Case("cat_of_nothing", "movement", lambda: between(
        lambda m, x: torch.cat((torch.empty(0, dtype=x.dtype), x[:, :0], m.a(x), x[:, 0:4], x[:, 4:8], x[:, 8:12]), 1),
        a=cba(8, 8), o=16), ("cat",)),
    Case("fusion_weights", "pointwise", lambda: between(  # of a BiFPN: ReLU makes the second zero
        _fused_by_weights, a=cba(8, 8), b=cba(8, 8), c=cba(8, 8),
        weights=nn.Parameter(torch.tensor([0.7, -0.1, 0.4]), requires_grad=False)), ("relu", "div")),
    Case("layer_scale", "pointwise", lambda: between(
        lambda m, x: x + m.gamma.view(8, 1, 1) * m.a(x), a=cba(8, 8), gamma=nn.Parameter(torch.randn(8))), ("mul",)),
    Case("inplace_chain", "pointwise", lambda: between(
        lambda m, x: m.c(m.b(m.a(x).relu_().add_(x)).mul_(2).sub_(1).clamp_(min=0).sigmoid_()), a=cbn(8, 8), b=cbn(8,
        8),
        c=cba(8, 8)), ("relu_", "add_")),
)
# fmt: on


def _plus_equals(m: Any, x: Tensor) -> Tensor:
    x += m.a(x)
    x *= m.b(x)
    x -= 1
    x /= 2
    return F.hardtanh(F.silu(x, inplace=True), inplace=True)


def _inplace_slice(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    y[:, :4] += 1
    y[:, 6:] *= 2
    return y


def _inplace_assign(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    y[:, :3] = 0
    y[:, 3:5] = x[:, :2]
    return y


def _inplace_view(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    y.view(y.shape[0], 2, 4, 8, 8)[:, 1].relu_()
    y.transpose(2, 3)[:, :, 0] += 1
    return y


def _inplace_aliased(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    before = y * 2
    z = y.view_as(y)
    z.add_(1)
    return before + y


def _inplace_after_copy(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    copy = y.flatten(2).transpose(1, 2).contiguous().reshape(y.shape[0], -1, 16)  # what is written later is not seen
    y.add_(1)
    return y + copy.flatten(1).view(y.shape)


def _inplace_decode(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    y[:, 0:2] = (y[:, 0:2].sigmoid() * 2 + m.grid) * 8
    y[..., 0] = y[..., 0].exp()
    return y


def _inplace_buffer(m: Any, x: Tensor) -> Tensor:
    out = torch.zeros(x.shape[0], 12, 8, 8, dtype=x.dtype)
    out[:, :8] = x
    out[:, 8:] = m.a(x)
    return out


def _inplace_shape(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    y.transpose_(2, 3)
    y.relu_()  # no other tensor looks at y
    z = y[0]
    z.unsqueeze_(0)  # y keeps its shape
    return y + z


def _inplace_result(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    largest, _ = y.max(1, keepdim=True)  # no view of y
    largest.pow_(2)
    return y + largest


# fmt: off
INPLACE = (
    Case("inplace_shape", "inplace", lambda: between(_inplace_shape, a=cba(8, 8)), ("transpose_", "unsqueeze_")),
    Case("inplace_result", "inplace", lambda: between(_inplace_result, a=cba(8, 8)), ("max", "pow_")),
    Case("inplace_augmented", "inplace", lambda: between(_plus_equals, a=cba(8, 8), b=cba(8, 8)), ("add_", "mul_")),
    Case("inplace_slice_add", "inplace", lambda: between(_inplace_slice, a=cba(8, 8)), ("add_", "slice")),
    Case("inplace_slice_assign", "inplace", lambda: between(_inplace_assign, a=cba(8, 8)), ("copy_", "slice")),
    Case("inplace_through_views", "inplace", lambda: between(_inplace_view, a=cba(8, 8)), ("relu_", "view")),
    Case("inplace_aliased", "inplace", lambda: between(_inplace_aliased, a=cba(8, 8)), ("add_",)),
    Case("inplace_after_copy", "inplace", lambda: between(_inplace_after_copy, a=cba(8, 8)), ("add_",)),
    Case("inplace_box_decode", "inplace", lambda: between(_inplace_decode, a=cbn(8, 8), grid=torch.randn(1, 2, 8, 8)),
         ("copy_",)),
    Case("inplace_into_zeros", "inplace", lambda: between(_inplace_buffer, o=12, a=cba(8, 4)), ("zeros", "copy_")),
)
# fmt: on

# ----------------------------------------------------------------------------------------------------------------------
# Broadcasting, gates, several inputs.


def _squeeze_excite(m: Any, x: Tensor) -> Tensor:
    return x * m.up(F.relu(m.down(F.adaptive_avg_pool2d(x, 1)))).sigmoid()


def _squeeze_excite_linear(m: Any, x: Tensor) -> Tensor:
    gate = torch.sigmoid(m.up(F.relu(m.down(x.mean((2, 3))))))
    return x * gate.view(x.shape[0], 8, 1, 1)


def _eca(m: Any, x: Tensor) -> Tensor:
    gate = m.mix(x.mean((2, 3), keepdim=True).squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
    return x * gate.sigmoid().expand_as(x)


def _cbam(m: Any, x: Tensor) -> Tensor:
    pooled = [m.mlp(p) for p in (F.adaptive_avg_pool2d(x, 1), F.adaptive_max_pool2d(x, 1))]
    x = x * (pooled[0] + pooled[1]).sigmoid()
    return x * m.spatial(torch.cat((x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]), 1)).sigmoid()


def _selective_kernel(m: Any, x: Tensor) -> Tensor:
    a, b = m.a(x), m.b(x)
    gates = m.gates(F.relu(m.squeeze((a + b).mean((2, 3), keepdim=True)))).view(-1, 2, 8, 1, 1).softmax(1)
    return (torch.stack((a, b), 1) * gates).sum(1)


def _split_attention(m: Any, x: Tensor) -> Tensor:  # ResNeSt with radix 2
    n = x.shape[0]
    parts = m.a(x).view(n, 2, 8, 8, 8)
    gates = m.up(F.relu(m.down(F.adaptive_avg_pool2d(parts.sum(1), 1)))).view(n, 1, 2, 8).transpose(1, 2)
    return (parts * gates.softmax(1).reshape(n, 2, 8, 1, 1)).sum(1)


def _coordinates(m: Any, x: Tensor) -> Tensor:
    ramp = torch.linspace(-1, 1, 8, dtype=x.dtype).view(1, 1, 1, 8).expand(x.shape[0], 1, 8, 8)
    return m.a(torch.cat((x, ramp, ramp.transpose(2, 3)), 1))


# fmt: off
GATES = (
    Case("se_conv", "gate", lambda: between(_squeeze_excite, down=head(8, 4), up=head(4, 8)), ("mul",)),
    Case("se_linear", "gate", lambda: between(_squeeze_excite_linear, down=nn.Linear(8, 4), up=nn.Linear(4, 8)),
        ("mul",)),
    Case("se_hardsigmoid", "gate", lambda: between(
        lambda m, x: x * F.hardsigmoid(m.up(F.relu(m.down(F.adaptive_avg_pool2d(x, 1))))), down=head(8, 4),
        up=head(4, 8)), ("hardsigmoid",)),
    Case("gate_eca", "gate", lambda: between(_eca, mix=nn.Conv1d(1, 1, 3, padding=1, bias=False)), ("conv1d",),
         at_limit=False),
    Case("gate_cbam", "gate", lambda: between(
        _cbam, mlp=nn.Sequential(head(8, 4), nn.ReLU(), head(4, 8)), spatial=conv(2, 1, 3)), ("mul",), at_limit=False),
    Case("gate_selective_kernel", "gate", lambda: between(
        _selective_kernel, a=cba(8, 8), b=cba(8, 8), squeeze=head(8, 4), gates=head(4, 16)), ("softmax",),
        at_limit=False),
    Case("gate_split_attention", "gate", lambda: between(
        _split_attention, a=cba(8, 16, g=2), down=head(8, 4), up=head(4, 16)), ("softmax",), at_limit=False),
    Case("gate_spatial_mask", "gate", lambda: between(lambda m, x: m.a(x) * torch.sigmoid(m.mask(x)), a=cba(8, 8),
         mask=head(8, 1)), ("mul",)),
    Case("gate_mask_input", "gate", lambda: net(
        lambda m, x, mask: m.head(m.b(m.stem(x) * mask)), randoms((2, 3, 8, 8), (2, 1, 8, 8)), stem=cba(3, 8),
        b=cba(8, 8), head=head(8)), ("mul",)),
    Case("gate_product_of_branches", "gate", lambda: between(
        lambda m, x: m.a(x) * m.b(x), a=cba(8, 8), b=cba(8, 8)), ("mul",)),
    Case("gate_simple", "gate", lambda: between(  # NAFNet
        lambda m, x: torch.mul(*m.a(x).chunk(2, 1)), o=4, a=cbn(8, 8)), ("chunk", "mul")),
    Case("glu_channels", "gate", lambda: between(lambda m, x: F.glu(m.a(x), 1), o=4, a=cbn(8, 8)), ("glu",)),
    Case("glu_manual", "gate", lambda: between(
        lambda m, x: (lambda a, b: a * b.sigmoid())(*m.a(x).chunk(2, 1)), o=4, a=cbn(8, 8)), ("chunk",)),
    Case("glu_spatial", "gate", lambda: between(lambda m, x: F.glu(m.a(x), -1), a=cbn(8, 8)), ("glu",)),
    Case("glu_swish_tokens", "gate", lambda: tokens(
        lambda m, x: m.down(F.silu(m.gate(x)) * m.up(x)), gate=nn.Linear(8, 12), up=nn.Linear(8, 12),
        down=nn.Linear(12, 8)), ("silu", "mul")),
    Case("coordinates", "gate", lambda: between(_coordinates, a=cba(10, 8)), ("linspace", "cat")),
    Case("outer_product", "gate", lambda: between(
        lambda m, x: m.a(x).mean(3, keepdim=True) * m.b(x).mean(2, keepdim=True), a=cba(8, 8), b=cba(8, 8)), ("mean",)),
    Case("scalar_input", "gate", lambda: net(
        lambda m, x, t: m.head(m.stem(x) * m.time(t)[:, :, None, None]), randoms((2, 3, 8, 8), (2, 4)),
        stem=cba(3, 8), time=nn.Linear(4, 8), head=head(8)), ("mul",)),
    Case("film", "gate", lambda: net(
        lambda m, x, t: m.head(m.stem(x) * (1 + m.time(t)[:, :8, None, None]) + m.time(t)[:, 8:, None, None]),
        randoms((2, 3, 8, 8), (2, 4)), stem=cba(3, 8), time=nn.Linear(4, 16), head=head(8)), ("mul", "add")),
)
# fmt: on

# ----------------------------------------------------------------------------------------------------------------------
# Attention.


def _conv_attention(m: Any, x: Tensor) -> Tensor:
    """Two heads with keys of 4 and values of 8 channels, positions by a depthwise convolution (YOLO11's C2PSA)."""
    n, c, h, w = x.shape
    q, k, v = m.qkv(x).view(n, 2, 16, h * w).split([4, 4, 8], dim=2)
    weights = ((q.transpose(-2, -1) @ k) * 4**-0.5).softmax(dim=-1)
    out = (v @ weights.transpose(-2, -1)).view(n, c, h, w) + m.positions(v.reshape(n, c, h, w))
    return m.project(out)


def _psa(m: Any, x: Tensor) -> Tensor:
    a, b = m.cv1(x).split((16, 16), dim=1)
    b = b + _conv_attention(m, b)
    b = b + m.mlp(b)
    return m.cv2(torch.cat((a, b), 1))


def _heads(m: Any, x: Tensor, mode: str = "plain") -> Tensor:
    """Multi-head self-attention on (N, L, 8) with two heads of 4 from one fused projection."""
    n, length, c = x.shape
    q, k, v = m.qkv(x).reshape(n, length, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
    if mode == "sdpa":
        out = F.scaled_dot_product_attention(q, k, v)
    elif mode == "sdpa_scale_mask":
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=m.mask, scale=0.3)
    elif mode == "causal":
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    else:
        out = (q * 4**-0.5 @ k.transpose(-2, -1)).softmax(-1) @ v
    return m.project(out.transpose(1, 2).reshape(n, length, c))


def _separate_heads(m: Any, x: Tensor) -> Tensor:
    n, length, c = x.shape
    q, k, v = (layer(x).view(n, length, 2, 4).transpose(1, 2) for layer in (m.q, m.k, m.v))
    return m.project(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).contiguous().view(n, length, c))


def _cross_covariance(m: Any, x: Tensor) -> Tensor:
    n, length, c = x.shape
    q, k, v = m.qkv(x).reshape(n, length, 3, 2, 4).permute(2, 0, 3, 4, 1).unbind(0)
    weights = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(-2, -1) * m.temperature).softmax(-1)
    return m.project((weights @ v).permute(0, 3, 1, 2).reshape(n, length, c))


def _logarithm(m: Any, x: Tensor) -> Tensor:
    """Two readers need different channels of what a logarithm is taken of."""
    n, length, _ = x.shape
    u, k, k2, v = (each.reshape(n, length, 2, 4).permute(0, 2, 1, 3) for each in (m.q(x), m.k(x), m.k2(x), m.v(x)))
    u = torch.sigmoid(u) + 0.1
    weights = (u.log() @ k.transpose(2, 3) + u @ k2.transpose(2, 3)).softmax(-1)
    return (weights @ v).permute(0, 2, 1, 3).reshape(n, length, 8)


def _linear_attention(m: Any, x: Tensor) -> Tensor:
    q, k, v = F.relu(m.q(x)), F.relu(m.k(x)), m.v(x)
    return (q @ (k.transpose(1, 2) @ v)) / (q @ k.sum(1).unsqueeze(-1) + 1.0)


def _non_local(m: Any, x: Tensor) -> Tensor:
    theta, phi, g = m.theta(x).flatten(2), m.phi(x).flatten(2), m.g(x).flatten(2)
    weights = torch.bmm(theta.transpose(1, 2), phi).softmax(-1)
    return x + m.w(torch.bmm(g, weights.transpose(1, 2)).view(x.shape[0], 4, 8, 8))


def _mixer(m: Any, x: Tensor) -> Tensor:
    x = x + m.space(m.norm1(x).transpose(1, 2)).transpose(1, 2)
    return x + m.channel(m.norm2(x))


def _mlp(i: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(i, hidden), nn.GELU(), nn.Linear(hidden, i))


def _attention_parts(**more: Any) -> dict[str, Any]:
    return {"qkv": nn.Linear(8, 24), "project": nn.Linear(8, 8), **more}


_CONV_ATTENTION: Callable[[], dict[str, Any]] = lambda: {
    "qkv": cbn(16, 32, 1),
    "project": cbn(16, 16, 1),
    "positions": cbn(16, 16, g=16),
}


def _encoder(m: Any, x: Tensor) -> Tensor:
    x = x + m.attend(m.norm1(x), m.norm1(x), m.norm1(x), need_weights=False)[0]
    return x + m.mlp(m.norm2(x))


# fmt: off
ATTENTION = (
    Case("attention_conv", "attention", lambda: between(_conv_attention, 16, 16, 4, **_CONV_ATTENTION()),
         ("matmul", "softmax"), at_limit=False),
    Case("attention_c2psa", "attention", lambda: between(
        _psa, 8, 8, 4, cv1=cba(8, 32, 1), cv2=cba(32, 8, 1), mlp=nn.Sequential(cba(16, 32, 1), cbn(32, 16, 1)),
        **_CONV_ATTENTION()), ("matmul", "softmax"), at_limit=False),
    Case("attention_heads_fused", "attention", lambda: tokens(_heads, **_attention_parts()), ("unbind", "softmax"),
         at_limit=False),
    Case("attention_sdpa", "attention", lambda: tokens(lambda m, x: _heads(m, x, "sdpa"), **_attention_parts()),
         ("scaled_dot_product_attention",), at_limit=False),
    Case("attention_sdpa_scale_mask", "attention", lambda: tokens(
        lambda m, x: _heads(m, x, "sdpa_scale_mask"), **_attention_parts(mask=torch.randn(6, 6))),
        ("scaled_dot_product_attention",), at_limit=False),
    Case("attention_causal", "attention", lambda: tokens(lambda m, x: _heads(m, x, "causal"), **_attention_parts()),
         ("scaled_dot_product_attention",), at_limit=False),
    Case("attention_separate", "attention", lambda: tokens(
        _separate_heads, q=nn.Linear(8, 8), k=nn.Linear(8, 8), v=nn.Linear(8, 8), project=nn.Linear(8, 8)),
        ("scaled_dot_product_attention",), at_limit=False),
    Case("attention_narrow_heads", "attention", lambda: tokens(  # the scale is that of the width that the heads had
        _separate_heads, q=_without_rows(nn.Linear(8, 8), [0, 6]), k=nn.Linear(8, 8), v=nn.Linear(8, 8),
        project=nn.Linear(8, 8)), ("scaled_dot_product_attention",), at_limit=False),
    Case("attention_single_head", "attention", lambda: tokens(
        lambda m, x: (m.q(x) @ m.k(x).transpose(1, 2) / 8**0.5).softmax(-1) @ m.v(x),
        q=nn.Linear(8, 8), k=nn.Linear(8, 8), v=nn.Linear(8, 8)), ("matmul", "softmax")),
    Case("attention_module", "attention", lambda: tokens(
        lambda m, x: m.attend(x, x, x)[0], attend=nn.MultiheadAttention(8, 2, batch_first=True)), at_limit=False),
    Case("attention_module_cross", "attention", lambda: net(
        lambda m, x, y: m.out(m.attend(m.a(x), m.b(y), m.b(y), need_weights=False)[0]), randoms((2, 6, 5), (2, 4, 5)),
        a=nn.Linear(5, 8), b=nn.Linear(5, 8), attend=nn.MultiheadAttention(8, 2, batch_first=True), out=nn.Linear(8,
        3)),
        at_limit=False),
    Case("attention_encoder", "attention", lambda: tokens(
        _encoder, norm1=nn.LayerNorm(8), norm2=nn.LayerNorm(8), mlp=_mlp(8, 16),
        attend=nn.MultiheadAttention(8, 2, batch_first=True)), ("layer_norm",), at_limit=False),
    Case("attention_cross_covariance", "attention", lambda: tokens(
        _cross_covariance, **_attention_parts(temperature=nn.Parameter(torch.ones(2, 1, 1)))), ("matmul",),
        at_limit=False),
    Case("attention_of_logarithms", "attention", lambda: tokens(
        _logarithm, q=nn.Linear(8, 8), k=nn.Linear(8, 8), k2=nn.Linear(8, 8), v=nn.Linear(8, 8)), ("log",),
        at_limit=False),
    Case("attention_of_filled_logarithms", "attention", lambda: tokens(  # the logarithm's row has a hole that q lacks
        _logarithm, q=nn.Linear(8, 8), k=_without_rows(nn.Linear(8, 8), [2, 3, 7]),
        k2=_without_rows(nn.Linear(8, 8), [2, 7]), v=nn.Linear(8, 8)), ("log",), at_limit=False),
    Case("mean_so_far", "mixing", lambda: tokens(
        lambda m, x: m.a(x).cumsum(1) / torch.arange(1, 7, dtype=x.dtype).unsqueeze(-1), a=nn.Linear(8, 8)),
        ("cumsum", "div")),
    Case("attention_linear", "attention", lambda: tokens(
        _linear_attention, q=nn.Linear(8, 8), k=nn.Linear(8, 8), v=nn.Linear(8, 8)), ("matmul",)),
    Case("attention_non_local", "attention", lambda: between(
        _non_local, size=8, theta=head(8, 4), phi=head(8, 4), g=head(8, 4), w=cbn(4, 8, 1)), ("bmm", "softmax")),
    Case("attention_einsum", "attention", lambda: tokens(
        lambda m, x: torch.einsum("bnm,bmd->bnd", torch.einsum("bnc,bmc->bnm", m.q(x), m.k(x)).softmax(-1), m.v(x)),
        q=nn.Linear(8, 8), k=nn.Linear(8, 8), v=nn.Linear(8, 8)), ("einsum",)),
    Case("attention_class_token", "attention", lambda: tokens(
        lambda m, x: _heads(m, torch.cat((m.token.expand(x.shape[0], -1, -1), x), 1) + m.positions)[:, :1],
        **_attention_parts(token=nn.Parameter(torch.randn(1, 1, 8)), positions=nn.Parameter(torch.randn(1, 7, 8)))),
        ("expand", "cat"), at_limit=False),
    Case("mixer", "attention", lambda: tokens(
        _mixer, space=_mlp(6, 10), channel=_mlp(8, 16), norm1=nn.LayerNorm(8), norm2=nn.LayerNorm(8)),
        ("layer_norm", "transpose"), at_limit=False),
)
# fmt: on

# ----------------------------------------------------------------------------------------------------------------------
# Normalisation and reductions.


def _local_response(m: Any, x: Tensor) -> Tensor:
    return F.local_response_norm(x, 3)


def _ranked(m: Any, x: Tensor) -> Tensor:
    values, _ = x.sort(1)
    return values + x.topk(8, 1)[0] + torch.cumsum(x, 1)


_REDUCTIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: x.mean(1, True),
    lambda x: x.sum(1, True),
    lambda x: x.amax(1, True),
    lambda x: x.amin(1, True),
    lambda x: x.var(1, keepdim=True),
    lambda x: x.std(1, keepdim=True),
    lambda x: x.norm(dim=1, keepdim=True),
    lambda x: x.logsumexp(1, True),
    lambda x: x.prod(1, True),
    lambda x: x.max(1, True)[0],
    lambda x: x.min(1, True)[0],
    lambda x: x.median(1, True)[0],
    lambda x: x.nanmedian(1, True)[0],
    lambda x: torch.linalg.vector_norm(x, dim=1, keepdim=True),
)
_SPATIAL_REDUCTIONS: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: x.mean((2, 3)),
    lambda x: x.sum((2, 3)),
    lambda x: x.amax((2, 3)),
    lambda x: x.amin((2, 3)),
    lambda x: x.var((2, 3)),
    lambda x: x.std((2, 3)),
    lambda x: x.flatten(2).norm(dim=2),
    lambda x: x.flatten(2).max(2)[0],
    lambda x: x.flatten(2).logsumexp(2),
    lambda x: x.flatten(2).prod(2),
    lambda x: x.flatten(2).min(2)[0],
)


def _reductions(m: Any, x: Tensor) -> Tensor:
    return torch.cat([f(y(x)) for f, y in zip(_REDUCTIONS, m.stems, strict=True)], 1)


def _spatial_reductions(m: Any, x: Tensor) -> Tensor:
    return m.out(torch.cat([f(y(x)) for f, y in zip(_SPATIAL_REDUCTIONS, m.stems, strict=True)], 1))


def _in_training(built: Built) -> Built:
    return built[0].train(), built[1]


def _layer_norm_2d(m: Any, x: Tensor) -> Tensor:
    mean = x.mean(1, keepdim=True)
    variance = (x - mean).pow(2).mean(1, keepdim=True)
    return m.weight[:, None, None] * (x - mean) / torch.sqrt(variance + 1e-6) + m.bias[:, None, None]


# fmt: off
NORMALISATION = (
    Case("batch_norm_eval", "norm", lambda: between(lambda m, x: m.n(m.c(x)), c=conv(8, 8), n=nn.BatchNorm2d(8)),
         ("batch_norm",)),
    Case("batch_norm_train", "norm", lambda: _in_training(between(
        lambda m, x: m.b(m.a(x) + x), a=cba(8, 8), b=cba(8, 8))), ("batch_norm",)),
    Case("batch_norm_train_1d", "norm", lambda: _in_training(tail(lambda m, x: m.a(x.mean((2, 3))), 8, a=nn.Linear(8,
        8))),
         ("batch_norm",)),
    Case("batch_norm_mixed_modes", "norm", lambda: (lambda model, args: (_half_frozen(model), args))(*between(
        lambda m, x: m.b(m.a(x)) + x, a=cba(8, 8), b=cba(8, 8))), ("batch_norm",)),
    Case("batch_norm_plain", "norm", lambda: between(
        lambda m, x: m.n(m.c(x)), c=conv(8, 8), n=nn.BatchNorm2d(8, affine=False)), ("batch_norm",)),
    Case("batch_norm_of_batch", "norm", lambda: between(
        lambda m, x: m.n(m.c(x)), c=conv(8, 8), n=nn.BatchNorm2d(8, track_running_stats=False)), ("batch_norm",)),
    Case("batch_norm_before_relu_of_cat", "norm", lambda: between(
        lambda m, x: F.relu(m.n(torch.cat((m.a(x), x), 1))), o=16, a=conv(8, 8), n=nn.BatchNorm2d(16)),
        ("batch_norm",)),
    Case("batch_norm_compensation", "norm", lambda: between(  # a dead input makes a constant, not a zero
        lambda m, x: m.c(m.n(F.relu(m.a(x)))), a=cba(8, 8), n=nn.BatchNorm2d(8), c=conv(8, 8)), ("batch_norm",)),
    Case("batch_norm_frozen", "norm", lambda: between(  # as torchvision's FrozenBatchNorm2d
        lambda m, x: m.c(x) * m.scale.view(1, -1, 1, 1) + m.shift.view(1, -1, 1, 1), c=conv(8, 8),
        scale=torch.randn(8).index_fill_(0, torch.tensor([1, 4]), 0), shift=torch.randn(8).index_fill_(
            0, torch.tensor([1, 5]), 0)), ("mul", "add")),
    Case("layer_norm_tokens", "norm", lambda: tokens(lambda m, x: m.n(x), n=nn.LayerNorm(8)), ("layer_norm",)),
    Case("layer_norm_by_halves", "norm", lambda: tokens(  # scale or shift is zero, or both are
        lambda m, x: F.layer_norm(x, (8,), m.weight, m.bias),
        weight=_fixed([0.0, 0.0, 1.5, -0.7, 0.9, 1.2, 0.0, 0.4]),
        bias=_fixed([0.8, -1.1, 0.0, 0.0, 0.3, 0.7, 0.0, 0.0])),
        ("layer_norm",)),
    Case("layer_norm_channels_last", "norm", lambda: between(
        lambda m, x: m.n(m.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2), a=conv(8, 8), n=nn.LayerNorm(8)),
        ("layer_norm",)),
    Case("layer_norm_2d", "norm", lambda: between(
        _layer_norm_2d, weight=nn.Parameter(torch.randn(8)), bias=nn.Parameter(torch.randn(8))), ("mean", "pow")),
    Case("layer_norm_spatial", "norm", lambda: between(lambda m, x: m.n(x), n=nn.LayerNorm((8, 8))), ("layer_norm",)),
    Case("rms_norm", "norm", lambda: tokens(lambda m, x: m.n(x), n=nn.RMSNorm(8)), ("rms_norm",)),
    Case("group_norm", "norm", lambda: between(lambda m, x: F.relu(m.n(m.a(x))), a=conv(8, 8), n=nn.GroupNorm(2, 8)),
         ("group_norm",)),
    Case("group_norm_computed", "norm", lambda: between(
        lambda m, x: F.relu(F.group_norm(m.a(x), 2, m.scale.exp(), m.scale * 2)), a=conv(8, 8),
        scale=nn.Parameter(torch.randn(8))), ("group_norm",)),
    Case("group_norm_one", "norm", lambda: between(lambda m, x: m.n(x), n=nn.GroupNorm(1, 8)), ("group_norm",)),
    Case("instance_norm", "norm", lambda: between(
        lambda m, x: m.n(m.a(x)), a=conv(8, 8), n=nn.InstanceNorm2d(8, affine=True)), ("instance_norm",)),
    Case("instance_norm_plain", "norm", lambda: between(
        lambda m, x: m.n(x), n=nn.InstanceNorm2d(8)), ("instance_norm",)),
    Case("instance_norm_tracked", "norm", lambda: between(
        lambda m, x: m.n(x), n=nn.InstanceNorm2d(8, affine=True, track_running_stats=True)), ("instance_norm",)),
    Case("local_response_norm", "norm", lambda: between(_local_response), at_limit=False),
    Case("softmax_channels", "norm", lambda: between(lambda m, x: m.a(x).softmax(1), a=conv(8, 8)), ("softmax",)),
    Case("softmax_spatial", "norm", lambda: between(
        lambda m, x: m.a(x).flatten(2).softmax(2).view(-1, 8, 8, 8) * x, a=conv(8, 8)), ("softmax",)),
    Case("log_softmax_output", "norm", lambda: tail(lambda m, x: m.a(x.mean((2, 3))).log_softmax(1), 6,
         a=nn.Linear(8, 6)), ("log_softmax",)),
    Case("normalize", "norm", lambda: between(lambda m, x: F.normalize(m.a(x), dim=1), a=conv(8, 8))),
    Case("reductions_of_channels", "norm", lambda: net(
        lambda m, x: m.head(_reductions(m, x)), image(), stems=nn.ModuleList(cbn(3, 4) for _ in _REDUCTIONS),
        head=head(len(_REDUCTIONS))), ("mean", "amax", "var", "logsumexp", "prod")),
    Case("reductions_of_space", "norm", lambda: net(
        _spatial_reductions, image(), stems=nn.ModuleList(cbn(3, 4) for _ in _SPATIAL_REDUCTIONS),
        out=nn.Linear(4 * len(_SPATIAL_REDUCTIONS), 3)), ("mean", "amax", "sum")),
    Case("argmax_of_channels", "norm", lambda: net(
        lambda m, x: (m.head(m.stem(x)).argmax(1), m.head(m.stem(x)).argmin(1)), image(), stem=cba(3, 8),
        head=head(8, 5)), ("argmax",), at_limit=False),
    Case("sort_topk_cumsum", "unknown", lambda: between(_ranked), ("sort", "topk", "cumsum")),
    Case("fft", "unknown", lambda: between(
        lambda m, x: torch.fft.rfft2(m.a(x)).abs(), a=cba(8, 8)), ("fft_rfft2",), at_limit=False),
    Case("fft_over_channels", "unknown", lambda: between(
        lambda m, x: torch.fft.fft(m.a(x), dim=1).real, a=cba(8, 8)), ("fft_fft",), at_limit=False),
    Case("cdist", "unknown", lambda: tokens(
        lambda m, x: torch.cdist(m.a(x), m.b(x)), o=6, a=nn.Linear(8, 8), b=nn.Linear(8, 8)), at_limit=False),
    Case("scatter_add", "unknown", lambda: between(
        lambda m, x: torch.zeros_like(x).scatter_add(1, m.order.view(1, 8, 1, 1).expand_as(x), x),
        order=torch.tensor([5, 0, 3, 3, 7, 1, 4, 6])), ("scatter_add",), at_limit=False),
    Case("index_add", "unknown", lambda: between(
        lambda m, x: torch.index_add(torch.zeros_like(x), 1, m.order, x), order=torch.tensor([5, 0, 3, 3, 7, 1, 4, 6])),
        ("index_add",), at_limit=False),
    Case("triangular", "unknown", lambda: tokens(lambda m, x: torch.tril(x) + x, length=8), ("tril",), at_limit=False),
)
# fmt: on


def _half_frozen(model: nn.Module) -> nn.Module:
    """Fine-tuning with the second half's batch norms frozen: train mode, but `b` in eval mode."""
    model.train().get_submodule("b").eval()
    return model


# ----------------------------------------------------------------------------------------------------------------------
# Pooling and resizing.


def _sppf(m: Any, x: Tensor) -> Tensor:
    pyramid = [m.a(x)]
    for _ in range(3):
        pyramid.append(F.max_pool2d(pyramid[-1], 5, 1, 2))
    return m.b(torch.cat(pyramid, 1))


def _unpool(m: Any, x: Tensor) -> Tensor:
    y, indices = F.max_pool2d(m.a(x), 2, return_indices=True)
    return F.max_unpool2d(F.relu(y), indices, 2)


def _unpool_3d(m: Any, x: Tensor) -> Tensor:
    y, indices = F.max_pool3d(m.a(x).unsqueeze(2), (1, 2, 2), return_indices=True)
    return F.max_unpool3d(F.relu(y), indices, (1, 2, 2)).squeeze(2)


# fmt: off
POOLING = (
    Case("pool_max", "pool", lambda: between(lambda m, x: m.a(F.max_pool2d(x, 3, 2, 1)), a=cba(8, 8)), ("max_pool2d",)),
    Case("pool_average", "pool", lambda: between(
        lambda m, x: F.avg_pool2d(F.avg_pool2d(x, 2), 3, 1, 1, count_include_pad=False)), ("avg_pool2d",)),
    Case("pool_adaptive", "pool", lambda: between(
        lambda m, x: F.adaptive_avg_pool2d(x, 3) + F.adaptive_max_pool2d(x, (3, 3))), ("adaptive_avg_pool2d",)),
    Case("pool_1d_3d", "pool", lambda: tail(
        lambda m, x: F.adaptive_avg_pool1d(F.max_pool1d(F.avg_pool1d(x.flatten(2), 2), 2), 1).squeeze(-1)
        + F.adaptive_avg_pool3d(F.max_pool3d(F.avg_pool3d(x.unsqueeze(2), (1, 2, 2)), (1, 2, 2)), 1).flatten(1), 8)),
    Case("pool_adaptive_max_1d_3d", "pool", lambda: tail(
        lambda m, x: F.adaptive_max_pool1d(x.flatten(2), 1).squeeze(-1)
        + F.adaptive_max_pool3d(x.unsqueeze(2), 1).flatten(1), 8), ("adaptive_max_pool1d", "adaptive_max_pool3d")),
    Case("pool_power", "pool", lambda: between(lambda m, x: F.lp_pool2d(x, 2, 2)), at_limit=False),
    Case("pool_indices_beyond_values", "pool", lambda: net(  # of the values fewer channels are read than of the indices
        lambda m, x: (lambda y, i: (m.head(y[:, :4]), i))(*F.max_pool2d(m.a(x), 2, return_indices=True)), image(),
        a=cba(3, 8), head=head(4)), at_limit=False),
    Case("pool_indices_unpool", "pool", lambda: between(_unpool, a=cbn(8, 8)), ("max_unpool2d",)),
    Case("pool_indices_unpool_1d", "pool", lambda: between(lambda m, x: F.max_unpool1d(
        *F.max_pool1d(m.a(x).flatten(2), 2, return_indices=True), 2).unflatten(2, (8, 8)), a=cbn(8, 8)),
        ("max_pool1d_with_indices",)),
    Case("pool_indices_unpool_3d", "pool", lambda: between(_unpool_3d, a=cbn(8, 8)), ("max_unpool3d",)),
    Case("pool_of_padding", "pool", lambda: between(
        lambda m, x: F.max_pool2d(F.pad(F.max_pool2d(F.pad(m.a(x), [0, 1, 0, 1], value=-torch.inf), 3, 2), [1, 1, 1, 1],
        value=torch.finfo(x.dtype).min), 3, 1), a=cba(8, 8)), ("pad", "max_pool2d")),
    Case("fake_quantise", "pool", lambda: between(
        lambda m, x: torch.fake_quantize_per_channel_affine(m.a(torch.fake_quantize_per_tensor_affine(
        x, 0.05, 3, -128, 127)), m.scale.float(), m.point, 1, -128, 127), a=cba(8, 8), scale=torch.rand(8) * 0.1 + 0.01,
        point=torch.arange(8, dtype=torch.int32)),
        ("fake_quantize_per_tensor_affine", "fake_quantize_per_channel_affine"), dynamic=False),
    Case("fake_quantise_weight", "pool", lambda: between(
        lambda m, x: F.conv2d(torch.fake_quantize_per_tensor_affine(x, m.scale[0].float(), m.point[0], -128, 127),
        torch.fake_quantize_per_channel_affine(m.weight, m.scale.float(), m.point, 0, -128, 127), m.bias),
        weight=nn.Parameter(torch.randn(8, 8, 1, 1)), bias=nn.Parameter(torch.randn(8)),
        scale=torch.full((8,), 0.01), point=torch.zeros(8, dtype=torch.int32)),
        ("fake_quantize_per_channel_affine",), at_limit=False, dynamic=False),
    Case("pool_sppf", "pool", lambda: between(_sppf, a=cba(8, 4, 1), b=cba(16, 8, 1)), ("max_pool2d", "cat")),
    Case("resize_nearest", "pool", lambda: between(lambda m, x: F.interpolate(x, scale_factor=2)),
        ("upsample_nearest2d",)),
    Case("resize_bilinear", "pool", lambda: between(
        lambda m, x: F.interpolate(x, size=(5, 7), mode="bilinear") + F.interpolate(
            m.a(x), size=(5, 7), mode="bilinear", align_corners=True), a=cba(8, 8, s=2)), ("upsample_bilinear2d",)),
    Case("resize_other_modes", "pool", lambda: between(
        lambda m, x: F.interpolate(x, (6, 6), mode="bicubic") + F.interpolate(x, (6, 6), mode="area")
        + F.interpolate(x, (6, 6), mode="nearest-exact"))),
    Case("resize_nearest_1d_3d_antialiased", "pool", lambda: tail(
        lambda m, x: F.interpolate(x.flatten(2), 9).mean(2) + F.interpolate(x.unsqueeze(2), (2, 3, 3)).mean((2, 3, 4))
        + F.interpolate(x, (5, 5), mode="bilinear", antialias=True).mean((2, 3)), 8), ("upsample_nearest1d",)),
    Case("resize_linear_trilinear", "pool", lambda: tail(
        lambda m, x: F.interpolate(x.flatten(2), 9, mode="linear").mean(2)
        + F.interpolate(x.unsqueeze(2), (2, 3, 3), mode="trilinear").mean((2, 3, 4)), 8)),
)
# fmt: on

# ----------------------------------------------------------------------------------------------------------------------
# Graph patterns of real networks.


def _preactivation(m: Any, x: Tensor) -> Tensor:
    for block in m.blocks:
        x = x + block(x)
    return F.relu(m.norm(x))


def _preactivation_block(c: int) -> nn.Sequential:
    return nn.Sequential(
        nn.BatchNorm2d(c), nn.ReLU(), conv(c, 6, bias=False), nn.BatchNorm2d(6), nn.ReLU(), conv(6, c, bias=False)
    )


def _residual_stage(m: Any, x: Tensor) -> Tensor:
    for block in m.blocks:
        x = F.relu(block(x) + x)
    return x


def _bottleneck(m: Any, x: Tensor) -> Tensor:
    return F.relu(m.c(m.b(m.a(x))) + m.down(x))


def _res2net(m: Any, x: Tensor) -> Tensor:
    parts = torch.split(m.a(x), 4, 1)
    outputs = [parts[0]]
    for part, layer in zip(parts[1:], m.layers, strict=True):
        outputs.append(layer(part + outputs[-1]))
    return x + m.c(torch.cat(outputs, 1))


def _hrnet(m: Any, x: Tensor) -> Tensor:
    high, low = m.high(x), m.low(x)
    fused_high = F.relu(high + F.interpolate(m.up(low), size=high.shape[-2:], mode="nearest"))
    fused_low = F.relu(low + m.down(high))
    return torch.cat((fused_high, F.interpolate(fused_low, scale_factor=2)), 1)


def _fpn(m: Any, x: Tensor) -> list[Tensor]:
    c3 = m.c3(x)
    c4 = m.c4(c3)
    c5 = m.c5(c4)
    p5 = m.l5(c5)
    p4 = m.l4(c4) + F.interpolate(p5, scale_factor=2)
    p3 = m.l3(c3) + F.interpolate(p4, scale_factor=2)
    return [m.out(p) for p in (p3, p4, p5)]


def _fpn_parts() -> dict[str, Any]:
    return {
        "c3": cba(3, 6),
        "c4": cba(6, 8, s=2),
        "c5": cba(8, 10, s=2),
        "l3": cbn(6, 8, 1),
        "l4": cbn(8, 8, 1),
        "l5": cbn(10, 8, 1),
    }


def _unet(m: Any, x: Tensor) -> Tensor:
    skip = m.a(x)
    deep = m.b(F.max_pool2d(skip, 2))
    return m.c(torch.cat((m.up(deep), skip), 1))


def _inception(m: Any, x: Tensor) -> Tensor:
    return torch.cat((m.a(x), m.b(x), m.c(x), m.d(F.avg_pool2d(x, 3, 1, 1))), 1)


def _ghost(m: Any, x: Tensor) -> Tensor:
    first = m.first(x)
    return torch.cat((first, m.cheap(first)), 1)[:, :7]


def _csp(m: Any, x: Tensor) -> Tensor:
    return m.c(torch.cat((m.block(m.a(x)) + m.a(x), m.b(x)), 1))


def _elan(m: Any, x: Tensor) -> Tensor:
    outputs = [m.a(x), m.b(x)]
    for layer in m.layers:
        outputs.append(layer(outputs[-1]))
    return torch.cat(outputs, 1)


def _inverted_residual(c: int, hidden: int) -> nn.Sequential:
    return nn.Sequential(
        cba(c, hidden, 1, act=nn.ReLU6), cba(hidden, hidden, g=hidden, act=nn.ReLU6), cbn(hidden, c, 1)
    )


def _mobilenet_v3(m: Any, x: Tensor) -> Tensor:
    y = m.depthwise(m.expand(x))
    gate = F.hardsigmoid(m.up(F.relu(m.down(F.adaptive_avg_pool2d(y, 1)))))
    return x + m.project(y * gate)


def _box_decode(m: Any, x: Tensor) -> Tensor:
    """Distribution focal loss as in YOLOv8: a softmax over 4 bins, then their expectation by a constant convolution."""
    n = x.shape[0]
    raw = m.out(x).view(n, 16, 64)
    distances = m.dfl(raw.view(n, 4, 4, 64).transpose(2, 1).softmax(1)).view(n, 4, 64)
    left_top, right_bottom = distances.chunk(2, 1)
    return torch.cat((m.anchors - left_top, m.anchors + right_bottom), 1) * 8


def _yolo_head(m: Any, x: Tensor) -> Tensor:
    maps = [m.c3(x), m.c4(m.c3(x))]
    outs = [torch.cat((box(f), cls(f)), 1) for f, box, cls in zip(maps, m.boxes, m.classes, strict=True)]
    box, cls = torch.cat([o.view(o.shape[0], 7, -1) for o in outs], 2).split((4, 3), 1)
    return torch.cat((box * m.strides, cls.sigmoid()), 1)


def _recurrent(kind: type[nn.Module], **options: Any) -> Built:
    rnn: Any = kind(8, 6, batch_first=True, **options)
    width = 12 if options.get("bidirectional") else 6
    return net(
        lambda m, x: m.out(F.relu(m.rnn(F.relu(m.a(x)))[0])),
        randoms((2, 4, 5)),
        a=nn.Linear(5, 8),
        rnn=rnn,
        out=nn.Linear(width, 3),
    )


def _convlstm(m: Any, x: Tensor) -> Tensor:
    hidden = torch.zeros_like(x)
    for _ in range(3):
        hidden = torch.tanh(m.a(torch.cat((x, hidden), 1)))
    return hidden


def _edge_convolution(m: Any, x: Tensor) -> Tensor:
    """DGCNN's layer on points (N, C, L): features of neighbours less one's own, a shared MLP, max over neighbours."""
    neighbours = torch.stack([torch.roll(x, s, 2) for s in (1, 2, 3)], 3)
    edges = torch.cat((neighbours - x.unsqueeze(3), x.unsqueeze(3).expand(-1, -1, -1, 3)), 1)
    return m.edge(edges).max(-1)[0]


def _convnext(m: Any, x: Tensor) -> Tensor:
    y = m.norm(m.dw(x).permute(0, 2, 3, 1))
    return x + (m.gamma * m.down(F.gelu(m.up(y)))).permute(0, 3, 1, 2)


def _rep(m: Any, x: Tensor) -> Tensor:
    return F.relu(m.three(x) + m.one(x) + m.identity(x))


def _large_kernel(m: Any, x: Tensor) -> Tensor:
    return x * m.mix(m.far(m.near(x)))


def _dual_path(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return torch.cat((x[:, :4] + y[:, :4], x[:, 4:], y[:, 4:]), 1)


def _multi_scale_loop(m: Any, x: Tensor) -> list[Tensor]:
    feats = [x, F.max_pool2d(x, 2), F.max_pool2d(x, 4)]
    return [m.cls(m.tower(m.proj[i](f))) * m.scales[i] for i, f in enumerate(feats)]


# fmt: off
NETWORKS = (
    Case("residual_branches", "residual", lambda: net(
        lambda m, x: m.head(m.a(x) + m.b(x)), image(), a=cbn(3, 8), b=cbn(3, 8), head=head(8)), ("add",)),
    Case("residual_relu_between", "residual", lambda: net(
        lambda m, x: m.head(F.relu(F.relu(m.a(x)) + m.b(x) + m.c(x))), image(), a=cbn(3, 8), b=cbn(3, 8), c=cbn(3, 8),
        head=head(8)), ("add",)),
    Case("residual_stage", "residual", lambda: between(
        _residual_stage, blocks=nn.ModuleList(nn.Sequential(cba(8, 6), cbn(6, 8)) for _ in range(3))), ("add",)),
    Case("residual_bottleneck", "residual", lambda: between(
        _bottleneck, o=12, a=cba(8, 4, 1), b=cba(4, 4, s=2), c=cbn(4, 12, 1), down=cbn(8, 12, 1, 2)), ("add",)),
    Case("residual_preactivation", "residual", lambda: between(
        _preactivation, blocks=nn.ModuleList(_preactivation_block(8) for _ in range(3)), norm=nn.BatchNorm2d(8)),
        ("add",)),
    Case("residual_inverted", "residual", lambda: between(
        lambda m, x: x + m.block(x), block=_inverted_residual(8, 16)), ("hardtanh",)),
    Case("residual_with_input", "residual", lambda: net(
        lambda m, x: x + m.b(m.a(x)), image(), a=cba(3, 8), b=conv(8, 3)), ("add",)),
    Case("residual_scaled", "residual", lambda: between(
        lambda m, x: x + 0.2 * m.a(x) - 0.5 * m.b(x), a=cbn(8, 8), b=cbn(8, 8)), ("add", "sub")),
    Case("residual_rep", "residual", lambda: between(
        _rep, three=cbn(8, 8), one=cbn(8, 8, 1), identity=nn.BatchNorm2d(8)), ("add",)),
    Case("residual_of_concatenation", "residual", lambda: between(
        lambda m, x: torch.cat((m.a(x), m.b(x)), 1) + x, a=cbn(8, 3), b=cbn(8, 5)), ("cat", "add")),
    Case("residual_dual_path", "residual", lambda: between(_dual_path, o=12, a=cbn(8, 8)), ("slice", "add")),
    Case("residual_convnext", "residual", lambda: between(
        _convnext, dw=conv(8, 8, g=8), norm=nn.LayerNorm(8), up=nn.Linear(8, 16), down=nn.Linear(16, 8),
        gamma=nn.Parameter(torch.randn(8))), ("layer_norm",),
        at_limit=False),  # depthwise: an output whose input is dead lives by its bias, and its group stays
    Case("residual_wide_sum", "residual", lambda: between(
        lambda m, x: sum(layer(x) for layer in m.layers), layers=nn.ModuleList(cbn(8, 8, 1) for _ in range(5))),
        ("add",)),
    Case("network_dense_block", "network", lambda: between(
        lambda m, x: _elan(m, x), o=20, a=cba(8, 4, 1), b=cba(8, 4, 1),
        layers=nn.ModuleList(cba(4, 4) for _ in range(3))), ("cat",)),
    Case("network_densenet_norms", "network", lambda: between(
        lambda m, x: torch.cat((x, m.c1(F.relu(m.n1(x))), m.c2(F.relu(m.n2(torch.cat((x, m.c1(F.relu(m.n1(x)))),
        1))))), 1),
        o=16, n1=nn.BatchNorm2d(8), c1=conv(8, 4), n2=nn.BatchNorm2d(12), c2=conv(12, 4)), ("cat", "batch_norm")),
    Case("network_res2net", "network", lambda: between(
        _res2net, a=cba(8, 12, 1), layers=nn.ModuleList(cba(4, 4) for _ in range(2)), c=cbn(12, 8, 1)),
        ("split", "cat")),
    Case("network_csp", "network", lambda: between(
        _csp, a=cba(8, 4, 1), b=cba(8, 4, 1), block=cba(4, 4), c=cba(8, 8, 1)), ("cat", "add")),
    Case("network_hrnet", "network", lambda: between(
        _hrnet, o=14, high=cbn(8, 8), low=cbn(8, 6, s=2), up=cbn(6, 8, 1), down=cbn(8, 6, s=2)), ("add", "cat")),
    Case("network_fpn_shared_head", "network", lambda: net(_fpn, image(), out=head(8, 4), **_fpn_parts()), ("add",),
         at_limit=False),
    Case("network_fpn_shared_tower", "network", lambda: net(
        _fpn, image(), out=nn.Sequential(cba(8, 8), head(8, 4)), **_fpn_parts()), ("batch_norm",), at_limit=False),
    Case("network_shared_tower_loop", "network", lambda: between(
        lambda m, x: _multi_scale_loop(m, x)[0], o=4, proj=nn.ModuleList(cbn(8, 6, 1) for _ in range(3)),
        tower=cba(6, 6), cls=conv(6, 4), scales=nn.Parameter(torch.ones(3))), ("max_pool2d",), at_limit=False),
    Case("network_unet", "network", lambda: between(
        _unet, a=cba(8, 6), b=cba(6, 10), up=nn.ConvTranspose2d(10, 6, 2, 2), c=cba(12, 8)), ("conv_transpose2d",)),
    Case("network_inception", "network", lambda: between(
        _inception, o=18, a=cba(8, 4, 1), b=nn.Sequential(cba(8, 3, 1), cba(3, 6)),
        c=nn.Sequential(nn.Conv2d(8, 4, (1, 5), padding=(0, 2)), nn.ReLU()), d=cba(8, 4, 1)), ("cat", "avg_pool2d")),
    Case("network_ghost", "network", lambda: between(_ghost, o=7, first=cba(8, 4, 1), cheap=cba(4, 4, g=4)), ("cat",)),
    Case("network_mobilenet_v3", "network", lambda: between(
        _mobilenet_v3, expand=cba(8, 16, 1, act=nn.Hardswish), depthwise=cba(16, 16, g=16, act=nn.Hardswish),
        down=head(16, 4), up=head(4, 16), project=cbn(16, 8, 1)), ("hardswish", "hardsigmoid")),
    Case("network_large_kernel", "network", lambda: between(
        _large_kernel, near=conv(8, 8, 5, g=8), far=nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=8), mix=head(8,
        8)),
        ("mul",), at_limit=False),  # depthwise: an output whose input is dead lives by its bias, and its group stays
    Case("network_distribution_boxes", "network", lambda: net(
        lambda m, x: _box_decode(m, m.stem(x)), image(), stem=cba(3, 8), out=head(8, 16),
        dfl=_frozen(nn.Conv2d(4, 1, 1, bias=False), torch.arange(4.0).view(1, 4, 1, 1)), anchors=torch.randn(1, 2, 64)),
        ("softmax", "chunk"), at_limit=False),  # bins are one axis for all four sides, and no tensor is left empty
    Case("network_yolo_head", "network", lambda: net(
        _yolo_head, image(), c3=cba(3, 8, act=nn.SiLU), c4=cba(8, 8, s=2, act=nn.SiLU),
        boxes=nn.ModuleList(nn.Sequential(cba(8, 6), head(6, 4)) for _ in range(2)),
        classes=nn.ModuleList(nn.Sequential(cba(8, 8, g=8), head(8, 3)) for _ in range(2)),
        strides=torch.tensor([8.0] * 64 + [16.0] * 16)), ("cat", "sigmoid")),
    Case("network_conv_recurrent", "network", lambda: between(_convlstm, a=conv(16, 8)),
        ("tanh", "cat"), at_limit=False),
    Case("network_edge_convolution", "network", lambda: net(
        lambda m, x: m.out(_edge_convolution(m, m.stem(x))), randoms((2, 3, 7)),
        stem=nn.Sequential(nn.Conv1d(3, 8, 1), nn.ReLU()), edge=cba(16, 8, 1), out=nn.Conv1d(8, 3, 1)),
        ("max", "stack")),
    Case("recurrent_rnn", "recurrent", lambda: _recurrent(nn.RNN), ("rnn_tanh",)),
    Case("recurrent_rnn_relu", "recurrent", lambda: _recurrent(nn.RNN, nonlinearity="relu"), ("rnn_relu",)),
    Case("recurrent_lstm", "recurrent", lambda: _recurrent(nn.LSTM, num_layers=2), ("lstm",)),
    Case("recurrent_gru", "recurrent", lambda: _recurrent(nn.GRU, bidirectional=True), ("gru",), at_limit=False),
    Case("recurrent_cells", "recurrent", lambda: tokens(
        lambda m, x: torch.stack([m.gru(m.plain(m.lstm(step)[0])) for step in x.unbind(1)], 1), 8, 4,
        lstm=nn.LSTMCell(8, 6), plain=nn.RNNCell(6, 5), gru=nn.GRUCell(5, 4)),
        ("lstm_cell", "gru_cell", "rnn_tanh_cell")),
)
# fmt: on

# ----------------------------------------------------------------------------------------------------------------------
# The network's rim: inputs, outputs, parameters nobody reads, dead ends.


def _dead(built: Built, *names: str) -> Built:
    """The same network with every row of these layers zero."""
    for name in names:
        layer = built[0].get_submodule(name)
        weight: Any = layer.weight
        kill(layer, rows=range(weight.shape[0]))
    return built


def _without_gradient(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        y = m.a(x)
    return m.b(y)


def _constants(m: Any, x: Tensor) -> Tensor:
    ramp = torch.arange(8, dtype=x.dtype).view(1, 8, 1, 1)
    ones = torch.ones(1, 8, 1, 1, dtype=x.dtype)
    return m.a(x * ramp + ones + torch.full((1, 1, 8, 8), 0.5, dtype=x.dtype) + torch.zeros(8, 1, 1, dtype=x.dtype))


# fmt: off
RIM = (
    Case("inputs_two", "rim", lambda: net(
        lambda m, x, y: m.head(m.a(x) + m.b(y)), randoms((2, 3, 8, 8), (2, 4, 8, 8)), a=cbn(3, 8), b=cbn(4, 8),
        head=head(8)), ("add",)),
    Case("inputs_siamese", "rim", lambda: net(
        lambda m, x, y: m.head((m.a(x) - m.a(y)).abs()), randoms((2, 3, 8, 8), (2, 3, 8, 8)), a=cba(3, 8),
        head=head(8)), ("abs",), at_limit=False),
    Case("inputs_dict", "rim", lambda: net(
        lambda m, d: {"map": m.head(m.a(d["image"])), "gated": m.head(m.a(d["image"]) * d["mask"])},
        (dict(zip(("image", "mask"), randoms((2, 3, 8, 8), (2, 1, 8, 8)), strict=True)),), a=cba(3, 8), head=head(8)),
        ("mul",), at_limit=False),
    Case("inputs_list", "rim", lambda: net(
        lambda m, xs: m.head(torch.cat([m.a(xs[0]), m.b(xs[1])], 1)), (list(randoms((2, 3, 8, 8), (2, 4, 8, 8))),),
        a=cba(3, 4), b=cba(4, 4), head=head(8)), ("cat",)),
    Case("inputs_unused", "rim", lambda: net(
        lambda m, x, y: m.head(m.a(x)), randoms((2, 3, 8, 8), (2, 4)), a=cba(3, 8), head=head(8))),
    Case("inputs_dead", "rim", lambda: _dead(net(
        lambda m, x, y: m.head(F.relu(m.a(x)) + F.relu(m.b(y))), randoms((2, 3, 8, 8), (2, 4, 8, 8)), a=conv(3, 8),
        b=conv(4, 8), head=head(8)), "b")),
    Case("outputs_nested", "rim", lambda: net(
        lambda m, x: {"boxes": [m.h1(m.a(x)), (m.h2(m.b(x)),)], "features": m.b(x), "count": 3}, image(), a=cba(3, 8),
        b=cba(3, 8), h1=head(8), h2=head(8)), at_limit=False),
    Case("outputs_features", "rim", lambda: net(
        lambda m, x: (m.a(x), m.b(m.a(x))), image(), a=cba(3, 8), b=cba(8, 4)), ("conv2d",)),
    Case("outputs_same_twice", "rim", lambda: net(
        lambda m, x: (lambda y: [y, y, y + 1])(m.b(m.a(x))), image(), a=cba(3, 8), b=cba(8, 4))),
    Case("outputs_input", "rim", lambda: net(
        lambda m, x: (x, m.b(m.a(x)), x[:, :1]), image(), a=cba(3, 8), b=cba(8, 4))),
    Case("outputs_dead_branch", "rim", lambda: _dead(net(
        lambda m, x: m.h1(m.a(x)) + F.relu(m.h2(m.b(x))), image(), a=cba(3, 8), b=cba(3, 8), h1=head(8), h2=head(8)),
        "h2")),
    Case("outputs_dead_tensor", "rim", lambda: _dead(net(
        lambda m, x: (m.h1(m.a(x)), m.h2(m.b(x))), image(), a=cba(3, 8), b=cba(3, 8), h1=head(8), h2=head(8)), "h2")),
    Case("outputs_single_channel", "rim", lambda: net(
        lambda m, x: m.head(m.b(m.a(x))).squeeze(1), image(), a=cba(3, 1), b=cba(1, 4), head=head(4, 1)), ("squeeze",)),
    Case("outputs_auxiliary_unused", "rim", lambda: net(
        lambda m, x: (m.h2(m.b(m.a(x))), m.h1(m.a(x)))[0], image(), a=cba(3, 8), b=cba(8, 8), h1=head(8), h2=head(8)),
        ("conv2d",)),
    Case("parameters_unused", "rim", lambda: net(
        lambda m, x: m.head(m.a(x)), image(), a=cba(3, 8), head=head(8), idle=conv(8, 8),
        spare=nn.Parameter(torch.randn(4)))),
    Case("parameter_as_output", "rim", lambda: net(
        lambda m, x: (m.head(m.a(x)), m.head.weight.sum(), m.scale * 2), image(), a=cba(3, 8), head=head(8),
        scale=nn.Parameter(torch.randn(8))), at_limit=False),
    Case("parameters_frozen", "rim", lambda: net(
        lambda m, x: m.head(m.b(m.a(x))), image(), a=cba(3, 8).requires_grad_(False), b=cba(8, 8), head=head(8))),
    Case("constants_in_forward", "rim", lambda: between(_constants, a=cba(8, 8)), ("arange", "ones", "full")),
    Case("no_grad_region", "rim", lambda: between(_without_gradient, a=cba(8, 8), b=cba(8, 8)), at_limit=False),
    Case("identity_modules", "rim", lambda: between(
        lambda m, x: m.a(m.none(x)), none=nn.Sequential(nn.Identity(), nn.Dropout(0.0)), a=cba(8, 8))),
    Case("shared_sequential", "rim", lambda: between(
        lambda m, x: m.block(m.block(m.block(x))), block=cba(8, 8)), ("conv2d",), at_limit=False),
)
# fmt: on

CASES: tuple[Case, ...] = (
    *CONTRACTIONS,
    *MOVEMENT,
    *POINTWISE,
    *INPLACE,
    *GATES,
    *ATTENTION,
    *NORMALISATION,
    *POOLING,
    *NETWORKS,
    *RIM,
)
