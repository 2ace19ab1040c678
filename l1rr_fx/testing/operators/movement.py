"""Channels that change place: split, joined, padded, shuffled."""

from __future__ import annotations

import hypothesis.strategies as st

from l1rr_fx.testing.draft import Draft, activated, channels_over, conv_bn, even, operator, small


@operator("split", fits=channels_over(2))
def _chunk_cat(d: Draft, x: str) -> str:
    return d.pick(
        "torch.cat({}.chunk(2, 1)[::-1], 1)",
        "torch.cat([*{}.split(2, 1), {}], 1)",
        "torch.cat([p.relu() for p in {}.chunk(3, 1)][1:], 1)",
    ).replace("{}", x)


@operator("split", "inplace", fits=channels_over(2))
def _slice(d: Draft, x: str) -> str:
    c = d.channels(x)
    start = d.draw(st.integers(0, c - 1))
    return f"{x}[:, {start}:{d.draw(st.integers(start + 1, c))}]" if d.pick(True, False) else f"{x}[:, ::2]"


@operator("split", fits=channels_over(2))
def _partial_conv(d: Draft, x: str) -> str:
    cut = d.draw(st.integers(1, d.channels(x) - 1))
    part = d.value(f"{x}[:, :{cut}]")
    return f"torch.cat([{conv_bn(d, part, d.width())}, {x}[:, {cut}:]], 1)"


@operator("split", "residual", "inplace")
def _c2f(d: Draft, x: str) -> str:
    half = d.pick(2, 3, 4)
    both = d.value(activated(d, conv_bn(d, x, 2 * half, 1)))
    second = d.value(f"{both}.chunk(2, 1)[1]")
    third = d.value(f"F.relu({conv_bn(d, second, half)}){d.pick('', f' + {second}')}")
    return f"torch.cat([*{both}.chunk(2, 1), {third}], 1)"


@operator("split", "scales", "grouped", "gate", fits=small(2))
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


@operator("split", fits=small(2))
def _padded(d: Draft, x: str) -> str:
    form = d.pick(
        "F.pad({}, (0, 0, 0, 0, 1, 2))",
        "F.pad({}, (0, 0, 0, 0, 1, 0), value=1.0)",
        "F.pad({}, (1, 1, 0, 0))",
        "torch.cat([{}, torch.zeros_like({}[:, :1])], 1)",
        "torch.cat([{}, {}.flip(1)], 1)",
        "{}.repeat(1, 2, 1, 1)",
        "{}.repeat_interleave(2, 1)",
        "{}.tile(2, 1, 1)",
        "F.pad({}, (1, 0, 0, 1), mode='reflect')",
        "F.pad({}, (1, 2, 0, 1), mode='circular')",
        "F.pad({}, (1, 2, 0, 1), mode='replicate')",
    )
    return form.replace("{}", x)


@operator("split", "gate", fits=channels_over(2), weight=2)
def _windows_and_places(d: Draft, x: str) -> str:
    _, c, h, w = d.shape(x)
    form = d.pick(
        f"F.fold(F.unfold({{}}, 3, padding=1), ({h}, {w}), 3, padding=1)",
        f"F.unfold({{}}, 3, padding=1).view(-1, {c}, 9, {h}, {w}).amax(2)",
        "F.grid_sample({}, {}[:, :2].permute(0, 2, 3, 1).tanh(), align_corners=False)",
        "{}.gather(2, {}.argsort(2))",
    )
    return form.replace("{}", x)


@operator("split", "grouped", fits=channels_over(2))
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


@operator("split", fits=lambda v: even(v) and v.shape[1] <= 4)
def _space_to_depth(d: Draft, x: str) -> str:
    return d.pick(
        "F.pixel_unshuffle({}, 2)",
        "torch.cat([{}[..., ::2, ::2], {}[..., 1::2, ::2], {}[..., ::2, 1::2], {}[..., 1::2, 1::2]], 1)",
    ).replace("{}", x)


@operator("split", fits=lambda v: 2 <= v.shape[1] <= 4)
def _unbind_stack(d: Draft, x: str) -> str:
    return f"torch.stack([p * (i + 1) for i, p in enumerate({x}.unbind(1))][::-1], 1)"


@operator("split", "gate", fits=channels_over(2, by=2))
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
