"""With `dynamic_shapes` the small network refuses inputs of sizes that it was not captured for."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

import l1rr_fx
import passes
from l1rr_fx.testing import kill, randomised


class Pooled(nn.Module):
    """Large images are pooled first."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        if x.shape[2] > 12:
            y = nn.functional.max_pool2d(y, 2)
        out: Tensor = self.head(y).mean((2, 3))
        return out


class Pair(nn.Module):
    """Two images of one size, whose number of rows is a multiple of 4."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if x.shape[2] % 4:
            raise ValueError("no multiple of 4")
        out: Tensor = self.head(self.stem(x) + self.stem(y))
        return out


def image(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def pruned_of(model: nn.Module, *args: Tensor, shapes: Any) -> Any:
    model = randomised(model)
    kill(model.get_submodule("stem"), [0, 1, 2])
    return l1rr_fx.prune(model, args, dynamic_shapes=shapes), model


@pytest.mark.parametrize(
    "sizes", [{2: Dim.AUTO, 3: Dim.AUTO}, {2: Dim("h", max=12), 3: Dim("w")}], ids=["automatic", "named"]
)
def test_what_the_code_assumed_is_checked(sizes: dict[int, Any]) -> None:
    pruned, model = pruned_of(Pooled(), image(2, 3, 8, 8), shapes=(sizes,))
    x = image(2, 3, 12, 20)
    torch.testing.assert_close(pruned.module(x), model(x))
    with pytest.raises(RuntimeError, match=r"x\.shape\[2\] <= 12"):
        pruned.module(image(2, 3, 16, 16))
    with pytest.raises(RuntimeError, match=r"x\.shape\[0\] is not 2.*dynamic_shapes"):
        pruned.module(image(1, 3, 8, 8))


def test_sizes_that_must_agree() -> None:
    free = {2: Dim.AUTO}
    pruned, model = pruned_of(Pair(), image(1, 3, 8, 8), image(1, 3, 8, 8), shapes=(free, free))
    x = image(1, 3, 16, 8)
    torch.testing.assert_close(pruned.module(x, x), model(x, x))
    with pytest.raises(RuntimeError, match=r"y\.shape\[2\] is not x\.shape\[2\]"):
        pruned.module(image(1, 3, 8, 8), image(1, 3, 16, 8))
    with pytest.raises(RuntimeError, match=r"Mod\(x\.shape\[2\], 4\)"):
        pruned.module(image(1, 3, 10, 8), image(1, 3, 10, 8))


def test_a_batch_of_one_is_served() -> None:
    pruned, model = pruned_of(Pooled(), image(2, 3, 8, 8), shapes=({0: Dim("batch")},))
    x = image(1, 3, 8, 8)
    torch.testing.assert_close(pruned.module(x), model(x))


def test_without_dynamic_shapes_nothing_is_checked() -> None:
    pruned, _ = pruned_of(Pooled(), image(2, 3, 8, 8), shapes=None)
    assert not [node for node in pruned.module.graph.nodes if "assert" in str(node.target)]


def test_the_checks_survive(tmp_path: Path) -> None:
    """A copy, a file, another export, the folding of batch norms, torch.compile."""
    pruned, model = pruned_of(Pooled(), image(2, 3, 8, 8), shapes=({2: Dim.AUTO},))
    pruned.save(tmp_path / "small")
    survivors = {
        "copied": copy.deepcopy(pruned.module),
        "loaded": l1rr_fx.load(tmp_path / "small").module,
        "folded": passes.fold_constants(passes.fold_batch_norm(pruned.module)),
        "compiled": torch.compile(pruned.module, backend="eager", dynamic=True),
    }
    for name, module in survivors.items():
        x = image(2, 3, 12, 8)
        torch.testing.assert_close(module(x), model(x), msg=name)
        with pytest.raises(RuntimeError, match=r"x\.shape\[2\] <= 12"):
            module(image(2, 3, 16, 8))
    again = l1rr_fx.prune(pruned.module, (image(2, 3, 8, 8),), dynamic_shapes=({2: Dim.AUTO},))
    with pytest.raises(RuntimeError, match=r"<= 12"):
        again.module(image(2, 3, 16, 8))
