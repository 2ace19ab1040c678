"""Grouped convolutions, computed weights and gates."""

from __future__ import annotations

from l1rr_fx.testing.draft import Draft, activated, channels_over, conv_bn, operator


@operator("grouped", "split", fits=channels_over(2))
def _grouped_conv(d: Draft, x: str) -> str:
    g = d.divisor(d.channels(x))
    return activated(d, conv_bn(d, x, g * d.pick(1, 2, 3), d.pick(1, 3), g))


@operator("grouped", "gate")
def _depthwise(d: Draft, x: str) -> str:
    c = d.channels(x)
    return d.pick(
        activated(d, conv_bn(d, x, c * d.pick(1, 2), 3, c)),
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
