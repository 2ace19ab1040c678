"""The file computes what torch does on other values than those of the example, by which it was written."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from l1rr_fx.lowering import LoweringError, to_onnx
from l1rr_fx.lowering.onnx.runtime import run_onnx

TOLERANCE = 1e-6
TARGETS = ("jetson-tx2", "onnxruntime")
BITS = "bit by bit"
COUNTS = torch.arange(30)
BIG = COUNTS + 2**24 + 1  # float32 holds no such integers
IMAGE = torch.linspace(-2, 2, 4 * 9 * 11).view(1, 4, 9, 11)


class Function(nn.Module):
    """Any function as a network; the weight is a constant of it."""

    def __init__(self, function: Callable[..., Any], weight: Tensor) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(weight)

    def forward(self, *args: Tensor) -> Any:
        return self.function(self.weight, *args)


def resized(size: tuple[int, int] | None, scale: float | None, mode: str, **options: Any) -> Callable[..., Tensor]:
    return lambda w, x: F.interpolate(x, size, scale, mode, **options)


NUMBERS: dict[str, tuple[Callable[..., Any], tuple[Tensor, ...], tuple[Tensor, ...]]] = {
    "integers modulo a number": (lambda w, i: (i % 7, i // 7, i % -7, i // -7), (COUNTS,), (-BIG,)),
    "integers modulo integers": (lambda w, i, j: (i % j, i // j), (COUNTS, COUNTS + 1), (BIG, 15 - 2 * COUNTS)),
    "integers divided, fraction dropped": (lambda w, i: torch.div(i, 7, rounding_mode="trunc"), (COUNTS,), (-BIG,)),
    "places in an image": (lambda w, i: (i // 512, i % 512), (COUNTS,), (BIG * 512 + 511,)),
    "numbers modulo a number": (lambda w, x: (x % 1, x // 0.75, x % -2), (IMAGE,), (-8 * IMAGE,)),
    "expm1 and log1p of small numbers": (
        lambda w, x: (torch.expm1(x), torch.log1p(x)), (IMAGE.abs(),), (IMAGE.clamp(min=-0.9) * 1e-6,),
    ),
    "expm1 and log1p of large numbers": (
        lambda w, x: (torch.expm1(x), torch.log1p(x)), (IMAGE.abs(),), (IMAGE.abs() * 30,),
    ),
    "truth of numbers": (
        lambda w, x: [f(x) for f in (torch.isinf, torch.isfinite, torch.isnan)],
        (IMAGE,), (IMAGE.where(IMAGE < 1, math.inf).where(IMAGE > -1, math.nan),),
    ),
    "arithmetic of booleans": (
        lambda w, x: ((x > 0) * (x < 1), (x > 0) + (x < -1), (x > 0) ^ (x < 1), torch.maximum(x > 0, x < -1), ~(x > 0)),
        (IMAGE,), (-IMAGE,),
    ),
    "not of integers": (lambda w, i: ~i, (COUNTS,), (-BIG,)),
    **{
        f"resized by {mode} to {size or scale}": (resized(size, scale, mode, **options), (IMAGE,), (IMAGE.flip(-1),))
        for mode, options in (("nearest", {}), ("nearest-exact", {}), ("bilinear", {}), ("bicubic", {}))
        for size, scale in (((13, 5), None), ((9, 12), None), (None, 1.3), (None, 0.7))
    },
    **{
        f"resized by {mode} from {given} to {size}": (
            resized((size, size), None, mode), (torch.rand(1, 2, given, given),), (torch.rand(1, 2, given, given),)
        )
        for mode in ("nearest", "nearest-exact")
        for given, size in ((28, 4), (60, 2), (52, 44), (10, 19), (38, 75))
    },
    "attention where a query may see nothing": (
        lambda w, x: F.scaled_dot_product_attention(w, x, x, attn_mask=x[..., :9] > 0), (IMAGE.abs() + 1,), (IMAGE,),
    ),
    "attention where a query may see nothing, by numbers": (
        lambda w, x: F.scaled_dot_product_attention(
            w, x, x, attn_mask=torch.zeros(1, 4, 9, 9).masked_fill(x[..., :9] < 0, -math.inf)
        ), (IMAGE.abs() + 1,), (IMAGE,),
    ),
    "attention where a query never sees": (
        lambda w, x: F.scaled_dot_product_attention(w, x, x, attn_mask=torch.arange(9).view(9, 1) > torch.arange(9)),
        (IMAGE,), (-IMAGE,),
    ),
    "attention of heads that share keys": (
        lambda w, x: F.scaled_dot_product_attention(w, x[:, :2], x[:, :2], enable_gqa=True), (IMAGE,), (-IMAGE,),
    ),
    "softplus with a threshold": (lambda w, x: F.softplus(x, 2, 1.5), (-IMAGE.abs(),), (3 * IMAGE,)),
    "average pools over the edge": (
        lambda w, x: (
            F.avg_pool2d(x, 3, 2, 1, ceil_mode=True, divisor_override=5),
            F.avg_pool2d(x, 3, 2, 1, count_include_pad=False, divisor_override=7),
        ), (IMAGE,), (-IMAGE,),
    ),
    "pool of the largest in unequal windows": (lambda w, x: F.adaptive_max_pool2d(x, (4, 3)), (IMAGE,), (-IMAGE,)),
    "order of booleans": (
        lambda w, x: (
            (x > 0).sort(dim=-1, stable=True)[0], (x > 0).amax(2), (x > 0).max(1)[0], (x > 0) > (x > 1),
            torch.where(x > 0, x < 1, x > -1), (x > 0)[0].tril(),
        ), (IMAGE,), (-IMAGE,),
    ),
    "powers of integers": (lambda w, i: (i**2.0, i**0.5, i**1.0, i**2), (COUNTS,), (COUNTS + 3,)),
    "moments": (lambda w, x: (*torch.std_mean(x, 1), *torch.var_mean(x, (2, 3))), (IMAGE,), (2 - IMAGE,)),
    "norms": (
        lambda w, x: [torch.linalg.vector_norm(x, order, -1) for order in (1, 2, math.inf, -math.inf)],
        (IMAGE,), (3 - IMAGE,),
    ),
    "pixels of one image": (
        lambda w, x: (F.pixel_shuffle(x[0], 2), F.pixel_shuffle(x[None], 2), F.pixel_unshuffle(x[0, :, :8, :10], 2)),
        (IMAGE,), (-IMAGE,),
    ),
    "tiles of the last axes": (lambda w, x: x.tile(2, 3), (IMAGE,), (-IMAGE,)),
    "einsum with dots": (
        lambda w, x: (torch.einsum("...ij,jk->...ik", x, w[0, 0].T), torch.einsum("...i,...i", x, w)),
        (IMAGE,), (-IMAGE,),
    ),
    "what is left of a division": (lambda w, x: (torch.fmod(x, 0.75), x.long().fmod(-2)), (IMAGE,), (-9 * IMAGE,)),
    "similarity": (lambda w, x: F.cosine_similarity(x, w, dim=1), (IMAGE,), (-IMAGE,)),
    "a sum without its first part": (
        lambda w, x: torch.baddbmm(x[0, :, :9, :9], w[0], x[0].mT, beta=0), (IMAGE,),
        (IMAGE.where(IMAGE.abs() > 0, math.nan),),
    ),
    # a constant comes first, and what is computed second
    "linear": (lambda w, x: F.linear(w[0, 0], x[0, 0]), (IMAGE,), (-IMAGE,)),
    "layer norm": (lambda w, x: F.layer_norm(w, (11,), x[0, 0, 0], x[0, 0, 1]), (IMAGE,), (-IMAGE,)),
    "group norm": (lambda w, x: F.group_norm(w, 2, x[0, :, 0, 0]), (IMAGE,), (-IMAGE,)),
    "batch norm": (lambda w, x: F.batch_norm(w, x[0, :, 0, 0], x[0, :, 1, 0].abs() + 1), (IMAGE,), (-IMAGE,)),
    "prelu": (lambda w, x: F.prelu(w, x[0, :, 0, 0]), (IMAGE,), (-IMAGE,)),
    "attention": (lambda w, x: F.scaled_dot_product_attention(w, x, x), (IMAGE,), (-IMAGE,)),
    "where": (lambda w, x: torch.where(w > 0, x, w), (IMAGE,), (-IMAGE,)),
}  # fmt: skip


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", NUMBERS)
def test_other_values_than_the_examples(name: str, target: str, tmp_path: Path) -> None:
    function, example, others = NUMBERS[name]
    torch.manual_seed(0)
    model = Function(function, torch.randn(1, 4, 9, 11)).eval()
    emitted = to_onnx(model, example, tmp_path / "model.onnx", target=target)
    for args in (example, others):
        found = run_onnx(emitted.path.read_bytes(), args)
        with torch.no_grad():
            wanted = model(*args)
        for ours, theirs in zip(found, [wanted] if isinstance(wanted, Tensor) else wanted, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=TOLERANCE * 10, atol=0 if "small" in name else TOLERANCE)


@pytest.mark.parametrize("name", ["and", "or", "xor"])
def test_integers_bit_by_bit(name: str, tmp_path: Path) -> None:
    functions = {"and": lambda w, i: i & 6, "or": lambda w, i: i | 9, "xor": lambda w, i: i ^ 5}
    model = Function(functions[name], torch.ones(1)).eval()
    emitted = to_onnx(model, (COUNTS,), tmp_path / "model.onnx", target="onnxruntime")
    (found,) = run_onnx(emitted.path.read_bytes(), (-BIG,))
    assert torch.equal(found, model(-BIG))
    with pytest.raises(LoweringError, match=f"{BITS}.*no form on jetson-tx2"):
        to_onnx(model, (COUNTS,), tmp_path / "old.onnx")


def test_large_integers_are_told_apart(tmp_path: Path) -> None:
    model = Function(lambda w, i: [i == torch.tensor([2**60 + n]) for n in range(2)], torch.ones(1)).eval()
    emitted = to_onnx(model, (COUNTS,), tmp_path / "model.onnx", target="onnxruntime")
    found = run_onnx(emitted.path.read_bytes(), (COUNTS + 2**60,))
    assert [each.nonzero().tolist() for each in found] == [[[0]], [[1]]]


@pytest.mark.filterwarnings("ignore:var.*degrees of freedom")
def test_the_variance_of_one_number_is_none(tmp_path: Path) -> None:
    model = Function(lambda w, x: x[:, :1].var(1), torch.ones(1)).eval()
    emitted = to_onnx(model, (IMAGE,), tmp_path / "model.onnx")
    (found,) = run_onnx(emitted.path.read_bytes(), (-IMAGE,))
    assert found.isnan().all()


def test_a_convolution_of_a_constant(tmp_path: Path) -> None:
    model = Function(lambda w, x: F.conv1d(w[0], x[0, :, :, :3]), torch.randn(1, 4, 9, 11)).eval()
    emitted = to_onnx(model, (IMAGE,), tmp_path / "model.onnx", target="onnxruntime")
    (found,) = run_onnx(emitted.path.read_bytes(), (-IMAGE,))
    torch.testing.assert_close(found, model(-IMAGE), rtol=1e-5, atol=1e-5)


def test_complex_numbers_are_refused(tmp_path: Path) -> None:
    model = Function(lambda w, x: (x * w).abs(), torch.ones(1)).eval()
    with pytest.raises(LoweringError, match="complex numbers have no form"):
        to_onnx(model, (torch.ones(3, dtype=torch.complex64),), tmp_path / "model.onnx")
