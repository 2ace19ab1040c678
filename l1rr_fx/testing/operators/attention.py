"""Tokens and attention."""

from __future__ import annotations

import math

from l1rr_fx.testing.draft import Draft, activated, conv_bn, operator


@operator("attention", weight=2)
def _tokens(d: Draft, x: str) -> str:
    return d.pick("{}.flatten(2).transpose(1, 2)", "{}.flatten(2).permute(0, 2, 1).contiguous()").format(x)


@operator("attention", "tail", rank=3)
def _token_linear(d: Draft, x: str) -> str:
    return activated(d, f"{d.layer(f'nn.Linear({d.channels(x)}, {d.width()})')}({x})")


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


@operator("attention", rank=3, weight=2)
def _heads(d: Draft, x: str) -> str:
    weights = d.pick(
        "{q} @ {k}.transpose(-2, -1) * 0.5",
        "F.normalize({q}, dim=-1) @ F.normalize({k}, dim=-1).transpose(-2, -1)",
        "(lambda u: u.log() @ {k}.transpose(-2, -1) + u @ {v}.transpose(-2, -1))({q}.sigmoid() + 0.1)",
    )
    return _of_heads(d, x, f"({weights}).softmax(-1) @ {{v}}")


@operator("attention", rank=3, weight=4)
def _fused_heads(d: Draft, x: str) -> str:
    scale = d.pick("", "", ", scale=0.3")
    return _of_heads(d, x, f"F.scaled_dot_product_attention({{q}}, {{k}}, {{v}}{scale})")


def _of_heads(d: Draft, x: str, form: str) -> str:
    """Queries, keys and values by heads, of one projection or of three; the form of attention; a projection back."""
    _, length, c = d.shape(x)
    heads, width = d.pick(2, 1), d.pick(2, 4)
    if d.pick(True, False, False):
        qkv = d.value(f"{d.layer(f'nn.Linear({c}, {3 * heads * width})')}({x})")
        split = d.value(f"{qkv}.reshape(-1, {length}, 3, {heads}, {width}).permute(2, 0, 3, 1, 4)")
        q, k, v = (f"{split}{d.pick('', '.unbind(0)')}[{i}]" for i in range(3))
    else:
        by_head = f"({x}).reshape(-1, {length}, {heads}, {width}).transpose(1, 2)"
        q, k, v = (d.value(f"{d.layer(f'nn.Linear({c}, {heads * width})')}{by_head}") for _ in range(3))
    project = d.layer(f"nn.Linear({heads * width}, {c})")
    return f"{project}(({form.format(q=q, k=k, v=v)}).transpose(1, 2).reshape(-1, {length}, {heads * width}))"


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
    qkv = d.value(f"{conv_bn(d, x, heads * each, 1)}.view(-1, {heads}, {each}, {h * w})")
    q, k, v = (f"{qkv}.split([{key}, {key}, {value}], 2)[{i}]" for i in range(3))
    weights = d.value(f"({q}.transpose(-2, -1) @ {k} * 0.7).softmax(-1)")
    out = d.value(f"({v} @ {weights}.transpose(-2, -1)).reshape(-1, {heads * value}, {h}, {w})")
    positions = d.layer(f"nn.Conv2d({heads * value}, {heads * value}, 3, padding=1, groups={heads * value})")
    both = d.value(f"{out} + {positions}({v}.reshape(-1, {heads * value}, {h}, {w}))")
    return f"{x} + {conv_bn(d, both, c, 1)}"


@operator("attention", "tail", rank=3)
def _token_add(d: Draft, x: str) -> str:
    return f"{x} + {d.partner(x)}"


@operator("attention", rank=3, fits=lambda v: v.shape[1] in (4, 16, 64))
def _tokens_to_map(d: Draft, x: str) -> str:
    side = math.isqrt(d.shape(x)[1])
    return f"{x}.transpose(1, 2).reshape(-1, {d.channels(x)}, {side}, {side})"
