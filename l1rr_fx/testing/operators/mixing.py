"""Norms and reductions, vectors and sequences."""

from __future__ import annotations

from l1rr_fx.testing.draft import Draft, operator, wide


@operator("norm", fits=wide)
def _group_norm(d: Draft, x: str) -> str:
    c = d.channels(x)
    return f"{d.layer(f'nn.GroupNorm({d.pick(1, d.divisor(c))}, {c})')}({x})"


@operator("norm", fits=wide)
def _instance_norm(d: Draft, x: str) -> str:
    return f"{d.layer(f'nn.InstanceNorm2d({d.channels(x)}, affine={d.pick(True, False)})')}({x})"


@operator("norm")
def _layer_norm_of_channels(d: Draft, x: str) -> str:
    return f"{d.layer(f'nn.LayerNorm({d.channels(x)})')}({x}.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)"


@operator("norm", "gate", weight=2)
def _over_channels(d: Draft, x: str) -> str:
    form = d.pick(
        *["{}.softmax(1)"] * 3,
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
