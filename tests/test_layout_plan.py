"""Golden texts: the layout plans of six small networks, as `str(plan)` prints them, and why one layout was chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import dedent

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from l1rr_fx.testing import kill, randomised
from passes import (
    InputError,
    LayoutPlan,
    Options,
    Program,
    capture,
    channel_facts,
    normalise,
    plan_layouts,
    rule_for,
)

IMAGE = (1, 3, 8, 8)


class Residual(nn.Module):
    """A sum of a layer and the layer after it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        result: Tensor = self.head(x + self.branch(x))
        return result


class Concatenation(nn.Module):
    """Two layers side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1), nn.Conv2d(10, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(torch.cat([self.left(x), self.right(x)], 1).relu())
        return result


class Grouped(nn.Module):
    """A convolution of two groups."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grouped, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=2), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.grouped(self.stem(x)))
        return result


class Attention(nn.Module):
    """Two heads of four channels."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(8, 24), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(2, 5, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
        result: Tensor = self.head(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 5, 8))
        return result


class Shuffle(nn.Module):
    """Channels of two groups interleaved."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(F.channel_shuffle(self.stem(x), 2).relu())
        return result


class Shared(nn.Module):
    """One layer called twice: what its second call reads is what its first call gives."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared, self.head = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.shared(self.shared(self.stem(x))))
        return result


def planned(model: nn.Module, dead: Mapping[str, Sequence[int]], mode: str = "recombine") -> LayoutPlan:
    """The layout plan of a network of which these output channels are zero."""
    randomised(model, dtype=torch.float32)
    for name, rows in dead.items():
        kill(model.get_submodule(name), rows)
    shape = (2, 5, 8) if isinstance(model, Attention) else IMAGE
    program = Program(normalise(capture(model, (torch.zeros(shape),))), rule_for)
    return plan_layouts(program, channel_facts(program), Options(mode))


RESIDUAL = {"stem": (1, 4), "branch": (2, 4, 6)}

CASES: Mapping[str, tuple[type[nn.Module], Mapping[str, Sequence[int]], str]] = {
    "residual": (
        Residual,
        RESIDUAL,
        """
        value     layout                          reason
        x         axis 1: all 3                   as it is given
        conv2d    axis 1: 6 of 8 [0 3 5 7 2 6]    what is live
        conv2d_1  axis 1: 5 of 8 [1 0 3 5 7]      what is live
        add       axis 1: 7 of 8 [1 0 3 5 7 2 6]  what is live
        conv2d_2  axis 1: all 2                   what is live
        """,
    ),
    "concatenation": (
        Concatenation,
        {"left": (1, 2), "right": (0, 5)},
        """
        value     layout                     reason
        x         axis 1: all 3              as it is given
        conv2d    axis 1: 2 of 4 [0 3]       what is live
        conv2d_1  axis 1: 4 of 6 [1-4]       what is live
        cat       axis 1: 6 of 10 [0 3 5-8]  what is live
        relu      axis 1: 6 of 10 [0 3 5-8]  what is live
        conv2d_2  axis 1: all 2              what is live
        """,
    ),
    "grouped": (
        Grouped,
        {"stem": (0,), "grouped": (1, 2, 5)},
        """
        value     layout                        reason
        x         axis 1: all 3                 as it is given
        conv2d    axis 1: 7 of 8 [1-7]          what is live
        conv2d_1  axis 1: 6 of 8 [0-1 3-4 6-7]  groups of a convolution made equally wide
        conv2d_2  axis 1: all 2                 what is live
        """,
    ),
    "attention": (
        Attention,
        {"qkv": (0, 5, 16, 22)},
        """
        value                         layout                                                             reason
        x                             axis 1: all 5, axis 2: all 8                                       as it is given
        linear                        axis 1: all 5, axis 2: 18 of 24 [1-4 6-7 9-12 14-15 17-21 23]      what is live
        view                          axes 1, 2, 3, 4: 5 x 3 x 2 x 3 of 5 x 3 x 2 x 4, rows that differ  what is live
        permute                       axes 0, 2, 3, 4: 3 x 2 x 5 x 3 of 3 x 2 x 5 x 4, rows that differ  what is live
        getitem_3                     axes 2, 3, 4: 2 x 5 x 3 of 2 x 5 x 4, rows that differ             what is live
        squeeze_dim                   axes 1, 2, 3: 2 x 5 x 3 of 2 x 5 x 4, rows that differ             what is live
        getitem_4                     axes 2, 3, 4: 2 x 5 x 3 of 2 x 5 x 4, rows that differ             what is live
        squeeze_dim_1                 axes 1, 2, 3: 2 x 5 x 3 of 2 x 5 x 4, rows that differ             what is live
        getitem_5                     axes 2, 3, 4: 2 x 5 x 3 of 2 x 5 x 4, rows that differ             what is live
        squeeze_dim_2                 axes 1, 2, 3: 2 x 5 x 3 of 2 x 5 x 4, rows that differ             what is live
        scaled_dot_product_attention  axes 1, 3: 2 x 3 of 2 x 4, rows that differ                        what is live
        transpose                     axes 2, 3: 2 x 3 of 2 x 4, rows that differ                        what is live
        reshape                       axis 2: 6 of 8 [1-5 7]                                             what is live
        linear_1                      axis 2: all 2                                                      what is live
        """,
    ),
    "shuffle": (
        Shuffle,
        {"stem": (1, 4, 6)},
        """
        value            layout                      reason
        x                axis 1: all 3               as it is given
        conv2d           axis 1: 5 of 8 [0 2-3 5 7]  what is live
        channel_shuffle  axis 1: 5 of 8 [0 4 6 3 7]  what is live
        relu             axis 1: 5 of 8 [0 4 6 3 7]  what is live
        conv2d_1         axis 1: all 2               what is live
        """,
    ),
    "shared": (
        Shared,
        {"stem": (1,), "shared": (2, 3)},
        """
        value     layout                    reason
        x         axis 1: all 3             as it is given
        conv2d    axis 1: 5 of 6 [0 2-5]    what is live
        conv2d_1  axis 1: 4 of 6 [0-1 4-5]  what is live
        conv2d_2  axis 1: 4 of 6 [0-1 4-5]  what is live
        conv2d_3  axis 1: all 2             what is live
        """,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_plan_reads(name: str) -> None:
    make, dead, expected = CASES[name]
    assert str(planned(make(), dead)) == dedent(expected).strip()


def test_branches_that_share_a_mask() -> None:
    """In mode "union" both operands of the sum keep what either keeps."""
    plan = planned(Residual(), RESIDUAL, "union")
    assert str(plan) == dedent(UNION).strip()


def test_a_choice_is_explained() -> None:
    plan = planned(Residual(), RESIDUAL)
    assert plan.explain("conv2d_1") == dedent(EXPLAINED).strip()
    node = next(node for node in plan.layout if node.name == "conv2d_1")
    assert plan.explain(node) == plan.explain("conv2d_1")


def test_inputs_are_explained_too() -> None:
    explained = planned(Residual(), RESIDUAL).explain("x")
    assert "axis 1: all 3" in explained and "as it is given" in explained


def test_a_name_that_is_no_tensor() -> None:
    with pytest.raises(InputError, match="'nothing' is no tensor of the small network"):
        planned(Residual(), RESIDUAL).explain("nothing")


def test_what_is_no_node() -> None:
    plan = planned(Residual(), RESIDUAL)
    with pytest.raises(InputError, match="node is a NoneType; expected a node of the graph or its name"):
        plan.explain(None)  # type: ignore[arg-type]
    stranger = planned(Residual(), RESIDUAL)
    with pytest.raises(InputError, match="'conv2d_1' is no tensor"):
        plan.explain(next(node for node in stranger.layout if node.name == "conv2d_1"))


UNION = """
value     layout                          reason
x         axis 1: all 3                   as it is given
conv2d    axis 1: 7 of 8 [1 0 3 5 7 2 6]  kept because another branch of a sum keeps it
conv2d_1  axis 1: 7 of 8 [1 0 3 5 7 2 6]  kept because another branch of a sum keeps it
add       axis 1: 7 of 8 [1 0 3 5 7 2 6]  what is live
conv2d_2  axis 1: all 2                   what is live
"""

EXPLAINED = """
conv2d_1, target none; * is chosen
   layout                          dead  cost   saves  reason
*  axis 1: 5 of 8 [1 0 3 5 7]      0     0      0      what is live
   axis 1: 7 of 8 [1 0 3 5 7 2 6]  2     never  3072   dead channels computed as zeros instead of a copy
"""
