"""Writes in place, several scales, and operators that no rule is expected to know."""

from __future__ import annotations

import hypothesis.strategies as st
from torch import Tensor, nn

from l1rr_fx.testing.draft import Draft, conv_bn, even, operator, wide


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


@operator("scales", fits=lambda v: even(v) and v.shape[2] >= 4)
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


@operator("scales", fits=wide)
def _pool_same(d: Draft, x: str) -> str:
    return d.pick(
        "F.max_pool2d({}, 3, 1, 1)", "F.avg_pool2d({}, 3, 1, 1)", "torch.cat([{}, F.max_pool2d({}, 3, 1, 1)], 1)"
    ).replace("{}", x)


@operator("scales", "residual")
def _pyramid_add(d: Draft, x: str) -> str:
    other = d.pick(*d.others(lambda v: v.ndim == 4))
    side = d.value(conv_bn(d, other, d.channels(x), 1))
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


@operator("unknown")
def _unknown(d: Draft, x: str) -> str:
    form = d.pick(
        "torch.cumsum({}, 1)",
        "{}.sort(1)[0]",
        "torch.fft.rfft2({}).abs()",
        "torch.tril({})",
        "{}.kthvalue(1, 1, True)[0] + {}",
        "torch.fft.fft({}, dim=1).real",
        "F.local_response_norm({}, 2)",
        "{}.topk(1, 1)[0] * {}",
        "torch.logcumsumexp({}, 2)",
        "torch.special.i0e({})",
        "torch.diff({}, dim=1, prepend={}[:, :1])",
        "torch.cumprod({}.tanh(), 1)",
    )
    return form.replace("{}", x)
