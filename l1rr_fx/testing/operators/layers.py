"""Layers, point-wise operators and sums: the residual family."""

from __future__ import annotations

from l1rr_fx.testing.draft import FAMILIES, Draft, activated, channels_over, conv_bn, operator


@operator(*FAMILIES)
def _conv_bn_act(d: Draft, x: str) -> str:
    return activated(d, conv_bn(d, x, d.width(), d.pick(3, 1)))


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
        "torch.log({}.abs() + 0.1)",
        "torch.rsqrt({}.square() + 1)",
        "{} % 0.7",
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
        "{}.masked_fill({y} > 0.1, 0.0)",
        "torch.addcmul({}, {y}, {y})",
        "{} * (({} > 0) & ({y} > 0))",
        "torch.stack([{}, {y}], 1).sum(1)",
    )
    return form.replace("{y}", d.partner(x)).replace("{}", x)


@operator("residual", fits=channels_over(1))
def _residual_block(d: Draft, x: str) -> str:
    inner = d.value(f"F.relu({conv_bn(d, x, d.width())})")
    return f"{conv_bn(d, inner, d.channels(x))} + {x}"


@operator("residual", "gate")
def _parameter_scale(d: Draft, x: str) -> str:
    c = d.channels(x)
    shape = d.pick(f"1, {c}, 1, 1", f"{c}, 1, 1", "1")
    return d.pick("{x} * {p}", "{x} + {p}").format(x=x, p=d.layer(f"nn.Parameter(torch.randn({shape}))"))


@operator("residual", "gate")
def _buffer_scale(d: Draft, x: str) -> str:
    return f"{x} * {d.layer(f'nn.Buffer(torch.arange({d.channels(x)}.) % 3)')}.view(1, -1, 1, 1)"
