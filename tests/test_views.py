"""Writes in place through every view that torch has."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import l1rr_fx
from l1rr_fx.testing import kill, randomised
from passes import CaptureError, capture
from passes.frontend.capture import exported_program
from passes.frontend.functionalise import viewed

VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "alias": lambda x: torch.ops.aten.alias(x),
    "detach": lambda x: x.detach(),
    "contiguous": lambda x: x.contiguous(),
    "to": lambda x: x.to(x.dtype),
    "type as": lambda x: x.to(x[:1]),
    "positive": lambda x: +x,
    "real": lambda x: x.real.resolve_conj().resolve_neg(),
    "cpu": lambda x: x.cpu(),
    "view": lambda x: x.view(2, 4, -1),
    "view as": lambda x: x.view_as(x.flatten().unsqueeze(1)),
    "reshape": lambda x: x.reshape(-1, 6),
    "reshape as": lambda x: x.reshape_as(x.flatten(2)),
    "flatten": lambda x: x.flatten(1, 2),
    "unflatten": lambda x: x.unflatten(1, (2, 4)),
    "ravel": lambda x: x.ravel(),
    "squeeze": lambda x: x.unsqueeze(0).squeeze(),
    "squeeze one": lambda x: x.unsqueeze(3).squeeze(3),
    "squeeze several": lambda x: x[None, None].squeeze((0, 1)),
    "expand": lambda x: x.expand(1, 1, *x.shape),
    "expand as": lambda x: x.expand_as(x[None]),
    "broadcast": lambda x: x.broadcast_to(1, *x.shape),
    "permute": lambda x: x.permute(2, 0, 3, 1),
    "transpose": lambda x: x.transpose(0, 2),
    "swap": lambda x: x.swapaxes(1, 2).swapdims(-1, 0),
    "move": lambda x: x.movedim(1, -1).moveaxis(0, 2),
    "move several": lambda x: x.movedim((0, 1), (2, 0)).moveaxis((0, 1), (1, 2)),
    "t": lambda x: x.flatten(1).t(),
    "T": lambda x: x.flatten(1).T,
    "mT": lambda x: x.mT,
    "mH": lambda x: x.mH,
    "H": lambda x: x.flatten(1).H,
    "adjoint": lambda x: x.adjoint(),
    "slice": lambda x: x[:, 1:-1, ::2],
    "select": lambda x: x[:, -1],
    "narrow": lambda x: x.narrow(1, 2, 5),
    "split": lambda x: x.split(3, 1)[1],
    "split by sizes": lambda x: x.split([2, 5, 1], 1)[1],
    "split with sizes": lambda x: x.split_with_sizes([2, 4], 2)[1],
    "chunk": lambda x: x.chunk(3, 1)[2],
    "tensor split": lambda x: x.tensor_split(3, 1)[0],
    "tensor split at": lambda x: x.tensor_split([1, 4], 1)[1],
    "hsplit": lambda x: x.hsplit(2)[1].vsplit(2)[0].dsplit(3)[2],
    "hsplit at": lambda x: x.hsplit([2])[1].vsplit([1])[0].dsplit([2])[0],
    "unbind": lambda x: x.unbind(1)[3],
    "diagonal": lambda x: x.diagonal(1, 1, 3),
    "linalg diagonal": lambda x: torch.linalg.diagonal(x, offset=-1),
    "windows": lambda x: x.unfold(2, 3, 3),
    "bits": lambda x: x.view(torch.int64).view(torch.float64),
    "complex": lambda x: torch.view_as_real(torch.view_as_complex(x.unflatten(3, (3, 2)))),
    "in a row": lambda x: x[:, 1:].transpose(1, 2).unflatten(2, (7, 1)).select(1, 2),
}

NO_DENSE_VALUE = ("indices", "values", "coalesce", "sparse", "nested", "_ncf", "get", "keys", "as_tensor")
INTERNAL = (
    "_fw",
    "_make_dual",
    "_unpack",
    "_test",
    "_autocast",
    "_grad_sum",
    "_reshape_alias",
    "slice_inverse",
    "lift",
)
NOT_REAL = ("conj", "imag", "_neg_view")
ELSEWHERE = ("cuda", "cpu", "pin_memory", "to.", "prim", "tensor_indices", "narrow.Tensor")  # of numbers, or no views
NOT_CAPTURED = ("contiguous", "split.default", "split.sizes")  # torch.export writes another call
REFUSED = ("as_strided",)


class Written(nn.Module):
    def __init__(self, views: dict[str, Callable[[Tensor], Tensor]]) -> None:
        super().__init__()
        self.views, self.scale = views, nn.Parameter(torch.tensor(1.5, dtype=torch.float64))

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for view in self.views.values():
            base = x * self.scale
            other = base[:, 1:, :3]
            view(base).mul_(2).add_(0.5)
            found += [base, other]
        return found


X = torch.randn(2, 8, 6, 6, dtype=torch.float64)


def test_what_is_written_through_a_view_reaches_its_base_and_other_views() -> None:
    model = Written(VIEWS)
    with torch.no_grad():
        for name, small, known in zip(
            [name for name in VIEWS for _ in (0, 1)], capture(model, (X,))(X), model(X), strict=True
        ):
            assert torch.equal(small, known), name


def test_the_result_of_a_write_is_not_written_again() -> None:
    """After a later write into the same memory the result of the first stands for the view, as it is then."""

    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x * 1.5
            first, second = x[:, :2], x[:, 2:5]
            first = first.mul_(2)
            second.transpose(1, 2).add_(1)
            x[:, 1:].neg_()
            return x + first.sum(1, keepdim=True)

    model = Twice()
    assert torch.equal(capture(model, (X,))(X), model(X))


def test_every_view_that_torch_has_is_among_them() -> None:
    with torch.no_grad():
        graph = exported_program(Written(VIEWS), (X,)).graph
    seen = {str(node.target).removeprefix("aten.") for node in graph.nodes if viewed(node) is not None}
    left_out = (
        *NO_DENSE_VALUE,
        *INTERNAL,
        *NOT_REAL,
        *ELSEWHERE,
        *NOT_CAPTURED,
        *REFUSED,
        ".a",
        "matrix_H",
        "numpy_T",
        "mH",
        "adj",
    )
    missing = [name for name in _views_of_torch() if name not in seen and not any(w in name for w in left_out)]
    assert not missing


def _views_of_torch() -> list[str]:
    """The operators whose result may share the memory of a tensor that they do not write."""
    found = set()
    for schema in torch._C._jit_get_all_schemas():
        takes = [each for each in schema.arguments[:1] if "Tensor" in str(each.type)]
        gives = any(each.alias_info is not None or "Tensor(a)" in str(each.type) for each in schema.returns)
        writes = any(each.alias_info is not None and each.alias_info.is_write for each in schema.arguments)
        if schema.name.startswith("aten::") and takes and gives and not writes:
            found.add(f"{schema.name.removeprefix('aten::')}.{schema.overload_name or 'default'}")
    assert len(found) > 90
    return sorted(found)


def test_a_view_by_places_in_memory_is_refused() -> None:
    with pytest.raises(CaptureError, match="a view that cannot be undone"):
        capture(Written({"": lambda x: x.as_strided((4, 4), (8, 1))}), (X,))


def test_views_of_sizes_that_may_change() -> None:
    views = {
        "axes": lambda x: x.movedim(1, -1).unflatten(3, (2, 4))[:, 1:],
        "part": lambda x: x.chunk(2, 1)[1],
        "part of the free axis": lambda x: x.narrow(2, 1, 3),
    }
    model = Written(views)
    small = capture(model, (X,), dynamic_shapes=({2: Dim("height", min=4, max=64)},))
    other = torch.randn(2, 8, 9, 6, dtype=torch.float64)
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(small(other), model(other), strict=True))


def test_dead_channels_go_through_views_that_are_written() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.norm, self.last = nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.norm(self.first(x))
            x.movedim(1, -1).relu_()
            x.unflatten(1, (2, 4)).mul_(2)
            x.chunk(2, 1)[1].mul_(3)
            x[:, ::3].mul_(0.5)
            return self.last(x)

    model = randomised(Net())
    kill(model.norm, rows=(0, 3, 5))
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    small = l1rr_fx.prune(model, (x,))
    assert small.module.get_parameter("last.weight").shape[1] == 5 and not small.report.pieces
    with torch.no_grad():
        assert torch.allclose(small.module(x), model(x), rtol=1e-12, atol=1e-12)
